//! The control loop: the one owner of the view, the ledger and the kernel socket.
//!
//! The loop receives events and commits transactions. It waits until the view is complete, commits the first change at
//! once and later changes in batches ([`pace`]), repairs foreign changes to the tables ([`repairs`]), and publishes a
//! [`Status`]. Parts that follow commits are [`Observer`]s. The loop shares its thread with the source; a commit blocks both.
//! Rules stay in place when the loop ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Result;
use nft::{Backend, CommitError, Notice};
use object_source::{Events, Problem, SourceEvent};
use service_dataplane::{Dataplane, SyncError, SyncOutcome, Update};
use service_model::{Family, NodeConfig, NodeFacts, ObjectKind, ObjectName, Socket, Suspects};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::LiveNodeConfig;
use crate::conntrack::Forget;
use crate::listeners::Listeners;
use crate::memory;
use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::status::{Adopted, SharedStatus, Status};

mod commit_log;
mod flapping;
mod invalid;
mod line_limit;
mod object_log;
mod own_node;
mod pace;
mod problem_log;
mod quarantine;
mod remarks;
mod repairs;
mod steps;
mod view;

use commit_log::{CommitLog, LoggedCommit};
use flapping::Flapping;
pub(crate) use object_log::ObjectLog;
use pace::Pace;
use problem_log::{ConflictLog, ProblemLog};
use quarantine::Quarantine;
use remarks::LineLimits;
use repairs::Repairs;
use steps::Steps;
pub(crate) use view::ClusterView;
use view::Planned;

/// Maximum number of events handled before the next turn, which commits what is due.
const EVENTS_PER_TURN: usize = 4096;
/// Maximum number of changes whose times are kept while commits fail: the oldest.
const MAX_TRIGGERS: usize = 4096;

/// What the loop receives.
pub struct Inputs {
    /// The configuration of Services; its changes apply from the next turn on.
    pub config: LiveNodeConfig,
    /// Changes of the watched objects.
    pub events: Events,
    /// Addresses of this node's interfaces.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// Foreign changes of the tables.
    pub foreign: mpsc::UnboundedReceiver<Notice>,
    /// Affinity entries to delete.
    pub forget: mpsc::UnboundedReceiver<Forget>,
    /// Nodes that seem to be down.
    pub suspects: watch::Receiver<Suspects>,
}

/// Where the loop publishes its state.
#[derive(Clone)]
pub struct ControlReports {
    pub status: Arc<SharedStatus>,
    pub metrics: Arc<Metrics>,
}

/// Runs until canceled or until the source ends. Rules stay in place when it returns.
pub async fn run<B: Backend>(
    mut control: Control<B>,
    mut inputs: Inputs,
    cancel: CancellationToken,
) -> Result<()> {
    let (mut addresses_closed, mut config_closed, mut suspects_closed) = (false, false, false);
    // Do not wait for the first event: without an API server, there is none.
    control.publish();
    loop {
        let wake = control.wake(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            changed = inputs.suspects.changed(), if !suspects_closed => match changed {
                Ok(()) => control.set_suspects(inputs.suspects.borrow_and_update().clone()),
                Err(_) => suspects_closed = true,
            },
            event = inputs.events.recv() => {
                let Some(event) = event else { break };
                control.event(event);
                for _ in 1..EVENTS_PER_TURN {
                    let Ok(event) = inputs.events.try_recv() else { break };
                    control.event(event);
                }
            }
            changed = inputs.config.changed(), if !config_closed => match changed {
                Ok(()) => control.set_config(inputs.config.borrow_and_update().clone()),
                Err(_) => config_closed = true,
            },
            changed = inputs.addresses.changed(), if !addresses_closed => addresses_closed = changed.is_err(),
            Some(notice) = inputs.foreign.recv() => {
                control.foreign_change(notice);
                while let Ok(notice) = inputs.foreign.try_recv() {
                    control.foreign_change(notice);
                }
            }
            Some(forget) = inputs.forget.recv() => control.forget(forget),
            () = sleep_until(wake) => {}
        }
        let addresses = inputs.addresses.borrow_and_update().clone();
        control.turn(&addresses);
    }
    // Unblocks the conntrack thread, which waits for pending `Forget`s to be dropped.
    drop(inputs);
    Ok(())
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The state of the loop. Its methods never wait, except for the kernel.
pub struct Control<B> {
    view: ClusterView,
    dataplane: Dataplane<B>,
    pace: Pace,
    repairs: Repairs,
    flapping: Flapping,
    steps: Steps,
    quarantine: Quarantine,
    problems: ProblemLog,
    commits: CommitLog,
    conflicts: ConflictLog,
    line_limits: LineLimits,
    reports: ControlReports,
    observers: Vec<Box<dyn Observer>>,
    listeners: Listeners,
    /// The requests for sockets at which `listeners` has looked last.
    sockets_revision: u64,
    /// What it found.
    listening: Arc<BTreeSet<Socket>>,
    started: SystemTime,
    /// Times of the planned changes that are not committed yet. Changes from before the start are not measured.
    triggers: Vec<(Family, SystemTime)>,
    /// The facts to plan by, as of the last turn.
    facts: NodeFacts,
    /// Whether `facts` differ from the committed facts.
    facts_changed: bool,
    /// The configuration has changed since the last commit. Observers read fields of it that the facts do not have.
    config_changed: bool,
    /// The first sync is complete.
    synced: bool,
    /// The last commit failed, so the tables may differ from the ledger.
    failed: bool,
    /// Another process owns the tables.
    standby: bool,
    /// No Node object has the name of this node, and the log says so.
    lacks_node: bool,
    /// Since when a commit is pending; `/healthz` fails when this is too long ago.
    pending_since: Option<Instant>,
    /// Time of the last successful commit or repair.
    synced_at: Option<SystemTime>,
    /// Tables of an earlier process.
    adopted: Option<Adopted>,
    /// Kinds that are not being watched at present.
    outages: BTreeSet<ObjectKind>,
}

impl<B: Backend> Control<B> {
    /// Creates the state; tables are neither read nor written yet. `adopted`: tables of an earlier process that serve.
    pub fn new(
        config: NodeConfig,
        backend: B,
        reports: ControlReports,
        observers: Vec<Box<dyn Observer>>,
        adopted: Option<Adopted>,
    ) -> Self {
        let view = ClusterView::new(config);
        let facts = view.facts(&[]);
        Control {
            dataplane: Dataplane::new(backend, facts.clone()),
            view,
            pace: Pace::default(),
            repairs: Repairs::default(),
            flapping: Flapping::default(),
            steps: Steps::default(),
            quarantine: Quarantine::default(),
            problems: ProblemLog::default(),
            commits: CommitLog::default(),
            conflicts: ConflictLog::default(),
            line_limits: LineLimits::default(),
            reports,
            observers,
            listeners: Listeners::default(),
            sockets_revision: 0,
            listening: Arc::default(),
            started: SystemTime::now(),
            triggers: Vec::new(),
            facts,
            facts_changed: false,
            config_changed: false,
            synced: false,
            failed: false,
            standby: false,
            lacks_node: false,
            pending_since: None,
            synced_at: None,
            adopted,
            outages: BTreeSet::new(),
        }
    }

    fn event(&mut self, event: SourceEvent) {
        for observer in &mut self.observers {
            observer.event(&event);
        }
        match &event {
            SourceEvent::Problem(problem) => self.report(problem),
            SourceEvent::Connection {
                kind,
                state: Err(outage),
            } => {
                let rules = match self.synced || self.adopted.is_some() {
                    true => ", existing rules keep working",
                    false => "",
                };
                tracing::warn!(%kind, "{outage}{rules}");
                self.outages.insert(*kind);
            }
            SourceEvent::Connection {
                kind,
                state: Ok(()),
            } => {
                self.outages.remove(kind);
            }
            event => self.problems.event(event),
        }
        self.view.event(event);
    }

    /// Replaces the configuration; the next turn plans all Services again.
    fn set_config(&mut self, config: NodeConfig) {
        self.view.set_config(config);
        self.config_changed = true;
    }

    /// Plans the Services with endpoints on nodes that become or cease to be suspects.
    fn set_suspects(&mut self, suspects: Suspects) {
        for observer in &mut self.observers {
            observer.suspects(&suspects);
        }
        self.view.set_suspects(suspects);
    }

    fn report(&mut self, problem: &Problem) {
        let is_new = self.problems.is_new(problem);
        if is_new && self.permits_about(problem.subject()) {
            remarks::log(problem);
        }
        for observer in &mut self.observers {
            observer.problem(problem);
            if is_new {
                observer.new_problem(problem);
            }
        }
    }

    /// Requests a repair, unless the tables have been read since the foreign change: another reading would only delay
    /// the next commit.
    fn foreign_change(&mut self, notice: Notice) {
        let is_known = match notice {
            Notice::Changed(generation) => self.dataplane.has_read(generation),
            Notice::Overrun => false,
        };
        if self.synced && !is_known {
            self.repairs.request();
        }
    }

    fn forget(&mut self, forget: Forget) {
        let entries = self
            .dataplane
            .forget(forget.family, forget.map, forget.entries);
        tracing::debug!(entries, family = %forget.family, "deleted affinity entries of removed endpoints");
    }

    /// When the next turn is due, if no event comes before.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let times = [
            self.commit_due(now).filter(|_| self.is_complete()),
            self.repairs.due(now),
            self.listeners.due(),
            self.commits.due(now),
            self.line_limits.due(now),
        ];
        times.into_iter().flatten().min()
    }

    fn is_complete(&self) -> bool {
        self.view.waiting_for().is_empty()
    }

    /// When the next commit may start; `None` if there is nothing to commit.
    fn commit_due(&self, now: Instant) -> Option<Instant> {
        let changes = self.has_changes().then(|| {
            let due = [self.pace.due(now), self.held_until(now)];
            due.into_iter().flatten().max().unwrap_or(now)
        });
        // A whole commit, and the pause after a failure, come first.
        let step = self.steps.due(now).filter(|_| !self.wants_whole_commit());
        changes.into_iter().chain(step).min()
    }

    /// Whether a commit is wanted for more than the further steps of large Services. These have no end while such a Service
    /// changes, so health does not wait for them.
    fn has_changes(&self) -> bool {
        self.wants_whole_commit() || !self.view.dirty().is_empty()
    }

    /// Whether a commit is needed even without changes of Services.
    fn wants_whole_commit(&self) -> bool {
        !self.synced || self.failed || self.facts_changed
    }

    /// When the next commit may start, if only flapping Services wait for one.
    fn held_until(&self, now: Instant) -> Option<Instant> {
        (!self.wants_whole_commit())
            .then(|| self.flapping.first_due(self.view.dirty(), now))
            .flatten()
    }

    /// Commits and repairs what is due.
    fn turn(&mut self, addresses: &[IpAddr]) {
        let now = Instant::now();
        if self.is_complete() {
            self.look_for_node();
        }
        self.look_for_listeners(now);
        self.facts = self.view.facts(addresses);
        self.facts_changed = self.config_changed || self.facts != *self.dataplane.facts();
        if !self.has_changes() || self.standby {
            self.pending_since = None;
            self.reports.metrics.nothing_pending();
        } else if self.is_complete() && self.held_until(now).is_none() {
            // Not before: while lists are missing, `/healthz` must not cause restarts, which would not help. Flapping Services
            // wait on purpose.
            self.pending_since.get_or_insert(now);
        }
        if self.is_complete() {
            if self.commit_due(now).is_some_and(|at| at <= now) {
                self.commit();
            }
            if self.synced && self.repairs.due(now).is_some_and(|at| at <= now) {
                self.repair();
            }
        }
        self.commits.write(now);
        self.write_names(now);
        self.publish();
    }

    fn commit(&mut self) {
        let start = Instant::now();
        let all = self.facts_changed;
        let flapping = &self.flapping;
        let is_due = |name: &ObjectName| flapping.due(name, start).is_none();
        let dataplane = &self.dataplane;
        let committed = |name: &ObjectName| dataplane.intent(name);
        let Planned {
            mut updates,
            ignored,
            over_budget,
            refused,
        } = self.view.updates(&self.facts, all, is_due, committed);
        let names = updates.iter().map(|update| &update.service);
        self.flapping.committed(names.clone(), start);
        // Planning is what a Service over its budget costs.
        self.flapping.charge(refused.iter(), start);
        self.conflicts.renewed(names);
        if self.wants_whole_commit() {
            self.steps.finish(&mut updates);
        } else {
            self.steps.limit(&mut updates, start, committed);
        }
        let triggers = self.view.take_triggers().into_iter();
        let since_start = triggers.filter(|(_, at)| *at > self.started);
        self.triggers.extend(since_start);
        self.quarantine.planned(&updates, &over_budget);
        self.reports.metrics.add_planned(updates.len());
        for observer in &mut self.observers {
            observer.planned(&updates);
        }
        for invalid in ignored {
            self.report(&Problem::Field { at: None, invalid });
        }
        let (services, only) = commit_log::names(&updates);
        let full = self.wants_whole_commit();
        let result = if self.facts_changed {
            self.dataplane.refresh(self.facts.clone(), updates)
        } else if self.failed && updates.is_empty() {
            self.dataplane.repair()
        } else {
            self.dataplane.commit(updates)
        };
        for invalid in over_budget {
            self.report_over_budget(invalid);
        }
        self.facts_changed = false;
        self.config_changed = false;
        if let Some(outcome) = self.finish(start, result, full) {
            let (elements, elapsed) = (outcome.elements, start.elapsed());
            if !std::mem::replace(&mut self.synced, true) {
                let elapsed_seconds = elapsed.as_secs_f64();
                tracing::info!(services, elements, elapsed_seconds, "initial sync complete");
            }
            if outcome.transactions > 0 {
                self.commits.add(LoggedCommit {
                    services,
                    only,
                    elements,
                    elapsed,
                });
            }
        }
        if services >= memory::LARGE {
            memory::give_back_soon();
        }
    }

    fn repair(&mut self) {
        let start = Instant::now();
        self.repairs.started();
        let result = self.dataplane.repair();
        let end = Instant::now();
        self.repairs.ended(end, end - start);
        if let Some(outcome) = self.finish(start, result, true)
            && outcome.repaired > 0
        {
            tracing::warn!(
                operations = outcome.repaired,
                elements = outcome.elements,
                elapsed_seconds = (end - start).as_secs_f64(),
                "repaired a foreign change to the tables"
            );
            self.reports.metrics.repaired();
        }
    }

    /// Passes the result of a commit or repair to observers and log. Returns the outcome of a success.
    fn finish(
        &mut self,
        start: Instant,
        result: Result<SyncOutcome, SyncError>,
        full: bool,
    ) -> Option<SyncOutcome> {
        let now = Instant::now();
        let elapsed = now - start;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(SyncError(CommitError::Owned(_))) => {
                self.stand_by(now);
                return None;
            }
            Err(error) => {
                self.failed = true;
                self.pace.failed(now);
                self.triggers.truncate(MAX_TRIGGERS);
                for observer in &mut self.observers {
                    observer.failed();
                }
                tracing::error!(%error, "commit failed; retrying, existing rules keep working");
                return None;
            }
        };
        // Flapping Services wait on purpose.
        let dirty = self.view.dirty();
        let all_held = dirty.is_empty() || self.flapping.first_due(dirty, start).is_some();
        let commit = Commit {
            outcome: &outcome,
            facts: self.dataplane.facts(),
            pending: !all_held,
            elapsed,
            full,
            triggers: &std::mem::take(&mut self.triggers),
        };
        let in_force: Vec<Update> = outcome.quarantined.iter().map(Update::from).collect();
        for observer in &mut self.observers {
            if !in_force.is_empty() {
                observer.planned(&in_force);
            }
            observer.committed(&commit);
        }
        for quarantined in &outcome.quarantined {
            self.steps.forget(&quarantined.service);
        }
        self.quarantine
            .committed(&self.dataplane, &self.view, &outcome);
        if std::mem::take(&mut self.standby) {
            self.reports.metrics.set_standby(false);
            tracing::info!("the other process has ended; adopted its tables");
        }
        self.failed = false;
        self.synced_at = Some(SystemTime::now());
        if all_held {
            self.pending_since = None;
        }
        // Others do not wait for a further step.
        if !self.steps.committed(now, elapsed) {
            self.pace.committed(now, elapsed);
        }
        self.log_outcome(&outcome);
        Some(outcome)
    }

    /// Retries until the process that owns the tables ends. Its rules serve meanwhile.
    fn stand_by(&mut self, now: Instant) {
        self.failed = true;
        self.pending_since = None;
        self.triggers = Vec::new();
        self.pace.standing_by(now);
        if !std::mem::replace(&mut self.standby, true) {
            self.reports.metrics.set_standby(true);
            tracing::warn!(
                "another process owns the tables: standing by, and taking over within a second of its end"
            );
        }
    }

    fn publish(&self) {
        let (services, endpoints) = self.view.size();
        let metrics = &self.reports.metrics;
        metrics.set_totals(services, endpoints);
        metrics.set_quarantined(self.quarantine.services().len());
        for (kind, invalid) in self.view.invalid_by_kind() {
            metrics.set_invalid(kind, invalid);
        }
        let status = Status {
            synced: self.synced,
            waiting_for: self.view.waiting_for(),
            pending_since: self.pending_since,
            synced_at: self.synced_at,
            standby: self.standby,
            notes: self.notes(),
            quarantined: self.quarantine.services(),
            // Until Nodes are listed, a node that serves by adopted tables counts as eligible.
            node_eligible: self.view.node_is_eligible()
                || (self.adopted.is_some() && !self.view.has_listed(ObjectKind::Node)),
            adopted: self.adopted,
            is_disconnected: self
                .outages
                .iter()
                .any(|kind| view::NEEDED_ALWAYS.contains(kind)),
        };
        self.reports.status.store(Arc::new(status));
    }
}

#[cfg(test)]
mod tests;
