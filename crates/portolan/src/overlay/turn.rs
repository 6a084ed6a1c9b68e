//! One turn of the overlay's loop: observe, plan, carry out the difference, tell.
//!
//! Owns what is remembered between turns; waiting is left to the loop. Nothing is deleted before the list of nodes is
//! complete, and what cannot be done is told once and tried again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nft::Family;
use service_model::ObjectEvent;
use tokio::sync::watch;
use vxlan_overlay::{
    Concern, Deletions, Facts, HOLD, Kernel, Names, Node, Observed, Operation, Peers, Plan,
    Problem, Refused, Tunnel, Watched, difference, plan, stale,
};

use super::condition::{Availability, Cause};
use super::publish::Publication;
use super::table::OverlayTable;
use super::{Devices, OverlayConfig, OverlayStatus, Reports, cache, files};
use crate::memory;

/// Passes of one turn: a device is made in the first, filled in the second, and seen to be right in the third.
const PASSES: usize = 5;
/// How often everything is compared without having been told to.
const AUDIT: Duration = Duration::from_secs(30);
/// After a turn that did not reach its end: at first; twice as long each time, 32 s at most.
const RETRY: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 6;
/// At most this often is the list of peers written down.
const REMEMBER: Duration = Duration::from_secs(5);
/// Stale entries found at the start are believed up to this number, whatever share of all they are.
const ALWAYS_BELIEVED: usize = 2;

/// The state of the loop.
pub(super) struct Overlay {
    config: OverlayConfig,
    kernel: Kernel,
    pub(super) table: OverlayTable,
    watched: Watched,
    peers: Peers,
    publication: watch::Sender<Publication>,
    /// The families whose masquerading is ours.
    masquerading: watch::Sender<Vec<Family>>,
    reports: Reports,
    devices: Devices,
    /// Since when deletions are held for fear that the list is too short.
    held_since: Option<Instant>,
    /// What an earlier process or daemon left behind has been cleaned up.
    cleaned: bool,
    /// Others have changed something.
    pub(super) heard: bool,
    /// Look at the kernel in the next turn; if not, it is believed to be as it was left.
    pub(super) look: bool,
    /// How it was left, where that is known for sure: what is below, and the plan that was carried out.
    left: Option<(Observed, Arc<Plan>)>,
    /// The kernel has been as planned at least once.
    ready: bool,
    /// Tunnel devices that are there and can be used.
    usable: usize,
    availability: Availability,
    retry_at: Option<Instant>,
    /// Turns in a row that did not reach their end.
    failures: u32,
    remember_at: Option<Instant>,
    audited: Instant,
    repairs: u64,
    told: BTreeSet<String>,
}

impl Overlay {
    pub(super) fn new(
        config: OverlayConfig,
        kernel: Kernel,
        table: OverlayTable,
        publication: watch::Sender<Publication>,
        masquerading: watch::Sender<Vec<Family>>,
        reports: Reports,
        devices: Devices,
    ) -> Self {
        let watched = Watched {
            devices: Family::ALL.map(|family| config.config.device_name(family)),
            can_reach: config.preferences.can_reach,
        };
        Overlay {
            peers: Peers::new(config.own.clone()),
            config,
            kernel,
            table,
            watched,
            publication,
            masquerading,
            reports,
            devices,
            held_since: None,
            cleaned: false,
            heard: false,
            look: true,
            left: None,
            ready: false,
            usable: 0,
            availability: Availability::default(),
            retry_at: None,
            failures: 0,
            remember_at: None,
            audited: Instant::now(),
            repairs: 0,
            told: BTreeSet::new(),
        }
    }

    /// Starts from the peers of an earlier run. They are no complete list: nothing is deleted for them.
    pub(super) fn recall(&mut self) {
        if self.config.cache.as_os_str().is_empty() {
            return;
        }
        match cache::read(&self.config.cache, self.about()) {
            Ok(nodes) => {
                for node in nodes {
                    self.peers.apply(node);
                }
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "remembered peers are of no use"
            ),
        }
    }

    /// Whether anything has changed.
    pub(super) fn take(&mut self, event: ObjectEvent<service_model::Node>) -> bool {
        let now = Instant::now();
        let changed = match event {
            ObjectEvent::Apply(node) => {
                let node = known(node, self.about());
                self.peers.apply(node)
            }
            ObjectEvent::Delete(name) => self.peers.delete(&name.name),
            ObjectEvent::Reset { objects, invalid } => {
                let kept = invalid
                    .iter()
                    .filter_map(|name| self.peers.get(&name.name).cloned());
                let kept: Vec<Node> = kept.collect();
                let about = (&self.config.names, self.config.config.vni);
                // One by one: what they are made from goes at once.
                let told = objects.into_iter().map(|node| known(node, about));
                self.peers.reset(told.chain(kept), now);
                true
            }
        };
        if changed {
            self.remember_at.get_or_insert(now + REMEMBER);
        }
        changed
    }

    /// What the annotations of nodes are read by.
    fn about(&self) -> (&Names, u32) {
        (&self.config.names, self.config.config.vni)
    }

    /// When to turn at the latest.
    pub(super) fn wake(&self, now: Instant) -> Instant {
        let audit = self.audited + AUDIT;
        [self.retry_at, self.remember_at, self.availability.due()]
            .into_iter()
            .flatten()
            .fold(audit, Instant::min)
            .max(now)
    }

    /// Makes the kernel as planned, and tells how it went.
    pub(super) fn turn(&mut self, now: Instant) {
        self.peers.expire(now);
        if self.remember_at.is_some_and(|at| at <= now) {
            self.remember_at = None;
            self.remember();
        }
        let repairing = std::mem::take(&mut self.heard) && self.ready;
        self.audited = now;
        let result = self.settle(now, repairing);
        self.retry_at = None;
        let (plan, mut trouble) = match result {
            Ok((plan, trouble)) => (plan, trouble),
            Err(error) => (
                self.reports.status.load().plan.clone(),
                Some(format!("{error:#}")),
            ),
        };
        if let Err(error) = self.sync_table(&plan) {
            trouble.get_or_insert(format!("{error:#}"));
        }
        if trouble.is_some() {
            self.retry_at = Some(now + RETRY * 2_u32.pow(self.failures.min(MAX_DOUBLINGS)));
            self.failures = self.failures.saturating_add(1);
        } else {
            self.failures = 0;
        }
        let complete =
            trouble.is_none() && self.peers.is_listed() && plan.tunnels.iter().any(Option::is_some);
        // An interface that is away for a moment must not change what new pods get.
        if complete
            && !plan
                .problems
                .iter()
                .any(|problem| matches!(problem, Problem::NoExternal(_)))
        {
            self.write_files(&plan);
        }
        if complete && !self.ready {
            tracing::info!(
                peers = plan.peer_count(),
                "pods of other nodes can be reached"
            );
        }
        self.ready |= complete;
        if self.peers.nodes().count() >= memory::LARGE {
            memory::give_back_soon();
        }
        self.tell(&plan, trouble.as_deref());
        self.publish(&plan, complete, now);
        let (problems, held) = (plan.problems.len(), self.peers.held().count());
        self.reports
            .metrics
            .set_overlay(plan.peer_count(), problems, held, complete);
        self.reports.status.store(Arc::new(OverlayStatus {
            ready: self.ready,
            plan,
            held: self.peers.held().cloned().collect(),
            trouble,
            repairs: self.repairs,
        }));
    }

    /// Observes, plans and carries out until nothing is left to do.
    fn settle(&mut self, now: Instant, repairing: bool) -> Result<(Arc<Plan>, Option<String>)> {
        let mut refused = Vec::new();
        let look = std::mem::replace(&mut self.look, true);
        let left = self.left.take().filter(|_| !look);
        let mut known = left.and_then(|(below, plan)| below.after(&plan.tunnels));
        let believes = known.is_some();
        for _ in 0..PASSES {
            let observed = match known.take() {
                Some(observed) => observed,
                None => self.kernel.observe(&self.watched)?,
            };
            let plan = self.plan(&observed);
            self.watch(&observed, &plan);
            let (steps, trouble) = self.steps(&plan, &observed, now);
            if steps.is_empty() {
                self.left = self.cleaned.then(|| (observed.below(), plan.clone()));
                return Ok((plan, trouble.or_else(|| refused.first().map(describe))));
            }
            let started = Instant::now();
            refused = self.kernel.apply(&steps)?;
            let repairs = if repairing { steps.len() } else { 0 };
            self.repairs += repairs as u64;
            self.reports
                .metrics
                .overlay_changed(repairs, started.elapsed());
            tracing::info!(
                steps = steps.len(),
                refused = refused.len(),
                repairing,
                peers = plan.peer_count(),
                elapsed = ?started.elapsed(),
                "changed the overlay"
            );
            tracing::debug!(?steps, "carried out");
            if refused.is_empty() && self.cleaned && trouble.is_none() {
                // A device that was made has a number that is not known yet.
                let made = |step: &Operation| matches!(step, Operation::CreateDevice(_));
                self.left = (!steps.iter().any(made)).then(|| (observed.below(), plan.clone()));
                if self.left.is_some() && believes {
                    return Ok((plan, None));
                }
            }
        }
        let reason = refused
            .first()
            .map_or_else(|| "the kernel's state keeps changing".to_owned(), describe);
        let observed = self.kernel.observe(&self.watched)?;
        Ok((self.plan(&observed), Some(reason)))
    }

    /// The table follows the plan once the list of peers is complete: a filter that does not know all would drop
    /// what is right.
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
            let families = Family::ALL.into_iter().zip(&plan.tunnels);
            let stand: Vec<Family> = families
                .filter(|(_, tunnel)| tunnel.is_some())
                .map(|(family, _)| family)
                .collect();
            self.masquerading.send_if_modified(|old| {
                let changed = *old != stand;
                *old = stand;
                changed
            });
        }
        Ok(())
    }

    /// The plan for what is observed; the last one where it is the same, so that there is one of it.
    fn plan(&self, observed: &Observed) -> Arc<Plan> {
        let [v4, v6] = &observed.tunnels;
        let facts = Facts {
            config: &self.config.config,
            preferences: &self.config.preferences,
            names: &self.config.names,
            own: &self.config.own,
            infer: self.config.infer,
            found: [v4, v6].map(|tunnel| tunnel.device.as_ref().map(|device| device.mac)),
            surroundings: &observed.surroundings,
        };
        let (new, last) = (plan(facts, self.peers.nodes()), self.reports.status.load());
        if last.plan.as_ref() == &new {
            return last.plan.clone();
        }
        Arc::new(new)
    }

    /// The steps of both families, and what cannot be done.
    fn steps(
        &mut self,
        plan: &Plan,
        observed: &Observed,
        now: Instant,
    ) -> (Vec<Operation>, Option<String>) {
        let (mut steps, mut trouble) = (Vec::new(), None);
        let deletions = self.deletions(plan, observed, now);
        self.usable = 0;
        for (wanted, found) in plan.tunnels.iter().zip(&observed.tunnels) {
            let Some(wanted) = wanted else { continue };
            match difference(wanted, found, deletions) {
                Ok(more) => {
                    self.usable += usize::from(found.device.is_some());
                    steps.extend(more);
                }
                Err(mismatch) => trouble = Some(format!("{}: {mismatch}", wanted.device.name)),
            }
        }
        if deletions == Deletions::Allowed && steps.is_empty() {
            self.cleaned = true;
        }
        (steps, trouble)
    }

    /// Nothing is deleted before the list of nodes is complete. What is found at the start and is not of any node
    /// goes then, unless it is most of what there is: then the list is doubted for a while.
    fn deletions(&mut self, plan: &Plan, observed: &Observed, now: Instant) -> Deletions {
        if !self.peers.is_listed() {
            return Deletions::Held;
        }
        if self.cleaned {
            return Deletions::Allowed;
        }
        let implausible = |(wanted, found): (&Option<Tunnel>, &vxlan_overlay::ObservedTunnel)| {
            wanted.as_ref().is_some_and(|wanted| {
                let (stale, all) = stale(wanted, found);
                stale > ALWAYS_BELIEVED.max(all / 2)
            })
        };
        if !plan.tunnels.iter().zip(&observed.tunnels).any(implausible) {
            return Deletions::Allowed;
        }
        let since = *self.held_since.get_or_insert(now);
        match now.saturating_duration_since(since) < HOLD {
            true => Deletions::Held,
            false => Deletions::Allowed,
        }
    }

    /// Which devices' changes matter: ours and those they stand on. While there is no way, any.
    fn watch(&self, observed: &Observed, plan: &Plan) {
        let parents = plan.tunnels.iter().flatten();
        let parents = parents.map(|tunnel| tunnel.device.parent);
        let devices = observed
            .tunnels
            .iter()
            .filter_map(|tunnel| tunnel.device.as_ref());
        let tunnels: BTreeSet<u32> = devices.clone().map(|device| device.index).collect();
        let wanted = plan.tunnels.iter().flatten().count();
        let any = wanted == 0
            || devices.count() < wanted
            || plan
                .problems
                .iter()
                .any(|p| matches!(p, Problem::NoExternal(_)));
        let below = (!any).then(|| parents.collect());
        self.devices.store(Arc::new(Concern { tunnels, below }));
    }

    /// Each trouble once, and again when it has been away.
    fn tell(&mut self, plan: &Plan, trouble: Option<&str>) {
        let known = plan.problems.iter().filter(|_| self.peers.is_listed());
        let mut now: BTreeSet<String> = known.map(ToString::to_string).collect();
        now.extend(trouble.map(str::to_owned));
        now.extend(self.peers.held().map(|name| {
            format!("node {name} is missing from a list that lost too many: served on")
        }));
        for problem in now.difference(&self.told) {
            tracing::warn!("overlay: {problem}");
        }
        for solved in self.told.difference(&now) {
            tracing::info!("overlay: no more: {solved}");
        }
        self.told = now;
    }

    /// What the Node should say and does not.
    fn publish(&mut self, plan: &Plan, complete: bool, now: Instant) {
        let cause = Cause::of(plan, self.usable).filter(|_| self.peers.is_listed());
        let verdict = self.availability.judge(complete, cause, now);
        let Some(own) = self.peers.get(&self.config.own) else {
            return;
        };
        let ends = plan.tunnels.each_ref().map(|tunnel| {
            tunnel.as_ref().map(|tunnel| vxlan_overlay::Vtep {
                mac: tunnel.device.mac,
                public_ip: tunnel.published,
            })
        });
        let mut annotations = match ends.iter().any(Option::is_some) {
            true => self.config.names.write(self.config.config.vni, &ends),
            false => Default::default(),
        };
        annotations.retain(|name, value| own.annotations.get(name) != Some(value));
        let wish = Publication {
            annotations,
            verdict,
        };
        self.publication.send_if_modified(|old| {
            let changed = *old != wish;
            *old = wish;
            changed
        });
    }

    fn write_files(&self, plan: &Plan) {
        let write = |path: &std::path::Path, text: Option<String>| {
            let Some(text) = text.filter(|_| !path.as_os_str().is_empty()) else {
                return;
            };
            match files::replace(path, &text) {
                Ok(true) => tracing::info!(?path, "written"),
                Ok(false) => {}
                Err(error) => tracing::warn!(?path, %error, "could not be written"),
            }
        };
        write(
            &self.config.subnet_file,
            files::subnet_env(&self.config.config, plan, self.config.rules.masquerade),
        );
        if let Some(path) = &self.config.cni_conf {
            let masquerade = self.config.rules.masquerade;
            write(path, files::cni_conf(&self.config.config, plan, masquerade));
        }
    }

    fn remember(&self) {
        if self.config.cache.as_os_str().is_empty() || !self.peers.is_listed() {
            return;
        }
        let written = cache::text(self.peers.nodes(), self.about())
            .and_then(|text| files::replace(&self.config.cache, &text).context("writing"));
        if let Err(error) = written {
            tracing::warn!(
                error = format!("{error:#}"),
                "peers could not be remembered"
            );
        }
    }
}

/// A Node as the overlay sees it.
fn known(node: Arc<service_model::Node>, about: (&Names, u32)) -> Node {
    let (ranges, addresses) = (&node.pod_cidrs, &node.addresses);
    let (name, annotations) = (node.name.name.clone(), node.annotations.clone());
    Node::new(name, ranges, addresses, annotations, about)
}

fn describe(refused: &Refused) -> String {
    format!(
        "the kernel refused {:?}: {}",
        refused.operation, refused.errno
    )
}
