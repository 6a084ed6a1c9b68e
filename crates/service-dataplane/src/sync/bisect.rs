//! Finds the Services that the kernel refuses: a Service is quarantined if the kernel refuses it alone, on top of all that the
//! kernel accepts.
//!
//! Each part of the bisection is a commit where the tables without the suspects are committed first: after the first sync, and on
//! a node without tables. Otherwise the tables of an earlier process serve: the bisection asks the kernel and commits nothing for
//! up to [`TRIALS`] trials. A refused Service costs two of them where the kernel names an element of it, and up to two for each
//! halving otherwise. When no trials are left, what is accepted so far is committed, and the rules of the other Services are
//! gone until their part of the bisection is committed.

use std::sync::Arc;

use nft::{Adoption, Backend, CommitError, Element, Family, Name, Operation};
use service_model::ServiceIntent;

use super::{Dataplane, SyncOutcome, is_refusal};
use crate::ledger::Update;
use crate::render::{Rendered, render};

/// Maximum number of trials in one search for refused Services: enough for 15 whose elements the kernel names, or for one among
/// 10,000 otherwise. Each costs as much as reading the tables.
const TRIALS: usize = 32;

/// The name of no set.
const NO_SET: Name = Name::Borrowed("none");

impl<B: Backend> Dataplane<B> {
    /// Quarantines the Services whose changes since the last sync the kernel refuses, and commits the other changes.
    pub(super) fn quarantine_refused(
        &mut self,
        outcome: &mut SyncOutcome,
    ) -> Result<(), CommitError> {
        if self.last_good.is_empty() {
            self.suspect_all();
        }
        let last_good = std::mem::take(&mut self.last_good).into_iter();
        let last_good = last_good.map(|(service, intent)| Update { service, intent });
        let reverted = self.ledger.apply(last_good.collect());
        self.check_later(reverted.flows);
        let suspects = reverted.undo;
        let without_suspects = match self.needs_trials() {
            Ok(true) => self.trial(),
            Ok(false) => self.reconcile(outcome),
            Err(error) => Err(error),
        };
        if let Err(error) = without_suspects {
            self.postpone(suspects);
            if is_refusal(&error) {
                self.suspect_all();
            }
            return Err(error);
        }
        let mut trials = TRIALS;
        self.bisect(suspects, &mut trials, outcome)?;
        match self.synced {
            true => Ok(()),
            false => self.reconcile(outcome),
        }
    }

    /// The kernel refuses even what it accepted at the last sync, if there was one: any Service may be the cause.
    fn suspect_all(&mut self) {
        self.has_synced = false;
        let services = self.ledger.services().cloned();
        self.last_good = services.map(|service| (service, None)).collect();
    }

    /// Whether a commit without the suspects would delete rules that serve: those of an earlier process, or those that the kernel
    /// would not accept again.
    fn needs_trials(&mut self) -> Result<bool, CommitError> {
        if self.has_synced {
            return Ok(false);
        }
        for family in Family::ALL {
            if self.backend.adopt(family)? != Adoption::NoTable {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Asks the kernel whether it accepts the desired contents. The last step is one that the kernel refuses, so it carries out
    /// none.
    fn trial(&mut self) -> Result<(), CommitError> {
        let (_, mut transaction) = self.difference()?;
        let last = transaction.operations.len();
        transaction.push(Family::Ip, Operation::DeleteSet(NO_SET));
        match self.backend.commit(&transaction) {
            Err(CommitError::Refused { culprit, .. }) if culprit.operation == last => Ok(()),
            answer => answer,
        }
    }

    /// Commits the updates that the kernel accepts and quarantines the Services of the others. While the tables are not synced, it
    /// tries updates without committing them as long as `trials` are left. When the backend fails without refusing, the remaining updates
    /// become part of the desired state, and [`Dataplane::repair`] commits them.
    fn bisect(
        &mut self,
        mut updates: Vec<Update>,
        trials: &mut usize,
        outcome: &mut SyncOutcome,
    ) -> Result<(), CommitError> {
        if !self.synced
            && *trials == 0
            && let Err(error) = self.reconcile(outcome)
        {
            self.postpone(updates);
            return Err(error);
        }
        let mut applied = self.ledger.apply(updates.clone());
        let attempt = if self.synced {
            self.send(&applied.transaction, outcome)
        } else {
            *trials -= 1;
            self.trial()
        };
        match attempt {
            Ok(()) => outcome.conflicts.append(&mut applied.conflicts),
            Err(error) if is_refusal(&error) => {
                self.ledger.apply(applied.undo);
                // Only trials are rare enough: in commits, each of many refused Services would cost a transaction of all others.
                let named = match self.synced || updates.len() < 2 {
                    true => None,
                    false => named(&error, &updates),
                };
                let second = match named {
                    Some(at) => {
                        let alone = vec![updates.remove(at)];
                        std::mem::replace(&mut updates, alone)
                    }
                    None => updates.split_off(updates.len() / 2),
                };
                if updates.is_empty() {
                    return self.quarantine_each(second, &error, trials, outcome);
                }
                if let Err(error) = self.bisect(updates, trials, outcome) {
                    self.postpone(second);
                    return Err(error);
                }
                return self.bisect(second, trials, outcome);
            }
            Err(error) => {
                self.synced = false;
                self.record_uncommitted(applied);
                return Err(error);
            }
        }
        match self.synced {
            true => self.check_later(applied.flows),
            false => self.record_uncommitted(applied),
        }
        Ok(())
    }

    /// Quarantines the Services of refused updates. Rules of an earlier Service of the name are deleted: its addresses may be
    /// those of another Service by now.
    fn quarantine_each(
        &mut self,
        updates: Vec<Update>,
        error: &CommitError,
        trials: &mut usize,
        outcome: &mut SyncOutcome,
    ) -> Result<(), CommitError> {
        for Update { service, intent } in updates {
            self.quarantine.insert(service.clone(), error.clone());
            self.unreported.insert(service.clone());
            let is_stale = |old: Arc<ServiceIntent>| {
                let new = intent.as_ref();
                new.is_some_and(|new| !old.is_of(new.created, &new.cluster_ips()))
            };
            if self.ledger.intent(&service).is_some_and(is_stale) {
                let removal = Update {
                    service,
                    intent: None,
                };
                self.bisect(vec![removal], trials, outcome)?;
            }
        }
        Ok(())
    }
}

/// The position of an update whose Service needs the element that the kernel has refused, if its answer names one.
fn named(error: &CommitError, updates: &[Update]) -> Option<usize> {
    let CommitError::Refused { culprit, .. } = error else {
        return None;
    };
    let (set, Some(element)) = culprit.element.as_ref()? else {
        return None;
    };
    updates.iter().position(|update| {
        let frontends = update.intent.iter().flat_map(|intent| &intent.frontends);
        let mut frontends = frontends.filter(|one| one.address.family() == culprit.family);
        frontends.any(|frontend| has(render(frontend), set, element))
    })
}

/// Whether a frontend needs this element of the set.
fn has(rendered: Rendered, set: &Name, element: &Element) -> bool {
    let shared = rendered.shared.into_iter();
    let shared = shared.map(|(of, key)| (of, Element::member(key)));
    let parts = rendered.parts.iter().flat_map(|part| part.elements());
    let mut all = rendered.own.into_iter().chain(shared).chain(parts);
    all.any(|(of, one)| one == *element && of.name() == *set)
}
