//! Keeps a backend's tables equal to the ledger.
//!
//! Owns the belief about what the backend holds. A batch goes in as one transaction. When one is refused, the
//! tables are read and repaired (somebody may have changed them), then the batch is bisected: the one bad
//! Service is quarantined, keeps its last good rules, and everything else goes in.
//!
//! Invariant: after any call that returns `Ok`, the backend holds exactly [`Ledger::contents`].

use std::collections::{BTreeMap, BTreeSet};

use nft::{Adoption, Backend, CommitError, Element, Family, Generation, Operation, Transaction};
use nix::errno::Errno;
use service_model::{NodeFacts, ObjectName};

use crate::affinity::{self, AffinityCheck};
use crate::conntrack::FlowCheck;
use crate::layout;
use crate::ledger::{Applied, Conflict, Ledger, Update};

/// A Service that the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The Service.
    pub service: ObjectName,
    /// The kernel's answer.
    pub error: CommitError,
}

/// What a call did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Transactions that were carried out.
    pub transactions: usize,
    /// Elements added and deleted by them.
    pub elements: usize,
    /// Families whose table they changed.
    pub families: BTreeSet<Family>,
    /// Steps by which the tables differed from what was believed, where they were read.
    pub repaired: usize,
    /// Services of this batch that the kernel refuses.
    pub quarantined: Vec<Quarantined>,
    /// Frontends of this batch that two Services ask for.
    pub conflicts: Vec<Conflict>,
    /// What clients may be remembered to have of endpoints that are no more: to be read, and then
    /// [forgotten](Dataplane::forget).
    pub affinity: AffinityCheck,
    /// Tracked flows to look for, now that the rules are in, and after `affinity`: a flow that is looked for sooner may
    /// come back by what is remembered. Also those of earlier batches that failed meanwhile.
    pub flows: Vec<FlowCheck>,
}

/// Why the backend is not known to hold what it should. The batch is part of the desired state all the same,
/// unless the error says otherwise: call [`Dataplane::repair`] until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tables not in step with the cluster: {0}")]
pub struct SyncError(#[from] pub CommitError);

/// A node's tables and what they should hold.
#[derive(Debug)]
pub struct Dataplane<B> {
    backend: B,
    ledger: Ledger,
    facts: NodeFacts,
    /// Whether the backend is believed to hold the ledger's contents. False at start and after a failure.
    in_step: bool,
    /// When the tables were last read: what others did until then is made good.
    read_at: Option<Generation>,
    quarantine: BTreeMap<ObjectName, CommitError>,
    /// Of batches that are desired and not in yet.
    flows: Vec<FlowCheck>,
    /// Affinity groups of which entries may lead to endpoints that are no more.
    doubtful: BTreeSet<(Family, u32)>,
    /// Nobody knows which groups.
    all_doubtful: bool,
}

impl<B: Backend> Dataplane<B> {
    /// Nothing is read or written yet: the first [`Dataplane::commit`] or [`Dataplane::repair`] adopts the
    /// tables it finds and writes only the difference.
    pub fn new(backend: B, facts: NodeFacts) -> Self {
        Dataplane {
            backend,
            ledger: Ledger::default(),
            facts,
            in_step: false,
            read_at: None,
            quarantine: BTreeMap::new(),
            flows: Vec::new(),
            doubtful: BTreeSet::new(),
            all_doubtful: false,
        }
    }

    /// The backend, for what is not in the tables: features, counters.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// For tests and benches that change tables behind the daemon's back.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The facts in force.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The desired state.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Services that the kernel refused at their last change.
    pub fn quarantine(&self) -> &BTreeMap<ObjectName, CommitError> {
        &self.quarantine
    }

    /// Takes over new facts about the node, together with every Service planned by them, as one transaction.
    pub fn refresh(
        &mut self,
        facts: NodeFacts,
        updates: Vec<Update>,
    ) -> Result<Outcome, SyncError> {
        let mut base = Transaction::new();
        if facts != self.facts {
            for family in Family::ALL {
                let before = layout::base(family, &self.facts);
                let after = layout::base(family, &facts);
                base.operations
                    .extend(nft::diff::diff(Some(&before), &after).operations);
            }
            self.facts = facts;
        }
        self.write(base, updates)
    }

    /// Applies one update for each Service of a batch.
    pub fn commit(&mut self, updates: Vec<Update>) -> Result<Outcome, SyncError> {
        self.write(Transaction::new(), updates)
    }

    fn write(
        &mut self,
        mut transaction: Transaction,
        updates: Vec<Update>,
    ) -> Result<Outcome, SyncError> {
        let mut outcome = Outcome::default();
        let retry: Vec<Update> = updates.clone();
        for update in &updates {
            self.quarantine.remove(&update.service);
        }
        let applied = self.ledger.apply(updates);
        self.doubtful.extend(applied.groups);
        let attempt = if self.in_step {
            transaction
                .operations
                .extend(applied.transaction.operations);
            self.send(&transaction, &mut outcome)
        } else {
            self.reconcile(&mut outcome)
        };
        match attempt {
            Ok(()) => {
                outcome.conflicts = applied.conflicts;
                self.flows.extend(applied.flows);
            }
            Err(error) => {
                self.in_step = false;
                tracing::debug!(%error, services = retry.len(), "batch refused");
                if !is_refusal(&error) {
                    self.flows.extend(applied.flows);
                    return Err(error.into());
                }
                self.ledger.apply(applied.undo);
                self.reconcile(&mut outcome)?;
                self.bisect(retry, &mut outcome)?;
            }
        }
        outcome.flows = std::mem::take(&mut self.flows);
        outcome.affinity = self.doubts();
        Ok(outcome)
    }

    /// Reads both tables and makes them what they should be. Does nothing, and sends nothing, when they are.
    pub fn repair(&mut self) -> Result<Outcome, SyncError> {
        let mut outcome = Outcome::default();
        self.reconcile(&mut outcome)?;
        outcome.flows = std::mem::take(&mut self.flows);
        outcome.affinity = self.doubts();
        Ok(outcome)
    }

    /// Whether a change that somebody else made with this generation is made good already.
    pub fn has_read(&self, generation: Generation) -> bool {
        self.read_at.is_some_and(|at| at.is_since(generation))
    }

    fn reconcile(&mut self, outcome: &mut Outcome) -> Result<(), CommitError> {
        self.in_step = false;
        let read_at = self.backend.generation()?;
        let mut transaction = Transaction::new();
        for wanted in self.ledger.contents(&self.facts) {
            let family = wanted.table.family;
            let found = match self.backend.adopt(family)? {
                Adoption::NoTable => None,
                Adoption::Ours => self.backend.list(family)?,
                Adoption::Replace => {
                    transaction.push(family, Operation::DeleteTable);
                    None
                }
            };
            transaction
                .operations
                .extend(nft::diff::diff(found.as_ref(), &wanted).operations);
        }
        outcome.repaired += transaction.operations.len();
        self.send(&transaction, outcome)?;
        self.in_step = true;
        self.read_at = Some(read_at);
        // Nobody knows which groups lost endpoints meanwhile.
        self.all_doubtful = true;
        Ok(())
    }

    /// What may be remembered of endpoints that groups have no more: as far as commits know, or all of it.
    fn doubts(&mut self) -> AffinityCheck {
        let doubtful = std::mem::take(&mut self.doubtful);
        let all = std::mem::take(&mut self.all_doubtful);
        let doubtful = match all {
            true => self.ledger.affinity_groups(),
            false => doubtful,
        };
        let endpoints = |(family, group)| {
            let endpoints = self.ledger.endpoints_of_group(family, group);
            ((family, group), endpoints)
        };
        AffinityCheck {
            groups: doubtful.into_iter().map(endpoints).collect(),
            all,
        }
    }

    /// Deletes what rules remember of clients, where that leads to endpoints their group has not (any more), and says
    /// how much it was. What times out meanwhile refuses a transaction, so one that is refused is halved; what cannot
    /// be deleted at all times out.
    pub fn forget(&mut self, family: Family, learned: Vec<Element>) -> usize {
        let groups: BTreeSet<u32> = learned
            .iter()
            .filter_map(|element| affinity::read(family, element))
            .map(|(group, _)| group)
            .collect();
        let endpoints = |group| {
            let endpoints = self.ledger.endpoints_of_group(family, group);
            ((family, group), endpoints)
        };
        let known = AffinityCheck {
            groups: groups.into_iter().map(endpoints).collect(),
            all: false,
        };
        let stale = known.stale(family, learned);
        self.delete_learned(family, stale)
    }

    fn delete_learned(&mut self, family: Family, mut elements: Vec<Element>) -> usize {
        if elements.is_empty() {
            return 0;
        }
        let mut transaction = Transaction::new();
        let delete = Operation::DeleteElements {
            set: affinity::map(),
            elements: elements.clone(),
        };
        transaction.push(family, delete);
        match self.backend.commit(&transaction) {
            Ok(()) => elements.len(),
            Err(error) if is_refusal(&error) && elements.len() > 1 => {
                let second = elements.split_off(elements.len() / 2);
                self.delete_learned(family, elements) + self.delete_learned(family, second)
            }
            Err(error) => {
                tracing::debug!(%error, %family, "a client's endpoint not forgotten");
                0
            }
        }
    }

    fn send(
        &mut self,
        transaction: &Transaction,
        outcome: &mut Outcome,
    ) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        self.backend.commit(transaction)?;
        outcome.transactions += 1;
        outcome.elements += transaction.element_count();
        outcome
            .families
            .extend(transaction.operations.iter().map(|(family, _)| *family));
        Ok(())
    }

    /// Puts in what can be put in. The tables are in step before and between; when the backend fails rather than
    /// refuses, everything not yet tried is desired all the same and left to [`Dataplane::repair`].
    fn bisect(
        &mut self,
        mut updates: Vec<Update>,
        outcome: &mut Outcome,
    ) -> Result<(), CommitError> {
        let Applied {
            transaction,
            undo,
            conflicts,
            flows,
            groups: _,
        } = self.ledger.apply(updates.clone());
        let error = match self.send(&transaction, outcome) {
            Ok(()) => {
                outcome.conflicts.extend(conflicts);
                self.flows.extend(flows);
                return Ok(());
            }
            Err(error) => error,
        };
        if !is_refusal(&error) {
            self.in_step = false;
            self.flows.extend(flows);
            return Err(error);
        }
        self.ledger.apply(undo);
        if updates.len() > 1 {
            let second = updates.split_off(updates.len() / 2);
            if let Err(error) = self.bisect(updates, outcome) {
                let applied = self.ledger.apply(second);
                self.flows.extend(applied.flows);
                return Err(error);
            }
            return self.bisect(second, outcome);
        }
        for Update { service, .. } in updates {
            self.quarantine.insert(service.clone(), error.clone());
            outcome.quarantined.push(Quarantined {
                service,
                error: error.clone(),
            });
        }
        Ok(())
    }
}

/// Whether the kernel objects to what was sent, rather than to being asked at all (rights, memory, buffers).
fn is_refusal(error: &CommitError) -> bool {
    match error {
        CommitError::Refused { errno, .. } => !matches!(
            errno,
            Errno::EPERM
                | Errno::EACCES
                | Errno::ENOMEM
                | Errno::ENOBUFS
                | Errno::EAGAIN
                | Errno::EINTR
                | Errno::EMSGSIZE
        ),
        CommitError::Socket { .. } | CommitError::Reply(_) => false,
    }
}

#[cfg(test)]
mod tests;
