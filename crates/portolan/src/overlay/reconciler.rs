//! Makes the tunnel devices of this node equal to the plan: observe, plan, difference, apply, until no step is left.
//!
//! Owns the rtnetlink socket, the plan in force and what is known of the kernel between two runs. When to run, and the
//! nftables table, are left to others. Invariant: nothing is deleted before the list of Nodes is complete.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use net_types::PerFamily;
use nix::errno::Errno;
use vxlan_overlay::{
    Carriers, Concern, Deletions, Facts, HOLD, Kernel, Observed, ObservedTunnel, Operation, Peers,
    Plan, Problem, Refused, Tunnel, Watched, difference, in_the_way, plan, stale,
};

use super::address_change::AddressChange;
use super::{Devices, OverlayConfig};
use crate::metrics::Metrics;

/// Passes of one run: the first creates a device, the second fills it, the third deletes what came to light meanwhile,
/// the fourth finds it correct.
const PASSES: usize = 6;
/// Equal steps are logged once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// So many steps say whether they are the same as the last ones.
const COMPARED: usize = 64;
/// Start-up: delete up to this many stale entries without suspecting a truncated list.
const ALWAYS_BELIEVED: usize = 2;

/// Observes and changes the tunnel devices.
pub(super) struct Reconciler {
    config: Arc<OverlayConfig>,
    kernel: Kernel,
    watched: Watched,
    devices: Devices,
    metrics: Arc<Metrics>,
    plan: Arc<Plan>,
    address_change: AddressChange,
    /// What carries outer packets instead of the underlay.
    carriers: Carriers,
    /// Whether the next run observes the kernel first; if not, it trusts `applied`.
    observe: bool,
    /// Kernel state below the entries, and the plan, after the last complete run, if known.
    applied: Option<(Observed, Arc<Plan>)>,
    /// Since when deletions are held because the list of Nodes looks too short.
    held_since: Option<Instant>,
    /// Whether entries left by an earlier process or by flannel have been deleted.
    cleaned: bool,
    usable: usize,
    repairs: u64,
    /// The first of the steps that were logged last, and when.
    logged: Option<(Vec<Operation>, Instant)>,
}

impl Reconciler {
    pub(super) fn new(
        config: Arc<OverlayConfig>,
        kernel: Kernel,
        devices: Devices,
        metrics: Arc<Metrics>,
    ) -> Self {
        let watched = Watched {
            devices: PerFamily::from_fn(|family| config.config.device_name(family)),
            can_reach: config.preferences.can_reach,
            networks: PerFamily::from_fn(|family| config.config.network(family)),
        };
        Reconciler {
            config,
            kernel,
            watched,
            devices,
            metrics,
            plan: Arc::default(),
            address_change: AddressChange::default(),
            carriers: Carriers::default(),
            observe: true,
            applied: None,
            held_since: None,
            cleaned: false,
            usable: 0,
            repairs: 0,
            logged: None,
        }
    }

    /// The plan of the last run that could observe the kernel.
    pub(super) fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// When the next run is due though nothing changes meanwhile.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.address_change.due(now)
    }

    /// How many tunnel devices exist and can be used.
    pub(super) fn usable(&self) -> usize {
        self.usable
    }

    /// How many steps have repaired foreign changes so far.
    pub(super) fn repairs(&self) -> u64 {
        self.repairs
    }

    /// Lets the next run trust what the last one left: only Nodes have changed.
    pub(super) fn skip_observation(&mut self) {
        self.observe = false;
    }

    /// Makes the next run read the kernel, although it was to trust what the last one left.
    pub(super) fn observe_next(&mut self) {
        self.observe = true;
    }

    /// Runs until no step is left. Returns what prevents that. Steps count as repairs if `repairing`.
    pub(super) fn run(
        &mut self,
        peers: &Peers,
        now: Instant,
        repairing: bool,
        carriers: &Carriers,
    ) -> Option<String> {
        if self.carriers != *carriers {
            self.carriers = carriers.clone();
        }
        match self.passes(peers, now, repairing) {
            Ok((plan, trouble)) => {
                self.plan = plan;
                trouble
            }
            Err(error) => Some(format!("{error:#}")),
        }
    }

    fn passes(
        &mut self,
        peers: &Peers,
        now: Instant,
        repairing: bool,
    ) -> Result<(Arc<Plan>, Option<String>)> {
        let (mut refused, mut done) = (Vec::new(), Vec::new());
        let observe = std::mem::replace(&mut self.observe, true);
        let applied = self.applied.take().filter(|_| !observe);
        let mut known = applied.and_then(|(below, plan)| below.after(&plan.tunnels));
        let trusting = known.is_some();
        for _ in 0..PASSES {
            let mut observed = match known.take() {
                Some(observed) => observed,
                None => self.kernel.observe(&self.watched)?,
            };
            let plan = self.plan_with_ways(peers, &mut observed, now)?;
            self.watch(&observed, &plan);
            let (steps, trouble) = self.steps(peers, &plan, &observed, now);
            if steps.is_empty() {
                self.applied = self.cleaned.then(|| (observed.below(), plan.clone()));
                return Ok((plan, trouble));
            }
            // What the kernel refused, or did without effect, it would do so again.
            if steps == done {
                return Ok((plan, Some(describe(&refused, &steps, &observed))));
            }
            refused = self.apply(&steps, &plan, repairing, now)?;
            if refused.is_empty() && self.cleaned && trouble.is_none() {
                // The index of a device that was just created is not known yet.
                let creates = |step: &Operation| matches!(step, Operation::CreateDevice(_));
                self.applied =
                    (!steps.iter().any(creates)).then(|| (observed.below(), plan.clone()));
                if self.applied.is_some() && trusting {
                    return Ok((plan, None));
                }
            }
            done = steps;
        }
        let mut observed = self.kernel.observe(&self.watched)?;
        let plan = self.plan_with_ways(peers, &mut observed, now)?;
        let reason = match refused.is_empty() {
            true => "another program keeps changing the overlay's device, routes or entries".into(),
            false => describe(&refused, &done, &observed),
        };
        Ok((plan, Some(reason)))
    }

    fn apply(
        &mut self,
        steps: &[Operation],
        plan: &Plan,
        repairing: bool,
        now: Instant,
    ) -> Result<Vec<Refused>> {
        let started = Instant::now();
        let refused = self.kernel.apply(steps)?;
        let elapsed = started.elapsed();
        let repairs = if repairing { steps.len() } else { 0 };
        self.repairs += repairs as u64;
        self.metrics.overlay_changed(repairs, elapsed);
        if self.is_news(steps, now) {
            tracing::info!(
                steps = steps.len(),
                refused = refused.len(),
                repairing,
                peers = plan.peer_count(),
                elapsed_seconds = elapsed.as_secs_f64(),
                "changed the overlay"
            );
        }
        tracing::debug!(?steps, "applied steps");
        Ok(refused)
    }

    /// Whether these steps are to be logged: what another program undoes, or the kernel refuses, is tried again every few
    /// seconds, for as long as it takes.
    fn is_news(&mut self, steps: &[Operation], now: Instant) -> bool {
        let steps = &steps[..steps.len().min(COMPARED)];
        let known = self.logged.as_ref().is_some_and(|(logged, since)| {
            logged == steps && now.saturating_duration_since(*since) < QUIET
        });
        if !known {
            self.logged = Some((steps.to_vec(), now));
        }
        !known
    }

    /// The plan for what is observed and for the ways to the peers, which are looked up where routes may be direct.
    fn plan_with_ways(
        &mut self,
        peers: &Peers,
        observed: &mut Observed,
        now: Instant,
    ) -> Result<Arc<Plan>> {
        let plan = self.plan_for(peers, observed, now);
        if !self.config.config.direct_routing {
            return Ok(plan);
        }
        let known = &observed.surroundings.ways;
        let addresses = public_addresses(&plan).filter(|address| !known.contains_key(address));
        let unknown: Vec<IpAddr> = addresses.collect();
        if unknown.is_empty() {
            return Ok(plan);
        }
        for address in unknown {
            let way = self.kernel.way_to(address)?;
            observed.surroundings.ways.insert(address, way);
        }
        Ok(self.plan_for(peers, observed, now))
    }

    /// The plan for what is observed. An equal plan is shared, so that memory holds one of it.
    fn plan_for(&mut self, peers: &Peers, observed: &Observed, now: Instant) -> Arc<Plan> {
        let mac = |_, tunnel: &ObservedTunnel| tunnel.device.as_ref().map(|device| device.mac);
        let mut new = plan(
            Facts {
                config: &self.config.config,
                preferences: &self.config.preferences,
                names: &self.config.names,
                own: &self.config.own,
                infer: self.config.infer,
                found: observed.tunnels.as_ref().map(mac),
                surroundings: &observed.surroundings,
                carriers: &self.carriers,
            },
            peers.nodes(),
        );
        let announced = |family, published| {
            let annotations = peers.own_annotations();
            self.config.infer
                || self.config.names.own_public_ip(annotations, family) == Some(published)
        };
        self.address_change
            .keep(&self.plan, &mut new, &observed.surroundings, announced, now);
        let overriding = pairs(&new, observed).flat_map(|(wanted, found)| found.overriding(wanted));
        let overriding: Vec<_> = overriding.collect();
        let problem = Problem::overridden(&overriding);
        new.problems.extend(problem);
        match *self.plan == new {
            true => self.plan.clone(),
            false => Arc::new(new),
        }
    }

    /// The steps of both families, and what cannot be changed.
    fn steps(
        &mut self,
        peers: &Peers,
        plan: &Plan,
        observed: &Observed,
        now: Instant,
    ) -> (Vec<Operation>, Option<String>) {
        let (mut steps, mut trouble) = (Vec::new(), None);
        let deletions = self.deletions(peers, plan, observed, now);
        if deletions == Deletions::Allowed {
            steps.extend(in_the_way(&plan.tunnels, &observed.tunnels));
        }
        self.usable = 0;
        for (wanted, found) in pairs(plan, observed) {
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

    /// Whether stale entries may be deleted. When most entries found at the start are stale, the list of Nodes may be
    /// truncated: they are kept for a while.
    fn deletions(
        &mut self,
        peers: &Peers,
        plan: &Plan,
        observed: &Observed,
        now: Instant,
    ) -> Deletions {
        if !peers.is_listed() {
            return Deletions::Held;
        }
        let mut implausible = pairs(plan, observed).filter(|(wanted, found)| {
            let (stale, all) = stale(wanted, found);
            stale > ALWAYS_BELIEVED.max(all / 2)
        });
        if self.cleaned || implausible.next().is_none() {
            return Deletions::Allowed;
        }
        let since = *self.held_since.get_or_insert(now);
        match now.saturating_duration_since(since) < HOLD {
            true => Deletions::Held,
            false => Deletions::Allowed,
        }
    }

    /// Subscribes to changes of the tunnel devices and their parents; while one is missing, to those of any device.
    fn watch(&self, observed: &Observed, plan: &Plan) {
        let wanted: Vec<&Tunnel> = plan.tunnels.values().flatten().collect();
        let found = observed.tunnels.values();
        let mut found: BTreeSet<u32> = found
            .filter_map(|tunnel| tunnel.device.as_ref())
            .map(|device| device.index)
            .collect();
        let any = wanted.is_empty() || found.len() < wanted.len() || plan.lacks_external();
        found.extend(
            self.carriers
                .by_peer
                .values()
                .chain(&self.carriers.otherwise),
        );
        let parents = wanted.iter().map(|tunnel| tunnel.device.parent);
        let networks = self.watched.networks.values().flatten();
        let mut hosts: Vec<IpAddr> = match self.config.config.direct_routing {
            true => public_addresses(plan).collect(),
            false => Vec::new(),
        };
        hosts.sort_unstable();
        self.devices.store(Arc::new(Concern {
            below: (!any).then(|| parents.collect()),
            tunnels: found,
            uplinks: observed
                .surroundings
                .uplinks
                .values()
                .flatten()
                .copied()
                .collect(),
            networks: networks.copied().collect(),
            hosts,
        }));
    }
}

/// The public addresses of all peers.
fn public_addresses(plan: &Plan) -> impl Iterator<Item = IpAddr> {
    let tunnels = plan.tunnels.values().flatten();
    tunnels.flat_map(|tunnel| tunnel.peers.iter().map(|peer| peer.vtep.public_ip))
}

/// Wanted tunnels beside what is observed of them.
fn pairs<'a>(
    plan: &'a Plan,
    observed: &'a Observed,
) -> impl Iterator<Item = (&'a Tunnel, &'a ObservedTunnel)> {
    let wanted = plan.tunnels.iter();
    wanted.filter_map(|(family, tunnel)| Some((tunnel.as_ref()?, &observed.tunnels[family])))
}

/// What the kernel refused, or did without effect, and what stands in the way where that is known.
fn describe(refused: &[Refused], steps: &[Operation], observed: &Observed) -> String {
    let (step, errno) = match (refused.first(), steps.first()) {
        (Some(refused), _) => (&refused.operation, Some(refused.errno)),
        (None, Some(step)) => (step, None),
        (None, None) => return String::new(),
    };
    let Some(errno) = errno else {
        return format!("{step} has no effect: another program undoes it, or the kernel cannot");
    };
    let text = format!("the kernel refused {step}: {}", errno.desc());
    let Operation::CreateDevice(device) = step else {
        return text;
    };
    let mut interfaces = observed.surroundings.interfaces.iter();
    let tunnel = Some((device.vni, device.port));
    match interfaces.find(|interface| interface.tunnel == tunnel) {
        Some(other) if errno == Errno::EEXIST => format!(
            "{text}: device {} has this VNI and port: delete it, or configure another VNI or port",
            other.name
        ),
        _ => text,
    }
}

#[cfg(test)]
mod walk;
