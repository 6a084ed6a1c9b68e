//! The control loop: the one owner of the view, the ledger and the kernel socket.
//!
//! Events in, transactions out. The loop waits until the view is complete, commits the first change at once and later
//! ones in batches ([`pace`]), repairs foreign changes to the tables ([`repairs`]), and publishes a [`Status`]. Whatever
//! follows commits is an [`Observer`]. The loop has a thread of its own, since a commit blocks. Rules stay in place
//! when it ends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::Result;
use nft::{Backend, Notice};
use object_source::{Events, Problem, SourceEvent};
use service_dataplane::{Claim, Dataplane, SyncError, SyncOutcome};
use service_model::{Family, FrontendAddress, Invalid, NodeConfig, NodeFacts, ObjectKind};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::LiveNodeConfig;
use crate::conntrack::Forget;
use crate::listeners::{self, Listeners};
use crate::memory;
use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::status::{Adopted, SharedStatus, Status};

mod commit_log;
mod pace;
mod problem_log;
mod repairs;
mod view;

use commit_log::{CommitLog, Logged};
use pace::Pace;
use problem_log::ProblemLog;
use repairs::Repairs;
pub(crate) use view::View;

/// Maximum number of events handled before the clock is read again.
const EVENTS_PER_TURN: usize = 4096;

/// What the loop receives.
pub struct Inputs {
    /// The configuration of Services, whose changes are followed.
    pub config: LiveNodeConfig,
    /// Events of the source.
    pub events: Events,
    /// Addresses of this node's interfaces.
    pub addresses: watch::Receiver<Vec<IpAddr>>,
    /// Foreign changes of the tables.
    pub foreign: mpsc::UnboundedReceiver<Notice>,
    /// Affinity entries to delete.
    pub forget: mpsc::UnboundedReceiver<Forget>,
}

/// Where the loop publishes its state.
#[derive(Clone)]
pub struct Reports {
    pub status: Arc<SharedStatus>,
    pub metrics: Arc<Metrics>,
}

/// Runs until canceled or until the source ends. Rules stay in place when it returns.
pub async fn run<B: Backend>(
    mut control: Control<B>,
    mut inputs: Inputs,
    cancel: CancellationToken,
) -> Result<()> {
    let (mut addresses_end, mut config_ends) = (false, false);
    // Before the first event: without an API server there may be none for long.
    control.publish();
    loop {
        let wake = control.wake(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            event = inputs.events.recv() => {
                let Some(event) = event else { break };
                control.event(event);
                for _ in 1..EVENTS_PER_TURN {
                    let Ok(event) = inputs.events.try_recv() else { break };
                    control.event(event);
                }
            }
            changed = inputs.config.changed(), if !config_ends => match changed {
                Ok(()) => control.set_config(inputs.config.borrow_and_update().clone()),
                Err(_) => config_ends = true,
            },
            changed = inputs.addresses.changed(), if !addresses_end => addresses_end = changed.is_err(),
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
    view: View,
    dataplane: Dataplane<B>,
    pace: Pace,
    repairs: Repairs,
    problems: ProblemLog,
    commits: CommitLog,
    reports: Reports,
    observers: Vec<Box<dyn Observer>>,
    listeners: Listeners,
    started: SystemTime,
    /// When the changes happened that are planned but not committed. Changes from before the start are not measured.
    triggers: Vec<(Family, SystemTime)>,
    /// The facts to plan by, as of the last turn.
    facts: NodeFacts,
    /// Whether they differ from the committed ones.
    facts_changed: bool,
    /// The configuration has changed: observers depend on more of it than the facts do.
    config_changed: bool,
    /// The first sync is complete.
    synced: bool,
    /// The last commit failed, so the tables may differ from the ledger.
    failed: bool,
    pending_since: Option<Instant>,
    synced_at: Option<SystemTime>,
    /// Tables of an earlier process.
    adopted: Option<Adopted>,
    /// Kinds that are not being watched at present.
    outages: BTreeSet<ObjectKind>,
}

impl<B: Backend> Control<B> {
    /// Neither reads nor writes the tables yet. `adopted` are tables of an earlier process that the backend has.
    pub fn new(
        config: NodeConfig,
        backend: B,
        reports: Reports,
        observers: Vec<Box<dyn Observer>>,
        adopted: Option<Adopted>,
    ) -> Self {
        let view = View::new(config);
        let facts = view.facts(&[]);
        Control {
            dataplane: Dataplane::new(backend, facts.clone()),
            view,
            pace: Pace::default(),
            repairs: Repairs::default(),
            problems: ProblemLog::default(),
            commits: CommitLog::default(),
            reports,
            observers,
            listeners: Listeners::default(),
            started: SystemTime::now(),
            triggers: Vec::new(),
            facts,
            facts_changed: false,
            config_changed: false,
            synced: false,
            failed: false,
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

    /// Plans all Services by this configuration from the next turn on.
    fn set_config(&mut self, config: NodeConfig) {
        self.view.set_config(config);
        self.config_changed = true;
    }

    fn report(&mut self, problem: &Problem) {
        if self.problems.is_new(problem) {
            log(problem);
        }
        for observer in &mut self.observers {
            observer.problem(problem);
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
        let entries = self.dataplane.forget(forget.family, forget.learned);
        tracing::debug!(entries, family = %forget.family, "deleted affinity entries of removed endpoints");
    }

    /// When the next turn is due, if no event comes before.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let commit = self.wants_commit() && self.is_complete();
        let commit = commit.then(|| self.pace.due(now).unwrap_or(now));
        let times = [
            commit,
            self.repairs.due(now),
            self.listeners.due(),
            self.commits.due(now),
        ];
        times.into_iter().flatten().min()
    }

    fn is_complete(&self) -> bool {
        self.view.waiting_for().is_empty()
    }

    fn wants_commit(&self) -> bool {
        !self.synced || self.failed || self.view.is_dirty() || self.facts_changed
    }

    /// Commits and repairs what is due.
    fn turn(&mut self, addresses: &[IpAddr]) {
        let now = Instant::now();
        let asked = self.view.external_sockets_here();
        let occupied: Vec<listeners::Socket> = self.listeners.among(asked, now);
        self.facts = self.view.facts(addresses).with_listeners(occupied);
        self.facts_changed = self.config_changed || self.facts != *self.dataplane.facts();
        if !self.wants_commit() {
            self.pending_since = None;
            self.reports.metrics.nothing_pending();
        } else if self.is_complete() {
            // While lists are missing nothing can be committed: a restart would not help.
            self.pending_since.get_or_insert(now);
        }
        if self.is_complete() {
            if self.wants_commit() && self.pace.due(now).is_none() {
                self.commit();
            }
            if self.synced && self.repairs.due(now).is_some_and(|at| at <= now) {
                self.repair();
            }
        }
        self.commits.write(now);
        self.publish();
    }

    fn commit(&mut self) {
        let start = Instant::now();
        let (updates, ignored) = self.view.updates(&self.facts, self.facts_changed);
        let triggers = self.view.take_triggers().into_iter();
        let since_start = triggers.filter(|(_, at)| *at > self.started);
        self.triggers.extend(since_start);
        for observer in &mut self.observers {
            observer.planned(&updates);
        }
        for invalid in ignored {
            self.report(&Problem::Field { at: None, invalid });
        }
        let services = updates.len();
        let only = match updates.as_slice() {
            [one] => Some(one.service.clone()),
            _ => None,
        };
        let full = self.facts_changed || self.failed || !self.synced;
        let result = if self.facts_changed {
            self.dataplane.refresh(self.facts.clone(), updates)
        } else if self.failed && updates.is_empty() {
            self.dataplane.repair()
        } else {
            self.dataplane.commit(updates)
        };
        self.facts_changed = false;
        self.config_changed = false;
        if let Some(outcome) = self.finish(start, result, full) {
            let (elements, elapsed) = (outcome.elements, start.elapsed());
            if !std::mem::replace(&mut self.synced, true) {
                let elapsed_seconds = elapsed.as_secs_f64();
                tracing::info!(services, elements, elapsed_seconds, "initial sync complete");
            }
            if outcome.transactions > 0 {
                self.commits.add(Logged {
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

    /// Passes the result of a commit or repair on. Returns the outcome, if there is one.
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
            Err(error) => {
                self.failed = true;
                self.pace.failed(now);
                for observer in &mut self.observers {
                    observer.failed();
                }
                tracing::error!(%error, "commit failed; retrying, existing rules keep working");
                return None;
            }
        };
        let commit = Commit {
            outcome: &outcome,
            facts: self.dataplane.facts(),
            elapsed,
            full,
            triggers: &std::mem::take(&mut self.triggers),
        };
        for observer in &mut self.observers {
            observer.committed(&commit);
        }
        self.failed = false;
        self.synced_at = Some(SystemTime::now());
        self.pending_since = None;
        self.pace.committed(now, elapsed);
        log_refused(&outcome);
        Some(outcome)
    }

    fn publish(&self) {
        let (services, endpoints) = self.view.size();
        let metrics = &self.reports.metrics;
        metrics.set_totals(services, endpoints);
        metrics.set_quarantined(self.dataplane.quarantine().len());
        for (kind, invalid) in self.view.invalid_by_kind() {
            metrics.set_invalid(kind, invalid);
        }
        let status = Status {
            synced: self.synced,
            waiting_for: self.view.waiting_for(),
            pending_since: self.pending_since,
            synced_at: self.synced_at,
            // What is not known excludes nobody while an earlier process's tables serve.
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

fn log_refused(outcome: &SyncOutcome) {
    for quarantined in &outcome.quarantined {
        tracing::error!(service = %quarantined.service, error = %quarantined.error,
            "the kernel refused this Service; it is quarantined and its last good rules stay in place");
    }
    for conflict in &outcome.conflicts {
        tracing::warn!(frontend = frontend(&conflict.claim), winner = %conflict.winner, loser = %conflict.loser,
            "two Services claim one frontend; the older one keeps it");
    }
}

/// `cluster IP 10.96.0.1, port 80/TCP`
fn frontend(claim: &Claim) -> String {
    let Claim {
        address,
        protocol,
        port,
    } = claim;
    match address {
        FrontendAddress::ClusterIp(ip) => format!("cluster IP {ip}, port {port}/{protocol}"),
        FrontendAddress::External(ip) => format!("external IP {ip}, port {port}/{protocol}"),
        FrontendAddress::NodePort(family) => {
            format!("{} node port {port}/{protocol}", family.api_name())
        }
    }
}

fn log(problem: &Problem) {
    let consequence = match problem {
        Problem::File { .. } => "earlier valid versions of its objects keep serving",
        Problem::Object { .. } => {
            "the object is ignored, and an earlier valid version keeps serving"
        }
        Problem::Field { .. } => "the rest of the object is served",
    };
    match problem.invalid() {
        // Which objects the file should hold is unknown.
        None => tracing::error!("{problem}; {consequence}"),
        Some(Invalid {
            kind,
            object,
            field,
            ..
        }) => tracing::error!(%kind, %object, field, "{problem}; {consequence}"),
    }
}

#[cfg(test)]
mod tests;
