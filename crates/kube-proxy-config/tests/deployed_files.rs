//! The configuration files that `deploy/` gives to clusters: each can be used, and means what its folder says.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::PathBuf;

use kube_proxy_config::{CommandLine, Dialect, Effective};
use serde::Deserialize;

#[derive(Default, Deserialize)]
#[serde(default)]
struct Object {
    kind: String,
    data: std::collections::BTreeMap<String, String>,
}

fn text(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../deploy")
        .join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// The effective configuration of a folder's ConfigMap, which must give no cause for a warning.
fn effective(folder: &str) -> Effective {
    let manifests = text(&format!("{folder}/portolan.yaml"));
    let objects: Vec<Object> = serde_saphyr::from_multiple(&manifests).unwrap();
    let map = objects.iter().find(|object| object.kind == "ConfigMap");
    let file = &map.unwrap().data["config.conf"];
    let arguments = ["--config=/var/lib/portolan/config.conf"];
    let line = CommandLine::read(Dialect::Portolan, &arguments, |_| None);
    let resolved = line.resolve(Some(file));
    let resolved = resolved.unwrap_or_else(|problems| panic!("{folder}: {problems}"));
    assert_eq!(resolved.notes.warnings, Vec::<String>::new(), "{folder}");
    assert_eq!(resolved.notes.unused, Vec::<String>::new(), "{folder}");
    resolved.effective
}

#[test]
fn each_folder_runs_the_parts_that_it_promises() {
    for (folder, service_proxy, overlay) in [
        ("proxy", true, false),
        ("proxy-and-overlay", true, true),
        ("overlay-only", false, true),
        ("kind", true, true),
        ("k3s", true, true),
        ("rke2", true, false),
        ("talos", true, false),
        ("eks", true, false),
    ] {
        let effective = effective(folder);
        assert_eq!(effective.service_proxy, service_proxy, "{folder}");
        assert_eq!(effective.overlay.is_some(), overlay, "{folder}");
        let ports = [effective.listeners.healthz, effective.listeners.metrics]
            .map(|address| address.unwrap().port());
        let expected = match service_proxy {
            true => [10_256, 10_249],
            false => [20_256, 20_249],
        };
        assert_eq!(ports, expected, "{folder}");
        if let Some(overlay) = effective.overlay {
            let file = overlay.cni_conf.unwrap();
            assert_eq!(file.to_str(), Some("/etc/cni/net.d/10-flannel.conflist"));
            assert!(!effective.services.cluster_cidrs.is_empty(), "{folder}");
        }
    }
}
