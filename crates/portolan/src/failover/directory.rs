//! Which endpoints are on which node, by the EndpointSlices as the control loop receives them.
//!
//! Holds the same objects as the index, so it takes a pointer for each slice. Questions read all slices; they are asked only
//! while something seems to be wrong.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_source::SourceEvent;
use service_model::{EndpointSlice, ObjectEvent, ObjectName, Protocol, Service};

use crate::observer::Observer;

/// Addresses of a node, and nodes of an address, that are kept of one namespace: any tenant can write slices, and must not
/// choose all that are asked.
const OF_A_NAMESPACE: usize = 8;

/// Shared by the control loop, which writes, and the failover part, which reads.
#[derive(Clone, Debug)]
pub(super) struct SharedDirectory(Arc<Mutex<Directory>>);

#[derive(Debug)]
struct Directory {
    /// Name of this node.
    own: Arc<str>,
    slices: BTreeMap<ObjectName, Arc<EndpointSlice>>,
    /// There have been endpoints on other nodes.
    has_others: bool,
    /// Services that ask for failover of single endpoints.
    asking: BTreeSet<ObjectName>,
}

/// Where the endpoints of some nodes can be asked, and which nodes there are.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    /// Addresses by node and namespace. Nodes without endpoints are missing.
    pub(super) addresses: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Vec<SocketAddr>>>,
    /// Nodes with endpoints, and this one.
    pub(super) names: BTreeSet<Arc<str>>,
}

impl SharedDirectory {
    pub(super) fn new(own: Arc<str>) -> Self {
        SharedDirectory(Arc::new(Mutex::new(Directory {
            own,
            slices: BTreeMap::new(),
            has_others: false,
            asking: BTreeSet::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Directory> {
        // No code path leaves the directory half-written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether any other node has had endpoints.
    pub(super) fn has_others(&self) -> bool {
        self.lock().has_others
    }

    /// The slices and the name of this node. The lock is held only while pointers are copied.
    fn slices(&self) -> (Vec<Arc<EndpointSlice>>, Arc<str>) {
        let directory = self.lock();
        let slices = directory.slices.values().cloned().collect();
        (slices, directory.own.clone())
    }

    /// The other nodes that have these addresses of endpoints. Where slices disagree, all nodes that they name: a tenant's
    /// slice can give any address another node.
    pub(super) fn nodes_of(
        &self,
        wanted: &BTreeSet<IpAddr>,
    ) -> HashMap<IpAddr, BTreeSet<Arc<str>>> {
        let (slices, own) = self.slices();
        let mut named: BTreeMap<(IpAddr, &str), BTreeSet<&Arc<str>>> = BTreeMap::new();
        for slice in &slices {
            let endpoints = slice.endpoints.iter();
            for endpoint in endpoints.filter(|endpoint| wanted.contains(&endpoint.address)) {
                let other = endpoint.node.as_ref().filter(|node| **node != own);
                let Some(node) = other else { continue };
                let key = (endpoint.address, &*slice.name.namespace);
                let of_namespace = named.entry(key).or_default();
                if of_namespace.len() < OF_A_NAMESPACE {
                    of_namespace.insert(node);
                }
            }
        }
        let mut nodes: HashMap<IpAddr, BTreeSet<Arc<str>>> = HashMap::new();
        for ((address, _), names) in named {
            let names = names.into_iter().cloned();
            nodes.entry(address).or_default().extend(names);
        }
        nodes
    }

    /// Those of these endpoints of TCP that a Service has which asks for their failover, or any Service.
    pub(super) fn asked_for(
        &self,
        wanted: &BTreeSet<SocketAddr>,
        for_all: bool,
    ) -> BTreeSet<SocketAddr> {
        let (slices, _) = self.slices();
        let asking = match for_all {
            true => BTreeSet::new(),
            false => self.lock().asking.clone(),
        };
        let is_asking = |slice: &&Arc<EndpointSlice>| for_all || asking.contains(&slice.service);
        let mut found = BTreeSet::new();
        for slice in slices.iter().filter(is_asking) {
            let ports = slice
                .ports
                .iter()
                .filter(|port| port.protocol == Protocol::Tcp);
            for port in ports {
                let endpoints = slice.endpoints.iter();
                let endpoints = endpoints.map(|one| SocketAddr::new(one.address, port.port));
                found.extend(endpoints.filter(|endpoint| wanted.contains(endpoint)));
            }
        }
        found
    }

    /// Whether any Service asks for failover of its endpoints.
    pub(super) fn has_asking(&self) -> bool {
        !self.lock().asking.is_empty()
    }

    /// Where endpoints of these nodes can be asked.
    pub(super) fn nodes(&self, wanted: &BTreeSet<Arc<str>>) -> Nodes {
        let (slices, own) = self.slices();
        let mut names = BTreeSet::from([own]);
        let mut addresses: BTreeMap<Arc<str>, BTreeMap<Arc<str>, Vec<SocketAddr>>> =
            BTreeMap::new();
        let mut last: Option<&Arc<str>> = None;
        for slice in &slices {
            for endpoint in &slice.endpoints {
                let Some(node) = &endpoint.node else { continue };
                // Names are shared between endpoints, and one node often has several in a row.
                if !last.is_some_and(|last| Arc::ptr_eq(last, node)) {
                    names.insert(node.clone());
                    last = Some(node);
                }
                let conditions = endpoint.conditions;
                if !wanted.contains(node) || !(conditions.ready || conditions.serving) {
                    continue;
                }
                let Some(port) = port_to_ask(slice) else {
                    continue;
                };
                let namespace = slice.name.namespace.clone();
                let of_node = addresses.entry(node.clone()).or_default();
                let known = of_node.entry(namespace).or_default();
                let is_known = known.iter().any(|known| known.ip() == endpoint.address);
                if !is_known && known.len() < OF_A_NAMESPACE {
                    known.push(SocketAddr::new(endpoint.address, port));
                }
            }
        }
        Nodes { addresses, names }
    }
}

/// A port to open a TCP connection to: a refused connection is an answer as well, so any will do.
fn port_to_ask(slice: &EndpointSlice) -> Option<u16> {
    let tcp = slice
        .ports
        .iter()
        .find(|port| port.protocol == Protocol::Tcp);
    tcp.or(slice.ports.first()).map(|port| port.port)
}

impl Directory {
    fn service(&mut self, event: &ObjectEvent<Service>) {
        match event {
            ObjectEvent::Apply(service) if service.options.failover => {
                self.asking.insert(service.name.clone());
            }
            ObjectEvent::Apply(service) => drop(self.asking.remove(&service.name)),
            ObjectEvent::Delete(name) => drop(self.asking.remove(name)),
            ObjectEvent::Reset { objects, invalid } => {
                self.asking.retain(|name| invalid.contains(name));
                let asking = objects.iter().filter(|service| service.options.failover);
                self.asking
                    .extend(asking.map(|service| service.name.clone()));
            }
        }
    }

    fn apply(&mut self, slice: &Arc<EndpointSlice>) {
        if slice.excluded {
            self.slices.remove(&slice.name);
            return;
        }
        self.has_others |= {
            let mut nodes = slice.endpoints.iter().filter_map(|e| e.node.as_ref());
            nodes.any(|node| *node != self.own)
        };
        self.slices.insert(slice.name.clone(), slice.clone());
    }
}

impl Observer for SharedDirectory {
    fn event(&mut self, event: &SourceEvent) {
        let event = match event {
            SourceEvent::EndpointSlice(event) => event,
            SourceEvent::Service(event) => return self.lock().service(event),
            _ => return,
        };
        let mut directory = self.lock();
        match event {
            ObjectEvent::Apply(slice) => directory.apply(slice),
            ObjectEvent::Delete(name) => drop(directory.slices.remove(name)),
            ObjectEvent::Reset { objects, invalid } => {
                let invalid: HashSet<&ObjectName> = invalid.iter().collect();
                directory.slices.retain(|name, _| invalid.contains(name));
                objects.iter().for_each(|slice| directory.apply(slice));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use service_model::wire::{self, ConversionContext, Object};

    use super::*;

    fn slice(name: &str, protocol: &str, endpoints: &[(&str, &str)]) -> EndpointSlice {
        let endpoints = endpoints
            .iter()
            .map(|(address, node)| serde_json::json!({ "addresses": [address], "nodeName": node }));
        let (namespace, name) = name.split_once('/').unwrap();
        let slice: wire::EndpointSlice = serde_json::from_value(serde_json::json!({
            "metadata": { "name": name, "namespace": namespace,
                          "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4",
            "ports": [{ "port": 8080, "protocol": protocol }],
            "endpoints": endpoints.collect::<Vec<_>>(),
        }))
        .unwrap();
        let converted = slice.into_model(&mut ConversionContext::default());
        converted.unwrap().object
    }

    fn directory(slices: Vec<EndpointSlice>) -> SharedDirectory {
        let mut directory = SharedDirectory::new("node-a".into());
        directory.event(&SourceEvent::EndpointSlice(ObjectEvent::list(slices)));
        directory
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn addresses_lead_to_the_nodes_of_their_endpoints() {
        let mut directory = directory(vec![
            slice(
                "a/1",
                "TCP",
                &[("10.1.0.1", "node-a"), ("10.1.1.1", "node-b")],
            ),
            slice("a/2", "TCP", &[("10.1.2.1", "node-c")]),
        ]);
        let wanted = ["10.1.0.1", "10.1.1.1", "10.1.2.1", "10.9.9.9"].map(ip);
        let nodes = directory.nodes_of(&wanted.into());
        let expected = [
            (ip("10.1.1.1"), BTreeSet::from(["node-b".into()])),
            (ip("10.1.2.1"), BTreeSet::from(["node-c".into()])),
        ];
        assert_eq!(nodes, HashMap::from(expected));
        let name = ObjectName::new("a", "2");
        directory.event(&SourceEvent::EndpointSlice(ObjectEvent::Delete(name)));
        assert_eq!(directory.nodes_of(&wanted.into()).len(), 1);
        assert!(directory.has_others());
    }

    #[test]
    fn an_address_leads_to_all_nodes_that_slices_name_for_it() {
        let address = "10.1.1.1";
        let directory = directory(vec![
            slice("shop/1", "TCP", &[(address, "node-b")]),
            slice("zevil/1", "TCP", &[(address, "node-c")]),
            slice("zevil/2", "TCP", &[(address, "node-a")]),
        ]);
        let nodes = directory.nodes_of(&[ip(address)].into());
        let named = BTreeSet::from(["node-b".into(), "node-c".into()]);
        assert_eq!(nodes, HashMap::from([(ip(address), named)]));
    }

    #[test]
    fn a_namespace_names_few_nodes_for_an_address() {
        let address = "10.1.1.1";
        let many: Vec<String> = (10..60).map(|n| format!("a-{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|node| (address, node.as_str())).collect();
        let directory = directory(vec![
            slice("evil/1", "TCP", &many),
            slice("shop/1", "TCP", &[(address, "node-b")]),
        ]);
        let nodes = directory.nodes_of(&[ip(address)].into());
        let named = &nodes[&ip(address)];
        assert_eq!(named.len(), OF_A_NAMESPACE + 1);
        assert!(named.contains("node-b"));
    }

    #[test]
    fn a_directory_of_this_node_alone_has_no_others() {
        let alone = directory(vec![slice("a/1", "TCP", &[("10.1.0.1", "node-a")])]);
        assert!(!alone.has_others());
    }

    #[test]
    fn a_namespace_cannot_fill_the_addresses_of_a_node() {
        let many: Vec<String> = (1..50).map(|n| format!("10.1.1.{n}")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|a| (a.as_str(), "node-b")).collect();
        let directory = directory(vec![
            slice("evil/1", "TCP", &many),
            slice(
                "shop/1",
                "UDP",
                &[("10.1.1.200", "node-b"), ("10.1.2.1", "node-c")],
            ),
        ]);
        let nodes = directory.nodes(&BTreeSet::from(["node-b".into(), "node-x".into()]));
        assert_eq!((nodes.names.len(), nodes.addresses.len()), (3, 1));
        let of_node = &nodes.addresses["node-b"];
        assert_eq!(of_node["evil"].len(), OF_A_NAMESPACE);
        assert_eq!(of_node["shop"], ["10.1.1.200:8080".parse().unwrap()]);
    }
}
