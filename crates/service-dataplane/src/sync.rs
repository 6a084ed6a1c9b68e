//! Keeps a backend's tables equal to the ledger.
//!
//! A batch is committed as one transaction, the difference from what the backend is assumed to hold. When the kernel
//! refuses a transaction, the tables are read and repaired to what they were at the last sync (another program may have
//! changed them), then the changes since that sync are bisected: the bad Service is quarantined and keeps its last good
//! rules; all others are committed (`bisect`).
//!
//! Invariant: after any call that returns `Ok`, the backend holds exactly [`Dataplane::desired`].

mod bisect;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use nft::{
    Backend, CommitError, Element, Family, Generation, Operation, TableContents, Transaction,
};
use nix::errno::Errno;
use service_model::{NodeFacts, ObjectName, ServiceIntent};

use crate::affinity::{self, AffinityCheck, Group};
use crate::claim::Claim;
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
    /// What the Service has in the tables meanwhile; `None` if it has nothing there.
    pub last_good: Option<Arc<ServiceIntent>>,
}

/// What the Service has in the tables meanwhile.
impl From<&Quarantined> for Update {
    fn from(quarantined: &Quarantined) -> Self {
        Update {
            service: quarantined.service.clone(),
            intent: quarantined.last_good.clone(),
        }
    }
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
    /// Services that were quarantined, also those of earlier calls that failed.
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
    /// There was a sync since the start, and the kernel would accept its tables again.
    has_synced: bool,
    /// What Services needed at the last sync, if they have changed since. Empty while `synced`.
    last_good: BTreeMap<ObjectName, Option<Arc<ServiceIntent>>>,
    quarantine: BTreeMap<ObjectName, CommitError>,
    /// Services that were quarantined since the last outcome.
    unreported: BTreeSet<ObjectName>,
    /// Frontends that batches have changed whose commit failed, and whether connections to removed endpoints are reset.
    flows: BTreeMap<Claim, bool>,
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
            has_synced: false,
            last_good: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            unreported: BTreeSet::new(),
            flows: BTreeMap::new(),
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
                self.check_later(checks);
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
        let services = updates.len();
        for update in &updates {
            self.quarantine.remove(&update.service);
        }
        let mut applied = self.ledger.apply(updates);
        self.stale_groups.append(&mut applied.groups);
        let attempt = if self.synced {
            let changes = &mut applied.transaction.operations;
            transaction.operations.append(changes);
            self.send(&transaction, &mut outcome)
        } else {
            self.reconcile(&mut outcome)
        };
        match attempt {
            Ok(()) => {
                outcome.conflicts = applied.conflicts;
                match self.flows.is_empty() {
                    true => outcome.flows = applied.flows,
                    false => self.check_later(applied.flows),
                }
            }
            Err(error) => {
                tracing::debug!(%error, services, "could not commit a batch");
                self.synced = false;
                self.record_uncommitted(applied);
                if !is_refusal(&error) {
                    return Err(error.into());
                }
                self.quarantine_refused(&mut outcome)?;
            }
        }
        Ok(self.with_pending(outcome))
    }

    /// Reads both tables and writes what differs from the desired contents, if anything.
    pub fn repair(&mut self) -> Result<SyncOutcome, SyncError> {
        let mut outcome = SyncOutcome::default();
        match self.reconcile(&mut outcome) {
            Err(error) if is_refusal(&error) => self.quarantine_refused(&mut outcome)?,
            repaired => repaired?,
        }
        Ok(self.with_pending(outcome))
    }

    /// Records a change of the ledger that is not committed.
    fn record_uncommitted(&mut self, applied: Applied) {
        self.check_later(applied.flows);
        for Update { service, intent } in applied.undo {
            let good = self.last_good.entry(service.clone()).or_insert(intent);
            if good.is_none() && self.ledger.intent(&service).is_none() {
                self.last_good.remove(&service);
            }
        }
    }

    /// Makes updates part of the desired state without a commit.
    fn postpone(&mut self, updates: Vec<Update>) {
        let applied = self.ledger.apply(updates);
        self.record_uncommitted(applied);
    }

    /// Has the flows of these frontends checked after the next sync.
    fn check_later(&mut self, checks: Vec<FlowCheck>) {
        for check in checks {
            *self.flows.entry(check.claim).or_default() |= check.reset;
        }
    }

    /// Adds what this call and earlier ones that failed have left to do and to report: checks of flows and affinity entries, and
    /// quarantined Services.
    fn with_pending(&mut self, mut outcome: SyncOutcome) -> SyncOutcome {
        for service in std::mem::take(&mut self.unreported) {
            // A later update may have ended the quarantine.
            if let Some(error) = self.quarantine.get(&service) {
                outcome.quarantined.push(Quarantined {
                    error: error.clone(),
                    last_good: self.ledger.intent(&service),
                    service,
                });
            }
        }
        let all = std::mem::take(&mut self.all_stale);
        let stale_groups = std::mem::take(&mut self.stale_groups);
        let groups = match all {
            true => self.ledger.affinity_groups(),
            false => stale_groups,
        };
        // Endpoints may have changed again since the check was recorded, so each is made from the frontend as it is.
        let flows = std::mem::take(&mut self.flows).into_iter();
        outcome.flows.extend(flows.map(|(claim, reset)| FlowCheck {
            reset,
            ..FlowCheck::of(claim, self.ledger.effective(&claim).as_ref())
        }));
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
        let (read_at, difference) = self.difference()?;
        self.send(&difference, outcome)?;
        outcome.repaired += difference.operations.len();
        self.synced = true;
        self.has_synced = true;
        self.last_good.clear();
        self.read_at = Some(read_at);
        // The difference does not say which groups lost endpoints.
        self.all_stale = true;
        Ok(())
    }

    /// Reads both tables. Returns what makes them as desired, and the generation since which they were read.
    fn difference(&mut self) -> Result<(Generation, Transaction), CommitError> {
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
        Ok((read_at, transaction))
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
