//! The cluster as it has been told so far: a value that events change, without effects.
//!
//! Owns the index, this node's object and the list of what cannot be used. Nothing may be planned from it before
//! [`View::waiting_for`] is empty: no time-out goes round that, the old table serves meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use service_dataplane::Update;
use service_model::{
    Index, Invalid, Node, NodeConfig, NodeFacts, ObjectEvent, ObjectKind, ObjectName, Protocol,
    ServiceCidr,
};

use object_source::{SourceEvent, Subject};

/// The kinds without which no Service can be planned, and the one without which packets to addresses of no Service
/// would pass for a moment. A cluster may have none of that: its source says so.
const NEEDED: [ObjectKind; 4] = [
    ObjectKind::Service,
    ObjectKind::EndpointSlice,
    ObjectKind::Node,
    ObjectKind::ServiceCidr,
];

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct View {
    config: NodeConfig,
    index: Index,
    /// Found anew when Services or the Node change; endpoints, which change most, have no part in it.
    external_sockets_here: Option<BTreeSet<(Protocol, SocketAddr)>>,
    node: Option<Arc<Node>>,
    /// Its object is there: `node` is not what is left of one that is gone.
    node_exists: bool,
    service_cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    listed: BTreeSet<ObjectKind>,
    /// What has a problem now.
    invalid: BTreeSet<Subject>,
}

impl View {
    pub(super) fn new(config: NodeConfig) -> Self {
        View {
            config,
            index: Index::default(),
            external_sockets_here: None,
            node: None,
            node_exists: false,
            service_cidrs: BTreeMap::new(),
            listed: BTreeSet::new(),
            invalid: BTreeSet::new(),
        }
    }

    /// Takes one event in.
    pub(super) fn take(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(event) => {
                self.external_sockets_here = None;
                self.heard(ObjectKind::Service, &event, |service| &service.name);
                self.index.service_event(event);
            }
            SourceEvent::EndpointSlice(event) => {
                self.heard(ObjectKind::EndpointSlice, &event, |slice| &slice.name);
                self.index.slice_event(event);
            }
            SourceEvent::Node(event) => {
                self.external_sockets_here = None;
                self.heard(ObjectKind::Node, &event, |node| &node.name);
                self.node_event(event);
            }
            SourceEvent::ServiceCidr(event) => {
                self.heard(ObjectKind::ServiceCidr, &event, |cidr| &cidr.name);
                self.service_cidr_event(event);
            }
            SourceEvent::Problem(problem) => {
                self.invalid.insert(problem.subject());
            }
            SourceEvent::Solved(subject) => {
                self.invalid.remove(&subject);
            }
            SourceEvent::Connection {
                kind: ObjectKind::ServiceCidr,
                state: Err(_),
            } => {
                // Services do not wait for what they can do without.
                self.listed.insert(ObjectKind::ServiceCidr);
            }
            SourceEvent::Connection { .. } => {}
        }
    }

    /// Keeps the lists of what is known and of what cannot be used.
    fn heard<T>(
        &mut self,
        kind: ObjectKind,
        event: &ObjectEvent<T>,
        name: impl Fn(&T) -> &ObjectName,
    ) {
        match event {
            // A warning about a part of an object comes after the object itself.
            ObjectEvent::Apply(object) => {
                let subject = Subject::Object(kind, name(object).clone());
                self.invalid.remove(&subject);
            }
            ObjectEvent::Delete(name) => {
                self.invalid.remove(&Subject::Object(kind, name.clone()));
            }
            ObjectEvent::Reset { invalid, .. } => {
                self.listed.insert(kind);
                self.invalid.retain(|subject| match subject {
                    Subject::Object(of, name) => *of != kind || invalid.contains(name),
                    Subject::File(_) => true,
                });
            }
        }
    }

    /// A Node that is gone keeps serving with its last facts: rules never go because an object went.
    fn node_event(&mut self, event: ObjectEvent<Node>) {
        let own = self.config.node_name.clone();
        let ours = |name: &ObjectName| name.name == own;
        let known = match event {
            ObjectEvent::Apply(node) if ours(&node.name) => Some(node),
            ObjectEvent::Delete(name) if ours(&name) => None,
            ObjectEvent::Reset { objects, invalid } => {
                let found = objects.into_iter().find(|node| ours(&node.name));
                if found.is_none() && invalid.iter().any(ours) {
                    return;
                }
                found
            }
            ObjectEvent::Apply(_) | ObjectEvent::Delete(_) => return,
        };
        self.node_exists = known.is_some();
        self.node = known.or(self.node.take());
    }

    /// Whether load balancers may send to this node (KEP-3836).
    pub(super) fn node_is_eligible(&self) -> bool {
        self.node_exists && self.node.as_ref().is_some_and(|node| !node.leaving)
    }

    fn service_cidr_event(&mut self, event: ObjectEvent<ServiceCidr>) {
        match event {
            ObjectEvent::Apply(object) => {
                self.service_cidrs
                    .insert(object.name.clone(), object.cidrs.clone());
            }
            ObjectEvent::Delete(name) => {
                self.service_cidrs.remove(&name);
            }
            ObjectEvent::Reset { objects, invalid } => {
                self.service_cidrs.retain(|name, _| invalid.contains(name));
                let listed = objects
                    .into_iter()
                    .map(|object| (object.name.clone(), object.cidrs.clone()));
                self.service_cidrs.extend(listed);
            }
        }
    }

    /// Kinds that have not been listed yet.
    pub(super) fn waiting_for(&self) -> Vec<ObjectKind> {
        NEEDED
            .into_iter()
            .filter(|kind| !self.listed.contains(kind))
            .collect()
    }

    /// Objects that cannot be used, or not in full.
    pub(super) fn invalid(&self) -> impl Iterator<Item = (ObjectKind, &ObjectName)> {
        self.invalid.iter().filter_map(|subject| match subject {
            Subject::Object(kind, name) => Some((*kind, name)),
            Subject::File(_) => None,
        })
    }

    /// How many of each kind those are, kinds without any included.
    pub(super) fn invalid_by_kind(&self) -> impl Iterator<Item = (ObjectKind, usize)> {
        let kinds = [
            ObjectKind::Service,
            ObjectKind::EndpointSlice,
            ObjectKind::Node,
            ObjectKind::ServiceCidr,
        ];
        kinds.into_iter().map(|kind| {
            let of_kind = self.invalid().filter(|(of, _)| *of == kind);
            (kind, of_kind.count())
        })
    }

    /// Number of Services and of endpoints.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.index.service_count(), self.index.endpoint_count())
    }

    /// The facts to plan by. Without a Node object there are no node addresses, zone and pod ranges.
    pub(super) fn facts(&self, interface_addresses: &[IpAddr]) -> NodeFacts {
        let unknown = || Arc::new(Node::unknown(self.config.node_name.clone()));
        let node = self.node.clone().unwrap_or_else(unknown);
        let service_cidrs: Vec<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        NodeFacts::resolve(&self.config, &node, interface_addresses, &service_cidrs)
            .with_api_servers(self.index.api_servers())
    }

    /// What Services ask for at the addresses of this Node, as external frontends.
    pub(super) fn external_sockets_here(&mut self) -> &BTreeSet<(Protocol, SocketAddr)> {
        let addresses = self.node.as_ref().map(|node| &*node.addresses);
        let find = || self.index.external_sockets(addresses.unwrap_or_default());
        self.external_sockets_here.get_or_insert_with(find)
    }

    /// Whether any Service is to be planned again.
    pub(super) fn is_dirty(&self) -> bool {
        self.index.is_dirty()
    }

    /// What the dirty Services (or `all`) need, and what planning them ignored.
    pub(super) fn updates(&mut self, facts: &NodeFacts, all: bool) -> (Vec<Update>, Vec<Invalid>) {
        let mut names: BTreeSet<ObjectName> = self.index.take_dirty().into_iter().collect();
        if all {
            names.extend(self.index.service_names().cloned());
        }
        let mut ignored = Vec::new();
        let updates = names.into_iter().map(|service| {
            let intent = self.index.plan(&service, facts).map(|plan| {
                ignored.extend(plan.ignored);
                Arc::new(plan.intent)
            });
            Update { service, intent }
        });
        (updates.collect(), ignored)
    }
}
