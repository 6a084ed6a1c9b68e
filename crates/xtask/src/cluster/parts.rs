//! The parts of a cluster to choose from: the service proxy, and the overlay between nodes.

use anyhow::{Result, ensure};

/// The service proxy of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum ServiceProxy {
    /// Portolan, from `deploy/`.
    Portolan,
    /// kube-proxy with its nftables mode, by kubeadm.
    KubeProxy,
    /// kube-proxy with its iptables mode, and programs that write nftables.
    KubeProxyIptables,
    /// kube-proxy with its iptables mode, and programs that write legacy tables.
    KubeProxyIptablesLegacy,
    /// Nothing: Services and cluster DNS do not work.
    None,
}

impl ServiceProxy {
    /// The mode of kube-proxy, if it is kube-proxy.
    pub(super) fn mode(self) -> Option<&'static str> {
        match self {
            ServiceProxy::KubeProxy => Some("nftables"),
            ServiceProxy::KubeProxyIptables | ServiceProxy::KubeProxyIptablesLegacy => {
                Some("iptables")
            }
            ServiceProxy::Portolan | ServiceProxy::None => None,
        }
    }
}

/// The overlay of a cluster: connects pods on different nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Overlay {
    /// Portolan, from `deploy/`.
    Portolan,
    /// flannel, by its own kube-flannel.yml.
    Flannel,
}

/// The chosen parts of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::Args)]
pub(super) struct Parts {
    /// Program that carries Services
    #[arg(long, value_enum, default_value = "portolan")]
    pub(super) proxy: ServiceProxy,
    /// Program that carries packets between pods of different nodes
    #[arg(long, value_enum, default_value = "portolan")]
    pub(super) overlay: Overlay,
    /// Route packets between nodes without a tunnel, with Portolan's overlay
    #[arg(long)]
    pub(super) direct_routing: bool,
    /// Serve node ports on localhost as well
    #[arg(long)]
    pub(super) localhost_node_ports: bool,
}

/// Fields of KubeProxyConfiguration that serve node ports on localhost as well. kube-proxy's nftables mode has this behind a gate.
pub(super) const LOCALHOST_NODE_PORTS: [&str; 2] = [
    "nodePortAddresses: [primary, localhost]",
    "featureGates: {KubeProxyNFTablesLocalhostNodePorts: true}",
];

impl Parts {
    /// Fails for a combination that cannot become ready.
    pub(super) fn check(self) -> Result<()> {
        ensure!(
            (self.proxy, self.overlay) != (ServiceProxy::None, Overlay::Flannel),
            "flannel reaches the API server through a Service: give --proxy portolan or --proxy kube-proxy with it"
        );
        ensure!(
            !(self.direct_routing && self.overlay == Overlay::Flannel),
            "--direct-routing is for Portolan's overlay only"
        );
        Ok(())
    }

    /// The folder of `deploy/` with the manifests for Portolan's parts, if it has any.
    pub(super) fn folder(self) -> Option<&'static str> {
        match (self.proxy, self.overlay) {
            (ServiceProxy::Portolan, Overlay::Portolan) => Some("proxy-and-overlay"),
            (ServiceProxy::Portolan, Overlay::Flannel) => Some("proxy"),
            (_, Overlay::Portolan) => Some("overlay-only"),
            (_, Overlay::Flannel) => None,
        }
    }
}
