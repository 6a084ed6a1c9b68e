//! The reference model: what must happen to a packet, from objects alone.
//!
//! Written from the Kubernetes documentation (Virtual IPs and Service Proxies, Service Internal Traffic Policy,
//! Topology Aware Routing, EndpointSlices, KEP-1669 on terminating endpoints, KEP-3866) and from kube-proxy's
//! documented behavior, not from our code, and slow on purpose: every question reads the whole cluster again. It
//! knows nothing of tables.
//!
//! Owns the order of questions: who answers at the address ([`claims`]), who may ask, by which policy and with whose
//! source address ([`sources`]), and which endpoints take it ([`endpoints`]).

mod addresses;
mod claims;
mod endpoints;
mod sources;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::cluster::{Cluster, Node, Service, Transport};

use self::claims::{At, Claim, claim};
pub use self::claims::{node_port_addresses, primary_address};

/// The first packet of a connection, as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Packet {
    pub origin: Origin,
    pub source: IpAddr,
    pub destination: IpAddr,
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
    /// Refused at once, by a TCP reset or ICMP.
    Refused,
    /// Dropped without an answer.
    Dropped,
    NotOurs,
}

/// What must happen to `packet` on `node`.
pub fn outcome(cluster: &Cluster, node: &Node, packet: &Packet) -> Expected {
    let Some(claim) = claim(cluster, node, packet) else {
        return unclaimed(cluster, node, packet);
    };
    if sources::is_kept_out(&claim, node, packet) {
        return Expected::Dropped;
    }
    let all = endpoints::of(
        cluster,
        claim.service,
        claim.port,
        packet.destination.is_ipv4(),
    );
    let treatment = sources::treatment(cluster, node, packet, &claim);
    let chosen = match treatment.only_local {
        true => endpoints::local(&all, node),
        false => endpoints::anywhere(&all, node, &cluster.suspects),
    };
    // None here, but some elsewhere: silence, so that a balancer in front takes another node (KEP-1138, KEP-2086).
    if chosen.is_empty() && !endpoints::anywhere(&all, node, &cluster.suspects).is_empty() {
        return Expected::Dropped;
    }
    if chosen.is_empty() {
        return Expected::Refused;
    }
    let backends = chosen.iter().map(|(to, endpoint)| {
        let masqueraded =
            sources::is_masqueraded(node, packet, *to, endpoint, treatment.masqueraded);
        (*to, masqueraded)
    });
    Expected::Balanced(backends.collect())
}

/// What must happen to `packet` on `node` after `earlier` packets were sent to those endpoints, within the time-out of
/// the Service port's affinity. A client has its affinity for a Service port, whichever of the Service's addresses it
/// uses.
pub fn outcome_after(
    cluster: &Cluster,
    node: &Node,
    earlier: &[(Packet, SocketAddr)],
    packet: &Packet,
) -> Expected {
    let shares = |before: &Packet| shares_affinity(cluster, node, before, packet);
    outcome_after_by(cluster, node, earlier, packet, shares)
}

/// The same by another rule for which of the earlier packets count.
pub fn outcome_after_by(
    cluster: &Cluster,
    node: &Node,
    earlier: &[(Packet, SocketAddr)],
    packet: &Packet,
    shares: impl Fn(&Packet) -> bool,
) -> Expected {
    let expected = outcome(cluster, node, packet);
    let Expected::Balanced(backends) = &expected else {
        return expected;
    };
    let mut kept = BTreeMap::new();
    for (before, chosen) in earlier {
        if let Some(masqueraded) = backends.get(chosen)
            && shares(before)
        {
            kept.insert(*chosen, *masqueraded);
        }
    }
    match kept.is_empty() {
        true => expected,
        false => Expected::Balanced(kept),
    }
}

/// Whether both are one client's packets to one Service port that has affinity. Where a policy is Local, internal and
/// external traffic may reach different endpoints, and a client has affinity for each by itself. (kube-proxy asks, of
/// either list, whether the client was ever sent to one of it.)
pub fn shares_affinity(cluster: &Cluster, node: &Node, one: &Packet, other: &Packet) -> bool {
    let claims = (claim(cluster, node, one), claim(cluster, node, other));
    let (Some(first), Some(second)) = claims else {
        return false;
    };
    let same_side = (first.at == At::ClusterIp) == (second.at == At::ClusterIp);
    one.source == other.source
        && first.service.affinity.is_some()
        && std::ptr::eq(first.port, second.port)
        && (same_side || !is_split(first.service))
}

fn is_split(service: &Service) -> bool {
    service.internal_local || service.external_local
}

/// Whether a client may have one endpoint for internal and another for external traffic of this Service port.
pub fn has_split_affinity(cluster: &Cluster, node: &Node, packet: &Packet) -> bool {
    let claim = claim(cluster, node, packet);
    claim.is_some_and(|claim| claim.service.affinity.is_some() && is_split(claim.service))
}

/// Services that claim the packet's destination as an external address: one gets it, and the others do not.
pub fn contestants<'a>(cluster: &'a Cluster, node: &Node, packet: &Packet) -> Vec<&'a Service> {
    let claims = claims::all(cluster, node, packet);
    let highest = claims.iter().map(|claim| claim.at).min();
    if highest != Some(At::External) {
        return Vec::new();
    }
    let external = claims.iter().filter(|claim| claim.at == At::External);
    let mut services: Vec<&Service> = external.map(|claim| claim.service).collect();
    services.dedup_by(|a, b| std::ptr::eq(*a, *b));
    services
}

/// Whether the node sends the packet to an external frontend under policy Local, from an address that a pod could have.
pub fn is_nodes_own_like_a_pods(cluster: &Cluster, node: &Node, packet: &Packet) -> bool {
    let claim = claim(cluster, node, packet);
    claim.is_some_and(|claim| {
        claim.at != At::ClusterIp
            && claim.service.external_local
            && sources::is_of_node(node, packet)
            && sources::is_local_pod(cluster, node, packet) == Some(true)
    })
}

/// Whether both are one client's packets to one Service port, by whatever way.
pub fn are_to_one_port(cluster: &Cluster, node: &Node, one: &Packet, other: &Packet) -> bool {
    match (claim(cluster, node, one), claim(cluster, node, other)) {
        (Some(a), Some(b)) => one.source == other.source && std::ptr::eq(a.port, b.port),
        _ => false,
    }
}

/// Whether the packet is to a Service port that has affinity.
pub fn has_affinity(cluster: &Cluster, node: &Node, packet: &Packet) -> bool {
    shares_affinity(cluster, node, packet, packet)
}

/// A cluster IP refuses every port that no Service has there. The rest of the ranges that cluster IPs come from is
/// silent, once they are known, but for addresses of the node itself; the cluster IPs of Services that someone else
/// serves as well, unless that has sent the packet elsewhere.
fn unclaimed(cluster: &Cluster, node: &Node, packet: &Packet) -> Expected {
    let is_ours = |service: &&Service| {
        claims::has_cluster_ip(service, packet.destination) && claims::is_ours(cluster, service)
    };
    let ranges = cluster.service_cidrs.iter().flat_map(|(_, ranges)| ranges);
    let is_of_node = node.interfaces.contains(&packet.destination);
    if cluster.services.iter().any(|service| is_ours(&service)) {
        Expected::Refused
    } else if !is_of_node && addresses::within(ranges, packet.destination) {
        Expected::Dropped
    } else {
        Expected::NotOurs
    }
}
