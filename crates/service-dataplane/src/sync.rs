//! Keeps a backend's tables equal to the ledger.
//!
//! A batch is committed as one transaction, the difference from what the backend is assumed to hold. When the kernel
//! refuses a transaction, the tables are read and repaired (another program may have changed them), then the batch is
//! bisected: the bad Service is quarantined and keeps its last good rules; all others are committed.
//!
//! Invariant: after any call that returns `Ok`, the backend holds exactly [`Dataplane::desired`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::{
    Backend, CommitError, Element, Family, Generation, Operation, TableContents, Transaction,
};
use nix::errno::Errno;
use service_model::{NodeFacts, ObjectName, ServiceIntent};

use crate::affinity::{self, AffinityCheck, Group};
use crate::conntrack::FlowCheck;
use crate::layout;
use crate::ledger::{Applied, Conflict, Ledger, Update};

/// A Service that the kernel refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The Service.
    pub service: ObjectName,
    /// The kernel's error.
    pub error: CommitError,
}

/// What a commit or repair did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncOutcome {
    /// Committed transactions.
    pub transactions: usize,
    /// Elements that the transactions added and deleted.
    pub elements: usize,
    /// Families whose table the transactions changed.
    pub families: BTreeSet<Family>,
    /// Operations that the repair took, if the tables were read.
    pub repaired: usize,
    /// Services of this batch that the kernel refuses.
    pub quarantined: Vec<Quarantined>,
    /// Frontends of this batch that two Services request.
    pub conflicts: Vec<Conflict>,
    /// Affinity entries that may lead to removed endpoints: to be read and then deleted by [`Dataplane::forget`].
    pub affinity: AffinityCheck,
    /// Conntrack entries to look for once the affinity entries are deleted: an affinity entry could send the flow to the
    /// removed endpoint again. Includes checks of earlier batches whose commit failed.
    pub flows: Vec<FlowCheck>,
}

/// A commit or repair that failed. The batch is part of the desired state nevertheless: call [`Dataplane::repair`]
/// until it succeeds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tables are not synced: {0}")]
pub struct SyncError(#[from] pub CommitError);

/// The tables of a node and their desired contents.
#[derive(Debug)]
pub struct Dataplane<B> {
    backend: B,
    ledger: Ledger,
    facts: NodeFacts,
    /// Whether the backend is assumed to hold the ledger's contents. False at start and after a failure.
    synced: bool,
    /// The generation at which the tables were last read: foreign changes up to this generation are repaired.
    read_at: Option<Generation>,
    quarantine: BTreeMap<ObjectName, CommitError>,
    /// Checks of batches whose commit failed.
    flows: Vec<FlowCheck>,
    /// Affinity groups with entries that may lead to removed endpoints.
    stale_groups: BTreeSet<Group>,
    /// All groups may be stale.
    all_stale: bool,
}

impl<B: Backend> Dataplane<B> {
    /// Nothing is read or written yet: the first [`Dataplane::commit`] or [`Dataplane::repair`] adopts the
    /// tables it finds and writes only the difference.
    pub fn new(backend: B, facts: NodeFacts) -> Self {
        Dataplane {
            backend,
            ledger: Ledger::default(),
            facts,
            synced: false,
            read_at: None,
            quarantine: BTreeMap::new(),
            flows: Vec::new(),
            stale_groups: BTreeSet::new(),
            all_stale: false,
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

    /// The facts that the tables follow.
    pub fn facts(&self) -> &NodeFacts {
        &self.facts
    }

    /// The desired contents of both tables.
    pub fn desired(&self) -> [TableContents; 2] {
        self.ledger.contents(&self.facts)
    }

    /// What a Service needs as it was committed last.
    pub fn intent(&self, service: &ObjectName) -> Option<Arc<ServiceIntent>> {
        self.ledger.intent(service)
    }

    /// Services that the kernel refused at their last change.
    pub fn quarantine(&self) -> &BTreeMap<ObjectName, CommitError> {
        &self.quarantine
    }

    /// Commits new facts about the node as one transaction with `updates`, which have every Service planned by these facts.
    pub fn refresh(
        &mut self,
        facts: NodeFacts,
        updates: Vec<Update>,
    ) -> Result<SyncOutcome, SyncError> {
        let mut base = Transaction::new();
        let known = &self.facts.node_addresses;
        let mut addresses = facts.node_addresses.iter();
        let gains_address = addresses.any(|address| known.binary_search(address).is_err());
        if facts != self.facts {
            for family in Family::ALL {
                let before = layout::base(family, &self.facts);
                let after = layout::base(family, &facts);
                base.operations
                    .extend(nft::diff::diff(Some(&before), &after).operations);
            }
            self.facts = facts;
        }
        let written = self.write(base, updates);
        if !gains_address {
            return written;
        }
        // Flows to the new address may have begun before the rules had it. The checks of changed frontends come after the
        // checks of all node ports, and of two checks of one frontend the later one counts.
        let mut checks = self.ledger.node_port_checks();
        match written {
            Ok(mut outcome) => {
                checks.append(&mut outcome.flows);
                outcome.flows = checks;
                Ok(outcome)
            }
            Err(error) => {
                checks.append(&mut self.flows);
                self.flows = checks;
                Err(error)
            }
        }
    }

    /// Applies one update for each Service of a batch.
    pub fn commit(&mut self, updates: Vec<Update>) -> Result<SyncOutcome, SyncError> {
        self.write(Transaction::new(), updates)
    }

    fn write(
        &mut self,
        mut transaction: Transaction,
        updates: Vec<Update>,
    ) -> Result<SyncOutcome, SyncError> {
        let mut outcome = SyncOutcome::default();
        let retry: Vec<Update> = updates.clone();
        for update in &updates {
            self.quarantine.remove(&update.service);
        }
        let applied = self.ledger.apply(updates);
        self.stale_groups.extend(applied.groups);
        let attempt = if self.synced {
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
                self.synced = false;
                tracing::debug!(%error, services = retry.len(), "could not commit a batch");
                if !is_refusal(&error) {
                    self.flows.extend(applied.flows);
                    return Err(error.into());
                }
                self.ledger.apply(applied.undo);
                self.reconcile(&mut outcome)?;
                self.bisect(retry, &mut outcome)?;
            }
        }
        Ok(self.with_checks(outcome))
    }

    /// Reads both tables and writes what differs from the desired contents, if anything.
    pub fn repair(&mut self) -> Result<SyncOutcome, SyncError> {
        let mut outcome = SyncOutcome::default();
        self.reconcile(&mut outcome)?;
        Ok(self.with_checks(outcome))
    }

    /// Adds the pending checks of flows and affinity entries.
    fn with_checks(&mut self, mut outcome: SyncOutcome) -> SyncOutcome {
        let all = std::mem::take(&mut self.all_stale);
        let stale_groups = std::mem::take(&mut self.stale_groups);
        let groups = match all {
            true => self.ledger.affinity_groups(),
            false => stale_groups,
        };
        outcome.flows = std::mem::take(&mut self.flows);
        outcome.affinity = self.affinity_check(groups, all);
        outcome
    }

    /// The addresses at which tables of an earlier process serve node ports.
    pub fn adopted_node_addresses(&mut self) -> Result<Vec<IpAddr>, CommitError> {
        let set = layout::SetId::NodeAddresses.name();
        let mut addresses = Vec::new();
        for family in Family::ALL {
            let elements = self.backend.dynamic_elements(family, &set)?.into_iter();
            addresses.extend(elements.filter_map(|element| element.key.address_at(0, family)));
        }
        Ok(addresses)
    }

    /// Whether the tables have been read, and so repaired, since the change that made this generation.
    pub fn has_read(&self, generation: Generation) -> bool {
        self.read_at.is_some_and(|at| at.is_since(generation))
    }

    fn reconcile(&mut self, outcome: &mut SyncOutcome) -> Result<(), CommitError> {
        self.synced = false;
        // Adopt first, which fails at once while another process owns the tables: building the contents takes long.
        for family in Family::ALL {
            self.backend.adopt(family)?;
        }
        let read_at = self.backend.generation()?;
        let mut transaction = Transaction::new();
        for wanted in self.ledger.contents(&self.facts) {
            let difference = self.backend.difference(&wanted)?;
            transaction.operations.extend(difference.operations);
        }
        outcome.repaired += transaction.operations.len();
        self.send(&transaction, outcome)?;
        self.synced = true;
        self.read_at = Some(read_at);
        // The difference does not say which groups lost endpoints.
        self.all_stale = true;
        Ok(())
    }

    /// A check of these affinity groups by their present endpoints.
    fn affinity_check(&self, groups: BTreeSet<Group>, all: bool) -> AffinityCheck {
        let endpoints = |(family, map, group)| {
            let endpoints = self.ledger.endpoints_of_group(family, group);
            ((family, map, group), endpoints)
        };
        AffinityCheck {
            groups: groups.into_iter().map(endpoints).collect(),
            all,
        }
    }

    /// Deletes the entries of a Service's map that lead to no endpoint of their group, and returns their number. The kernel refuses a
    /// transaction that deletes an entry which has timed out; a refused transaction is halved and retried. An entry that
    /// cannot be deleted will time out.
    pub fn forget(&mut self, family: Family, map: u64, entries: Vec<Element>) -> usize {
        if !self.ledger.has_affinity_map(family, map) {
            return 0;
        }
        let read = entries
            .iter()
            .filter_map(|entry| affinity::read(family, entry));
        let groups = read.map(|(group, _)| (family, map, group)).collect();
        let stale = self
            .affinity_check(groups, false)
            .stale(family, map, entries);
        self.delete_entries(family, map, stale)
    }

    fn delete_entries(&mut self, family: Family, map: u64, mut elements: Vec<Element>) -> usize {
        if elements.is_empty() {
            return 0;
        }
        let mut transaction = Transaction::new();
        let delete = Operation::DeleteElements {
            set: affinity::map(map),
            elements: elements.clone(),
        };
        transaction.push(family, delete);
        match self.backend.commit(&transaction) {
            Ok(()) => elements.len(),
            Err(error) if is_refusal(&error) && elements.len() > 1 => {
                let second = elements.split_off(elements.len() / 2);
                self.delete_entries(family, map, elements)
                    + self.delete_entries(family, map, second)
            }
            Err(error) => {
                tracing::debug!(%error, %family, "could not delete an affinity entry; it will time out");
                0
            }
        }
    }

    fn send(
        &mut self,
        transaction: &Transaction,
        outcome: &mut SyncOutcome,
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

    /// Commits the updates that the kernel accepts and quarantines the Services of the others. The tables are synced before
    /// each attempt. When the backend fails without refusing, the remaining updates become part of the desired state, and
    /// [`Dataplane::repair`] commits them.
    fn bisect(
        &mut self,
        mut updates: Vec<Update>,
        outcome: &mut SyncOutcome,
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
            self.synced = false;
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

/// Whether the kernel refused the transaction for its contents. With the other errors (permission, memory, buffers) the
/// kernel refuses any transaction.
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
        CommitError::Owned(_) | CommitError::Netlink(_) => false,
    }
}

#[cfg(test)]
mod tests;
