//! Joins EndpointSlices to Services as events bring them, in any order, and says which Services are dirty.
//!
//! Level-triggered: the index holds the last version of each object and of the surroundings, and nothing else, so its answers
//! depend on what exists, not on its history. Events may be repeated or split, and lost ones are made up for by a
//! [`ObjectEvent::Reset`]; slices may come before their Service and outlive it.
//!
//! Invariants: a Service whose plan may have changed since [`Index::take_dirty`] is dirty; an event that changes nothing
//! makes no Service dirty (row 20); a Service without object and slices takes no memory (row 37).

mod sockets;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use crate::facts::NodeFacts;
use crate::identities::Identity;
use crate::objects::{
    Endpoint, EndpointSlice, Family, Node, ObjectEvent, ObjectName, Protocol, Service, ServiceType,
    TriggerTime,
};
use crate::plan::{Plan, PortChoices, explain, plan};
use crate::surroundings::{Socket, Surroundings};
use crate::suspects::Suspects;
use sockets::RequestedSockets;

/// Maximum number of changes whose times are kept: the oldest. No commit takes times before all lists are complete, nor the times of
/// a Service that waits.
const MAX_TRIGGERS: usize = 4096;

/// See the module. Plain data, owned by one task.
#[derive(Debug, Default)]
pub struct Index {
    entries: BTreeMap<ObjectName, Entry>,
    /// The Service of each slice. Its label may change (row 36): this finds the Service that the slice leaves.
    owners: BTreeMap<ObjectName, ObjectName>,
    /// External addresses, each with the Services that request it: thousands may share one.
    external: BTreeSet<(IpAddr, ObjectName)>,
    sockets: RequestedSockets,
    surroundings: Surroundings,
    /// Cluster IPs of Services that were invalid in the last list. The version that is kept may be that of an earlier Service.
    unconfirmed: BTreeSet<(IpAddr, ObjectName)>,
    dirty: BTreeSet<ObjectName>,
    /// When changes of slices happened, with the Service and family of each; up to [`MAX_TRIGGERS`].
    triggers: Vec<(ObjectName, Family, SystemTime)>,
    services: usize,
    endpoints: usize,
}

/// What is known under one Service name.
#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    /// Sorted by name.
    slices: Vec<Arc<EndpointSlice>>,
}

impl Index {
    /// An index without objects.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applies an event about Services.
    pub fn service_event(&mut self, event: ObjectEvent<Service>) {
        match event {
            ObjectEvent::Apply(service) => self.apply_service(service),
            ObjectEvent::Delete(name) => self.delete_service(&name),
            ObjectEvent::Reset { objects, invalid } => {
                let known = self
                    .entries
                    .iter()
                    .filter(|(_, entry)| entry.service.is_some());
                let known = known.map(|(name, _)| name);
                for name in gone(known, objects.iter().map(|o| &o.name), &invalid) {
                    self.delete_service(&name);
                }
                let kept = invalid.iter().filter_map(|name| self.entries.get(name));
                let kept = kept.filter_map(|entry| entry.service.as_ref());
                let cluster_ips = kept.flat_map(|service| {
                    let of_service = service.cluster_ips.iter();
                    of_service.map(move |at| (*at, service.name.clone()))
                });
                self.unconfirmed.extend(cluster_ips);
                objects
                    .into_iter()
                    .for_each(|service| self.apply_service(service));
            }
        }
    }

    /// Applies an event about EndpointSlices.
    pub fn slice_event(&mut self, event: ObjectEvent<EndpointSlice>) {
        match event {
            ObjectEvent::Apply(slice) => self.apply_slice(slice),
            ObjectEvent::Delete(name) => self.delete_slice(&name),
            ObjectEvent::Reset { objects, invalid } => {
                let known = self.owners.keys();
                for name in gone(known, objects.iter().map(|o| &o.name), &invalid) {
                    self.delete_slice(&name);
                }
                objects
                    .into_iter()
                    .for_each(|slice| self.apply_slice(slice));
            }
        }
    }

    /// Replaces the suspects. Services with endpoints that become or cease to be suspects, or whose nodes do, are dirty.
    pub fn set_suspects(&mut self, suspects: Suspects) {
        let (nodes, addresses) = self.surroundings.suspects.difference(&suspects);
        if nodes.is_empty() && addresses.is_empty() {
            return;
        }
        let is_affected = |slice: &Arc<EndpointSlice>| {
            slice.endpoints.iter().any(|endpoint| {
                let node = endpoint.node.as_deref();
                node.is_some_and(|node| nodes.contains(node))
                    || addresses.contains(&endpoint.address)
            })
        };
        let affected = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.service.is_some() && entry.slices.iter().any(is_affected));
        self.dirty.extend(affected.map(|(name, _)| name.clone()));
        self.surroundings.suspects = suspects;
    }

    /// Applies an event about Nodes, this one included. Services that ask for an address that a Node gains or loses are dirty.
    pub fn node_event(&mut self, event: &ObjectEvent<Node>) {
        for range in self.surroundings.nodes.event(event) {
            let first = (range.network(), ObjectName::new("", ""));
            let from = self.external.range(first..);
            let inside = from.take_while(|(address, _)| *address <= range.broadcast());
            self.dirty.extend(inside.map(|(_, name)| name.clone()));
        }
    }

    /// Replaces the sockets at which processes of this node listen. Services that ask for one that comes or goes are dirty.
    pub fn set_listeners(&mut self, listeners: Arc<BTreeSet<Socket>>) {
        let changed = self.surroundings.listeners.symmetric_difference(&listeners);
        let affected = changed.flat_map(|socket| self.sockets.requesters(socket));
        self.dirty.extend(affected.cloned());
        self.surroundings.listeners = listeners;
    }

    /// Replaces the addresses of this node at which listeners count.
    pub fn set_node_addresses(&mut self, addresses: &[IpAddr]) {
        if self.sockets.addresses == addresses {
            return;
        }
        let before = std::mem::replace(&mut self.sockets.addresses, addresses.to_vec());
        let affected = before.iter().chain(addresses).flat_map(|address| {
            let from = self.external.range((*address, ObjectName::new("", ""))..);
            from.take_while(move |(there, _)| there == address)
        });
        let affected: BTreeSet<ObjectName> = affected.map(|(_, name)| name.clone()).collect();
        affected.iter().for_each(|name| self.update_sockets(name));
    }

    /// The Services whose plan may have changed since the last call, sorted. Services that are gone are among
    /// them: their plan is None.
    pub fn take_dirty(&mut self) -> Vec<ObjectName> {
        std::mem::take(&mut self.dirty).into_iter().collect()
    }

    /// The same for those Services that are due; the others stay dirty.
    pub fn take_dirty_if(
        &mut self,
        mut is_due: impl FnMut(&ObjectName) -> bool,
    ) -> Vec<ObjectName> {
        self.dirty.extract_if(.., |name| is_due(name)).collect()
    }

    /// When the changes of slices happened that came since the last call, as far as their annotations say: of the first
    /// 4,096. Those of Services that are dirty are left for a later call.
    pub fn take_triggers(&mut self) -> Vec<(Family, SystemTime)> {
        let dirty = &self.dirty;
        let taken = self
            .triggers
            .extract_if(.., |(of, _, _)| !dirty.contains(of));
        taken.map(|(_, family, at)| (family, at)).collect()
    }

    /// The Services that are dirty.
    pub fn dirty_services(&self) -> &BTreeSet<ObjectName> {
        &self.dirty
    }

    /// Number of Services.
    pub fn service_count(&self) -> usize {
        self.services
    }

    /// Number of endpoints in all slices that belong to a Service.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints
    }

    /// Plans a Service. None if it is not to be programmed: it is gone, has no cluster IP
    /// (headless or ExternalName; rows 6 and 7), or carries one of the two labels of row 1.
    pub fn plan(&self, name: &ObjectName, facts: &NodeFacts) -> Option<Plan> {
        let (service, slices) = self.programmed(name)?;
        Some(plan(service, slices, facts, &self.surroundings))
    }

    /// Why each endpoint of a Service takes new connections on this node or does not; None as for [`Index::plan`].
    pub fn explain(&self, name: &ObjectName, facts: &NodeFacts) -> Option<Vec<PortChoices>> {
        let (service, slices) = self.programmed(name)?;
        Some(explain(service, slices, facts, &self.surroundings.suspects))
    }

    /// Pods and zones of a Service's endpoints, by address, as far as its slices say.
    pub fn identities(&self, name: &ObjectName) -> BTreeMap<IpAddr, Identity> {
        let slices = self
            .entries
            .get(name)
            .into_iter()
            .flat_map(|entry| &entry.slices);
        let mut found = BTreeMap::new();
        for slice in slices {
            for (endpoint, identity) in slice.endpoints.iter().zip(slice.identities.iter()) {
                // As in planning, an address that passes to a new pod is that pod's.
                if endpoint.conditions.terminating {
                    found.entry(endpoint.address).or_insert(identity);
                } else {
                    found.insert(endpoint.address, identity);
                }
            }
        }
        found
    }

    /// The pods of these addresses, as far as they are endpoints of any Service. An address of several pods, as pods in the network
    /// of their node have it, is nobody's.
    pub fn pods(&self, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, ObjectName> {
        let mut found: BTreeMap<IpAddr, Option<ObjectName>> = BTreeMap::new();
        for slice in self.entries.values().flat_map(|entry| &entry.slices) {
            let is_asked = |endpoint: &Endpoint| addresses.contains(&endpoint.address);
            if !slice.endpoints.iter().any(is_asked) {
                continue;
            }
            for (endpoint, identity) in slice.endpoints.iter().zip(slice.identities.iter()) {
                let Some(pod) = identity.pod.filter(|_| is_asked(endpoint)) else {
                    continue;
                };
                let pod = Some(ObjectName::new(slice.name.namespace.clone(), pod));
                let known = found.entry(endpoint.address).or_insert_with(|| pod.clone());
                if *known != pod {
                    *known = None;
                }
            }
        }
        let found = found.into_iter();
        found
            .filter_map(|(address, pod)| Some((address, pod?)))
            .collect()
    }

    /// Addresses of a pod that is an endpoint of a Service.
    pub fn addresses_of_pod(&self, pod: &ObjectName) -> BTreeSet<IpAddr> {
        let slices = self.entries.values().flat_map(|entry| &entry.slices);
        let slices = slices.filter(|slice| slice.name.namespace == pod.namespace);
        let mut found = BTreeSet::new();
        for slice in slices {
            let endpoints = slice.endpoints.iter().zip(slice.identities.iter());
            let of_pod = endpoints.filter(|(_, is)| is.pod.as_deref() == Some(&*pod.name));
            found.extend(of_pod.map(|(endpoint, _)| endpoint.address));
        }
        found
    }

    /// The last version of a Service.
    pub fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.entries.get(name)?.service.as_ref()
    }

    fn programmed(&self, name: &ObjectName) -> Option<(&Service, &[Arc<EndpointSlice>])> {
        self.entries.get(name).and_then(programmed)
    }

    /// Where the API server answers: the endpoints of Service `default/kubernetes`, which it keeps itself.
    pub fn api_servers(&self) -> Vec<SocketAddr> {
        let kubernetes = ObjectName::new("default", "kubernetes");
        let slices = self.entries.get(&kubernetes).into_iter();
        let mut found = Vec::new();
        for slice in slices.flat_map(|entry| &entry.slices) {
            for port in slice
                .ports
                .iter()
                .filter(|port| port.protocol == Protocol::Tcp)
            {
                let addresses = slice.endpoints.iter().map(|endpoint| endpoint.address);
                found.extend(addresses.map(|address| SocketAddr::new(address, port.port)));
            }
        }
        found
    }

    /// The external frontends that Services request at the addresses of this node, and whether an endpoint of the Service is just
    /// there: a pod in the network namespace of the node, as ingress controllers have them.
    pub fn external_sockets(&self) -> BTreeMap<Socket, bool> {
        self.sockets.all()
    }

    /// Grows when the answer of [`Index::external_sockets`] changes.
    pub fn external_sockets_revision(&self) -> u64 {
        self.sockets.revision
    }

    fn update_sockets(&mut self, name: &ObjectName) {
        let entry = self.entries.get(name);
        self.sockets.update(name, entry.and_then(programmed));
    }

    /// All Services, sorted: to plan again when node facts change.
    pub fn service_names(&self) -> impl Iterator<Item = &ObjectName> {
        let known = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.service.is_some());
        known.map(|(name, _)| name)
    }

    fn apply_service(&mut self, service: Arc<Service>) {
        self.take_cluster_ips(&service);
        let entry = self.entries.entry(service.name.clone()).or_default();
        if entry.service.as_ref() != Some(&service) {
            self.dirty.insert(service.name.clone());
            self.services += usize::from(entry.service.is_none());
            let before = entry.service.replace(service.clone());
            if let Some(before) = before {
                self.remove_external(&before);
            }
            let requested = external_addresses(&service);
            let requested = requested.map(|address| (*address, service.name.clone()));
            self.external.extend(requested);
            self.update_sockets(&service.name);
        }
    }

    /// Deletes other Services with these cluster IPs whose version is unconfirmed. A cluster IP is of one Service at a time, so
    /// the one that had it was deleted, and what has its name now is another Service.
    fn take_cluster_ips(&mut self, service: &Service) {
        if self.unconfirmed.is_empty() {
            return;
        }
        if let Some(before) = self.service(&service.name).cloned() {
            self.remove_unconfirmed(&before);
        }
        let others = service.cluster_ips.iter().flat_map(|at| {
            let from = self.unconfirmed.range((*at, ObjectName::new("", ""))..);
            from.take_while(move |(there, _)| there == at)
        });
        let others: BTreeSet<ObjectName> = others.map(|(_, name)| name.clone()).collect();
        others.iter().for_each(|name| self.delete_service(name));
    }

    fn remove_unconfirmed(&mut self, service: &Service) {
        for at in &service.cluster_ips {
            self.unconfirmed.remove(&(*at, service.name.clone()));
        }
    }

    fn remove_external(&mut self, service: &Service) {
        for address in external_addresses(service) {
            self.external.remove(&(*address, service.name.clone()));
        }
    }

    fn delete_service(&mut self, name: &ObjectName) {
        if let Some(entry) = self.entries.get_mut(name)
            && let Some(service) = entry.service.take()
        {
            self.remove_external(&service);
            self.remove_unconfirmed(&service);
            self.services -= 1;
            self.dirty.insert(name.clone());
            self.remove_if_empty(name);
            self.update_sockets(name);
        }
    }

    fn apply_slice(&mut self, slice: Arc<EndpointSlice>) {
        let owner = self.owners.get(&slice.name);
        if slice.excluded || owner.is_some_and(|owner| *owner != slice.service) {
            self.delete_slice(&slice.name);
        }
        if slice.excluded {
            return;
        }
        let (service, family, trigger) = (slice.service.clone(), slice.family, slice.trigger);
        self.owners.insert(slice.name.clone(), service.clone());
        let slices = &mut self.entries.entry(service.clone()).or_default().slices;
        match slices.binary_search_by(|known| known.name.cmp(&slice.name)) {
            Ok(i) if slices.get(i) == Some(&slice) => return,
            Ok(i) => {
                if let Some(known) = slices.get_mut(i) {
                    self.endpoints += slice.endpoints.len();
                    self.endpoints -= known.endpoints.len();
                    *known = slice;
                }
            }
            Err(i) => {
                // Most Services have one or two slices; a Vec would reserve room for four.
                slices.reserve_exact(1);
                self.endpoints += slice.endpoints.len();
                slices.insert(i, slice);
            }
        }
        if let TriggerTime(Some(at)) = trigger
            && self.triggers.len() < MAX_TRIGGERS
        {
            self.triggers.push((service.clone(), family, at));
        }
        self.update_sockets(&service);
        self.dirty.insert(service);
    }

    fn delete_slice(&mut self, name: &ObjectName) {
        let Some(service) = self.owners.remove(name) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(&service) {
            let gone = entry.slices.extract_if(.., |slice| slice.name == *name);
            self.endpoints -= gone.map(|slice| slice.endpoints.len()).sum::<usize>();
            entry.slices.shrink_to_fit();
        }
        self.remove_if_empty(&service);
        // The last trigger time of a deleted slice is not that of its deletion (kube-proxy does the same).
        self.triggers.retain(|(of, _, _)| *of != service);
        self.update_sockets(&service);
        self.dirty.insert(service);
    }

    fn remove_if_empty(&mut self, service: &ObjectName) {
        let empty = |entry: &Entry| entry.service.is_none() && entry.slices.is_empty();
        if self.entries.get(service).is_some_and(empty) {
            self.entries.remove(service);
        }
    }
}

/// A Service that is to be programmed, and its slices.
fn programmed(entry: &Entry) -> Option<(&Service, &[Arc<EndpointSlice>])> {
    let service = entry.service.as_ref().filter(|service| {
        !service.excluded
            && service.service_type != ServiceType::ExternalName
            && !service.cluster_ips.is_empty()
    })?;
    Some((service, &entry.slices))
}

fn external_addresses(service: &Service) -> impl Iterator<Item = &IpAddr> {
    let external = service.external_ips.iter();
    external.chain(&service.load_balancer_ips)
}

/// The known names that a complete list lacks. Invalid objects exist: their last good version stays.
fn gone<'a>(
    known: impl Iterator<Item = &'a ObjectName>,
    listed: impl Iterator<Item = &'a ObjectName>,
    invalid: &'a [ObjectName],
) -> Vec<ObjectName> {
    let listed: BTreeSet<&ObjectName> = listed.chain(invalid).collect();
    known
        .filter(|name| !listed.contains(name))
        .cloned()
        .collect()
}
