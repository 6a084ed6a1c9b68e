//! Which endpoints a Service port has, and which of them take new connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::addresses::parse_sloppily;
use super::claims::is_for_us;
use crate::cluster::{Cluster, Endpoint, Node, Service, ServicePort, Slice, Transport};

/// Endpoints by address and port.
pub(super) type Endpoints<'a> = BTreeMap<SocketAddr, &'a Endpoint>;

/// Those that take new connections from anyone, but for those on nodes that seem to be down (`docs/failover.md`): while
/// any other one is there, up to half of them are spared, in order of their addresses.
pub(super) fn anywhere<'a>(
    all: &Endpoints<'a>,
    node: &Node,
    suspects: &BTreeSet<String>,
) -> Endpoints<'a> {
    let mut chosen = wherever(all, node);
    let is_down = |e: &Endpoint| {
        let runs_on = e.node.as_ref().filter(|name| **name != node.name);
        runs_on.is_some_and(|name| suspects.contains(name))
    };
    if chosen.values().all(|endpoint| is_down(endpoint)) {
        return chosen;
    }
    let mut spared = 0;
    let half = chosen.len() / 2;
    chosen.retain(|_, endpoint| {
        let is_spared = spared < half && is_down(endpoint);
        spared += usize::from(is_spared);
        !is_spared
    });
    chosen
}

/// The ready ones, narrowed to those that hints give this node, or else its zone; when none is ready, those that still
/// serve while they terminate (KEP-1669), wherever they are.
fn wherever<'a>(all: &Endpoints<'a>, node: &Node) -> Endpoints<'a> {
    let ready = only(all, is_ready);
    if ready.is_empty() {
        return only(all, still_serves);
    }
    narrowed(&ready, |e| &e.node_hints, Some(&node.name))
        .or_else(|| narrowed(&ready, |e| &e.zone_hints, node.zone.as_ref()))
        .unwrap_or(ready)
}

/// Those on the node, by the same rule among themselves, but for the hints (KEP-2086).
pub(super) fn local<'a>(all: &Endpoints<'a>, node: &Node) -> Endpoints<'a> {
    let here = only(all, |e| e.node.as_ref() == Some(&node.name));
    let ready = only(&here, is_ready);
    match ready.is_empty() {
        true => only(&here, still_serves),
        false => ready,
    }
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.ready != Some(false)
}

fn still_serves(endpoint: &Endpoint) -> bool {
    endpoint.serving != Some(false) && endpoint.terminating == Some(true)
}

fn only<'a>(endpoints: &Endpoints<'a>, wanted: impl Fn(&Endpoint) -> bool) -> Endpoints<'a> {
    let wanted = endpoints.iter().filter(|(_, endpoint)| wanted(endpoint));
    wanted.map(|(to, endpoint)| (*to, *endpoint)).collect()
}

/// Those with a hint for `place`, if every endpoint has hints and one of them is for it: a single endpoint without
/// means that hints are not meant to be followed yet.
fn narrowed<'a>(
    ready: &Endpoints<'a>,
    hints: impl Fn(&Endpoint) -> &Vec<String>,
    place: Option<&String>,
) -> Option<Endpoints<'a>> {
    let place = place.filter(|place| !place.is_empty())?;
    let all_have = ready.values().all(|endpoint| !hints(endpoint).is_empty());
    let hinted = only(ready, |endpoint| hints(endpoint).contains(place));
    (all_have && !hinted.is_empty()).then_some(hinted)
}

/// All endpoints of a Service port in one family, from all its slices. An address and port that occurs
/// several times is terminating only if all its occurrences are; the first such one counts.
pub(super) fn of<'a>(
    cluster: &'a Cluster,
    service: &Service,
    port: &ServicePort,
    ipv4: bool,
) -> Endpoints<'a> {
    let mut found: BTreeMap<SocketAddr, &Endpoint> = BTreeMap::new();
    for slice in cluster
        .slices
        .iter()
        .filter(|slice| belongs(cluster, slice, service, ipv4))
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

fn belongs(cluster: &Cluster, slice: &Slice, service: &Service, ipv4: bool) -> bool {
    slice.namespace == service.namespace
        && slice.service.as_ref() == Some(&service.name)
        && slice.address_type == if ipv4 { "IPv4" } else { "IPv6" }
        && is_for_us(cluster, &slice.labels)
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
