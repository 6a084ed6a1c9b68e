//! The reference model: what must happen to a packet, from objects alone.
//!
//! Written from the Kubernetes documentation (Virtual IPs and Service Proxies, EndpointSlices, KEP-1669 on
//! terminating endpoints, KEP-3866) and from kube-proxy's documented behaviour, not from our code, and slow
//! on purpose: every question reads the whole cluster again. It knows nothing of tables.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::cluster::{
    Cluster, Detect, Endpoint, Kind, Node, Service, ServicePort, Slice, Transport,
};

/// The first packet of a connection, as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    /// Who sends it.
    pub origin: Origin,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol above IP.
    pub protocol: Protocol,
    /// Destination port; 0 for ICMP.
    pub port: u16,
}

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// A process in the node's own network namespace: the packet is locally generated.
    Node,
    /// Anything else, a pod of this or another node or a host outside: the packet is received, then
    /// forwarded or delivered.
    Elsewhere,
}

/// Protocol above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// One that Services can have.
    Transport(Transport),
    /// ICMP or ICMPv6: an echo request.
    Icmp,
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = SocketAddr::new(self.destination, self.port);
        let protocol = match self.protocol {
            Protocol::Transport(transport) => transport.name(),
            Protocol::Icmp => "ICMP",
        };
        let origin = match self.origin {
            Origin::Node => "the node's own",
            Origin::Elsewhere => "received",
        };
        write!(f, "{origin} {protocol} packet from {} to {to}", self.source)
    }
}

/// What must happen to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// It goes to one of these endpoints, each as likely as the others; `true`: the endpoint sees the
    /// node's address as the source.
    Balanced(BTreeMap<SocketAddr, bool>),
    /// Its sender gets an ICMP port unreachable.
    Refused,
    /// It passes untouched.
    NotOurs,
}

/// What must happen to `packet` on `node`.
pub fn outcome(cluster: &Cluster, node: &Node, packet: &Packet) -> Expected {
    let Some(claim) = claim(cluster, node, packet) else {
        return if is_cluster_ip(cluster, packet.destination) {
            Expected::Refused
        } else {
            Expected::NotOurs
        };
    };
    let chosen = chosen_endpoints(
        cluster,
        claim.service,
        claim.port,
        packet.destination.is_ipv4(),
    );
    if chosen.is_empty() {
        return Expected::Refused;
    }
    let backends = chosen.iter().map(|(&to, endpoint)| {
        (
            to,
            is_masqueraded(cluster, node, packet, &claim, to, endpoint),
        )
    });
    Expected::Balanced(backends.collect())
}

/// A Service port that answers at the packet's destination.
#[derive(Clone, Copy)]
struct Claim<'a> {
    service: &'a Service,
    port: &'a ServicePort,
    on_node_port: bool,
}

/// The Service port a packet is addressed to. Where several Services claim one address, protocol and
/// port, which the API server normally prevents, the oldest has it, then the first by name.
fn claim<'a>(cluster: &'a Cluster, node: &Node, packet: &Packet) -> Option<Claim<'a>> {
    let Protocol::Transport(transport) = packet.protocol else {
        return None;
    };
    let to_cluster_ip = |service: &Service| service.cluster_ips.contains(&packet.destination);
    let to_node = node_port_addresses(cluster, node).contains(&packet.destination);
    let same_family = |service: &Service| {
        service
            .cluster_ips
            .iter()
            .any(|a| a.is_ipv4() == packet.destination.is_ipv4())
    };
    let mut claims = Vec::new();
    for service in cluster.services.iter().filter(|s| is_ours(s)) {
        for port in service.ports.iter().filter(|p| p.transport == transport) {
            if to_cluster_ip(service) && port.port == packet.port {
                claims.push(Claim {
                    service,
                    port,
                    on_node_port: false,
                });
            }
            let node_port = port.node_port != 0 && port.node_port == packet.port;
            if to_node && node_port && same_family(service) {
                claims.push(Claim {
                    service,
                    port,
                    on_node_port: true,
                });
            }
        }
    }
    let age = |claim: &Claim<'a>| {
        (
            claim.service.created,
            &claim.service.namespace,
            &claim.service.name,
        )
    };
    claims.into_iter().min_by(|a, b| age(a).cmp(&age(b)))
}

/// Services with a cluster IP that no one else was asked to serve.
fn is_ours(service: &Service) -> bool {
    service.kind != Kind::ExternalName
        && !service.headless
        && !service.cluster_ips.is_empty()
        && !service.has_label("service.kubernetes.io/service-proxy-name")
        && !service.has_label("service.kubernetes.io/headless")
}

/// A cluster IP refuses every port that no Service has there.
fn is_cluster_ip(cluster: &Cluster, address: IpAddr) -> bool {
    cluster
        .services
        .iter()
        .any(|s| is_ours(s) && s.cluster_ips.contains(&address))
}

/// Addresses of the node that serve node ports: by default its own address of each family as its Node
/// object tells it, else those of its interfaces within the ranges asked for. Never loopback.
pub fn node_port_addresses(cluster: &Cluster, node: &Node) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = match &cluster.settings.nodeport_addresses {
        None => vec![primary_address(node, true), primary_address(node, false)]
            .into_iter()
            .flatten()
            .collect(),
        Some(ranges) => node
            .interfaces
            .clone()
            .into_iter()
            .filter(|a| within(ranges, *a))
            .collect(),
    };
    addresses.retain(|address| !address.is_loopback());
    addresses
}

/// The node's own address of a family: its first internal one, else its first external one.
pub fn primary_address(node: &Node, ipv4: bool) -> Option<IpAddr> {
    ["InternalIP", "ExternalIP"].iter().find_map(|wanted| {
        let of_kind = node.addresses.iter().filter(|(kind, _)| kind == wanted);
        of_kind
            .map(|(_, address)| *address)
            .find(|address| address.is_ipv4() == ipv4)
    })
}

fn within(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// The endpoints that take new connections: the ready ones; when there are none, those that still serve
/// while they terminate (KEP-1669); else nobody.
fn chosen_endpoints<'a>(
    cluster: &'a Cluster,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let all = endpoints(cluster, service, port, ipv4);
    let ready = |e: &Endpoint| e.ready != Some(false);
    let still_serving = |e: &Endpoint| e.serving != Some(false) && e.terminating == Some(true);
    let any_ready = all.values().any(|e| ready(e));
    let chosen = |e: &Endpoint| {
        if any_ready {
            ready(e)
        } else {
            still_serving(e)
        }
    };
    all.into_iter()
        .filter(|(_, endpoint)| chosen(endpoint))
        .collect()
}

/// All endpoints of a Service port in one family, from all its slices. An address and port that occurs
/// several times is terminating only if all its occurrences are; the first such one counts.
fn endpoints<'a>(
    cluster: &'a Cluster,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
) -> BTreeMap<SocketAddr, &'a Endpoint> {
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in cluster
        .slices
        .iter()
        .filter(|slice| belongs(slice, service, ipv4))
    {
        for number in slice_ports(slice, port) {
            for endpoint in &slice.endpoints {
                let Some(address) = usable_address(endpoint, ipv4) else {
                    continue;
                };
                let held = found
                    .entry(SocketAddr::new(address, number))
                    .or_insert(endpoint);
                if held.terminating == Some(true) && endpoint.terminating != Some(true) {
                    *held = endpoint;
                }
            }
        }
    }
    found
}

fn belongs(slice: &Slice, service: &Service, ipv4: bool) -> bool {
    slice.namespace == service.namespace
        && slice.service.as_ref() == Some(&service.name)
        && slice.address_type == if ipv4 { "IPv4" } else { "IPv6" }
        && !slice.has_label("service.kubernetes.io/service-proxy-name")
        && !slice.has_label("service.kubernetes.io/headless")
}

/// Port numbers that a slice gives for a Service port: those of the same name and protocol. A missing name
/// is the empty name, a missing protocol TCP; a missing or zero number means nothing to us.
fn slice_ports(slice: &Slice, port: &ServicePort) -> Vec<u16> {
    let same = slice.ports.iter().filter(|p| {
        p.name.as_deref().unwrap_or("") == port.name
            && p.transport.unwrap_or(Transport::Tcp) == port.transport
    });
    same.filter_map(|p| p.port)
        .filter(|number| *number != 0)
        .collect()
}

/// An endpoint's first address, if it is one of the slice's family that traffic may be sent to.
fn usable_address(endpoint: &Endpoint, ipv4: bool) -> Option<IpAddr> {
    let address = parse_sloppily(endpoint.addresses.first()?)?;
    let unusable = match address {
        IpAddr::V4(a) => {
            a.is_loopback()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_unspecified()
                || a.is_broadcast()
        }
        IpAddr::V6(a) => {
            a.is_loopback()
                || a.is_unicast_link_local()
                || a.is_multicast()
                || a.is_unspecified()
                || a.to_ipv4_mapped().is_some()
        }
    };
    (address.is_ipv4() == ipv4 && !unusable).then_some(address)
}

/// Old objects may hold IPv4 addresses with leading zeros, which Kubernetes reads as decimal (KEP-4858).
fn parse_sloppily(text: &str) -> Option<IpAddr> {
    let without_zeros = |octet: &str| octet.parse().map(|n: u8| n.to_string());
    let octets: Result<Vec<_>, _> = text.split('.').map(without_zeros).collect();
    octets
        .map_or_else(|_| text.to_owned(), |octets| octets.join("."))
        .parse()
        .ok()
}

/// Whether the endpoint sees the node's address in place of the client's.
fn is_masqueraded(
    cluster: &Cluster,
    node: &Node,
    packet: &Packet,
    claim: &Claim<'_>,
    to: SocketAddr,
    endpoint: &Endpoint,
) -> bool {
    // What comes from elsewhere and ends on the node itself never leaves it again: the answer comes from
    // the node in any case, and source NAT has no part in it.
    if packet.origin == Origin::Elsewhere && node.interfaces.contains(&to.ip()) {
        return false;
    }
    let is_local = endpoint.node.as_deref() == Some(node.name.as_str());
    let hairpin = is_local && packet.source == to.ip();
    let forced = if claim.on_node_port {
        true
    } else {
        cluster.settings.masquerade_all || comes_from_off_cluster(cluster, node, packet.source)
    };
    hairpin || forced
}

/// Whether a detector of local pods is configured for the family and does not know the source.
fn comes_from_off_cluster(cluster: &Cluster, node: &Node, source: IpAddr) -> bool {
    let ranges = match &cluster.settings.detect {
        Detect::ClusterCidr(ranges) => ranges,
        Detect::NodeCidr => &node.pod_cidrs,
    };
    let of_family = ranges
        .iter()
        .any(|range| range.addr().is_ipv4() == source.is_ipv4());
    of_family && !within(ranges, source)
}
