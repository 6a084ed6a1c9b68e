//! What every Service asks for, and what of it stands.
//!
//! Owns the desired state above the constant table. A frontend that two Services claim goes to the older one
//! (then the lesser name), wherever and in whatever order they appear; an external address yields to a cluster IP; of
//! two Services whose affinity groups meet, the younger goes without affinity; elements that several frontends share
//! are counted. Nothing else in the crate needs to know two Services at once.
//!
//! Invariant: [`Ledger::contents`] is a function of the intents alone, and every [`Applied::transaction`] leads
//! from the contents before to the contents after.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use nft::{Bytes, Element, Family, TableContents, Transaction};
use service_model::{Disposition, Frontend, NodeFacts, ObjectName, Place, Protocol, ServiceIntent};
use smallvec::SmallVec;

use crate::conntrack::FlowCheck;
use crate::layout::{self, Extra, SetId};
use crate::render::render;

mod changes;

use changes::Changes;

/// A place, protocol and port that one Service at a time can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Claim {
    /// Where.
    pub place: Place,
    /// Protocol.
    pub protocol: Protocol,
    /// Port.
    pub port: u16,
}

impl From<&Frontend> for Claim {
    fn from(frontend: &Frontend) -> Self {
        Claim {
            place: frontend.place,
            protocol: frontend.protocol,
            port: frontend.port,
        }
    }
}

/// A frontend that a Service asks for and another has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What is asked for.
    pub claim: Claim,
    /// Who has it: the older Service, then the lesser name; or whoever has the external address as its cluster IP.
    pub winner: ObjectName,
    /// Who goes without.
    pub loser: ObjectName,
}

/// One Service's new wishes; `None` when it has none any more.
#[derive(Clone, Debug)]
pub struct Update {
    /// The Service.
    pub service: ObjectName,
    /// What it needs.
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

/// What came of a batch of updates.
#[derive(Debug, Default)]
pub(crate) struct Applied {
    /// From the contents before to the contents after.
    pub(crate) transaction: Transaction,
    /// Applying these takes everything back.
    pub(crate) undo: Vec<Update>,
    /// Claims of this batch's Services that are contested now.
    pub(crate) conflicts: Vec<Conflict>,
    /// Tracked flows to look for once the transaction is in.
    pub(crate) flows: Vec<FlowCheck>,
    /// Affinity groups that lost an endpoint.
    pub(crate) groups: BTreeSet<(Family, u32)>,
}

/// Older first, then by name: the order in which claimants have a frontend.
type Seniority = (i64, ObjectName);

/// Who is at an address.
#[derive(Debug, Default)]
struct Address {
    /// Services that have it as their cluster IP, once for each port, in order of seniority.
    cluster_ip_of: SmallVec<[Seniority; 1]>,
    /// Claims on it as an external address.
    external: SmallVec<[Claim; 1]>,
}

/// The desired state.
#[derive(Debug, Default)]
pub struct Ledger {
    intents: HashMap<ObjectName, Arc<ServiceIntent>>,
    claims: HashMap<Claim, SmallVec<[Seniority; 1]>>,
    addresses: HashMap<IpAddr, Address>,
    /// Services with frontends in an affinity group, once for each frontend, in order of seniority.
    groups: HashMap<u32, SmallVec<[Seniority; 1]>>,
    shared: HashMap<(Family, SetId, Bytes), u32>,
    extras: BTreeMap<(Family, Extra), u32>,
}

impl Ledger {
    /// Number of Services with an intent.
    pub fn services(&self) -> usize {
        self.intents.len()
    }

    /// Applies one update for each Service of a batch.
    pub(crate) fn apply(&mut self, updates: Vec<Update>) -> Applied {
        let mut applied = Applied::default();
        let mut before: BTreeMap<Claim, Option<Frontend>> = BTreeMap::new();
        for claim in self.touched(&updates) {
            before.insert(claim, self.standing(&claim));
        }
        let resets: BTreeSet<ObjectName> = self.wishing_reset(&updates);
        let mut services = Vec::with_capacity(updates.len());
        for update in updates {
            services.push(update.service.clone());
            applied.undo.push(self.replace(update));
        }
        let mut changes = Changes::default();
        for (claim, old) in before {
            let new = self.standing(&claim);
            if old == new {
                continue;
            }
            let of = claim.place.family();
            let reset = !resets.is_empty() && self.wished_by(&claim, &resets);
            let check = FlowCheck::of_change(claim, old.as_ref(), new.as_ref(), reset);
            applied.flows.extend(check);
            let group = group_that_loses(old.as_ref(), new.as_ref());
            applied.groups.extend(group.map(|group| (of, group)));
            let new = new.as_ref().map(render).unwrap_or_default();
            let old = old.as_ref().map(render).unwrap_or_default();
            changes.frontend(of, old, new);
        }
        applied.transaction = changes.settle(&mut self.shared, &mut self.extras);
        applied.conflicts = services
            .iter()
            .flat_map(|service| self.conflicts_of(service))
            .collect();
        applied
    }

    /// The claims on which something may change: the Services' own, those on external addresses that are or become
    /// cluster IPs, and those whose affinity group one of the Services is in.
    fn touched(&self, updates: &[Update]) -> BTreeSet<Claim> {
        let mut touched = BTreeSet::new();
        for update in updates {
            let old = self.intents.get(&update.service);
            for frontend in old
                .into_iter()
                .chain(update.intent.as_ref())
                .flat_map(|intent| &intent.frontends)
            {
                touched.insert(Claim::from(frontend));
                if let Place::ClusterIp(address) = frontend.place
                    && let Some(address) = self.addresses.get(&address)
                {
                    touched.extend(&address.external);
                }
                let group = frontend.affinity.and_then(|affinity| {
                    let members = self.groups.get(&affinity.group)?;
                    let others = members.iter().map(|(_, name)| name);
                    Some((
                        affinity.group,
                        others.filter(|name| **name != update.service),
                    ))
                });
                for (group, name) in group
                    .into_iter()
                    .flat_map(|(group, others)| others.map(move |name| (group, name)))
                {
                    let others = self
                        .intents
                        .get(name)
                        .into_iter()
                        .flat_map(|intent| &intent.frontends);
                    let of_group = others.filter(|f| f.affinity.is_some_and(|a| a.group == group));
                    touched.extend(of_group.map(Claim::from));
                }
            }
        }
        touched
    }

    /// The Services among these that wish, or wished, that connections to removed endpoints are reset.
    fn wishing_reset(&self, updates: &[Update]) -> BTreeSet<ObjectName> {
        let wishes = |update: &&Update| {
            let old = self.intents.get(&update.service);
            let mut intents = old.into_iter().chain(update.intent.as_ref());
            intents.any(|intent| intent.reset_removed)
        };
        let wishing = updates.iter().filter(wishes);
        wishing.map(|update| update.service.clone()).collect()
    }

    /// Whether one of these Services has, or had until now, the claim.
    fn wished_by(&self, claim: &Claim, services: &BTreeSet<ObjectName>) -> bool {
        match self
            .claims
            .get(claim)
            .and_then(|claimants| claimants.first())
        {
            Some((_, name)) => services.contains(name),
            None => true,
        }
    }

    /// The frontend that has the claim, as it stands.
    fn standing(&self, claim: &Claim) -> Option<Frontend> {
        if let Place::External(address) = claim.place
            && let Some(address) = self.addresses.get(&address)
            && !address.cluster_ip_of.is_empty()
        {
            return None;
        }
        let (_, winner) = self.claims.get(claim)?.first()?;
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
            frontend.place.family() == of && frontend.affinity.is_some_and(|a| a.group == group)
        };
        frontends.filter(in_group).flat_map(endpoints).collect()
    }

    /// Every affinity group there is, in the families that it has frontends of.
    pub(crate) fn affinity_groups(&self) -> BTreeSet<(Family, u32)> {
        let frontends = self.intents.values().flat_map(|intent| &intent.frontends);
        let group = |frontend: &Frontend| {
            let group = frontend.affinity?.group;
            Some((frontend.place.family(), group))
        };
        frontends.filter_map(group).collect()
    }

    fn replace(&mut self, update: Update) -> Update {
        let Update { service, intent } = update;
        let old = match &intent {
            Some(intent) => self.intents.insert(service.clone(), intent.clone()),
            None => self.intents.remove(&service),
        };
        if let Some(old) = &old {
            let seniority = seniority(old);
            for frontend in &old.frontends {
                let claim = Claim::from(frontend);
                self.leave(&seniority, frontend);
                if let Some(claimants) = self.claims.get_mut(&claim) {
                    claimants.retain(|claimant| *claimant != seniority);
                    if claimants.is_empty() {
                        self.claims.remove(&claim);
                    }
                }
            }
        }
        if let Some(new) = &intent {
            let seniority = seniority(new);
            for frontend in &new.frontends {
                let claimants = self.claims.entry(Claim::from(frontend)).or_default();
                claimants.push(seniority.clone());
                claimants.sort_unstable();
                self.enter(&seniority, frontend);
            }
        }
        Update {
            service,
            intent: old,
        }
    }

    /// Notes a frontend's address and affinity group.
    fn enter(&mut self, seniority: &Seniority, frontend: &Frontend) {
        let insert = |members: &mut SmallVec<[Seniority; 1]>| {
            members.push(seniority.clone());
            members.sort_unstable();
        };
        match frontend.place {
            Place::ClusterIp(address) => {
                insert(&mut self.addresses.entry(address).or_default().cluster_ip_of);
            }
            Place::External(address) => {
                let claims = &mut self.addresses.entry(address).or_default().external;
                claims.push(Claim::from(frontend));
            }
            Place::NodePort(_) => {}
        }
        if let Some(affinity) = frontend.affinity {
            insert(self.groups.entry(affinity.group).or_default());
        }
    }

    /// Takes back [`Ledger::enter`].
    fn leave(&mut self, seniority: &Seniority, frontend: &Frontend) {
        fn remove<T: PartialEq>(list: &mut SmallVec<[T; 1]>, gone: &T) {
            if let Some(found) = list.iter().position(|item| item == gone) {
                list.remove(found);
            }
        }
        if let Place::ClusterIp(at) | Place::External(at) = frontend.place
            && let Some(address) = self.addresses.get_mut(&at)
        {
            match frontend.place {
                Place::External(_) => remove(&mut address.external, &Claim::from(frontend)),
                _ => remove(&mut address.cluster_ip_of, seniority),
            }
            if address.cluster_ip_of.is_empty() && address.external.is_empty() {
                self.addresses.remove(&at);
            }
        }
        if let Some(affinity) = frontend.affinity
            && let Some(group) = self.groups.get_mut(&affinity.group)
        {
            remove(group, seniority);
            if group.is_empty() {
                self.groups.remove(&affinity.group);
            }
        }
    }

    /// The contested claims of a Service.
    fn conflicts_of(&self, service: &ObjectName) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let mut lose = |claim: Claim, winner: &ObjectName, losers: &[Seniority]| {
            conflicts.extend(losers.iter().map(|(_, loser)| Conflict {
                claim,
                winner: winner.clone(),
                loser: loser.clone(),
            }));
        };
        let intent = self.intents.get(service);
        let mut cluster_ips = BTreeSet::new();
        for frontend in intent.into_iter().flat_map(|intent| &intent.frontends) {
            let claim = Claim::from(frontend);
            let claimants = self.claims.get(&claim).map_or(&[][..], SmallVec::as_slice);
            let address = claim.place.address().and_then(|at| self.addresses.get(&at));
            let holder = address.and_then(|address| address.cluster_ip_of.first());
            match (claim.place, holder, claimants) {
                (Place::External(_), Some((_, holder)), losers) => lose(claim, holder, losers),
                (_, _, [(_, winner), losers @ ..]) => lose(claim, winner, losers),
                (_, _, []) => {}
            }
            if let (Place::ClusterIp(at), Some(address), Some((_, holder))) =
                (claim.place, address, holder)
                && cluster_ips.insert(at)
            {
                for claim in &address.external {
                    let losers = self.claims.get(claim).map_or(&[][..], SmallVec::as_slice);
                    lose(*claim, holder, losers);
                }
            }
        }
        conflicts
    }

    /// Both tables whole, on the node that `facts` describe.
    pub fn contents(&self, facts: &NodeFacts) -> [TableContents; 2] {
        Family::ALL.map(|family| self.family_contents(family, facts))
    }

    fn family_contents(&self, of: Family, facts: &NodeFacts) -> TableContents {
        let mut contents = layout::base(of, facts);
        let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for claim in self
            .claims
            .keys()
            .filter(|claim| claim.place.family() == of)
        {
            let standing = self.standing(claim);
            for (set, element) in standing.as_ref().map(render).unwrap_or_default().own {
                elements.entry(set).or_default().push(element);
            }
        }
        for (_, set, key) in self.shared.keys().filter(|(family, ..)| *family == of) {
            elements
                .entry(*set)
                .or_default()
                .push(Element::member(*key));
        }
        for (set, mut members) in elements {
            members.sort_unstable();
            contents.elements.insert(set.name(), members);
        }
        let extras = self.extras.keys().filter(|(family, _)| *family == of);
        let extras: Vec<Extra> = extras.map(|(_, extra)| *extra).collect();
        for set in extras.iter().flat_map(|extra| extra.sets()) {
            contents.sets.insert(set.name.clone(), set);
        }
        let chains = extras.iter().filter_map(|extra| extra.chain());
        for chain in chains.chain(layout::dependent_chains(extras.iter())) {
            contents.chains.insert(chain.name.clone(), chain);
        }
        contents
    }
}

/// Where connections to a frontend may go, whoever makes them.
fn endpoints(frontend: &Frontend) -> impl Iterator<Item = (IpAddr, u16)> {
    let lists = [Some(&frontend.disposition), frontend.outside.as_ref()];
    let backends = lists.into_iter().flatten().filter_map(|list| match list {
        Disposition::Balance(backends) => Some(backends.iter()),
        Disposition::Refuse | Disposition::Drop => None,
    });
    backends.flatten().map(|b| (b.address, b.port))
}

/// The affinity group that may remember an endpoint which this change takes away. To look what clients have been given
/// costs a reading of all of it, so a change that only adds endpoints must not.
fn group_that_loses(old: Option<&Frontend>, new: Option<&Frontend>) -> Option<u32> {
    let group = old?.affinity?.group;
    let same = new.filter(|new| new.affinity.is_some_and(|affinity| affinity.group == group));
    let kept: BTreeSet<_> = same.into_iter().flat_map(endpoints).collect();
    let loses = endpoints(old?).any(|endpoint| !kept.contains(&endpoint));
    loses.then_some(group)
}

fn seniority(intent: &ServiceIntent) -> Seniority {
    // A Service without a time of creation is the youngest.
    (intent.created.unwrap_or(i64::MAX), intent.service.clone())
}

#[cfg(test)]
mod tests;
