use std::path::Path;

use super::ManifestsConfig;

mod following;
mod reading;

pub(super) fn service(name: &str, ip: &str, port: u32) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  clusterIP: {ip}\n  ports:\n  - port: {port}\n"
    )
}

pub(super) fn config(dir: &Path) -> ManifestsConfig {
    ManifestsConfig {
        dir: dir.to_owned(),
        node_ports: 30000..=32767,
        proxy_name: None,
    }
}
