//! The cluster as received so far: a value that events change, without effects.
//!
//! Owns the index, this node's object and the list of invalid objects. Nothing may be planned before
//! [`ClusterView::waiting_for`] is empty. No timeout bypasses this; the old tables serve meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use service_dataplane::Update;
use service_model::{
    Family, Index, Invalid, Node, NodeConfig, NodeFacts, ObjectEvent, ObjectKind, ObjectName,
    ServiceCidr, ServiceIntent, Socket, Suspects, Watched,
};

use object_source::{SourceEvent, Subject};

use super::invalid::InvalidObjects;

/// The kinds that planning needs. Without ServiceCIDRs, packets to unallocated cluster IPs would pass for a moment. They
/// are optional: a failed list of ServiceCIDRs counts as an empty one.
const NEEDED: [ObjectKind; 4] = [
    ObjectKind::Service,
    ObjectKind::EndpointSlice,
    ObjectKind::Node,
    ObjectKind::ServiceCidr,
];

/// The needed kinds that every API server has.
pub(super) const NEEDED_ALWAYS: [ObjectKind; 3] = [
    ObjectKind::Service,
    ObjectKind::EndpointSlice,
    ObjectKind::Node,
];

/// The cluster as received so far.
#[derive(Debug)]
pub(crate) struct ClusterView {
    config: NodeConfig,
    index: Index,
    node: Option<Arc<Node>>,
    /// Node addresses that an earlier process served, for a start without the Node object.
    adopted_addresses: Vec<IpAddr>,
    /// The Node object exists: `node` is not the last version of a deleted one.
    node_exists: bool,
    service_cidrs: BTreeMap<ObjectName, Vec<IpNet>>,
    listed: BTreeSet<ObjectKind>,
    invalid: InvalidObjects,
    /// Services over their budget.
    over_budget: BTreeMap<ObjectName, Invalid>,
}

/// What [`ClusterView::updates`] has planned.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    /// What Services need now. Of a Service over its budget, only the removal of an earlier Service of its name is among them.
    pub(crate) updates: Vec<Update>,
    /// What planning ignored.
    pub(crate) ignored: Vec<Invalid>,
    /// Services that are over their budget since this plan.
    pub(crate) over_budget: Vec<Invalid>,
    /// All Services that were planned and are over their budget.
    pub(crate) refused: Vec<ObjectName>,
}

impl ClusterView {
    pub(crate) fn new(config: NodeConfig) -> Self {
        ClusterView {
            config,
            index: Index::default(),
            node: None,
            adopted_addresses: Vec::new(),
            node_exists: false,
            service_cidrs: BTreeMap::new(),
            listed: BTreeSet::new(),
            invalid: InvalidObjects::default(),
            over_budget: BTreeMap::new(),
        }
    }

    /// Replaces the configuration. The node keeps its name.
    pub(crate) fn set_config(&mut self, config: NodeConfig) {
        self.config = config;
    }

    /// Replaces the suspects.
    pub(crate) fn set_suspects(&mut self, suspects: Suspects) {
        self.index.set_suspects(suspects);
    }

    /// Applies one event.
    pub(crate) fn event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(event) => {
                self.objects(&event);
                self.index.service_event(event);
            }
            SourceEvent::EndpointSlice(event) => {
                self.objects(&event);
                self.index.slice_event(event);
            }
            SourceEvent::Node(event) => {
                self.objects(&event);
                self.index.node_event(&event);
                self.node_event(event);
            }
            SourceEvent::ServiceCidr(event) => {
                self.objects(&event);
                self.service_cidr_event(event);
            }
            SourceEvent::Problem(problem) => self.invalid.add(&problem),
            SourceEvent::Solved(subject) => self.invalid.remove(&subject),
            SourceEvent::Connection {
                kind: ObjectKind::ServiceCidr,
                state: Err(_),
            } => {
                // ServiceCIDRs are optional, so Services do not wait for them.
                self.listed.insert(ObjectKind::ServiceCidr);
            }
            SourceEvent::Connection { .. } => {}
        }
    }

    /// Updates `listed` and `invalid`.
    fn objects<T: Watched>(&mut self, event: &ObjectEvent<T>) {
        let kind = T::KIND;
        match event {
            // Problems of the new version are reported after this event.
            ObjectEvent::Apply(object) => {
                let subject = Subject::Object(kind, object.name().clone());
                self.invalid.remove(&subject);
            }
            ObjectEvent::Delete(name) => {
                self.invalid.remove(&Subject::Object(kind, name.clone()));
            }
            ObjectEvent::Reset { invalid, .. } => {
                self.listed.insert(kind);
                self.invalid.listed(kind, invalid);
            }
        }
    }

    /// Keeps the last version of a deleted Node, so that the deletion removes no rules.
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
        if let Some(node) = &self.node {
            self.index.set_node_addresses(&node.addresses);
        }
    }

    /// Whether the source has this node's Node object.
    pub(crate) fn node_exists(&self) -> bool {
        self.node_exists
    }

    /// Whether load balancers may send to this node (KEP-3836).
    pub(crate) fn node_is_eligible(&self) -> bool {
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
    pub(crate) fn waiting_for(&self) -> Vec<ObjectKind> {
        NEEDED
            .into_iter()
            .filter(|kind| !self.listed.contains(kind))
            .collect()
    }

    /// Whether a kind has been listed.
    pub(crate) fn has_listed(&self, kind: ObjectKind) -> bool {
        self.listed.contains(&kind)
    }

    /// Number of invalid objects of each kind.
    pub(crate) fn invalid_by_kind(&self) -> impl Iterator<Item = (ObjectKind, usize)> {
        NEEDED
            .into_iter()
            .map(|kind| (kind, self.invalid.count(kind)))
    }

    /// Objects and files of which nothing of the current version is used, each with its problem.
    pub(crate) fn wholly_invalid(&self) -> impl ExactSizeIterator<Item = &str> {
        self.invalid.whole()
    }

    /// Services over their budget: their last good rules stay.
    pub(crate) fn over_budget(&self) -> impl ExactSizeIterator<Item = &Invalid> {
        self.over_budget.values()
    }

    /// Whether a Service is over its budget.
    pub(crate) fn is_over_budget(&self, service: &ObjectName) -> bool {
        self.over_budget.contains_key(service)
    }

    /// Number of Services and of endpoints.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.index.service_count(), self.index.endpoint_count())
    }

    /// Serves node ports at these addresses until there is a Node object.
    pub(crate) fn adopt_addresses(&mut self, addresses: Vec<IpAddr>) {
        self.adopted_addresses = addresses;
    }

    /// Whether there never was a Node object of this node's name, though Nodes are listed.
    pub(crate) fn lacks_node(&self) -> bool {
        self.node.is_none() && self.listed.contains(&ObjectKind::Node)
    }

    /// The facts to plan by. Without a Node object there are no zone and pod CIDRs, and only adopted node addresses.
    pub(crate) fn facts(&self, interface_addresses: &[IpAddr]) -> NodeFacts {
        let unknown = || {
            Arc::new(Node {
                addresses: self.adopted_addresses.clone(),
                ..Node::unknown(self.config.node_name.clone())
            })
        };
        let node = self.node.clone().unwrap_or_else(unknown);
        let service_cidrs: Vec<IpNet> = self.service_cidrs.values().flatten().copied().collect();
        NodeFacts::resolve(&self.config, &node, interface_addresses, &service_cidrs)
            .with_api_servers(self.index.api_servers())
    }

    /// External frontends that Services ask for at the addresses of this Node; see [`Index::external_sockets`].
    pub(crate) fn external_sockets(&self) -> BTreeMap<Socket, bool> {
        self.index.external_sockets()
    }

    /// Grows when the answer of [`ClusterView::external_sockets`] changes.
    pub(crate) fn external_sockets_revision(&self) -> u64 {
        self.index.external_sockets_revision()
    }

    /// Replaces the sockets of this node's processes.
    pub(crate) fn set_listeners(&mut self, listeners: Arc<BTreeSet<Socket>>) {
        self.index.set_listeners(listeners);
    }

    /// Services that have to be planned again.
    pub(crate) fn dirty(&self) -> &BTreeSet<ObjectName> {
        self.index.dirty_services()
    }

    /// Times of the changes of EndpointSlices since the last call, from their trigger-time annotations.
    pub(crate) fn take_triggers(&mut self) -> Vec<(Family, SystemTime)> {
        self.index.take_triggers()
    }

    /// Plans the dirty Services that are due, or all. `committed` returns the intent that a Service has in the tables.
    pub(crate) fn updates(
        &mut self,
        facts: &NodeFacts,
        all: bool,
        is_due: impl Fn(&ObjectName) -> bool,
        committed: impl Fn(&ObjectName) -> Option<Arc<ServiceIntent>>,
    ) -> Planned {
        let dirty = self.index.take_dirty_if(|name| all || is_due(name));
        let mut names: BTreeSet<ObjectName> = dirty.into_iter().collect();
        if all {
            names.extend(self.index.service_names().cloned());
        }
        let mut planned = Planned::default();
        for service in names {
            let plan = self.index.plan(&service, facts);
            let (intent, over) = match plan {
                Some(plan) => {
                    planned.ignored.extend(plan.ignored);
                    (Some(Arc::new(plan.intent)), plan.over_budget)
                }
                None => (None, None),
            };
            match over {
                Some(over) => {
                    if committed(&service).is_some_and(|intent| !self.is_current(&intent)) {
                        planned.updates.push(Update {
                            service: service.clone(),
                            intent: None,
                        });
                    }
                    planned.refused.push(service.clone());
                    if self.over_budget.insert(service, over.clone()).is_none() {
                        planned.over_budget.push(over);
                    }
                }
                None => {
                    self.over_budget.remove(&service);
                    planned.updates.push(Update { service, intent });
                }
            }
        }
        planned
    }

    /// Whether an intent is of the Service that has its name now. The rules of an earlier one must not stay: its cluster IPs may be
    /// those of another Service by now.
    fn is_current(&self, intent: &ServiceIntent) -> bool {
        let service = self.index.service(&intent.service);
        service.is_some_and(|service| intent.is_of(service.created, &service.cluster_ips))
    }
}
