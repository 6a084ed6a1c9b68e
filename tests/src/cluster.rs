//! A cluster as plain values, and as the manifests a real API server would hold.
//!
//! Owns a description of its own, on purpose different from the product's types: manifests are the only
//! thing the two share, so that a mistake in the product's decoding cannot hide here. [`generate`] makes
//! random clusters in a [`space`], [`read`] reads those written by hand, [`write`] writes manifests.

mod change;
pub mod generate;
pub mod read;
pub mod space;
pub mod write;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde::Deserialize;

pub use generate::Generator;
pub use space::Space;

/// Everything that decides what happens to a packet on any node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes; Portolan may run on any.
    pub nodes: Vec<Node>,
    pub services: Vec<Service>,
    pub slices: Vec<Slice>,
    /// ServiceCIDRs: name and ranges.
    pub service_cidrs: Vec<(String, Vec<IpNet>)>,
    /// The operator's flags, alike on all nodes.
    pub settings: Settings,
    /// Names of nodes that seem to be down to all others.
    pub suspects: BTreeSet<String>,
}

/// The operator's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `--detect-local-mode`
    pub detect: Detect,
    /// `--nodeport-addresses`; empty means `primary`.
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// `--masquerade-all`
    pub masquerade_all: bool,
    /// `--allowed-external-ips`; `None` means all that belong to nobody in the cluster.
    pub allowed_external_ips: Option<Vec<IpNet>>,
    /// `--service-proxy-name`; `None` means Services without the label.
    pub service_proxy_name: Option<String>,
}

/// One item of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum NodePortAddresses {
    /// `primary`: the node's own address of each family.
    Primary,
    /// `all`: every address of the node but loopback.
    All,
    /// The node's addresses in this range.
    Range(IpNet),
}

impl fmt::Display for NodePortAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodePortAddresses::Primary => f.write_str("primary"),
            NodePortAddresses::All => f.write_str("all"),
            NodePortAddresses::Range(range) => range.fmt(f),
        }
    }
}

impl TryFrom<String> for NodePortAddresses {
    type Error = ipnet::AddrParseError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(match text.as_str() {
            "primary" => NodePortAddresses::Primary,
            "all" => NodePortAddresses::All,
            range => NodePortAddresses::Range(IpNet::from_str(range)?),
        })
    }
}

/// How a local pod's packet is recognized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detect {
    /// `ClusterCIDR`, with at most one range of each family.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`
    NodeCidr,
    /// `BridgeInterface`: it comes by the interface of this name.
    Interface(String),
    /// `InterfaceNamePrefix`: it comes by an interface whose name begins so.
    InterfacePrefix(String),
}

impl Default for Detect {
    fn default() -> Self {
        Detect::ClusterCidr(Vec::new())
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`
    pub name: String,
    /// `status.addresses`: type and address, in order.
    pub addresses: Vec<(&'static str, IpAddr)>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// What its interfaces carry, loopback among them. Not part of any manifest.
    pub interfaces: Vec<IpAddr>,
}

/// `spec.type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

/// A transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    Tcp,
    Udp,
    Sctp,
}

impl Transport {
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// As in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// `metadata.labels`
    pub labels: Vec<(String, String)>,
    /// `spec.type`
    pub kind: Kind,
    /// `spec.clusterIPs`, empty when it has none.
    pub cluster_ips: Vec<IpAddr>,
    /// No cluster IP on purpose: `spec.clusterIP: None`.
    pub headless: bool,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
    /// `spec.externalIPs`, as written.
    pub external_ips: Vec<String>,
    /// `status.loadBalancer.ingress`
    pub ingress: Vec<Ingress>,
    /// `spec.loadBalancerSourceRanges`, as written.
    pub source_ranges: Vec<String>,
    /// `spec.externalTrafficPolicy: Local`
    pub external_local: bool,
    /// `spec.internalTrafficPolicy: Local`
    pub internal_local: bool,
    /// `spec.sessionAffinity: ClientIP`, with its time-out in seconds.
    pub affinity: Option<u32>,
}

/// One of `status.loadBalancer.ingress`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ingress {
    /// `ip`
    pub ip: Option<String>,
    /// `hostname`
    pub hostname: Option<String>,
    /// `ipMode`
    pub ip_mode: Option<String>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, may be empty.
    pub name: String,
    pub transport: Transport,
    pub port: u16,
    /// Node port, 0 for none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub namespace: String,
    pub name: String,
    /// `metadata.labels` besides the Service's name.
    pub labels: Vec<(String, String)>,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// `addressType`: `IPv4`, `IPv6` or `FQDN`.
    pub address_type: &'static str,
    /// `ports`
    pub ports: Vec<SlicePort>,
    /// `endpoints`
    pub endpoints: Vec<Endpoint>,
}

/// One of a slice's `ports`; every field may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    pub name: Option<String>,
    pub transport: Option<Transport>,
    pub port: Option<u16>,
}

/// One of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses`
    pub addresses: Vec<String>,
    /// `nodeName`
    pub node: Option<String>,
    /// `conditions.ready`
    pub ready: Option<bool>,
    /// `conditions.serving`
    pub serving: Option<bool>,
    /// `conditions.terminating`
    pub terminating: Option<bool>,
    /// `hints.forZones`
    pub zone_hints: Vec<String>,
    /// `hints.forNodes`
    pub node_hints: Vec<String>,
}

impl Cluster {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

impl Node {
    /// The interface by which packets with this source come, in the lab: pods each have one of their own, of which
    /// the node's end is called `pod` and their number from 0; all else comes by `eth0`.
    pub fn interface_of(&self, source: IpAddr) -> String {
        match space::pod_of(source) {
            Some((node, x)) if space::node_name(node) == self.name && x >= 2 => {
                format!("pod{}", x - 2)
            }
            _ => "eth0".to_owned(),
        }
    }
}

/// The value of a label.
pub fn label<'a>(labels: &'a [(String, String)], key: &str) -> Option<&'a str> {
    let found = labels.iter().find(|(k, _)| k == key);
    found.map(|(_, value)| value.as_str())
}

/// Every address that a manifest of the cluster calls an endpoint.
pub fn endpoint_addresses(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let endpoints = cluster.slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints
        .flat_map(|e| &e.addresses)
        .filter_map(|a| a.parse().ok())
        .collect()
}
