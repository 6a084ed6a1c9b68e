//! The control loop: the one owner of view, ledger and kernel socket.
//!
//! Events in, transactions out. It waits until the view is whole, commits the first change at once and later ones
//! in batches ([`pace`]), listens for foreign changes to our tables and repairs them, and publishes a [`Status`].
//! It runs on a thread of its own, since a commit blocks; nothing it does can make the rules go away.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use nft::{Backend, Feature, Features, Kernel, KernelConfig, Monitor, Notice};
use service_dataplane::{Claim, Dataplane, Outcome, SyncError, layout};
use service_model::{Family, Invalid, NodeConfig, NodeFacts, ObjectEvent, ObjectKind, Place};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::conntrack::{Cleaner, Forget};
use crate::counters::Counters;
use crate::features;
use crate::guard;
use crate::health_checks;
use crate::listeners::{self, Listeners};
use crate::localhost;
use crate::memory;
use crate::metrics::Metrics;
use crate::status::{SharedStatus, Status};
use object_source::{Events, Problem, SourceEvent};

mod news;
mod pace;
mod repairs;
mod view;

use news::News;
use pace::Pace;
use repairs::Repairs;
use view::View;

/// Events taken in before looking at the clock again.
const EVENTS_A_TURN: usize = 4096;

/// What the loop needs to know besides the cluster.
#[derive(Debug)]
pub struct ControlConfig {
    /// About this node.
    pub node: NodeConfig,
    /// Own the tables, so that nobody else's flush can take them away (`--no-table-owner` turns it off).
    pub own_tables: bool,
    /// Features to do without though the kernel has them: for tests of what is done then.
    pub without: Vec<Feature>,
    /// Where relays of node ports on loopback run: not beside the loop, whose commits would hold them up.
    pub relays: Handle,
    /// Where load balancers are told of local endpoints.
    pub health_checks: health_checks::Announcer,
    /// Told which frontends are counted.
    pub counters: Arc<Counters>,
    /// Told when the rules stand for the first time.
    pub in_step: oneshot::Sender<()>,
}

/// Where the loop tells others how it goes.
#[derive(Clone)]
pub struct Reports {
    /// For probes.
    pub status: Arc<SharedStatus>,
    /// For Prometheus.
    pub metrics: Arc<Metrics>,
}

/// Runs until `cancel`led or until the source is gone. Rules stay when it returns.
pub async fn run(
    config: ControlConfig,
    mut events: Events,
    mut addresses: watch::Receiver<Vec<IpAddr>>,
    reports: Reports,
    cancel: CancellationToken,
) -> Result<()> {
    let features = Features::probe()
        .context("cannot probe kernel features; run with CAP_NET_ADMIN")?
        .without(&config.without);
    features::check(&features)?;
    let mut kernel = Kernel::open(KernelConfig {
        table: layout::TABLE.into(),
        owner: config.own_tables && features.has(Feature::TablePersist),
    })
    .context("cannot open the nftables socket; run with CAP_NET_ADMIN")?;
    // Held to the end: it goes with its socket.
    let _guard = config.own_tables.then(|| guard::stand(&features));
    let monitor = Monitor::open(layout::TABLE.into(), kernel.port())
        .context("cannot subscribe to nftables notifications")?;
    kernel.spare(monitor.membership()?);
    let mut foreign = listen(monitor, cancel.clone())?;
    let flags = kernel.table_flags();
    tracing::info!(
        owner = flags.owner,
        persist = flags.persist,
        "connected to nftables"
    );
    let (forget, mut to_forget) = mpsc::unbounded_channel();
    let cleaner = Cleaner::start(reports.metrics.clone(), forget)?;
    let mut families = Family::ALL.into_iter();
    let on_loopback = families.any(|family| config.node.covers_loopback(family));
    let mut control = Control::new(config.node, kernel, reports);
    control.loopback = on_loopback.then(|| localhost::start(&config.relays, cancel.clone()));
    control.health_checks = Some(config.health_checks);
    control.counters = config.counters;
    control.cleaner = Some(cleaner);
    control.in_step = Some(config.in_step);

    loop {
        let wake = control.wake(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            event = events.recv() => {
                let Some(event) = event else { break };
                control.take(event);
                for _ in 1..EVENTS_A_TURN {
                    let Ok(event) = events.try_recv() else { break };
                    control.take(event);
                }
            }
            changed = addresses.changed(), if !control.addresses_gone => {
                control.addresses_gone = changed.is_err();
            }
            Some(notice) = foreign.recv() => {
                control.heard(notice);
                while let Ok(notice) = foreign.try_recv() {
                    control.heard(notice);
                }
            }
            Some(forget) = to_forget.recv() => control.forget(forget),
            () = sleep_until(wake) => {}
        }
        let addresses = addresses.borrow_and_update().clone();
        control.turn(&addresses);
    }
    // Nobody forgets any more, so nobody is to wait for it.
    drop(to_forget);
    Ok(())
}

/// How long the listener goes without looking whether it is still wanted.
const LISTEN: Duration = Duration::from_secs(1);

/// Listens on a thread of its own, and tells of foreign changes to our tables, and of anything that may be one.
fn listen(
    mut monitor: Monitor,
    cancel: CancellationToken,
) -> Result<mpsc::UnboundedReceiver<Notice>> {
    let (tell, foreign) = mpsc::unbounded_channel();
    let work = move || {
        while !cancel.is_cancelled() {
            let told = match monitor.wait(LISTEN) {
                Ok(None) => Ok(()),
                Ok(Some(notice)) => tell.send(notice),
                Err(error) => {
                    tracing::warn!(%error, "cannot read nftables notifications; comparing the tables every second instead");
                    std::thread::sleep(LISTEN);
                    tell.send(Notice::Overrun)
                }
            };
            if told.is_err() {
                break;
            }
        }
    };
    std::thread::Builder::new()
        .name("nft-monitor".into())
        .spawn(work)
        .context("cannot start the nftables monitor")?;
    Ok(foreign)
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

/// The state of the loop, free of waiting.
struct Control<B> {
    view: View,
    dataplane: Dataplane<B>,
    pace: Pace,
    repairs: Repairs,
    news: News,
    reports: Reports,
    addresses: Vec<IpAddr>,
    addresses_gone: bool,
    listeners: Listeners,
    /// Where, among the places that Services ask for, processes of this node listen.
    occupied: Vec<listeners::Place>,
    /// Node ports are relayed from loopback addresses too.
    loopback: Option<localhost::Announcer>,
    /// Load balancers are told of local endpoints.
    health_checks: Option<health_checks::Announcer>,
    counters: Arc<Counters>,
    synced: bool,
    in_step: Option<oneshot::Sender<()>>,
    /// The tables may not hold what they should: compare before anything else.
    failed: bool,
    pending_since: Option<Instant>,
    in_step_at: Option<SystemTime>,
    /// Ends stale flows; without one they stay.
    cleaner: Option<Cleaner>,
}

impl<B: Backend> Control<B> {
    fn new(config: NodeConfig, backend: B, reports: Reports) -> Self {
        let view = View::new(config);
        let dataplane = Dataplane::new(backend, view.facts(&[]));
        Control {
            view,
            dataplane,
            pace: Pace::default(),
            repairs: Repairs::default(),
            news: News::default(),
            reports,
            addresses: Vec::new(),
            addresses_gone: false,
            listeners: Listeners::default(),
            occupied: Vec::new(),
            loopback: None,
            health_checks: None,
            counters: Arc::default(),
            synced: false,
            in_step: None,
            failed: false,
            pending_since: None,
            in_step_at: None,
            cleaner: None,
        }
    }

    fn take(&mut self, event: SourceEvent) {
        match &event {
            SourceEvent::Problem(problem) => self.report(problem),
            SourceEvent::Connection { kind, state } => {
                if let Err(outage) = state {
                    let rules = if self.synced {
                        ", existing rules keep working"
                    } else {
                        ""
                    };
                    tracing::warn!(%kind, "{outage}{rules}");
                }
                self.reports.metrics.set_connected(*kind, state.is_ok());
            }
            SourceEvent::Service(event) => {
                self.news
                    .heard(ObjectKind::Service, event, |service| &service.name);
                self.reports.metrics.service_event(objects(event));
            }
            SourceEvent::EndpointSlice(event) => {
                self.news
                    .heard(ObjectKind::EndpointSlice, event, |slice| &slice.name);
                self.reports.metrics.endpoint_event(objects(event));
            }
            SourceEvent::Node(event) => {
                self.news.heard(ObjectKind::Node, event, |node| &node.name);
            }
            SourceEvent::ServiceCidr(event) => {
                self.news
                    .heard(ObjectKind::ServiceCidr, event, |cidr| &cidr.name);
            }
            SourceEvent::Solved(subject) => self.news.solved(subject),
        }
        self.view.take(event);
        if self.pending_since.is_none() && self.wants_commit() {
            self.pending_since = Some(Instant::now());
        }
    }

    fn report(&mut self, problem: &Problem) {
        if self.news.is_news(problem) {
            report(problem);
        }
        if let Some(invalid) = problem.invalid() {
            self.reports.metrics.problem(invalid.kind);
        }
    }

    /// Somebody else changed our tables, or may have. What the last comparison has seen is no reason for another, which
    /// would hold up what comes next.
    fn heard(&mut self, notice: Notice) {
        let is_known = match notice {
            Notice::Changed(generation) => self.dataplane.has_read(generation),
            Notice::Overrun => false,
        };
        if self.synced && !is_known {
            self.repairs.request();
        }
    }

    /// Clients had endpoints that are gone.
    fn forget(&mut self, forget: Forget) {
        let forgotten = self.dataplane.forget(forget.family, forget.learned);
        tracing::debug!(entries = forgotten, family = %forget.family, "deleted affinity entries of removed endpoints");
    }

    /// When to turn at the latest, though nothing happens.
    fn wake(&self, now: Instant) -> Option<Instant> {
        let commit =
            (self.wants_commit() && self.is_whole()).then(|| self.pace.due(now).unwrap_or(now));
        let repair = self.repairs.due(now);
        let look = self.listeners.due();
        commit.into_iter().chain(repair).chain(look).min()
    }

    fn is_whole(&self) -> bool {
        self.view.waiting_for().is_empty()
    }

    fn wants_commit(&self) -> bool {
        !self.synced
            || self.failed
            || self.view.is_dirty()
            || self.facts() != *self.dataplane.facts()
    }

    fn facts(&self) -> NodeFacts {
        let facts = self.view.facts(&self.addresses);
        facts.with_listeners(self.occupied.clone())
    }

    /// Commits and repairs what is due.
    fn turn(&mut self, addresses: &[IpAddr]) {
        self.addresses = addresses.to_vec();
        let now = Instant::now();
        let asked = self.view.external_sockets_here();
        self.occupied = self.listeners.among(asked, now);
        if self.is_whole() {
            if self.wants_commit() {
                if self.pace.due(now).is_none() {
                    self.commit();
                }
            } else {
                self.pending_since = None;
                self.reports.metrics.nothing_pending();
            }
            if self.synced && self.repairs.due(now).is_some_and(|at| at <= now) {
                self.repair();
            }
        }
        self.publish();
    }

    fn commit(&mut self) {
        let start = Instant::now();
        let facts = self.facts();
        let refresh = facts != *self.dataplane.facts();
        let (updates, ignored) = self.view.updates(&facts, refresh);
        let planned = updates.len();
        if let Some(loopback) = &mut self.loopback {
            loopback.announce(&updates);
        }
        self.counters.note(&updates);
        if let Some(health_checks) = &mut self.health_checks {
            health_checks.plan(&updates);
        }
        self.reports.metrics.planned(planned);
        for invalid in ignored {
            self.report(&Problem::Field { at: None, invalid });
        }
        let result = if self.failed && updates.is_empty() && !refresh {
            self.dataplane.repair()
        } else if refresh {
            self.dataplane.refresh(facts, updates)
        } else {
            self.dataplane.commit(updates)
        };
        self.finish(start, planned, result);
        if planned >= memory::LARGE {
            memory::give_back_soon();
        }
    }

    fn repair(&mut self) {
        let start = Instant::now();
        self.repairs.started();
        let result = self.dataplane.repair();
        let end = Instant::now();
        self.repairs.ended(end, end - start);
        if let Ok(outcome) = &result
            && outcome.repaired > 0
        {
            tracing::warn!(
                operations = outcome.repaired,
                elements = outcome.elements,
                elapsed_seconds = start.elapsed().as_secs_f64(),
                "repaired a foreign change to the tables"
            );
            self.reports.metrics.repaired();
        }
        self.finish(start, 0, result);
    }

    fn finish(&mut self, start: Instant, planned: usize, result: Result<Outcome, SyncError>) {
        let now = Instant::now();
        let elapsed = now - start;
        match result {
            Ok(mut outcome) => {
                if let Some(cleaner) = &self.cleaner {
                    let affinity = std::mem::take(&mut outcome.affinity);
                    let flows = std::mem::take(&mut outcome.flows);
                    let node_addresses = &self.dataplane.facts().node_addresses;
                    cleaner.check(affinity, flows, node_addresses);
                }
                if let Some(health_checks) = &mut self.health_checks {
                    let refused = outcome.quarantined.iter().map(|refused| &refused.service);
                    health_checks.announce(refused, &self.dataplane.facts().node_addresses);
                }
                self.failed = false;
                self.in_step_at = Some(SystemTime::now());
                self.reports.metrics.nothing_pending();
                if let Some(since) = self.pending_since.take() {
                    self.reports.metrics.programmed(now - since);
                }
                self.pace.committed(now, elapsed);
                self.committed(planned, elapsed, &outcome);
            }
            Err(error) => {
                self.failed = true;
                self.pace.failed(now);
                self.reports.metrics.commit_failed(&Family::ALL);
                tracing::error!(%error, "commit failed; retrying, existing rules keep working");
            }
        }
    }

    fn committed(&mut self, planned: usize, elapsed: Duration, outcome: &Outcome) {
        for quarantined in &outcome.quarantined {
            tracing::error!(service = %quarantined.service, error = %quarantined.error,
                "the kernel refused this Service; it is quarantined and its last good rules stay in place");
        }
        for conflict in &outcome.conflicts {
            tracing::warn!(frontend = %frontend(&conflict.claim), winner = %conflict.winner, loser = %conflict.loser,
                "two Services claim one frontend; the older one keeps it");
        }
        if !std::mem::replace(&mut self.synced, true) {
            tracing::info!(
                services = planned,
                elements = outcome.elements,
                elapsed_seconds = elapsed.as_secs_f64(),
                "initial sync complete"
            );
            // Nobody waits where nothing is to be done then.
            let _ = self.in_step.take().map(|in_step| in_step.send(()));
        }
        if outcome.transactions == 0 {
            return;
        }
        let families: Vec<Family> = outcome.families.iter().copied().collect();
        self.reports
            .metrics
            .committed(&families, outcome.elements, elapsed);
        tracing::info!(
            services = planned,
            elements = outcome.elements,
            elapsed_seconds = elapsed.as_secs_f64(),
            "committed"
        );
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
            in_step_at: self.in_step_at,
            node_eligible: self.view.node_is_eligible(),
            invalid: self
                .view
                .invalid()
                .map(|(kind, name)| (kind, name.clone()))
                .collect(),
            quarantined: self.dataplane.quarantine().keys().cloned().collect(),
            services,
            endpoints,
        };
        self.reports.status.store(Arc::new(status));
    }
}

fn objects<T>(event: &ObjectEvent<T>) -> usize {
    match event {
        ObjectEvent::Apply(_) | ObjectEvent::Delete(_) => 1,
        ObjectEvent::Reset { objects, .. } => objects.len(),
    }
}

/// `cluster IP 10.96.0.1, port 80/TCP`
fn frontend(claim: &Claim) -> String {
    let Claim {
        place,
        protocol,
        port,
    } = claim;
    match place {
        Place::ClusterIp(address) => format!("cluster IP {address}, port {port}/{protocol}"),
        Place::External(address) => format!("external IP {address}, port {port}/{protocol}"),
        Place::NodePort(Family::Ip) => format!("IPv4 node port {port}/{protocol}"),
        Place::NodePort(Family::Ip6) => format!("IPv6 node port {port}/{protocol}"),
    }
}

fn report(problem: &Problem) {
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
