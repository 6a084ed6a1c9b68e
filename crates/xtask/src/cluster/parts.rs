//! The parts of a cluster that can be exchanged: what carries Services, and what carries packets between nodes.

use anyhow::{Result, ensure};

/// What carries Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ServiceProxy {
    /// Portolan, from `deploy/`.
    Portolan,
    /// kube-proxy with its nftables mode, by kubeadm.
    KubeProxy,
    /// Nothing: Services and cluster DNS do not work.
    None,
}

/// What carries packets between pods of different nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Overlay {
    /// Portolan, from `deploy/`.
    Portolan,
    /// flannel, by its own kube-flannel.yml.
    Flannel,
}

/// What a cluster is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(super) struct Parts {
    /// Program that carries Services
    #[arg(long, value_enum, default_value = "portolan")]
    pub(super) proxy: ServiceProxy,
    /// Program that carries packets between pods of different nodes
    #[arg(long, value_enum, default_value = "portolan")]
    pub(super) overlay: Overlay,
}

impl Parts {
    /// An error for what cannot start.
    pub(super) fn check(self) -> Result<()> {
        ensure!(
            (self.proxy, self.overlay) != (ServiceProxy::None, Overlay::Flannel),
            "flannel reaches the API server through a Service: give --proxy portolan or --proxy kube-proxy with it"
        );
        Ok(())
    }

    /// The folder of `deploy/` that does Portolan's part, if it has one.
    pub(super) fn folder(self) -> Option<&'static str> {
        match (self.proxy, self.overlay) {
            (ServiceProxy::Portolan, Overlay::Portolan) => Some("proxy-and-overlay"),
            (ServiceProxy::Portolan, Overlay::Flannel) => Some("proxy"),
            (_, Overlay::Portolan) => Some("overlay-only"),
            (_, Overlay::Flannel) => None,
        }
    }
}
