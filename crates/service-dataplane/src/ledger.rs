//! What every Service asks for, and what of it stands.
//!
//! Owns the desired state above the constant table. A frontend that two Services claim goes to the older one
//! (then the lesser name), wherever and in whatever order they appear; elements that several frontends share are
//! counted. Nothing else in the crate needs to know two Services at once.
//!
//! Invariant: [`Ledger::contents`] is a function of the intents alone, and every [`Applied::transaction`] leads
//! from the contents before to the contents after.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use nft::{Bytes, Element, Family, Operation, TableContents, Transaction};
use service_model::{Frontend, NodeFacts, ObjectName, Place, Protocol, ServiceIntent};
use smallvec::SmallVec;

use crate::layout::{self, Pick, SetId};
use crate::render::{Rendered, family, render};

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

/// A frontend that two Services ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// What both ask for.
    pub claim: Claim,
    /// Who has it: the older Service, then the lesser name.
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
}

/// Older first, then by name: the order in which claimants have a frontend.
type Seniority = (i64, ObjectName);

/// The desired state.
#[derive(Debug, Default)]
pub struct Ledger {
    intents: HashMap<ObjectName, Arc<ServiceIntent>>,
    claims: HashMap<Claim, SmallVec<[Seniority; 1]>>,
    shared: HashMap<(Family, SetId, Bytes), u32>,
    large: BTreeMap<(Family, Pick, u32), u32>,
}

impl Ledger {
    /// Number of Services with an intent.
    pub fn services(&self) -> usize {
        self.intents.len()
    }

    /// Applies one update for each Service of a batch.
    pub(crate) fn apply(&mut self, updates: Vec<Update>) -> Applied {
        let mut before: BTreeMap<Claim, Option<Frontend>> = BTreeMap::new();
        for update in &updates {
            let old = self.intents.get(&update.service);
            for frontend in old
                .into_iter()
                .chain(update.intent.as_ref())
                .flat_map(|intent| &intent.frontends)
            {
                let claim = Claim::from(frontend);
                before
                    .entry(claim)
                    .or_insert_with(|| self.standing(&claim).cloned());
            }
        }
        let mut applied = Applied::default();
        let mut services = Vec::with_capacity(updates.len());
        for update in updates {
            services.push(update.service.clone());
            applied.undo.push(self.replace(update));
        }
        let mut changes = Changes::default();
        for (claim, old) in before {
            let new = self.standing(&claim);
            if old.as_ref() != new {
                let new = new.map(render).unwrap_or_default();
                let old = old.as_ref().map(render).unwrap_or_default();
                changes.frontend(family(claim.place), old, new);
            }
        }
        applied.transaction = changes.settle(self);
        applied.conflicts = services
            .iter()
            .flat_map(|service| self.conflicts_of(service))
            .collect();
        applied
    }

    /// The frontend that has the claim.
    fn standing(&self, claim: &Claim) -> Option<&Frontend> {
        let (_, winner) = self.claims.get(claim)?.first()?;
        let frontends = &self.intents.get(winner)?.frontends;
        let found = frontends
            .binary_search_by(|frontend| Claim::from(frontend).cmp(claim))
            .ok()?;
        frontends.get(found)
    }

    fn replace(&mut self, update: Update) -> Update {
        let Update { service, intent } = update;
        let old = match &intent {
            Some(intent) => self.intents.insert(service.clone(), intent.clone()),
            None => self.intents.remove(&service),
        };
        if let Some(old) = &old {
            let seniority = seniority(old);
            for claim in old.frontends.iter().map(Claim::from) {
                if let Some(claimants) = self.claims.get_mut(&claim) {
                    claimants.retain(|claimant| *claimant != seniority);
                    if claimants.is_empty() {
                        self.claims.remove(&claim);
                    }
                }
            }
        }
        if let Some(new) = &intent {
            for claim in new.frontends.iter().map(Claim::from) {
                let claimants = self.claims.entry(claim).or_default();
                claimants.push(seniority(new));
                claimants.sort_unstable();
            }
        }
        Update {
            service,
            intent: old,
        }
    }

    /// The contested claims of a Service.
    fn conflicts_of(&self, service: &ObjectName) -> Vec<Conflict> {
        let frontends = self
            .intents
            .get(service)
            .map(|intent| intent.frontends.as_slice())
            .unwrap_or_default();
        let claimants =
            |claim: Claim| Some((claim, self.claims.get(&claim).filter(|c| c.len() > 1)?));
        frontends
            .iter()
            .map(Claim::from)
            .filter_map(claimants)
            .flat_map(|(claim, claimants)| {
                let winner = claimants.first().map(|(_, name)| name.clone());
                claimants.iter().skip(1).filter_map(move |(_, loser)| {
                    Some(Conflict {
                        claim,
                        winner: winner.clone()?,
                        loser: loser.clone(),
                    })
                })
            })
            .collect()
    }

    /// Both tables whole, on the node that `facts` describe.
    pub fn contents(&self, facts: &NodeFacts) -> [TableContents; 2] {
        Family::ALL.map(|family| self.family_contents(family, facts))
    }

    fn family_contents(&self, of: Family, facts: &NodeFacts) -> TableContents {
        let mut contents = layout::base(of, facts);
        let mut elements: BTreeMap<SetId, Vec<Element>> = BTreeMap::new();
        for claim in self.claims.keys().filter(|claim| family(claim.place) == of) {
            for (set, element) in self.standing(claim).map(render).unwrap_or_default().own {
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
        for (_, pick, count) in self.large.keys().filter(|(family, ..)| *family == of) {
            let (map, chain) = (pick.backends(*count).declaration(), pick.chain(*count));
            contents.sets.insert(map.name.clone(), map);
            contents.chains.insert(chain.name.clone(), chain);
        }
        contents
    }
}

fn seniority(intent: &ServiceIntent) -> Seniority {
    // A Service without a time of creation is the youngest.
    (intent.created.unwrap_or(i64::MAX), intent.service.clone())
}

/// Net changes of a batch. Own elements of different frontends have different keys, so they need no netting;
/// shared ones are counted first.
#[derive(Default)]
struct Changes {
    deleted: BTreeMap<(Family, SetId), Vec<Element>>,
    added: BTreeMap<(Family, SetId), Vec<Element>>,
    shared: BTreeMap<(Family, SetId, Bytes), i64>,
    large: BTreeMap<(Family, Pick, u32), i64>,
}

impl Changes {
    fn frontend(&mut self, family: Family, old: Rendered, new: Rendered) {
        for (set, key) in old.shared {
            *self.shared.entry((family, set, key)).or_default() -= 1;
        }
        for (set, key) in new.shared {
            *self.shared.entry((family, set, key)).or_default() += 1;
        }
        if old.large != new.large {
            for (large, by) in [(old.large, -1), (new.large, 1)] {
                if let Some((pick, count)) = large {
                    *self.large.entry((family, pick, count)).or_default() += by;
                }
            }
        }
        let mut old = old.own.into_iter().peekable();
        let mut new = new.own.into_iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.cmp(b),
            };
            if order.is_le()
                && let Some((set, element)) = old.next()
                && order.is_lt()
            {
                self.deleted.entry((family, set)).or_default().push(element);
            }
            if order.is_ge()
                && let Some((set, element)) = new.next()
                && order.is_gt()
            {
                self.added.entry((family, set)).or_default().push(element);
            }
        }
    }

    /// Updates the ledger's counts and orders the steps so that the kernel takes them: deletions first, chains
    /// before the verdicts that lead to them, and after those that led to them.
    fn settle(mut self, ledger: &mut Ledger) -> Transaction {
        for (key, by) in std::mem::take(&mut self.shared) {
            let (family, set, bytes) = key;
            let into = match count(ledger.shared.entry(key).or_default(), by) {
                Presence::Unchanged => continue,
                Presence::Appeared => &mut self.added,
                Presence::Vanished => {
                    ledger.shared.remove(&key);
                    &mut self.deleted
                }
            };
            into.entry((family, set))
                .or_default()
                .push(Element::member(bytes));
        }
        let (mut new_picks, mut stale_picks) = (Vec::new(), Vec::new());
        for (key, by) in std::mem::take(&mut self.large) {
            match count(ledger.large.entry(key).or_default(), by) {
                Presence::Unchanged => {}
                Presence::Appeared => new_picks.push(key),
                Presence::Vanished => {
                    ledger.large.remove(&key);
                    stale_picks.push(key);
                }
            }
        }
        let mut transaction = Transaction::new();
        for ((family, set), elements) in self.deleted {
            transaction.push(
                family,
                Operation::DeleteElements {
                    set: set.name(),
                    elements,
                },
            );
        }
        for (family, pick, size) in &new_picks {
            transaction.push(
                *family,
                Operation::AddSet(pick.backends(*size).declaration()),
            );
            transaction.push(*family, Operation::AddChain(pick.chain(*size)));
        }
        // Before the elements: a rule walks the map it looks up.
        for (family, pick, size) in new_picks {
            transaction.push(family, Operation::SetRules(pick.chain(size)));
        }
        for ((family, set), elements) in self.added {
            transaction.push(
                family,
                Operation::AddElements {
                    set: set.name(),
                    elements,
                },
            );
        }
        for (family, pick, size) in stale_picks {
            transaction.push(family, Operation::DeleteChain(pick.chain_name(size)));
            transaction.push(family, Operation::DeleteSet(pick.backends(size).name()));
        }
        transaction
    }
}

enum Presence {
    Appeared,
    Vanished,
    Unchanged,
}

fn count(counter: &mut u32, by: i64) -> Presence {
    let before = *counter;
    *counter = u32::try_from((i64::from(before) + by).max(0)).unwrap_or(u32::MAX);
    match (before == 0, *counter == 0) {
        (true, false) => Presence::Appeared,
        (false, true) => Presence::Vanished,
        _ => Presence::Unchanged,
    }
}

#[cfg(test)]
mod tests;
