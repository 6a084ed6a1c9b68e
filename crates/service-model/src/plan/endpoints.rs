//! The endpoints of a Service port, gathered from the Service's slices.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use crate::facts::NodeFacts;
use crate::intent::{Backend, HealthCheck};
use crate::objects::{EndpointSlice, Family, Invalid, ObjectKind, Protocol, Service, ServicePort};
use crate::select::Candidate;
use crate::suspects::Suspects;

/// The slices of one Service in one family, found by port name and protocol: slices and ports multiply.
pub(super) struct Joined<'a> {
    slices: BTreeMap<(&'a str, Protocol), Vec<(&'a EndpointSlice, u16)>>,
}

impl<'a> Joined<'a> {
    /// Keeps the order of `slices`.
    pub(super) fn new(slices: &'a [impl Borrow<EndpointSlice>], family: Family) -> Self {
        let mut joined = BTreeMap::<_, Vec<_>>::new();
        let slices = slices.iter().map(Borrow::borrow);
        for slice in slices.filter(|slice| slice.family == family) {
            for port in &slice.ports {
                let key = (&*port.name, port.protocol);
                joined.entry(key).or_default().push((slice, port.port));
            }
        }
        Joined { slices: joined }
    }

    /// The slices of a Service port, and its port in each.
    fn of_port<'s>(&'s self, port: &'s ServicePort) -> &'s [(&'a EndpointSlice, u16)] {
        let found = self.slices.get(&(&*port.name, port.protocol));
        found.map_or(&[], Vec::as_slice)
    }

    /// Whether [`candidates`] of all ports together are more than `limit`, as far as addresses tell, and never if they are
    /// not. Without this a Service is planned port by port until its budget is exceeded.
    pub(super) fn has_more_candidates_than(&self, limit: usize, service: &Service) -> bool {
        let ports = || service.ports.iter().map(|port| self.of_port(port));
        let listed = ports().flatten().map(|(slice, _)| slice.endpoints.len());
        if listed.sum::<usize>() <= limit {
            return false;
        }
        // Nearly always all ports have the same slices.
        let is_same = |(one, _): &(&EndpointSlice, u16), (other, _): &(&EndpointSlice, u16)| {
            std::ptr::eq(*one, *other)
        };
        let (mut counted, mut count, mut total) = (&[][..], 0, 0);
        for found in ports() {
            let mut pairs = found.iter().zip(counted);
            if found.len() != counted.len() || !pairs.all(|(one, other)| is_same(one, other)) {
                (counted, count) = (found, addresses(service, found));
            }
            total += count;
            if total > limit {
                return true;
            }
        }
        false
    }
}

/// Whether slices have more endpoints than this, each address once, or list more than twice as many: an address that moves to
/// another slice is in both for a while.
pub(super) fn are_more_than(limit: usize, slices: &[impl Borrow<EndpointSlice>]) -> bool {
    let endpoints = || slices.iter().map(|slice| &slice.borrow().endpoints);
    let listed: usize = endpoints().map(Vec::len).sum();
    if listed <= limit || listed > 2 * limit {
        return listed > limit;
    }
    let mut addresses: Vec<IpAddr> = endpoints().flatten().map(|one| one.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.len() > limit
}

/// The number of different addresses in slices that a Service may use.
fn addresses(service: &Service, slices: &[(&EndpointSlice, u16)]) -> usize {
    let endpoints = slices.iter().flat_map(|(slice, _)| &slice.endpoints);
    let addresses = endpoints.map(|endpoint| endpoint.address);
    let usable = addresses.filter(|address| !is_circular(service, *address));
    let mut addresses: Vec<IpAddr> = usable.collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.len()
}

/// The endpoints of one Service port in one family, each address and port once, sorted by them.
///
/// A slice port is the Service port's if name and protocol agree (rows 10 and 29; the target port does not
/// matter, row 22). Where slices repeat an address and port, the first in order of slice names counts, but one
/// that is not terminating replaces one that is: the address has passed to a new pod (row 34).
pub(super) fn candidates<'a>(
    service: &Service,
    port: &ServicePort,
    slices: &Joined<'a>,
    facts: &NodeFacts,
    suspects: &Suspects,
) -> Vec<Candidate<'a>> {
    let slices = slices.of_port(port);
    let listed = slices.iter().map(|(slice, _)| slice.endpoints.len());
    let mut candidates = Vec::with_capacity(listed.sum());
    for (slice, target_port) in slices {
        let endpoints = slice.endpoints.iter();
        let endpoints = endpoints.filter(|e| !is_circular(service, e.address));
        candidates.extend(endpoints.map(|endpoint| Candidate {
            backend: Backend {
                address: endpoint.address,
                port: *target_port,
                local: endpoint.node.as_ref() == Some(&facts.node_name),
            },
            conditions: endpoint.conditions,
            hints: endpoint.hints.as_deref(),
            node: endpoint.node.as_ref(),
            suspect: endpoint.node.as_deref().is_some_and(|n| suspects.has(n))
                || port.protocol == Protocol::Tcp
                    && suspects.has_endpoint(
                        SocketAddr::new(endpoint.address, *target_port),
                        service.options.failover,
                    ),
        }));
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

/// Whether an endpoint at this address would send the Service's connections back to the Service.
fn is_circular(service: &Service, endpoint: IpAddr) -> bool {
    service.cluster_ips.contains(&endpoint)
}

/// The slices with endpoints that [`candidates`] ignores, one value for each slice.
pub(super) fn circular(service: &Service, slices: &[impl Borrow<EndpointSlice>]) -> Vec<Invalid> {
    let slices = slices.iter().map(Borrow::borrow);
    let circular = slices.filter_map(|slice| {
        let mut addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
        let address = addresses.find(|address| is_circular(service, *address))?;
        Some(Invalid {
            kind: ObjectKind::EndpointSlice,
            object: slice.name.clone(),
            field: "endpoints".into(),
            reason: format!("{address} is the cluster IP of the Service itself"),
        })
    });
    circular.collect()
}

/// What load balancers get as an answer (row 18). Only Services with a health check node port have one; which those
/// are is decided when they are decoded.
pub(super) fn health_check(
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
        let nobody = Suspects::default();
        let joined = Joined::new(slices, family);
        let candidates = ports.flat_map(|port| candidates(service, port, &joined, facts, &nobody));
        let ready = candidates.filter(|c| c.backend.local && c.conditions.ready);
        let addresses: BTreeSet<IpAddr> = ready.map(|c| c.backend.address).collect();
        addresses.len()
    };
    Some(HealthCheck {
        port: service.health_check_node_port?,
        local_endpoints: families.map(|f| (f, local_endpoints(f))).collect(),
    })
}
