//! The facts about this node that plans depend on: resolved once for each change of Node object, local addresses or
//! configuration, and passed to every plan.

#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
pub use net_types::NodePortAddress;

use crate::objects::{Family, Node};

/// How a local pod's source address is recognized (kube-proxy's `--detect-local-mode`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DetectLocal {
    /// Sources in these CIDRs are pods of the cluster: `--cluster-cidr`, the first of each family. Empty: no detector,
    /// so nothing to a cluster IP is masqueraded but hairpins.
    ClusterCidr(Vec<IpNet>),
    /// Sources in this node's `spec.podCIDRs` are local pods.
    NodeCidr,
    /// What comes in by this interface is from a local pod.
    Interface(LocalInterface),
}

/// The interfaces that local pods' packets come in by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LocalInterface {
    /// `BridgeInterface`: the one of this name, 1 to 15 bytes.
    Named(Arc<str>),
    /// `InterfaceNamePrefix`: all whose names begin so, 1 to 15 bytes.
    Prefix(Arc<str>),
}

/// The operator's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeConfig {
    /// Name of this node (`--hostname-override`).
    pub node_name: Arc<str>,
    /// `--detect-local-mode` with `--cluster-cidr`.
    pub detect_local: DetectLocal,
    /// `--nodeport-addresses`: on which of the node's addresses node ports are served.
    pub nodeport_addresses: Vec<NodePortAddress>,
    /// `--masquerade-all`
    pub masquerade_all: bool,
    /// `--cluster-cidr`, whatever detects local pods.
    pub cluster_cidrs: Vec<IpNet>,
    /// `--allowed-external-ips`: external IPs outside these ranges are refused (CVE-2020-8554). `None`: those that belong
    /// to pods, other Nodes or cluster IPs.
    pub allowed_external_ips: Option<Vec<IpNet>>,
    /// Overrides the Node's own address of its family (`--bind-address`, unless that is a wildcard).
    pub node_ip: Option<IpAddr>,
    /// Where this node reaches the API server, if that is known: maybe an address of a load balancer in front of it.
    pub api_server: Option<SocketAddr>,
}

impl NodeConfig {
    /// The defaults of every flag, for the node of this name.
    pub fn named(node_name: impl Into<Arc<str>>) -> Self {
        NodeConfig {
            node_name: node_name.into(),
            detect_local: DetectLocal::ClusterCidr(Vec::new()),
            nodeport_addresses: vec![NodePortAddress::Primary],
            masquerade_all: false,
            cluster_cidrs: Vec::new(),
            allowed_external_ips: None,
            node_ip: None,
            api_server: None,
        }
    }

    /// Whether node ports are on every address of a family. That is so too if all ranges are of the other family
    /// (kube-proxy's `NewNodePortAddresses`; row 54).
    fn everywhere(&self, family: Family) -> bool {
        let is_other = |item: &NodePortAddress| match item {
            NodePortAddress::Cidr(range) => Family::of(range.addr()) != family,
            _ => false,
        };
        let is_all = |item: &NodePortAddress| match item {
            NodePortAddress::All => true,
            NodePortAddress::Cidr(range) => range.prefix_len() == 0 && !is_other(item),
            NodePortAddress::Primary
            | NodePortAddress::Localhost
            | NodePortAddress::LocalhostIpv4 => false,
        };
        let list = &self.nodeport_addresses;
        list.iter().any(is_all) || (!list.is_empty() && list.iter().all(is_other))
    }

    /// Whether node ports are requested on loopback addresses of a family.
    pub fn covers_loopback(&self, family: Family) -> bool {
        let mut items = self.nodeport_addresses.iter();
        items.any(|item| item.covers_loopback(family))
    }

    /// Where sockets for health checks listen, sorted: at the unspecified address if node ports are everywhere, else at
    /// the node addresses (of [`NodeFacts`]) that serve node ports, and at loopback if that is requested.
    pub fn listening_addresses(&self, node_addresses: &[IpAddr]) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for family in Family::ALL {
            let (any, loopback): (IpAddr, IpAddr) = match family {
                Family::Ip => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
                Family::Ip6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
            };
            if self.everywhere(family) {
                addresses.push(any);
                continue;
            }
            let of_family = |a: &&IpAddr| Family::of(**a) == family;
            addresses.extend(node_addresses.iter().filter(of_family));
            if self.covers_loopback(family) {
                addresses.push(loopback);
            }
        }
        sorted(addresses)
    }
}

/// The facts a plan depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeFacts {
    /// Name of this node: endpoints with this node name are local.
    pub node_name: Arc<str>,
    /// Zone of this node.
    pub zone: Option<Arc<str>>,
    /// The Node object's own addresses, the first of each family.
    pub own_addresses: Vec<IpAddr>,
    /// Addresses that serve node ports, sorted, both families.
    pub node_addresses: Vec<IpAddr>,
    /// Sources that are local pods, sorted; per family an absent range means: no detector.
    pub local_sources: Vec<IpNet>,
    /// The interfaces that local pods are behind, in the modes that detect by interface.
    pub local_interface: Option<LocalInterface>,
    /// Everything to a cluster IP is masqueraded.
    pub masquerade_all: bool,
    /// Ranges of cluster IPs, sorted: traffic to unallocated addresses in them is dropped (KEP-1880).
    pub service_cidrs: Vec<IpNet>,
    /// Where the API server answers, sorted (configured, and [`crate::Index::api_servers`]): external frontends there are
    /// ignored.
    pub api_servers: Vec<SocketAddr>,
    /// See [`NodeConfig::allowed_external_ips`].
    pub allowed_external_ips: Option<Vec<IpNet>>,
    /// Ranges of pods, as far as this node knows them.
    pub pod_ranges: Vec<IpNet>,
}

impl NodeFacts {
    /// Resolves configuration, Node object, interface addresses and the ranges of all ServiceCIDRs. Loopback
    /// addresses never serve node ports (row 57). The order of interface addresses does not matter, nor does that of
    /// ranges but for those of [`DetectLocal::ClusterCidr`]; of the Node's addresses the first of each family is its
    /// own.
    pub fn resolve(
        config: &NodeConfig,
        node: &Node,
        interface_addresses: &[IpAddr],
        service_cidrs: &[IpNet],
    ) -> NodeFacts {
        let first_of = |family| {
            let mut own = config.node_ip.iter().chain(&*node.addresses);
            own.find(|a| Family::of(**a) == family).copied()
        };
        let own_addresses: Vec<IpAddr> = Family::ALL.into_iter().filter_map(first_of).collect();
        let interfaces = interface_addresses.iter().copied();
        let mut node_addresses = Vec::new();
        for item in &config.nodeport_addresses {
            match item {
                NodePortAddress::Primary => node_addresses.extend(&own_addresses),
                NodePortAddress::Cidr(cidr) => {
                    node_addresses.extend(interfaces.clone().filter(|a| cidr.contains(a)));
                }
                // All is below.
                NodePortAddress::All
                | NodePortAddress::Localhost
                | NodePortAddress::LocalhostIpv4 => {}
            }
        }
        for family in Family::ALL {
            if config.everywhere(family) {
                let of_family = |a: &IpAddr| Family::of(*a) == family;
                node_addresses.extend(interfaces.clone().filter(of_family));
            }
        }
        node_addresses.retain(|a| !a.is_loopback() && !a.is_unspecified());
        let (local_sources, local_interface) = match &config.detect_local {
            DetectLocal::ClusterCidr(cidrs) => {
                let first_of = |family| cidrs.iter().find(|c| Family::of(c.addr()) == family);
                let first = Family::ALL.into_iter().filter_map(first_of);
                (first.map(IpNet::trunc).collect(), None)
            }
            DetectLocal::NodeCidr => (node.pod_cidrs.clone(), None),
            DetectLocal::Interface(interface) => (Vec::new(), Some(interface.clone())),
        };
        NodeFacts {
            node_name: config.node_name.clone(),
            zone: node.zone.clone(),
            own_addresses,
            node_addresses: sorted(node_addresses),
            local_sources: sorted(local_sources),
            local_interface,
            masquerade_all: config.masquerade_all,
            service_cidrs: sorted(service_cidrs.to_vec()),
            api_servers: config.api_server.into_iter().collect(),
            allowed_external_ips: config.allowed_external_ips.clone(),
            pod_ranges: sorted([&*config.cluster_cidrs, &*node.pod_cidrs].concat()),
        }
    }

    /// The same with more addresses of the API server.
    #[must_use]
    pub fn with_api_servers(mut self, api_servers: Vec<SocketAddr>) -> NodeFacts {
        self.api_servers.extend(api_servers);
        self.api_servers = sorted(self.api_servers);
        self
    }
}

/// The list in order, each item once.
pub(crate) fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort_unstable();
    list.dedup();
    list
}
