//! The CNI plugins that the configuration of `--cni-conf` needs, and whether this node has them.
//!
//! If a plugin is missing, no pod of this node starts, and only the container runtime reports that, for each pod. Portolan installs
//! no plugin: nodes have them from the package `kubernetes-cni`, or the chart installs them from an image.

use std::path::Path;

/// Programs that the configuration names.
const NEEDED: [&str; 3] = ["bridge", "host-local", "portmap"];

/// Logs which plugins are missing.
pub(super) fn check(folder: &Path) {
    let missing = missing(folder);
    if !missing.is_empty() {
        tracing::warn!(
            plugins = missing.join(" "),
            directory = %folder.display(),
            "CNI plugins are missing: pods of this node cannot start; install the package kubernetes-cni, or set \
             cni.plugins.image of the chart (--cni-bin-dir: where they are)"
        );
    }
}

fn missing(folder: &Path) -> Vec<&'static str> {
    let is_missing = |name: &&str| !folder.join(name).is_file();
    NEEDED.into_iter().filter(is_missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_plugins_are_those_without_a_program() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(missing(&folder.path().join("missing")), NEEDED);
        for name in ["bridge", "portmap", "other"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(missing(folder.path()), ["host-local"]);
        std::fs::write(folder.path().join("host-local"), "").unwrap();
        assert!(missing(folder.path()).is_empty());
    }
}
