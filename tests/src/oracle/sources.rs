//! What the source of a packet decides: whether it may come at all, which traffic policy it is under, and whether the
//! endpoint sees it.

use std::net::SocketAddr;

use ipnet::IpNet;

use super::addresses::{parse_range, within};
use super::{At, Claim, Origin, Packet, claims, primary_address};
use crate::cluster::{Cluster, Detect, Endpoint, Node};

/// How a packet to a Service port is treated.
pub(super) struct Treatment {
    /// Only endpoints on this node count.
    pub(super) only_local: bool,
    /// The endpoint sees the node's address, whichever endpoint it is.
    pub(super) masqueraded: bool,
}

/// Internal traffic follows the internal policy, and is masqueraded where it may come from outside the cluster.
/// External traffic is masqueraded, since its endpoint may be on another node; under policy `Local` it stays on this
/// node with its source. That policy is for clients outside: local pods, and the node itself, get what they would get
/// had they gone out to the load balancer and come back in.
pub(super) fn treatment(
    cluster: &Cluster,
    node: &Node,
    packet: &Packet,
    claim: &Claim<'_>,
) -> Treatment {
    let from_pod = is_local_pod(cluster, node, packet);
    let from_node = is_of_node(node, packet);
    let (only_local, masqueraded) = match claim.at {
        At::ClusterIp => {
            let off_cluster = from_pod == Some(false);
            let masqueraded = cluster.settings.masquerade_all || off_cluster;
            (claim.service.internal_local, masqueraded)
        }
        _ if !claim.service.external_local => (false, true),
        // Also where its own source looks like a pod's (kube-proxy does not masquerade that).
        _ if from_node => (false, true),
        _ if from_pod == Some(true) => (false, false),
        _ => (true, false),
    };
    Treatment {
        only_local,
        masqueraded,
    }
}

/// Whether the node itself sent the packet.
pub(super) fn is_of_node(node: &Node, packet: &Packet) -> bool {
    packet.origin == Origin::Node || node.interfaces.contains(&packet.source)
}

/// Whether a local pod sent the packet; `None` where no detector is configured for its family.
pub(super) fn is_local_pod(cluster: &Cluster, node: &Node, packet: &Packet) -> Option<bool> {
    let in_ranges = |ranges: &[IpNet]| {
        let mut families = ranges.iter().map(|range| range.addr().is_ipv4());
        let is_configured = families.any(|ipv4| ipv4 == packet.source.is_ipv4());
        is_configured.then(|| within(ranges, packet.source))
    };
    let interface = match packet.origin {
        // It comes by none.
        Origin::Node => String::new(),
        Origin::Elsewhere => node.interface_of(packet.source),
    };
    match &cluster.settings.detect {
        Detect::ClusterCidr(ranges) => in_ranges(ranges),
        Detect::NodeCidr => in_ranges(&node.pod_cidrs),
        Detect::Interface(name) => Some(interface == *name),
        Detect::InterfacePrefix(prefix) => Some(interface.starts_with(prefix)),
    }
}

/// Whether the load balancer's source ranges keep the packet out. They guard its addresses alone, from everyone. Where
/// they admit the node, a packet that the node made with the load balancer's address as its source is its own.
pub(super) fn is_kept_out(claim: &Claim<'_>, node: &Node, packet: &Packet) -> bool {
    let ipv4 = packet.source.is_ipv4();
    let ranges = claim.service.source_ranges.iter();
    let ranges: Vec<IpNet> = ranges
        .filter_map(|range| parse_range(range))
        .filter(|range| range.addr().is_ipv4() == ipv4)
        .collect();
    let is_guarded = claim.at == At::External
        && !ranges.is_empty()
        && claims::is_load_balancer(claim.service, packet.destination);
    let admits_node = primary_address(node, ipv4).is_some_and(|own| within(&ranges, own));
    let from_balancer = claims::is_load_balancer(claim.service, packet.source);
    is_guarded && !within(&ranges, packet.source) && !(admits_node && from_balancer)
}

/// Whether the endpoint sees the node's address in place of the client's.
pub(super) fn is_masqueraded(
    node: &Node,
    packet: &Packet,
    to: SocketAddr,
    endpoint: &Endpoint,
    forced: bool,
) -> bool {
    // What comes from elsewhere and ends on the node itself never leaves it again: the answer comes from
    // the node in any case, and source NAT has no part in it.
    if packet.origin == Origin::Elsewhere && node.interfaces.contains(&to.ip()) {
        return false;
    }
    let is_local = endpoint.node.as_deref() == Some(node.name.as_str());
    let hairpin = is_local && packet.source == to.ip();
    hairpin || forced
}
