//! The program that this binary is called as: one binary replaces kube-proxy, flanneld and flannel's `install-conf`.

use std::path::Path;

/// What the name of the binary asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// `portolan`, with its subcommands; any name that is no other program's.
    Portolan,
    /// `kube-proxy`: the daemon with kube-proxy's command line.
    KubeProxy,
    /// `flanneld`: the daemon with flanneld's command line.
    Flanneld,
    /// `install-conf` and `cp`, in init containers of flannel's manifests.
    Copy(&'static str),
    /// `kubectl-portolan`, which kubectl calls for `kubectl portolan`: commands on all nodes.
    KubectlPlugin,
}

impl Program {
    /// The program by the path that it was called by.
    pub fn named(path: &str) -> Program {
        let name = Path::new(path).file_name().unwrap_or_default();
        match name.to_str() {
            Some("kube-proxy") => Program::KubeProxy,
            Some("flanneld") => Program::Flanneld,
            Some("install-conf") => Program::Copy("install-conf"),
            Some("cp") => Program::Copy("cp"),
            Some("kubectl-portolan") => Program::KubectlPlugin,
            _ => Program::Portolan,
        }
    }
}
