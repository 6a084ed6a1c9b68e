//! Rounds of probes: which peers to measure, and what to report about them.
//!
//! Each round measures both neighbors in the ring of node names, some random peers, and peers that failed before. The
//! load of a node therefore does not grow with the cluster; both directions between neighbors are measured in every
//! round; and a failure that affects many pairs is soon met by a random probe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use net_types::Family;
use rand::Rng;
use rand::seq::index::sample;
use tokio_util::sync::CancellationToken;

use super::debouncer::VerdictDebouncer;
use super::describe::VerdictContext;
use super::directory::{Directory, Target};
use super::forwarding::Forwarding;
use super::measure::Pair;
use super::measurement::Measurement;
use super::verdict::PeerVerdict;
use super::{
    Finding, ProbeEvent, ProbeStatus, RoundSummary, Shared, firewall, forwarding, pod_packet,
    remedy,
};

/// Random peers measured in a round.
const RANDOM_PEERS: usize = 3;
/// Suspicious peers measured in a round.
const SUSPICIOUS: usize = 16;
/// Traces for a dropping rule in a round.
const TRACES: usize = 3;
/// Time after which a remedy that did not help is tried again.
const REMEDY_RETRY: Duration = Duration::from_secs(30);
/// This node's own forward chains are checked once in so many rounds.
const CHAIN_CHECK: u32 = 10;
/// Minimum time between two packets sent as a pod, while they reach their peers.
const POD_CHECK: Duration = Duration::from_secs(2);
/// Findings that become metric series of their own.
const METRIC_SERIES: usize = 64;

type Key = (Arc<str>, Family);

/// State between rounds. Only suspicious peers have a debouncer.
struct Rounds {
    shared: Arc<Shared>,
    debouncers: BTreeMap<Key, VerdictDebouncer>,
    findings: BTreeMap<Key, Finding>,
    remedies: BTreeSet<String>,
    /// When checksum offload was last switched off as a trial.
    tried: Option<Instant>,
    faults: Vec<String>,
    chains: Forwarding,
    chains_checked: Option<Instant>,
    /// What keeps packets of pods from peers that packets of this node reach.
    pod_faults: Vec<String>,
    /// When a packet was last sent as a pod.
    pods_checked: Option<Instant>,
}

/// Probes until canceled.
pub(super) async fn run(shared: Arc<Shared>, cancel: CancellationToken) {
    let interval = shared.config.interval;
    let mut rounds = Rounds {
        shared,
        debouncers: BTreeMap::new(),
        findings: BTreeMap::new(),
        remedies: BTreeSet::new(),
        tried: None,
        faults: Vec::new(),
        chains: Forwarding::default(),
        chains_checked: None,
        pod_faults: Vec::new(),
        pods_checked: None,
    };
    let probing = async {
        loop {
            // Jitter keeps the nodes of a cluster from probing at the same time.
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::time::sleep(interval.mul_f64(jitter)).await;
            rounds.round().await;
        }
    };
    cancel.run_until_cancelled(probing).await;
}

impl Rounds {
    async fn round(&mut self) {
        let shared = self.shared.clone();
        if self
            .chains_checked
            .is_none_or(|at| at.elapsed() >= shared.config.interval * CHAIN_CHECK)
        {
            self.check_chains().await;
        }
        self.check_forwarding();
        let directory = shared.directory();
        self.remove_deleted_peers(&directory);
        let names: Vec<&Arc<str>> = directory.names().into_iter().collect();
        let own = &shared.config.own;
        let chosen = choose(&names, own, &self.debouncers, &mut rand::rng());
        let chosen = chosen.into_iter().flat_map(|name| directory.targets(name));
        let chosen: Vec<Target> = chosen.collect();
        let pairs = Pair::all(&shared, &directory, &chosen);
        let measured = join_all(pairs.iter().map(|pair| pair.measure(false))).await;
        self.check_pods(&pairs, &measured).await;
        let mut traces = 0;
        for (pair, mut measured) in pairs.iter().zip(measured) {
            shared.environment.observer.measured(&measured);
            if measured.is_silent() {
                shared.environment.observer.silent(&pair.peer.node);
            }
            let changed = self.observe(pair, &measured);
            if self.wants_remedy(pair, changed.is_some()) && self.remedy(pair).await {
                continue;
            }
            let Some(verdict) = changed else {
                continue;
            };
            if traces < TRACES {
                traces += 1;
                pair.find_rules(&mut measured).await;
            }
            self.alarm(pair, &measured, &verdict);
        }
        self.publish(&directory);
    }

    /// Checks this node's forward chains, which probes between nodes never pass but pod packets do.
    async fn check_chains(&mut self) {
        self.chains_checked = Some(Instant::now());
        let environment = &self.shared.environment;
        let found = firewall::examine(environment.legacy, &(environment.plan)()).await;
        let known = [&self.chains.faults, &self.chains.notes];
        for line in found.faults.iter().chain(&found.notes) {
            if !known.iter().any(|known| known.contains(line)) {
                tracing::warn!("{line}");
            }
        }
        self.chains = found;
    }

    /// Sends a packet as a pod, once in a while, and in every round while none reaches its peer.
    async fn check_pods(&mut self, pairs: &[Pair<'_>], measured: &[Measurement]) {
        let interval = self.shared.config.interval * CHAIN_CHECK;
        let interval = interval.max(POD_CHECK);
        let was_lately = self.pods_checked.is_some_and(|at| at.elapsed() < interval);
        let healthy = pairs.iter().zip(measured);
        let healthy = healthy.filter(|(_, measured)| measured.verdict().is_healthy());
        let healthy: Vec<&Pair<'_>> = healthy.map(|(pair, _)| pair).collect();
        if healthy.is_empty() || (was_lately && self.pod_faults.is_empty()) {
            return;
        }
        let legacy = self.shared.environment.legacy;
        let found = pod_packet::examine(&healthy, legacy, was_lately).await;
        for note in &found.notes {
            tracing::debug!("{note}");
        }
        let found = found.faults;
        if was_lately && !found.is_empty() {
            return;
        }
        self.pods_checked = Some(Instant::now());
        for fault in found.iter().filter(|f| !self.pod_faults.contains(f)) {
            tracing::warn!("{fault}");
        }
        self.pod_faults = found;
    }

    /// Checks this node's own settings: some files, so in every round.
    fn check_forwarding(&mut self) {
        let found = forwarding::examine(&(self.shared.environment.plan)());
        for fault in found.faults.iter().filter(|f| !self.faults.contains(f)) {
            tracing::warn!("{fault}");
        }
        self.faults = found.faults;
    }

    /// Records a measurement. Returns the verdict if it is bad and newly in force.
    fn observe(&mut self, pair: &Pair<'_>, measured: &Measurement) -> Option<PeerVerdict> {
        let (key, peer) = (pair.key(), pair.peer);
        let debouncer = self.debouncers.entry(key.clone()).or_default();
        let changed = debouncer.observe(measured.verdict());
        let reported = debouncer.reported().cloned();
        if !debouncer.is_suspicious() {
            self.debouncers.remove(&key);
        }
        if reported.is_none() && self.findings.remove(&key).is_some() {
            let text = format!(
                "pods on {} can be reached again ({})",
                peer.node, peer.family
            );
            tracing::info!("{text}");
            self.event(REACHABLE, &text);
        }
        reported.filter(|_| changed)
    }

    /// Whether this node's own checksums arrive wrong, and a remedy is due.
    fn wants_remedy(&self, pair: &Pair<'_>, changed: bool) -> bool {
        let reported = self.debouncers.get(&pair.key());
        let reported = reported.and_then(VerdictDebouncer::reported);
        let is_ours = reported == Some(&PeerVerdict::Checksum { of_peer: false });
        is_ours && (changed || self.tried.is_none_or(|at| at.elapsed() >= REMEDY_RETRY))
    }

    /// Tries to correct this node's checksums. Returns whether that helped.
    async fn remedy(&mut self, pair: &Pair<'_>) -> bool {
        self.tried = Some(Instant::now());
        match remedy::switch_off(pair).await {
            Ok(Some(done)) => {
                tracing::warn!("{done}");
                self.event(CHECKSUM, &done);
                self.remedies.insert(done);
                true
            }
            Ok(None) => false,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot switch checksum offload off; retrying later");
                false
            }
        }
    }

    fn alarm(&mut self, pair: &Pair<'_>, measured: &Measurement, verdict: &PeerVerdict) {
        let text = pair.describe(measured, verdict);
        tracing::warn!("{text} ({})", pair.peer.family);
        self.event(reason(verdict), &text);
        self.shared.environment.observer.alarm();
        let finding = Finding {
            node: pair.peer.node.clone(),
            family: pair.peer.family,
            kind: verdict.kind(),
            text,
        };
        self.findings.insert(pair.key(), finding);
    }

    fn event(&self, reason: &'static str, note: &str) {
        self.shared.environment.observer.event(ProbeEvent {
            is_warning: reason != REACHABLE,
            reason,
            note,
        });
    }

    fn remove_deleted_peers(&mut self, directory: &Directory) {
        let exists = |(name, family): &Key| directory.target(name, *family).is_some();
        self.debouncers.retain(|key, _| exists(key));
        self.findings.retain(|key, _| exists(key));
    }

    fn publish(&self, directory: &Directory) {
        let findings: Vec<Finding> = self.findings.values().cloned().collect();
        let failing: BTreeSet<&Arc<str>> = findings.iter().map(|f| &f.node).collect();
        let environment = &self.shared.environment;
        environment.observer.round(&RoundSummary {
            peers: directory.names().len(),
            failing: failing.len(),
            findings: findings.get(..METRIC_SERIES).unwrap_or(&findings),
            remedies: self.remedies.len(),
        });
        environment.status.store(Arc::new(ProbeStatus {
            findings,
            faults: [&self.faults[..], &self.chains.faults, &self.pod_faults].concat(),
            remedies: self.remedies.iter().cloned().collect(),
            notes: self.chains.notes.clone(),
        }));
    }
}

impl Pair<'_> {
    fn key(&self) -> Key {
        (self.peer.node.clone(), self.peer.family)
    }

    /// The verdict in English.
    pub(super) fn describe(&self, measured: &Measurement, verdict: &PeerVerdict) -> String {
        let context = VerdictContext {
            own: &self.shared.config.own,
            peer: &self.peer.node,
            port: self.local.port,
            interface: &self.local.parent,
            rule_here: measured.rule_here.as_deref(),
            rule_there: measured.rule_there.as_deref(),
        };
        context.describe(verdict)
    }
}

const REACHABLE: &str = "OverlayReachable";
const CHECKSUM: &str = "OverlayChecksum";

/// The reason of an Event.
fn reason(verdict: &PeerVerdict) -> &'static str {
    match verdict {
        PeerVerdict::Healthy => REACHABLE,
        PeerVerdict::Silent => "OverlayPeerSilent",
        PeerVerdict::Blocked { .. } => "OverlayBlocked",
        PeerVerdict::Mtu { .. } => "OverlayMTU",
        PeerVerdict::Checksum { .. } => CHECKSUM,
        PeerVerdict::Partly(_) => "OverlayPartlyBlocked",
    }
}

/// Chooses the peers of a round from `names`, which are sorted: both neighbors of `own`, random ones, suspicious ones.
fn choose<'a>(
    names: &[&'a Arc<str>],
    own: &str,
    debouncers: &'a BTreeMap<Key, VerdictDebouncer>,
    random: &mut impl Rng,
) -> BTreeSet<&'a str> {
    if names.is_empty() {
        return BTreeSet::new();
    }
    let count = names.len();
    let next = names.partition_point(|name| ***name < *own);
    let mut chosen: BTreeSet<&str> = [next % count, (next + count - 1) % count]
        .into_iter()
        .chain(sample(random, count, RANDOM_PEERS.min(count)))
        .filter_map(|index| names.get(index).map(|name| &***name))
        .collect();
    // A random part of the suspicious ones, should there be too many for one round.
    let suspicious: BTreeSet<&str> = debouncers.keys().map(|(name, _)| &**name).collect();
    let suspicious: Vec<&str> = suspicious.into_iter().collect();
    let again = sample(random, suspicious.len(), SUSPICIOUS.min(suspicious.len()));
    chosen.extend(again.into_iter().filter_map(|index| suspicious.get(index)));
    chosen
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn names(nodes: usize) -> Vec<Arc<str>> {
        let name = |n: usize| format!("node-{n:04}").into();
        let others = (0..nodes).filter(|n| *n != nodes / 2);
        others.map(name).collect()
    }

    #[test]
    fn each_round_measures_both_neighbors_and_all_peers_in_time() {
        let (mut random, nobody) = (SmallRng::seed_from_u64(1), BTreeMap::new());
        for nodes in [1, 2, 3, 10, 1000] {
            let names = names(nodes);
            let names: Vec<&Arc<str>> = names.iter().collect();
            let own = format!("node-{:04}", nodes / 2);
            let mut asked: BTreeSet<&str> = BTreeSet::new();
            for _ in 0..10 * nodes {
                let chosen = choose(&names, &own, &nobody, &mut random);
                assert!(chosen.len() <= 2 + RANDOM_PEERS);
                if nodes >= 3 {
                    for neighbor in [nodes / 2 - 1, nodes / 2 + 1] {
                        assert!(chosen.contains(&*format!("node-{neighbor:04}")));
                    }
                }
                asked.extend(chosen);
            }
            assert_eq!(asked.len(), nodes - 1);
        }
    }

    #[test]
    fn suspicious_peers_are_measured_again_up_to_a_limit() {
        let (names, mut random) = (names(1000), SmallRng::seed_from_u64(1));
        let names: Vec<&Arc<str>> = names.iter().collect();
        let debouncer =
            |name: &&Arc<str>| (((*name).clone(), Family::Ip), VerdictDebouncer::default());
        let few: BTreeMap<Key, VerdictDebouncer> = names.iter().take(6).map(debouncer).collect();
        let chosen = choose(&names, "node-0500", &few, &mut random);
        assert!(names.iter().take(6).all(|name| chosen.contains(&***name)));
        let all: BTreeMap<Key, VerdictDebouncer> = names.iter().map(debouncer).collect();
        let chosen = choose(&names, "node-0500", &all, &mut random);
        assert!(chosen.len() <= 2 + RANDOM_PEERS + SUSPICIOUS);
    }
}
