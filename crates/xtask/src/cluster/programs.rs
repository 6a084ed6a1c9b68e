//! Builds and fetches the programs of a cluster, from pinned sources or packages. None is installed on this machine.

use std::path::PathBuf;

use anyhow::Result;

use crate::control_plane;
use crate::kernels::packages::Store;

/// Folders with programs.
pub(super) struct Programs {
    /// etcd, kube-apiserver, ..., kubectl, kube-proxy, flanneld.
    pub(super) control_plane: PathBuf,
    /// kubelet and kubeadm.
    pub(super) node: PathBuf,
    /// Cluster DNS.
    pub(super) coredns: PathBuf,
    /// The tree of Debian's package.
    pub(super) containerd: PathBuf,
    /// The CNI plugins.
    pub(super) plugins: PathBuf,
}

impl Programs {
    /// Builds and fetches the programs that are not in the cache.
    pub(super) fn get() -> Result<Programs> {
        let store = Store::open()?;
        Ok(Programs {
            control_plane: control_plane::newest()?,
            node: control_plane::node::programs()?,
            coredns: control_plane::coredns::program()?,
            // Bookworm's is of the series 1.6, which kubelet no longer takes.
            containerd: store.package("sid", "containerd")?,
            plugins: store
                .package("bookworm", "containernetworking-plugins")?
                .join("usr/lib/cni"),
        })
    }

    /// The version of Kubernetes, such as `v1.37.1`.
    pub(super) fn version(&self) -> Result<String> {
        let versions = std::fs::read_to_string(self.control_plane.join("versions"))?;
        let version = versions
            .lines()
            .find_map(|line| line.strip_prefix("kube-apiserver "));
        Ok(version.unwrap_or_default().to_owned())
    }

    /// kube-proxy of that version.
    pub(super) fn kube_proxy(&self) -> Result<PathBuf> {
        let version = self.version()?;
        let mut numbers = version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next(), numbers.next());
        let name = format!(
            "kube-proxy-{}.{}",
            major.unwrap_or_default(),
            minor.unwrap_or_default()
        );
        Ok(self.control_plane.join(name))
    }
}
