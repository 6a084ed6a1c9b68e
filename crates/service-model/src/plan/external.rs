//! External IPs and load balancer addresses: where a Service may have external frontends, and who may use them.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::facts::NodeFacts;
use crate::objects::{Family, Invalid, ObjectKind, Protocol, Service, ServicePort};
use crate::surroundings::Surroundings;

const EXTERNAL_IPS: &str = "spec.externalIPs";
const LOAD_BALANCER_IPS: &str = "status.loadBalancer.ingress";

/// Refused addresses of a Service that are named one by one: an edit of thousands must not fill the log of every node.
const NAMED: usize = 8;

/// The clients that may use a frontend; `None` is everyone.
type AllowedSources = Option<Arc<[IpNet]>>;

/// The external addresses of a Service in one family. Load balancer addresses come first: where one address is both,
/// it keeps its source ranges.
pub(super) struct ExternalAddresses {
    addresses: Vec<(&'static str, IpAddr, AllowedSources)>,
}

impl ExternalAddresses {
    /// Adds addresses that this node does not serve to `ignored`.
    pub(super) fn new(
        service: &Service,
        family: Family,
        facts: &NodeFacts,
        surroundings: &Surroundings,
        ignored: &mut Vec<Invalid>,
    ) -> Self {
        let of_family = |address: &&IpAddr| Family::of(**address) == family;
        let allowed_sources = allowed_sources(service, family, facts);
        let load_balancer_ips = service.load_balancer_ips.iter().filter(of_family);
        let mut addresses: Vec<_> = load_balancer_ips
            .filter(|address| !service.cluster_ips.contains(address))
            .map(|address| (LOAD_BALANCER_IPS, *address, allowed_sources.clone()))
            .collect();
        let mut refused = Vec::new();
        for address in service.external_ips.iter().filter(of_family) {
            match external_ip_refusal(*address, service, facts, surroundings) {
                None => addresses.push((EXTERNAL_IPS, *address, None)),
                Some(reason) => refused.push(reason),
            }
        }
        let invalid = |reason| invalid(service, EXTERNAL_IPS, reason);
        let more = refused.len().saturating_sub(NAMED);
        refused.truncate(NAMED);
        ignored.extend(refused.into_iter().map(invalid));
        ignored.extend((more > 0).then(|| invalid(format!("{more} more addresses are ignored"))));
        ExternalAddresses { addresses }
    }

    /// The addresses at which `port` has a frontend. Adds those where another program answers to `ignored`.
    pub(super) fn of_port(
        &self,
        service: &Service,
        port: &ServicePort,
        facts: &NodeFacts,
        surroundings: &Surroundings,
        ignored: &mut Vec<Invalid>,
    ) -> Vec<(IpAddr, AllowedSources)> {
        let mut free = Vec::new();
        for (field, address, allowed_sources) in &self.addresses {
            let socket = SocketAddr::new(*address, port.port);
            match owner(socket, port.protocol, facts, surroundings) {
                None => free.push((*address, allowed_sources.clone())),
                Some(owner) => {
                    let reason = format!("{owner} answers at {socket}/{}", port.protocol);
                    ignored.push(invalid(service, field, reason));
                }
            }
        }
        free
    }
}

fn invalid(service: &Service, field: &str, reason: String) -> Invalid {
    Invalid {
        kind: ObjectKind::Service,
        object: service.name.clone(),
        field: field.into(),
        reason,
    }
}

/// Who may use the load balancer addresses of a family.
///
/// Where a range holds this node's own address, the node may reach the load balancer addresses by themselves as well:
/// it may send from one of them (row 43).
fn allowed_sources(service: &Service, family: Family, facts: &NodeFacts) -> AllowedSources {
    let ranges = service.source_ranges.iter();
    let mut ranges: Vec<IpNet> = ranges
        .filter(|range| Family::of(range.addr()) == family)
        .copied()
        .collect();
    if ranges.is_empty() || ranges.iter().any(|range| range.prefix_len() == 0) {
        return None;
    }
    let of_node = |range: &IpNet| facts.own_addresses.iter().any(|own| range.contains(own));
    if ranges.iter().any(of_node) {
        let own = service.load_balancer_ips.iter();
        let own = own.filter(|a| Family::of(**a) == family);
        ranges.extend(own.map(|address| IpNet::from(*address)));
    }
    let mut ranges = IpNet::aggregate(&ranges);
    ranges.sort_unstable();
    Some(ranges.into())
}

/// Why an external IP is not served, if so.
fn external_ip_refusal(
    address: IpAddr,
    service: &Service,
    facts: &NodeFacts,
    surroundings: &Surroundings,
) -> Option<String> {
    if service.cluster_ips.contains(&address) {
        return Some(format!("{address} is the cluster IP of the Service itself"));
    }
    let inside = |ranges: &[IpNet]| ranges.iter().any(|range| range.contains(&address));
    let owner = match &facts.allowed_external_ips {
        Some(allowed) if inside(allowed) => return None,
        Some(_) => return Some(format!("{address} is not among the allowed external IPs")),
        // A node's own address is served where no process listens, as ingress controllers without a load balancer need it.
        None if facts.own_addresses.contains(&address) => return None,
        None if inside(&facts.pod_ranges) => "is in a range of pods",
        None if inside(&facts.service_cidrs) => "is in a range of cluster IPs",
        None if surroundings.belongs_to_other_node(address, &facts.node_name) => {
            "belongs to another Node"
        }
        None => return None,
    };
    Some(format!(
        "{address} {owner}; --allowed-external-ips can allow it"
    ))
}

/// Whose traffic an external frontend at `socket` would take: the API server's, this node's own connections to it
/// included, or that of a process of this node. (kube-proxy before 1.23 skipped such frontends as well, since it could
/// not open the port itself.)
fn owner(
    socket: SocketAddr,
    protocol: Protocol,
    facts: &NodeFacts,
    surroundings: &Surroundings,
) -> Option<&'static str> {
    if protocol == Protocol::Tcp && facts.api_servers.binary_search(&socket).is_ok() {
        return Some("the API server");
    }
    let is_listener = surroundings.is_listener(&(protocol, socket));
    is_listener.then_some("a process of this node")
}
