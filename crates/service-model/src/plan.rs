//! From a Service and its EndpointSlices to what this node has to do for it.
//!
//! A pure function of one Service, its slices and the node facts. Whether a Service is programmed at all is the
//! index's question; conflicts between Services are settled by whoever sees them both.
//!
//! Invariant: equal inputs give equal intents, whatever order slices and endpoints arrived in.

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use crate::facts::NodeFacts;
use crate::intent::{Backend, Disposition, Frontend, Masquerade, Place, ServiceIntent};
use crate::objects::{AddressFamily, EndpointSlice, Invalid, ObjectKind, Service, ServicePort};
use crate::select::{Candidate, select};

/// What a Service needs on this node. `slices` are the Service's, sorted by name.
///
/// Every port has a frontend on each cluster IP (one of each family; row 11) and, where a node port is
/// allocated, whatever the Service's type (row 12), one on the node's addresses of the same families. Node
/// ports are external traffic and masquerade everyone (row 48).
pub fn plan(service: &Service, slices: &[EndpointSlice], facts: &NodeFacts) -> ServiceIntent {
    let mut frontends = Vec::new();
    for family in AddressFamily::ALL {
        let of_family = |a: &&IpAddr| AddressFamily::of(**a) == family;
        let Some(cluster_ip) = service.cluster_ips.iter().find(of_family) else {
            continue;
        };
        for port in &service.ports {
            let disposition = match select(&candidates(service, port, family, slices, facts)) {
                Some(backends) => Disposition::Balance(backends.into()),
                None => Disposition::Refuse,
            };
            if let Some(node_port) = port.node_port {
                frontends.push(Frontend {
                    place: Place::NodePort(family),
                    protocol: port.protocol,
                    port: node_port,
                    disposition: disposition.clone(),
                    masquerade: Masquerade::Always,
                });
            }
            frontends.push(Frontend {
                place: Place::ClusterIp(*cluster_ip),
                protocol: port.protocol,
                port: port.port,
                disposition,
                masquerade: Masquerade::OffCluster,
            });
        }
    }
    // The first of two equal places wins (F51); sorting is stable.
    frontends.sort_by_key(key);
    frontends.dedup_by_key(|frontend| key(frontend));
    ServiceIntent {
        service: service.name.clone(),
        created: service.created,
        frontends,
    }
}

/// The endpoints at the Service's own cluster IPs, which [`plan`] leaves out though nothing is wrong with their
/// slices alone: one value for each such slice.
pub fn left_out(service: &Service, slices: &[EndpointSlice]) -> Vec<Invalid> {
    let left_out = |slice: &EndpointSlice| {
        let mut addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
        let address = addresses.find(|address| service.cluster_ips.contains(address))?;
        Some(Invalid {
            kind: ObjectKind::EndpointSlice,
            object: slice.name.clone(),
            field: "endpoints".into(),
            reason: format!("{address} is the cluster IP of the Service itself"),
        })
    };
    slices.iter().filter_map(left_out).collect()
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
fn candidates(
    service: &Service,
    port: &ServicePort,
    family: AddressFamily,
    slices: &[EndpointSlice],
    facts: &NodeFacts,
) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    for slice in slices.iter().filter(|slice| slice.family == family) {
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
