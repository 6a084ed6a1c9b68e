//! The parts of a cluster that can be exchanged: what carries Services, and what carries packets between nodes.

/// What carries Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ServiceProxy {
    /// Portolan, from `deploy/`.
    Portolan,
    /// kube-proxy with its nftables mode, by kubeadm.
    KubeProxy,
    /// Nothing: Services do not work.
    None,
}

/// What carries packets between pods of different nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Overlay {
    /// Portolan, from `deploy/`.
    Portolan,
    /// flannel's vxlan.
    Flannel,
}

/// The folder of `deploy/` that does this.
pub(super) fn folder(proxy: ServiceProxy, overlay: Overlay) -> Option<&'static str> {
    match (proxy, overlay) {
        (ServiceProxy::Portolan, Overlay::Portolan) => Some("proxy-and-overlay"),
        (ServiceProxy::Portolan, Overlay::Flannel) => Some("proxy"),
        (ServiceProxy::KubeProxy | ServiceProxy::None, Overlay::Portolan) => Some("overlay-only"),
        (ServiceProxy::KubeProxy | ServiceProxy::None, Overlay::Flannel) => None,
    }
}
