//! Who answers at an address, protocol and port.
//!
//! Where several Services claim one, which the API server prevents for cluster IPs and node ports but not for external
//! addresses, a cluster IP comes before an external address and that before a node port; among external addresses those
//! that a load balancer gave come before those that are only listed; then the oldest has it, then the first by name.

use std::net::IpAddr;

use super::addresses::{parse_sloppily, within};
use super::{Packet, Protocol};
use crate::cluster::{
    Cluster, Detect, Ingress, Kind, Node, NodePortAddresses, Service, ServicePort, label,
};

/// A Service port that answers at the packet's destination.
#[derive(Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) service: &'a Service,
    pub(super) port: &'a ServicePort,
    pub(super) at: At,
}

/// What the packet's destination is to the Service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum At {
    ClusterIp,
    /// An external IP, or an address of its load balancer.
    External,
    NodePort,
}

/// The Service port a packet is addressed to.
pub(super) fn claim<'a>(cluster: &'a Cluster, node: &Node, packet: &Packet) -> Option<Claim<'a>> {
    all(cluster, node, packet).into_iter().next()
}

/// All Service ports that a packet could be addressed to, first the one that has it.
pub(super) fn all<'a>(cluster: &'a Cluster, node: &Node, packet: &Packet) -> Vec<Claim<'a>> {
    let Protocol::Transport(transport) = packet.protocol else {
        return Vec::new();
    };
    let to = packet.destination;
    let is_of_node = node_port_addresses(cluster, node).contains(&to);
    let mut ours = cluster.services.iter().filter(|s| is_ours(cluster, s));
    let is_cluster_ip = ours.any(|s| has_cluster_ip(s, to));
    let mut claims = Vec::new();
    for service in cluster.services.iter().filter(|s| is_ours(cluster, s)) {
        let serves_family = service
            .cluster_ips
            .iter()
            .any(|a| a.is_ipv4() == to.is_ipv4());
        let is_external =
            is_external_ip(cluster, node, service, to) || is_load_balancer(service, to);
        for port in service.ports.iter().filter(|p| p.transport == transport) {
            let mut answers_at = |at, condition| {
                if condition && serves_family {
                    claims.push(Claim { service, port, at });
                }
            };
            let is_port = port.port == packet.port;
            let is_node_port = port.node_port != 0 && port.node_port == packet.port;
            answers_at(At::ClusterIp, is_port && service.cluster_ips.contains(&to));
            answers_at(At::External, is_port && is_external && !is_cluster_ip);
            answers_at(At::NodePort, is_node_port && is_of_node);
        }
    }
    let rank = |claim: &Claim<'a>| {
        let service = claim.service;
        // What a load balancer gave to one Service, another cannot take by listing it.
        let only_listed = claim.at == At::External && !is_load_balancer(service, to);
        (
            claim.at,
            only_listed,
            service.created,
            &service.namespace,
            &service.name,
        )
    };
    claims.sort_by(|a, b| rank(a).cmp(&rank(b)));
    claims
}

/// Services with a cluster IP that this proxy serves: those without the label, or those with its name.
pub(super) fn is_ours(cluster: &Cluster, service: &Service) -> bool {
    service.kind != Kind::ExternalName
        && !service.headless
        && !service.cluster_ips.is_empty()
        && is_for_us(cluster, &service.labels)
}

/// The two labels that keep an object from a service proxy.
pub(super) fn is_for_us(cluster: &Cluster, labels: &[(String, String)]) -> bool {
    label(labels, "service.kubernetes.io/service-proxy-name")
        == cluster.settings.service_proxy_name.as_deref()
        && label(labels, "service.kubernetes.io/headless").is_none()
}

/// Whether the address is a cluster IP of the Service, whoever serves it.
pub(super) fn has_cluster_ip(service: &Service, address: IpAddr) -> bool {
    service.kind != Kind::ExternalName
        && !service.headless
        && service.cluster_ips.contains(&address)
}

fn is_external_ip(cluster: &Cluster, node: &Node, service: &Service, address: IpAddr) -> bool {
    let is_allowed = match &cluster.settings.allowed_external_ips {
        Some(ranges) => within(ranges, address),
        None => !is_of_others(cluster, node, address),
    };
    let mut external = service.external_ips.iter();
    is_allowed && external.any(|ip| parse_sloppily(ip) == Some(address))
}

/// Whether whoever lists the address would take what pods, cluster IPs or other nodes have. A node's own address may be
/// listed.
fn is_of_others(cluster: &Cluster, node: &Node, address: IpAddr) -> bool {
    let is_of = |node: &Node| node.addresses.iter().any(|(_, own)| *own == address);
    let is_primary = |ipv4| primary_address(node, ipv4) == Some(address);
    if is_primary(true) || is_primary(false) {
        return false;
    }
    let pods = match &cluster.settings.detect {
        Detect::ClusterCidr(ranges) => within(ranges, address),
        Detect::NodeCidr | Detect::Interface(_) | Detect::InterfacePrefix(_) => false,
    };
    let mut service_cidrs = cluster.service_cidrs.iter();
    let mut others = cluster.nodes.iter().filter(|other| other.name != node.name);
    let of_node = |node: &Node| is_of(node) || within(&node.pod_cidrs, address);
    pods || within(&node.pod_cidrs, address)
        || service_cidrs.any(|(_, ranges)| within(ranges, address))
        || others.any(of_node)
}

/// Whether the address is one of a load balancer that sends packets on as they are (KEP-1860).
pub(super) fn is_load_balancer(service: &Service, address: IpAddr) -> bool {
    let sends_as_is =
        |ingress: &&Ingress| ingress.ip_mode.as_deref().is_none_or(|mode| mode == "VIP");
    let ips = service.ingress.iter().filter(sends_as_is);
    let mut ips = ips.filter_map(|ingress| parse_sloppily(ingress.ip.as_ref()?));
    ips.any(|ip| ip == address)
}

/// Addresses of the node that serve node ports: its own address of each family as its Node object tells it, all those
/// of its interfaces, or those within ranges. A family that the list says nothing of has all. Never loopback.
pub fn node_port_addresses(cluster: &Cluster, node: &Node) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for ipv4 in [true, false] {
        let is_of_family = |item: &NodePortAddresses| match item {
            NodePortAddresses::Range(range) => range.addr().is_ipv4() == ipv4,
            NodePortAddresses::Primary | NodePortAddresses::All => true,
        };
        let list = &cluster.settings.nodeport_addresses;
        let mut items: Vec<_> = list.iter().copied().filter(is_of_family).collect();
        if items.is_empty() {
            items.push(match list.is_empty() {
                true => NodePortAddresses::Primary,
                false => NodePortAddresses::All,
            });
        }
        let own = node.interfaces.iter().copied();
        let own: Vec<IpAddr> = own.filter(|a| a.is_ipv4() == ipv4).collect();
        for item in items {
            match item {
                NodePortAddresses::Primary => addresses.extend(primary_address(node, ipv4)),
                NodePortAddresses::All => addresses.extend(&own),
                NodePortAddresses::Range(range) => {
                    addresses.extend(own.iter().filter(|a| range.contains(*a)));
                }
            }
        }
    }
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
