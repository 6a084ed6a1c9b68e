//! `/v1/flows`: lists the connections through Services, with the names of Services and nodes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use service_dataplane::Claim;
use service_dataplane::predict::Frontends;
use service_model::{Family, Identity, ObjectName, PortChoices};

use super::catalog::Catalog;
use super::documents::{Flow, Flows};
use super::knowledge::{Knowledge, Parameters};
use super::services::{find, pod_name};
use super::status::clean;
use super::traffic::{Tracked, claims};

/// Flows in one document, unless the request asks for fewer.
const MOST: usize = 10_000;

pub(super) fn answer(known: &Knowledge, parameters: &Parameters) -> Result<Flows> {
    let catalog = known.catalog.borrow();
    let only = parameters.get("service");
    let only = only.map(|name| find(&catalog, name)).transpose()?;
    let facts = catalog.facts().context("the first sync is not complete")?;
    let tracked = known.census.borrow_mut().list()?;
    let is_asked = |name: &ObjectName| only.as_ref().is_none_or(|only| only == name);
    let frontends = catalog.frontends(|_| true);
    let sources: BTreeSet<IpAddr> = tracked.iter().map(|flow| flow.source.ip()).collect();
    let mut naming = Naming {
        known,
        catalog: &catalog,
        frontends,
        pods: catalog.pods(&sources),
        endpoints: HashMap::new(),
    };
    let mut flows = Vec::new();
    let mut count = 0;
    for tracked in tracked {
        let mut of = claims(tracked.protocol, tracked.destination, facts);
        let service = of.find_map(|claim| naming.holder(&claim));
        let Some(service) = service.filter(is_asked) else {
            continue;
        };
        count += 1;
        if flows.len() < MOST {
            flows.push(naming.flow(&tracked, &service));
        }
    }
    flows.sort_by(|a: &Flow, b| (&a.service, &a.from).cmp(&(&b.service, &b.from)));
    Ok(Flows {
        node: clean(&known.sources.node),
        count,
        flows,
    })
}

/// Finds the names of Services and nodes for flows.
struct Naming<'a> {
    known: &'a Knowledge,
    catalog: &'a Catalog,
    frontends: Frontends,
    /// Pods of clients.
    pods: BTreeMap<IpAddr, ObjectName>,
    /// Endpoints of Services that have flows.
    endpoints: HashMap<ObjectName, Endpoints>,
}

/// The endpoints of a Service, and their pods by address.
struct Endpoints {
    ports: Vec<PortChoices>,
    identities: BTreeMap<IpAddr, Identity>,
}

impl Naming<'_> {
    fn holder(&self, claim: &Claim) -> Option<ObjectName> {
        let (service, _) = self.frontends.holder(claim)?;
        Some(service.clone())
    }

    fn flow(&mut self, tracked: &Tracked, service: &ObjectName) -> Flow {
        let (endpoint_pod, endpoint_node) = self.endpoint(service, tracked.endpoint);
        let from_pod = self.pods.get(&tracked.source.ip());
        Flow {
            protocol: tracked.protocol.to_string(),
            from: tracked.source.to_string(),
            from_pod: from_pod.map(|pod| clean(&pod.to_string())),
            from_node: self.node_of_source(tracked.source.ip()),
            to: tracked.destination.to_string(),
            service: clean(&service.to_string()),
            endpoint: tracked.endpoint.to_string(),
            endpoint_pod,
            endpoint_node,
            answered: tracked.answered,
            packets: tracked.packets,
            bytes: tracked.bytes,
        }
    }

    /// This node, or the peer of the overlay whose pods have the address.
    fn node_of_source(&self, source: IpAddr) -> Option<String> {
        let overlay = self.known.sources.published.overlay.as_ref()?.load();
        let tunnel = overlay.plan.tunnels[Family::of(source)].as_ref()?;
        if tunnel.pod_cidr.contains(&source) {
            return Some(clean(&self.known.sources.node));
        }
        let peer = tunnel
            .peers
            .iter()
            .find(|peer| peer.pod_cidr.contains(&source));
        peer.map(|peer| clean(&peer.name))
    }

    /// Pod and node of an endpoint.
    fn endpoint(
        &mut self,
        service: &ObjectName,
        endpoint: SocketAddr,
    ) -> (Option<String>, Option<String>) {
        let catalog = self.catalog;
        let of_service = self.endpoints.entry(service.clone());
        let known = of_service.or_insert_with(|| Endpoints {
            ports: catalog.explain(service),
            identities: catalog.identities(service),
        });
        let mut endpoints = known.ports.iter().flat_map(|port| &port.endpoints);
        let found = endpoints.find(|choice| {
            (choice.backend.address, choice.backend.port) == (endpoint.ip(), endpoint.port())
        });
        let identity = known.identities.get(&endpoint.ip());
        let pod = identity.and_then(|identity| pod_name(service, identity));
        let node = found.and_then(|choice| choice.node.as_deref().map(clean));
        (pod.filter(|_| found.is_some()), node)
    }
}
