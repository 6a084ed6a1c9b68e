//! One round of the overlay's loop: reconcile the devices, sync the table, then report and publish.
//!
//! Owns the peers and when the next round is due. Waiting is left to the loop, each part of a round to a type of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use net_types::Family;
use service_model::ObjectEvent;
use tokio::sync::watch;
use vxlan_overlay::{Node, Peers, Plan, Problem};

use super::cache::PeerCache;
use super::encryption::{Encryption, PeerState};
use super::files::CniFiles;
use super::problem_log::ProblemLog;
use super::publisher::NodePublisher;
use super::reconciler::Reconciler;
use super::table::OverlayTable;
use super::{OverlayConfig, OverlayReports, OverlayStatus};
use crate::events::{Severity, Subject};
use crate::memory;

/// Time between two rounds without any event.
const AUDIT: Duration = Duration::from_secs(30);
/// Pause after a failed round; doubles with each failure, up to 8 s. No notification reports the end of a process that owned
/// the table, and during a rollout this process has to follow soon after.
const RETRY: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 4;

/// A Node that has not been Ready for so long yields in conflicts: as long as its pods wait until they are evicted. In less, a
/// kubelet is replaced or a node boots.
const STALE: Duration = Duration::from_secs(300);

/// The state of the loop.
pub(super) struct Overlay {
    config: Arc<OverlayConfig>,
    peers: Peers,
    cache: PeerCache,
    pub(super) reconciler: Reconciler,
    encryption: Encryption,
    pub(super) table: OverlayTable,
    files: CniFiles,
    publisher: NodePublisher,
    /// The families whose masquerading Portolan has taken over.
    masquerading: watch::Sender<Vec<Family>>,
    log: ProblemLog,
    /// Conflicts of this node that are Events already.
    conflicts: BTreeSet<String>,
    reports: OverlayReports,
    /// Whether another program has changed something since the last round.
    pub(super) foreign_change: bool,
    /// Whether the kernel has been as planned at least once.
    ready: bool,
    retry_at: Option<Instant>,
    /// Failed rounds in a row.
    failures: u32,
    audited: Instant,
}

impl Overlay {
    pub(super) fn new(
        config: Arc<OverlayConfig>,
        (reconciler, encryption): (Reconciler, Encryption),
        table: OverlayTable,
        publisher: NodePublisher,
        masquerading: watch::Sender<Vec<Family>>,
        reports: OverlayReports,
    ) -> Self {
        let mut peers = Peers::new(config.own.clone());
        let cache = PeerCache::new(config.clone());
        // The cache is not a complete list: nothing is deleted because of it.
        for node in cache.load() {
            peers.apply(node);
        }
        Overlay {
            peers,
            cache,
            reconciler,
            encryption,
            table,
            files: CniFiles::new(config.clone()),
            publisher,
            masquerading,
            log: ProblemLog::default(),
            conflicts: BTreeSet::new(),
            reports,
            foreign_change: false,
            ready: false,
            retry_at: None,
            failures: 0,
            audited: Instant::now(),
            config,
        }
    }

    /// Records an event. Returns whether it changed anything.
    pub(super) fn on_event(&mut self, event: ObjectEvent<service_model::Node>) -> bool {
        let now = Instant::now();
        let changed = match event {
            ObjectEvent::Apply(node) => self.peers.apply(peer_node(node, &self.config)),
            ObjectEvent::Delete(name) => self.peers.delete(&name.name),
            ObjectEvent::Reset { objects, invalid } => {
                let kept = invalid
                    .iter()
                    .filter_map(|name| self.peers.get(&name.name).cloned());
                let kept: Vec<Node> = kept.collect();
                // Converted one by one, so that each source object is freed at once.
                let listed = objects
                    .into_iter()
                    .map(|node| peer_node(node, &self.config));
                self.peers.reset(listed.chain(kept), now);
                true
            }
        };
        if changed {
            self.cache.mark_changed(now);
        }
        changed
    }

    /// When [`Overlay::is_due`] is to be asked.
    pub(super) fn due(&self, now: Instant) -> Instant {
        let round = self.round_due(now);
        let look = self.encryption.due().unwrap_or(round);
        round.min(look).max(now)
    }

    /// Whether time alone leads to a round. What the encryption awaits may have come, which needs no observation of the rest.
    pub(super) fn is_due(&mut self, now: Instant) -> bool {
        if self.round_due(now) <= now {
            self.reconciler.observe_next();
            return true;
        }
        let looks = self.encryption.due().is_some_and(|due| due <= now);
        let is_due = looks && self.encryption.look(now);
        if is_due {
            self.reconciler.skip_observation();
        }
        is_due
    }

    fn round_due(&self, now: Instant) -> Instant {
        let audit = self.audited + AUDIT;
        let others = [
            self.cache.due(),
            self.publisher.due(),
            self.files.due(),
            self.reconciler.due(now),
            self.peers.due(),
        ];
        let others = others.into_iter().chain([self.retry_at]).flatten();
        others.fold(audit, Instant::min)
    }

    /// Makes the kernel as planned, and reports the result.
    pub(super) fn round(&mut self, now: Instant) {
        self.peers.expire(now);
        self.cache.save_if_due(&self.peers, now);
        let repairing = std::mem::take(&mut self.foreign_change) && self.ready;
        self.audited = now;
        let (plan, trouble) = self.reconcile(now, repairing);
        self.schedule_retry(trouble.is_some(), now);
        let has_tunnel = plan.tunnels.values().any(Option::is_some);
        let complete = trouble.is_none() && self.peers.is_listed() && has_tunnel;
        self.files.update(&plan, complete, now);
        if complete && !self.ready {
            let peers = plan.peer_count();
            tracing::info!(peers, "pods of other nodes can be reached");
        }
        self.ready |= complete;
        if self.peers.nodes().count() >= memory::LARGE {
            memory::give_back_soon();
        }
        self.log_problems(&plan, trouble.as_deref());
        self.report_conflicts(&plan);
        self.report_new_keys();
        self.publish_contenders(&plan);
        let announcement = self.encryption.announcement(&self.peers);
        let usable = self.reconciler.usable();
        let of = (&*plan, &self.peers, announcement);
        self.publisher.publish(of, complete, usable, now);
        self.report(plan, trouble, complete);
        self.encryption.worked(now);
        let (elapsed_seconds, peers) = (now.elapsed().as_secs_f64(), self.peers.nodes().count());
        tracing::debug!(elapsed_seconds, peers, complete, "round over");
    }

    /// Makes the tunnel, the table and the encryption as planned. Returns what prevents that.
    fn reconcile(&mut self, now: Instant, repairing: bool) -> (Arc<Plan>, Option<String>) {
        let before = self.reconciler.plan().clone();
        let prepared = self.encryption.prepare(&self.peers, &before, now);
        let mut trouble = prepared.err().map(|error| format!("{error:#}"));
        if let Some(blocked) = self.encryption.blocks() {
            return (before, Some(trouble.unwrap_or(blocked)));
        }
        let carriers = self.encryption.carriers();
        let refused = self.reconciler.run(&self.peers, now, repairing, carriers);
        trouble = trouble.or(refused);
        let plan = self.reconciler.plan().clone();
        let synced = self.sync_table(&plan);
        let filtered = synced.is_ok() && self.peers.is_listed();
        if let Err(error) = synced {
            trouble.get_or_insert(format!("{error:#}"));
        }
        let encryption = &mut self.encryption;
        if let Err(error) = encryption.converge(&self.peers, &plan, filtered, now) {
            trouble.get_or_insert(format!("{error:#}"));
        }
        (plan, trouble)
    }

    fn schedule_retry(&mut self, failed: bool, now: Instant) {
        let pause = RETRY * 2_u32.pow(self.failures.min(MAX_DOUBLINGS));
        self.retry_at = failed.then(|| now + pause);
        self.failures = if failed {
            self.failures.saturating_add(1)
        } else {
            0
        };
    }

    /// Syncs the nftables table once the list of peers is complete: before, its filter would drop frames of real peers.
    fn sync_table(&mut self, plan: &Arc<Plan>) -> Result<()> {
        if !self.peers.is_listed() {
            return Ok(());
        }
        let steps = self
            .table
            .sync(plan)
            .context("writing the overlay's nftables table")?;
        if steps > 0 {
            tracing::info!(steps, "changed the overlay's table");
        }
        if self.config.rules.masquerade {
            let tunnels = plan.tunnels.iter();
            let with_tunnel = tunnels.filter(|(_, tunnel)| tunnel.is_some());
            let families: Vec<Family> = with_tunnel.map(|(family, _)| family).collect();
            self.masquerading.send_if_modified(|old| {
                let changed = *old != families;
                *old = families;
                changed
            });
        }
        Ok(())
    }

    /// Creates an Event of this Node for each conflict, once. The other node's daemon creates one of its own Node.
    fn report_conflicts(&mut self, plan: &Plan) {
        if !self.peers.is_listed() {
            return;
        }
        let own = &self.config.own;
        let conflicts = plan.problems.iter().filter(|p| p.is_conflict_of(own));
        let conflicts: BTreeSet<String> = conflicts.map(ToString::to_string).collect();
        for note in conflicts.difference(&self.conflicts) {
            let (subject, severity) = (Subject::Node, Severity::Warning);
            let recorder = &self.reports.recorder;
            recorder.record(subject, severity, ("OverlayConflict", "Plan"), note);
        }
        self.conflicts = conflicts;
    }

    /// Creates an Event of this Node for each peer whose key is another one than before.
    fn report_new_keys(&mut self) {
        for note in self.encryption.take_news() {
            let (subject, severity) = (Subject::Node, Severity::Normal);
            let recorder = &self.reports.recorder;
            recorder.record(
                subject,
                severity,
                ("OverlayPeerKeyChanged", "Encrypt"),
                &note,
            );
        }
    }

    /// Publishes to the source which Nodes it has to read whole at each change: metadata do not say whether a Node is Ready.
    fn publish_contenders(&self, plan: &Plan) {
        let contenders = plan.problems.iter().filter_map(Problem::contenders);
        let contenders = contenders.flatten().chain(self.encryption.contenders());
        let contenders: BTreeSet<Arc<str>> = contenders.cloned().collect();
        self.reports.contenders.send_if_modified(|old| {
            let changed = *old != contenders;
            *old = contenders;
            changed
        });
    }

    fn log_problems(&mut self, plan: &Plan, trouble: Option<&str>) {
        let problems = plan.problems.iter().filter(|_| self.peers.is_listed());
        let mut problems: BTreeSet<String> = problems.map(ToString::to_string).collect();
        problems.extend(trouble.map(str::to_owned));
        problems.extend(self.encryption.problems().cloned());
        problems.extend(self.peers.held().map(|name| {
            format!(
                "node {name} is missing from a list that lost too many nodes; keeping it as a peer"
            )
        }));
        self.log.update(problems);
    }

    fn report(&self, plan: Arc<Plan>, trouble: Option<String>, complete: bool) {
        let held: Vec<Arc<str>> = self.peers.held().cloned().collect();
        let (peers, problems) = (plan.peer_count(), plan.problems.len());
        self.reports
            .metrics
            .set_overlay(peers, problems, held.len(), complete);
        let encryption = self.encryption.status().clone();
        let encrypted = encryption.count(PeerState::Encrypted);
        let unencrypted = encryption.peers.len() - encrypted;
        self.reports.metrics.set_encryption(encrypted, unencrypted);
        self.reports.status.store(Arc::new(OverlayStatus {
            ready: self.ready,
            plan,
            held,
            trouble,
            repairs: self.reconciler.repairs(),
            encryption,
        }));
    }
}

/// What the overlay keeps of a Node.
fn peer_node(node: Arc<service_model::Node>, config: &OverlayConfig) -> Node {
    let about = (&config.names, config.config.vni);
    let (name, annotations) = (node.name.name.clone(), node.annotations.clone());
    let name = (name, node.created);
    let stale = node.not_ready_since.is_some_and(|since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let since = u64::try_from(since).unwrap_or_default();
        now.is_ok_and(|now| now.as_secs().saturating_sub(since) >= STALE.as_secs())
    });
    Node {
        stale,
        ..Node::new(name, &node.pod_cidrs, &node.addresses, annotations, about)
    }
}
