//! What every Service requests, and which of its frontends are in effect.
//!
//! Owns the desired state above the constant table. A frontend that several Services claim goes to one of them, whatever
//! the order of the updates: to the Service with that cluster IP, then to the one whose load balancer has that address,
//! then to the oldest, then to the first by name. The others have a [`Conflict`]. Of two Services whose affinity groups
//! collide, the younger has no affinity. Elements that several frontends share are counted. No other module considers
//! two Services at once.
//!
//! Invariant: [`Ledger::contents`] is a function of the intents alone, and every [`Applied::transaction`] leads
//! from the contents before to the contents after.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use nft::{Bytes, Element, Family, TableContents, Transaction};
use service_model::{
    Affinity, Disposition, Frontend, FrontendAddress, NodeFacts, ObjectName, ServiceIntent,
};

use crate::affinity::Group;
use crate::claim::Claim;
use crate::conntrack::FlowCheck;
use crate::layout::{self, DynamicPart, SetId};
use crate::render::render;

mod change;
mod changes;
mod counted;

use change::IntentChange;
use changes::Changes;
use counted::Counted;

/// Losers of a conflict that are named to its winner. Each loser knows all that it has lost.
const NAMED_LOSERS: usize = 8;

/// A frontend that two Services claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The contested frontend.
    pub claim: Claim,
    /// The Service that the frontend goes to.
    pub winner: ObjectName,
    /// The Service that is without this frontend.
    pub loser: ObjectName,
}

/// The new intent of one Service.
#[derive(Clone, Debug)]
pub struct Update {
    /// The Service.
    pub service: ObjectName,
    /// `None` when the Service is no longer programmed.
    pub intent: Option<Arc<ServiceIntent>>,
}

impl From<ServiceIntent> for Update {
    fn from(intent: ServiceIntent) -> Self {
        Update {
            service: intent.service.clone(),
            intent: Some(Arc::new(intent)),
        }
    }
}

/// The result of applying a batch of updates.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// Changes the contents before the batch to the contents after the batch.
    pub(crate) transaction: Transaction,
    /// The updates that revert the batch.
    pub(crate) undo: Vec<Update>,
    /// Conflicts of this batch's Services.
    pub(crate) conflicts: Vec<Conflict>,
    /// Conntrack entries to look for after the commit.
    pub(crate) flows: Vec<FlowCheck>,
    /// Affinity groups that lost an endpoint.
    pub(crate) groups: BTreeSet<Group>,
}

/// Older first, then by name.
type Seniority = (i64, ObjectName);

/// A Service that claims a frontend; the least claimant gets the frontend. An address of the Service's load balancer wins
/// over one in `spec.externalIPs`, whatever the age: any tenant can write any address there, ahead of time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claimant {
    /// The address is in `spec.externalIPs` and not allocated by a load balancer.
    only_external_ip: bool,
    seniority: Seniority,
}

impl Claimant {
    fn of(intent: &ServiceIntent, frontend: &Frontend) -> Self {
        let only_external_ip = match frontend.address {
            FrontendAddress::External(address) => {
                intent.load_balancer_ips.binary_search(&address).is_err()
            }
            FrontendAddress::ClusterIp(_) | FrontendAddress::NodePort(_) => false,
        };
        Claimant {
            only_external_ip,
            seniority: seniority(intent),
        }
    }

    fn service(&self) -> &ObjectName {
        &self.seniority.1
    }
}

/// The Services at an IP address.
#[derive(Debug, Default)]
struct Address {
    /// Services with this cluster IP, once for each port.
    cluster_ip_of: Counted<Seniority>,
    /// Claims of this address as an external one, once for each Service.
    external: Counted<Claim>,
}

/// The desired state.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    intents: HashMap<ObjectName, Arc<ServiceIntent>>,
    /// The claimants of each frontend, in their order.
    claims: HashMap<Claim, Counted<Claimant>>,
    addresses: HashMap<IpAddr, Address>,
    /// Services with frontends in an affinity group, once for each frontend.
    groups: HashMap<u32, Counted<Seniority>>,
    /// How many frontends need each shared element.
    shared: HashMap<(Family, SetId, Bytes), u32>,
    /// How many frontends need each dynamic part of the table.
    parts: BTreeMap<(Family, DynamicPart), u32>,
}

impl Ledger {
    /// The state after these intents, without the changes that lead there.
    pub(crate) fn of(intents: impl IntoIterator<Item = Arc<ServiceIntent>>) -> Ledger {
        let mut ledger = Ledger::default();
        for intent in intents {
            ledger.replace(Update {
                service: intent.service.clone(),
                intent: Some(intent),
            });
        }
        ledger
    }

    /// What a Service needs.
    pub(crate) fn intent(&self, service: &ObjectName) -> Option<Arc<ServiceIntent>> {
        self.intents.get(service).cloned()
    }

    /// All Services with an intent.
    pub(crate) fn services(&self) -> impl Iterator<Item = &ObjectName> {
        self.intents.keys()
    }

    /// The Service that has the frontend of a claim, and the frontend.
    pub(crate) fn holder(&self, claim: &Claim) -> Option<(&ObjectName, Frontend)> {
        let frontend = self.effective(claim)?;
        let holder = self.claims.get(claim)?.first()?.service();
        Some((holder, frontend))
    }

    /// Whether any Service has the address as its cluster IP.
    pub(crate) fn is_cluster_ip(&self, address: IpAddr) -> bool {
        let at = self.addresses.get(&address);
        at.is_some_and(|at| !at.cluster_ip_of.is_empty())
    }

    /// Every contested frontend, each pair of Services once.
    pub(crate) fn conflicts(&self) -> Vec<Conflict> {
        let mut all = Vec::new();
        for service in self.intents.keys() {
            let lost = self.conflicts_of(service).into_iter();
            all.extend(lost.filter(|conflict| conflict.loser == *service));
        }
        all.sort_by_key(|conflict| (conflict.claim, conflict.loser.clone()));
        all.dedup();
        all
    }

    /// Applies one update for each Service of a batch.
    pub(crate) fn apply(&mut self, updates: Vec<Update>) -> Applied {
        let mut applied = Applied::default();
        let mut before: BTreeMap<Claim, Option<Frontend>> = BTreeMap::new();
        for claim in self.touched(&updates) {
            before.insert(claim, self.effective(&claim));
        }
        let resets: BTreeSet<ObjectName> = self.with_reset_requested(&updates);
        let mut services = Vec::with_capacity(updates.len());
        for update in updates {
            services.push(update.service.clone());
            applied.undo.push(self.replace(update));
        }
        let mut changes = Changes::default();
        for (claim, old) in before {
            let new = self.effective(&claim);
            if old == new {
                continue;
            }
            let of = claim.address.family();
            let reset = !resets.is_empty() && self.is_claimed_by(&claim, &resets);
            let check = FlowCheck::of_change(claim, old.as_ref(), new.as_ref(), reset);
            applied.flows.extend(check);
            let group = group_that_loses_endpoints(old.as_ref(), new.as_ref());
            applied
                .groups
                .extend(group.map(|group| (of, group.map, group.group)));
            let new = new.as_ref().map(render).unwrap_or_default();
            let old = old.as_ref().map(render).unwrap_or_default();
            changes.frontend(of, old, new);
        }
        applied.transaction = changes.settle(&mut self.shared, &mut self.parts);
        applied.conflicts = services
            .iter()
            .flat_map(|service| self.conflicts_of(service))
            .collect();
        applied
    }

    /// The claims whose frontend may change: those of the Services' frontends that differ, those on external addresses that
    /// become or cease to be cluster IPs, and those whose affinity group one of the Services enters or leaves.
    fn touched(&self, updates: &[Update]) -> BTreeSet<Claim> {
        let mut touched = BTreeSet::new();
        for update in updates {
            let old = self.intents.get(&update.service);
            let change = IntentChange::new(old, update.intent.as_ref());
            for at in change.cluster_ips() {
                let address = self.addresses.get(&at).into_iter();
                touched.extend(address.flat_map(|address| address.external.iter()));
            }
            let mut groups = BTreeSet::new();
            for (old, new) in change.frontends() {
                if change.is_same_claimant && old == new {
                    continue;
                }
                let both = || old.into_iter().chain(new);
                touched.extend(both().map(Claim::from));
                if !change.has_same_registration(old, new) {
                    let affinity = both().filter_map(|frontend| frontend.affinity);
                    groups.extend(affinity.map(|affinity| affinity.group));
                }
            }
            for group in groups {
                touched.extend(self.other_claims_in_group(group, &update.service));
            }
        }
        touched
    }

    /// The claims in an affinity group of all Services but one.
    fn other_claims_in_group(
        &self,
        group: u32,
        service: &ObjectName,
    ) -> impl Iterator<Item = Claim> {
        let members = self.groups.get(&group).into_iter().flat_map(Counted::iter);
        let others = members.filter(move |(_, name)| name != service);
        let intents = others.filter_map(|(_, name)| self.intents.get(name));
        let frontends = intents.flat_map(|intent| &intent.frontends);
        let in_group = frontends.filter(move |f| f.affinity.is_some_and(|a| a.group == group));
        in_group.map(Claim::from)
    }

    /// The Services among these that request, or requested, resets of connections to removed endpoints.
    fn with_reset_requested(&self, updates: &[Update]) -> BTreeSet<ObjectName> {
        let requests = |update: &&Update| {
            let old = self.intents.get(&update.service);
            let mut intents = old.into_iter().chain(update.intent.as_ref());
            intents.any(|intent| intent.reset_removed)
        };
        let requesting = updates.iter().filter(requests);
        requesting.map(|update| update.service.clone()).collect()
    }

    /// Whether one of these Services has the claim, or had it until now.
    fn is_claimed_by(&self, claim: &Claim, services: &BTreeSet<ObjectName>) -> bool {
        let claimants = self.claims.get(claim);
        let winner = claimants.and_then(Counted::first);
        winner.is_none_or(|winner| services.contains(winner.service()))
    }

    /// The frontend that is in effect for the claim.
    pub(crate) fn effective(&self, claim: &Claim) -> Option<Frontend> {
        if self.cluster_ip_holder(claim).is_some() {
            return None;
        }
        let winner = self.claims.get(claim)?.first()?.service();
        let frontends = &self.intents.get(winner)?.frontends;
        let found = frontends
            .binary_search_by(|frontend| Claim::from(frontend).cmp(claim))
            .ok()?;
        let mut frontend = frontends.get(found)?.clone();
        frontend.affinity = frontend.affinity.filter(|affinity| {
            let first = self
                .groups
                .get(&affinity.group)
                .and_then(|group| group.first());
            first.is_some_and(|(_, name)| name == winner)
        });
        Some(frontend)
    }

    /// The endpoints that clients of an affinity group may keep.
    pub(crate) fn endpoints_of_group(&self, of: Family, group: u32) -> BTreeSet<(IpAddr, u16)> {
        let member = self.groups.get(&group).and_then(|group| group.first());
        let intent = member.and_then(|(_, name)| self.intents.get(name));
        let frontends = intent.into_iter().flat_map(|intent| &intent.frontends);
        let in_group = |frontend: &&Frontend| {
            frontend.address.family() == of && frontend.affinity.is_some_and(|a| a.group == group)
        };
        frontends.filter(in_group).flat_map(endpoints).collect()
    }

    /// A check of the flows to each node port.
    pub(crate) fn node_port_checks(&self) -> Vec<FlowCheck> {
        let is_node_port = |claim: &&Claim| matches!(claim.address, FrontendAddress::NodePort(_));
        let claims = self.claims.keys().filter(is_node_port);
        claims
            .map(|claim| FlowCheck::of(*claim, self.effective(claim).as_ref()))
            .collect()
    }

    /// Whether the table has a map of affinity entries.
    pub(crate) fn has_affinity_map(&self, of: Family, map: u64) -> bool {
        self.parts
            .contains_key(&(of, DynamicPart::AffinityMap(map)))
    }

    /// All affinity groups, once for each family of their frontends.
    pub(crate) fn affinity_groups(&self) -> BTreeSet<Group> {
        let frontends = self.intents.values().flat_map(|intent| &intent.frontends);
        let group = |frontend: &Frontend| {
            let affinity = frontend.affinity?;
            Some((frontend.address.family(), affinity.map, affinity.group))
        };
        frontends.filter_map(group).collect()
    }

    /// Replaces the intent of one Service, and returns the update that reverts this.
    fn replace(&mut self, update: Update) -> Update {
        let Update { service, intent } = update;
        let old = match &intent {
            Some(intent) => self.intents.insert(service.clone(), intent.clone()),
            None => self.intents.remove(&service),
        };
        let change = IntentChange::new(old.as_ref(), intent.as_ref());
        for (before, after) in change.frontends() {
            if change.has_same_registration(before, after) {
                continue;
            }
            if let (Some(intent), Some(frontend)) = (&old, before) {
                self.unregister(intent, frontend);
            }
            if let (Some(intent), Some(frontend)) = (&intent, after) {
                self.register(intent, frontend);
            }
        }
        Update {
            service,
            intent: old,
        }
    }

    /// Registers a frontend's claim, address and affinity group.
    fn register(&mut self, intent: &ServiceIntent, frontend: &Frontend) {
        let seniority = &seniority(intent);
        let claimants = self.claims.entry(Claim::from(frontend)).or_default();
        claimants.add(&Claimant::of(intent, frontend));
        match frontend.address {
            FrontendAddress::ClusterIp(at) => {
                let address = self.addresses.entry(at).or_default();
                address.cluster_ip_of.add(seniority);
            }
            FrontendAddress::External(at) => {
                let address = self.addresses.entry(at).or_default();
                address.external.add(&Claim::from(frontend));
            }
            FrontendAddress::NodePort(_) => {}
        }
        if let Some(affinity) = frontend.affinity {
            self.groups
                .entry(affinity.group)
                .or_default()
                .add(seniority);
        }
    }

    /// Reverts [`Ledger::register`].
    fn unregister(&mut self, intent: &ServiceIntent, frontend: &Frontend) {
        let (seniority, claim) = (&seniority(intent), Claim::from(frontend));
        if let Some(claimants) = self.claims.get_mut(&claim) {
            claimants.remove(&Claimant::of(intent, frontend));
            if claimants.is_empty() {
                self.claims.remove(&claim);
            }
        }
        if let FrontendAddress::ClusterIp(at) | FrontendAddress::External(at) = frontend.address
            && let Some(address) = self.addresses.get_mut(&at)
        {
            match frontend.address {
                FrontendAddress::External(_) => address.external.remove(&Claim::from(frontend)),
                _ => address.cluster_ip_of.remove(seniority),
            }
            if address.cluster_ip_of.is_empty() && address.external.is_empty() {
                self.addresses.remove(&at);
            }
        }
        if let Some(affinity) = frontend.affinity
            && let Some(group) = self.groups.get_mut(&affinity.group)
        {
            group.remove(seniority);
            if group.is_empty() {
                self.groups.remove(&affinity.group);
            }
        }
    }

    /// The conflicts of a Service: all that it loses, and of those that it wins a few losers of each frontend. So the cost does
    /// not grow with the number of Services that claim the same.
    fn conflicts_of(&self, service: &ObjectName) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let mut add = |claim: Claim, winner: &ObjectName, loser: &ObjectName| {
            conflicts.push(Conflict {
                claim,
                winner: winner.clone(),
                loser: loser.clone(),
            });
        };
        let intent = self.intents.get(service);
        let mut cluster_ips = BTreeSet::new();
        for frontend in intent.into_iter().flat_map(|intent| &intent.frontends) {
            let claim = Claim::from(frontend);
            let claimants = self.claims.get(&claim);
            match (self.cluster_ip_holder(&claim), claimants) {
                (Some(holder), _) => add(claim, holder, service),
                (None, Some(claimants)) => match claimants.first() {
                    Some(winner) if winner.service() != service => {
                        add(claim, winner.service(), service);
                    }
                    _ => {
                        let losers = claimants.iter().skip(1).take(NAMED_LOSERS);
                        losers.for_each(|loser| add(claim, service, loser.service()));
                    }
                },
                (None, None) => {}
            }
            if let FrontendAddress::ClusterIp(at) = claim.address
                && cluster_ips.insert(at)
                && let Some(address) = self.addresses.get(&at)
                && let Some((_, holder)) = address.cluster_ip_of.first()
            {
                for claim in address.external.iter().take(NAMED_LOSERS) {
                    let losers = self.claims.get(claim).into_iter().flat_map(Counted::iter);
                    let losers = losers.take(NAMED_LOSERS);
                    losers.for_each(|loser| add(*claim, holder, loser.service()));
                }
            }
        }
        conflicts
    }

    /// The Service that has the address of an external claim as its cluster IP, so that nobody has the frontend.
    fn cluster_ip_holder(&self, claim: &Claim) -> Option<&ObjectName> {
        let FrontendAddress::External(address) = claim.address else {
            return None;
        };
        let (_, holder) = self.addresses.get(&address)?.cluster_ip_of.first()?;
        Some(holder)
    }

    /// The complete contents of both tables on the node that `facts` describe.
    pub(crate) fn contents(&self, facts: &NodeFacts) -> [TableContents; 2] {
        Family::ALL.map(|family| self.family_contents(family, facts))
    }

    fn family_contents(&self, of: Family, facts: &NodeFacts) -> TableContents {
        let mut contents = layout::base(of, facts);
        let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for claim in self
            .claims
            .keys()
            .filter(|claim| claim.address.family() == of)
        {
            let effective = self.effective(claim);
            for (set, element) in effective.as_ref().map(render).unwrap_or_default().own {
                elements.entry(set).or_default().push(element);
            }
        }
        for (_, set, key) in self.shared.keys().filter(|(family, ..)| *family == of) {
            elements
                .entry(*set)
                .or_default()
                .push(Element::member(*key));
        }
        let parts = self.parts.keys().filter(|(family, _)| *family == of);
        let parts: Vec<DynamicPart> = parts.map(|(_, part)| *part).collect();
        for (set, element) in parts.iter().flat_map(|part| part.elements()) {
            elements.entry(set).or_default().push(element);
        }
        for (set, mut members) in elements {
            members.sort_unstable();
            contents.elements.insert(set.name(), members);
        }
        for set in parts.iter().flat_map(|part| part.sets()) {
            contents.sets.insert(set.name.clone(), set);
        }
        let chains = parts.iter().filter_map(|part| part.chain());
        for chain in chains.chain(layout::dependent_chains(parts.iter())) {
            contents.chains.insert(chain.name.clone(), chain);
        }
        contents
    }
}

/// The endpoints of a frontend, for clients of every kind.
fn endpoints(frontend: &Frontend) -> impl Iterator<Item = (IpAddr, u16)> {
    let lists = [Some(&frontend.disposition), frontend.outside.as_ref()];
    let backends = lists.into_iter().flatten().filter_map(|list| match list {
        Disposition::Balance(backends) => Some(backends.iter()),
        Disposition::Refuse | Disposition::Drop => None,
    });
    backends.flatten().map(|b| (b.address, b.port))
}

/// The affinity group that loses an endpoint by this change; `None` if endpoints are only added. A group that is returned
/// costs a reading of its Service's map of affinity entries.
fn group_that_loses_endpoints(old: Option<&Frontend>, new: Option<&Frontend>) -> Option<Affinity> {
    let group = old?.affinity?;
    let is_same = |affinity: Affinity| affinity.group == group.group;
    let same = new.filter(|new| new.affinity.is_some_and(is_same));
    let kept: BTreeSet<_> = same.into_iter().flat_map(endpoints).collect();
    let loses = endpoints(old?).any(|endpoint| !kept.contains(&endpoint));
    loses.then_some(group)
}

/// The seniority of a Service. Without a time of creation, a Service is the youngest.
fn seniority(intent: &ServiceIntent) -> Seniority {
    (intent.created.unwrap_or(i64::MAX), intent.service.clone())
}

#[cfg(test)]
mod tests;
