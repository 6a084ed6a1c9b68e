//! The part of a cluster that can be exchanged: what carries Services.

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

/// The folder of `deploy/` that does this, and carries packets between nodes.
pub(super) fn folder(proxy: ServiceProxy) -> &'static str {
    match proxy {
        ServiceProxy::Portolan => "proxy-and-overlay",
        ServiceProxy::KubeProxy | ServiceProxy::None => "overlay-only",
    }
}
