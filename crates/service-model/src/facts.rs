//! What is true of this node, besides its Services: resolved once per change of Node object, local
//! addresses or configuration, and handed to every plan.

#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::objects::{AddressFamily, Node};

/// How a local pod's source address is recognised (kube-proxy's `--detect-local-mode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Sources in these CIDRs are pods of the cluster: `--cluster-cidr`, the first of each family. Empty: no detector,
    /// so nothing to a cluster IP is masqueraded but hairpins.
    ClusterCidr(Vec<IpNet>),
    /// Sources in this node's `spec.podCIDRs` are local pods.
    NodeCidr,
}

/// On which of the node's addresses node ports are served (kube-proxy's `--nodeport-addresses`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The Node object's own address of each family (`primary`, the default in nftables mode).
    Primary,
    /// The node's interface addresses within these ranges, loopback excepted.
    Cidrs(Vec<IpNet>),
}

/// What the operator asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of this node (`--hostname-override`).
    pub node_name: Arc<str>,
    /// `--detect-local-mode` with `--cluster-cidr`.
    pub detect_local: DetectLocal,
    /// `--nodeport-addresses`
    pub nodeport_addresses: NodePortAddresses,
    /// `--masquerade-all`
    pub masquerade_all: bool,
}

/// The facts a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of this node: endpoints with this node name are local.
    pub node_name: Arc<str>,
    /// Zone of this node.
    pub zone: Option<Arc<str>>,
    /// Addresses that serve node ports, sorted, both families.
    pub node_addresses: Vec<IpAddr>,
    /// Sources that are local pods, sorted; per family an absent range means: no detector.
    pub local_sources: Vec<IpNet>,
    /// Everything to a cluster IP is masqueraded.
    pub masquerade_all: bool,
}

impl NodeFacts {
    /// Resolves configuration, Node object and interface addresses. Loopback addresses never serve node
    /// ports (row 57). The order of interface addresses does not matter, nor does that of ranges but for those
    /// of [`DetectLocal::ClusterCidr`]; of the Node's addresses the first of each family is its own.
    pub fn resolve(config: &NodeConfig, node: &Node, interface_addresses: &[IpAddr]) -> NodeFacts {
        let mut node_addresses: Vec<IpAddr> = match &config.nodeport_addresses {
            NodePortAddresses::Primary => AddressFamily::ALL
                .into_iter()
                .filter_map(|family| {
                    let own = node
                        .addresses
                        .iter()
                        .find(|a| AddressFamily::of(**a) == family);
                    own.copied()
                })
                .collect(),
            NodePortAddresses::Cidrs(cidrs) => interface_addresses
                .iter()
                .filter(|a| cidrs.iter().any(|c| c.contains(*a)))
                .copied()
                .collect(),
        };
        node_addresses.retain(|a| !a.is_loopback() && !a.is_unspecified());
        node_addresses.sort_unstable();
        node_addresses.dedup();
        let mut local_sources: Vec<IpNet> = match &config.detect_local {
            DetectLocal::ClusterCidr(cidrs) => AddressFamily::ALL
                .into_iter()
                .filter_map(|family| cidrs.iter().find(|c| AddressFamily::of(c.addr()) == family))
                .map(IpNet::trunc)
                .collect(),
            DetectLocal::NodeCidr => node.pod_cidrs.clone(),
        };
        local_sources.sort_unstable();
        local_sources.dedup();
        NodeFacts {
            node_name: config.node_name.clone(),
            zone: node.zone.clone(),
            node_addresses,
            local_sources,
            masquerade_all: config.masquerade_all,
        }
    }
}
