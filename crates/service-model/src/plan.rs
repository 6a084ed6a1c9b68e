//! From a Service and its EndpointSlices to what this node has to do for it.
//!
//! A pure function of one Service, its slices and the node facts. Whether a Service is programmed at all is the
//! index's question; conflicts between Services are settled by whoever sees them both.
//!
//! Invariant: equal inputs give equal intents, whatever order slices and endpoints arrived in.

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;

use crate::facts::NodeFacts;
use crate::intent::{
    Affinity, Backend, Disposition, Frontend, HealthCheck, Masquerade, Place, ServiceIntent,
};
use crate::objects::{
    EndpointSlice, Family, Invalid, ObjectKind, Protocol, Service, ServicePort, TrafficPolicy,
};
use crate::select::{Candidate, Selection, select};

/// What a Service needs on this node. `slices` are the Service's, sorted by name.
///
/// Every port has a frontend on each cluster IP (one of each family; row 11), on each external and load balancer
/// address of the same families (rows 13 and 14) and, where a node port is allocated, whatever the Service's type
/// (row 12), one on the node's addresses of the same families. All but cluster IPs are external traffic: it
/// masquerades everyone (row 48), or with policy Local only this node itself (row 49).
pub fn plan(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
) -> ServiceIntent {
    let mut frontends = Vec::new();
    for family in Family::ALL {
        let of_family = |a: &&IpAddr| Family::of(**a) == family;
        let Some(cluster_ip) = service.cluster_ips.iter().find(of_family) else {
            continue;
        };
        let allowed_sources = allowed_sources(service, family, facts);
        for port in &service.ports {
            let candidates = candidates(service, port, family, slices, facts);
            let outcome = Outcome::new(select(&candidates, facts));
            let internal = Frontend {
                place: Place::ClusterIp(*cluster_ip),
                protocol: port.protocol,
                port: port.port,
                disposition: match service.internal_policy {
                    TrafficPolicy::Cluster => outcome.cluster(),
                    TrafficPolicy::Local => outcome.local().unwrap_or(Disposition::Refuse),
                },
                outside: None,
                masquerade: Masquerade::OffCluster,
                allowed_sources: None,
                affinity: service.affinity.map(|seconds| Affinity {
                    seconds,
                    group: group(service, port, false),
                }),
                counted: service.wishes.count,
                serving: outcome.serving.clone(),
            };
            let external = |place, number| Frontend {
                place,
                port: number,
                affinity: internal.affinity.map(|affinity| Affinity {
                    group: group(service, port, true),
                    ..affinity
                }),
                disposition: outcome.cluster(),
                outside: match service.external_policy {
                    TrafficPolicy::Cluster => None,
                    TrafficPolicy::Local => outcome.local(),
                },
                masquerade: match service.external_policy {
                    TrafficPolicy::Cluster => Masquerade::Always,
                    TrafficPolicy::Local => Masquerade::OwnNode,
                },
                ..internal.clone()
            };
            for address in service.load_balancer_ips.iter().filter(of_family) {
                if service.cluster_ips.contains(address) || owner(*address, port, facts).is_some() {
                    continue;
                }
                frontends.push(Frontend {
                    allowed_sources: allowed_sources.clone(),
                    ..external(Place::External(*address), port.port)
                });
            }
            for address in service.external_ips.iter().filter(of_family) {
                let refused = external_ip_refusal(*address, service, facts).is_some();
                if !refused && owner(*address, port, facts).is_none() {
                    frontends.push(external(Place::External(*address), port.port));
                }
            }
            if let Some(node_port) = port.node_port {
                frontends.push(external(Place::NodePort(family), node_port));
            }
            frontends.push(internal);
        }
    }
    // The first of two equal places wins (F51), so that an address that is a load balancer's as well keeps its source
    // ranges; sorting is stable.
    frontends.sort_by_key(key);
    frontends.dedup_by_key(|frontend| key(frontend));
    ServiceIntent {
        service: service.name.clone(),
        created: service.created,
        frontends,
        reset_removed: service.wishes.reset_removed,
        health_check: health_check(service, slices, facts),
    }
}

/// Row 18: which Services have a port for it is settled when they are read.
fn health_check(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
) -> Option<HealthCheck> {
    let families = Family::ALL.into_iter().filter(|family| {
        let mut cluster_ips = service.cluster_ips.iter();
        cluster_ips.any(|address| Family::of(*address) == *family)
    });
    let local_endpoints = |family| {
        let ports = service.ports.iter();
        let candidates = ports.flat_map(|port| candidates(service, port, family, slices, facts));
        let ready = candidates.filter(|c| c.backend.local && c.conditions.ready);
        let addresses: BTreeSet<IpAddr> = ready.map(|c| c.backend.address).collect();
        addresses.len()
    };
    Some(HealthCheck {
        port: service.health_check_node_port?,
        local_endpoints: families.map(|f| (f, local_endpoints(f))).collect(),
    })
}

/// Selected endpoints as dispositions, shared between frontends.
struct Outcome {
    cluster: Arc<[Backend]>,
    local: Arc<[Backend]>,
    serving: Arc<[Backend]>,
}

impl Outcome {
    fn new(selection: Selection) -> Self {
        let cluster: Arc<[Backend]> = selection.cluster.into();
        let or_shared = |backends: Vec<Backend>| match *backends == *cluster {
            true => cluster.clone(),
            false => backends.into(),
        };
        Outcome {
            local: or_shared(selection.local),
            serving: or_shared(selection.serving),
            cluster: cluster.clone(),
        }
    }

    fn cluster(&self) -> Disposition {
        match self.cluster.is_empty() {
            true => Disposition::Refuse,
            false => Disposition::Balance(self.cluster.clone()),
        }
    }

    /// `None` when there is no endpoint anywhere: the policy does not matter then.
    fn local(&self) -> Option<Disposition> {
        match (self.cluster.is_empty(), self.local.is_empty()) {
            (true, _) => None,
            (false, true) => Some(Disposition::Drop),
            (false, false) => Some(Disposition::Balance(self.local.clone())),
        }
    }
}

/// FNV-1a over the names of Service and port and the protocol: the same on every node and in every release, since
/// the kernel remembers it.
///
/// All frontends of a Service port are one group (row 42), unless a policy is Local. Internal and external traffic may
/// then reach different endpoints, and what a client keeps of the one could be wrong for the other: each is a group of
/// its own. Within a group it is the client alone that decides which endpoints it may reach.
fn group(service: &Service, port: &ServicePort, is_external: bool) -> u32 {
    let policies = [service.internal_policy, service.external_policy];
    let side = match is_external && policies.contains(&TrafficPolicy::Local) {
        true => "external",
        false => "",
    };
    let protocol = port.protocol.to_string();
    let parts = [
        &*service.name.namespace,
        &*service.name.name,
        &*port.name,
        &protocol,
        side,
    ];
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash.clamp(1, u32::MAX - 1)
}

/// Who may use the load balancer addresses of a family; `None` is everyone.
///
/// Where a range holds this node's own address, the node may reach the load balancer addresses by themselves as well:
/// it may send from one of them (row 43).
fn allowed_sources(service: &Service, family: Family, facts: &NodeFacts) -> Option<Arc<[IpNet]>> {
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
fn external_ip_refusal(address: IpAddr, service: &Service, facts: &NodeFacts) -> Option<String> {
    if service.cluster_ips.contains(&address) {
        return Some(format!("{address} is the cluster IP of the Service itself"));
    }
    let allowed = facts.allowed_external_ips.as_ref();
    let inside = |ranges: &Vec<IpNet>| ranges.iter().any(|range| range.contains(&address));
    match allowed.is_none_or(inside) {
        true => None,
        false => Some(format!("{address} is not among the allowed external IPs")),
    }
}

/// Whose traffic an external frontend there would take: the API server's, this node's own connections to it included, or
/// that of a process of this node (kube-proxy before 1.23 left such frontends out as well, since it could not open the
/// port itself).
fn owner(address: IpAddr, port: &ServicePort, facts: &NodeFacts) -> Option<&'static str> {
    let there = SocketAddr::new(address, port.port);
    if port.protocol == Protocol::Tcp && facts.api_servers.binary_search(&there).is_ok() {
        return Some("the API server");
    }
    let is_listener = facts
        .listeners
        .binary_search(&(port.protocol, there))
        .is_ok();
    is_listener.then_some("a process of this node")
}

/// What [`plan`] leaves out though nothing is wrong with the objects alone: endpoints at the Service's own cluster IPs
/// (one value for each such slice), external IPs that this node does not allow, and external addresses where the API
/// server or a process of this node answers.
pub fn left_out(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
) -> Vec<Invalid> {
    let endpoints = slices.iter().map(Borrow::borrow).filter_map(|slice| {
        let mut addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
        let address = addresses.find(|address| service.cluster_ips.contains(address))?;
        Some(Invalid {
            kind: ObjectKind::EndpointSlice,
            object: slice.name.clone(),
            field: "endpoints".into(),
            reason: format!("{address} is the cluster IP of the Service itself"),
        })
    });
    let external_ips = service.external_ips.iter().filter_map(|address| {
        Some(Invalid {
            kind: ObjectKind::Service,
            object: service.name.clone(),
            field: "spec.externalIPs".into(),
            reason: external_ip_refusal(*address, service, facts)?,
        })
    });
    let external = [
        ("spec.externalIPs", &service.external_ips),
        ("status.loadBalancer.ingress", &service.load_balancer_ips),
    ];
    let taken = external.into_iter().flat_map(|(field, addresses)| {
        let ports = |address| service.ports.iter().map(move |port| (address, port));
        let there = addresses.iter().copied().flat_map(ports);
        there.filter_map(move |(address, port)| {
            let owner = owner(address, port, facts)?;
            let (there, protocol) = (SocketAddr::new(address, port.port), port.protocol);
            Some(Invalid {
                kind: ObjectKind::Service,
                object: service.name.clone(),
                field: field.into(),
                reason: format!("{owner} answers at {there}/{protocol}"),
            })
        })
    });
    endpoints.chain(external_ips).chain(taken).collect()
}

fn key(frontend: &Frontend) -> impl Ord + use<> {
    (frontend.place, frontend.protocol, frontend.port)
}

/// The endpoints of one Service port in one family, each address and port once, sorted by them.
///
/// A slice port is the Service port's if name and protocol agree (rows 10 and 29; the target port does not
/// matter, row 22). Where slices repeat an address and port, the first in order of slice names counts, but one
/// that is not terminating replaces one that is: the address has passed to a new pod (row 34). An endpoint at
/// one of the Service's own cluster IPs would send connections round in circles and is left out (F42).
fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    family: Family,
    slices: &'a [impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices
        .iter()
        .map(Borrow::borrow)
        .filter(|slice| slice.family == family)
    {
        for slice_port in &slice.ports {
            if slice_port.name != port.name || slice_port.protocol != port.protocol {
                continue;
            }
            let endpoints = slice.endpoints.iter();
            let endpoints = endpoints.filter(|e| !service.cluster_ips.contains(&e.address));
            candidates.extend(endpoints.map(|endpoint| Candidate {
                backend: Backend {
                    address: endpoint.address,
                    port: slice_port.port,
                    local: endpoint.node.as_ref() == Some(&facts.node_name),
                },
                conditions: endpoint.conditions,
                hints: endpoint.hints.as_deref(),
            }));
        }
    }
    candidates.sort_by_key(|c| (c.backend.address, c.backend.port));
    candidates.dedup_by(|later, kept| {
        let same = (later.backend.address, later.backend.port)
            == (kept.backend.address, kept.backend.port);
        if same && kept.conditions.terminating && !later.conditions.terminating {
            *kept = *later;
        }
        same
    });
    candidates
}
