//! Rounds of probes: whom to ask, and what becomes of the answers.
//!
//! Each round asks the neighbours in the ring of names, some others by chance and those that were suspicious before: a
//! node's load is the same in a cluster of any size, every direction of every pair of neighbours is looked at in every
//! round, and any other that is blocked for many is found by somebody soon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::future::join_all;
use nft::Family;
use rand::Rng;
use rand::seq::index::sample;
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{Judge, Measurement, Scene, Verdict};

use super::directory::{Directory, End, Target};
use super::event::Events;
use super::measure::Pair;
use super::{Finding, ProbeStatus, Reports, Shared, remedy};

/// Peers asked by chance in a round.
const BY_CHANCE: usize = 3;
/// Suspicious peers asked in a round.
const SUSPICIOUS: usize = 16;
/// Findings that are told as metrics of their own.
const TOLD: usize = 64;

type Key = (Arc<str>, Family);

/// What is known of peers: of those only that are worth another look.
#[derive(Default)]
struct Known {
    judges: BTreeMap<Key, Judge>,
    findings: BTreeMap<Key, Finding>,
    remedies: BTreeSet<String>,
}

/// Probes until cancelled.
pub(super) async fn run(
    shared: Arc<Shared>,
    reports: Reports,
    events: Option<Events>,
    cancel: CancellationToken,
) {
    let mut known = Known::default();
    let rounds = async {
        loop {
            let interval = shared.config.interval;
            // Not all nodes at the same time.
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::time::sleep(interval.mul_f64(jitter)).await;
            round(&shared, &reports, events.as_ref(), &mut known).await;
        }
    };
    cancel.run_until_cancelled(rounds).await;
}

async fn round(shared: &Shared, reports: &Reports, events: Option<&Events>, known: &mut Known) {
    let directory = shared.directory();
    known.forget_the_gone(&directory);
    let chosen = choose(
        &directory.targets,
        &shared.config.own,
        &known.judges,
        &mut rand::rng(),
    );
    let pairs: Vec<Pair<'_>> = chosen
        .into_iter()
        .filter_map(|peer| {
            let end = directory.end(peer.family)?;
            Some(Pair { shared, end, peer })
        })
        .collect();
    let measured = join_all(pairs.iter().map(|pair| pair.measure(false))).await;
    for (pair, measured) in pairs.iter().zip(measured) {
        reports.metrics.probes.measured(&measured);
        hear(pair, measured, events, known).await;
    }
    known.publish(&directory, reports);
}

/// Takes in what was measured, and tells when that changes what is known.
async fn hear(
    pair: &Pair<'_>,
    mut measured: Measurement,
    events: Option<&Events>,
    known: &mut Known,
) {
    let peer = pair.peer;
    let key = (peer.node.clone(), peer.family);
    let judge = known.judges.entry(key.clone()).or_default();
    let changed = judge.hear(measured.verdict());
    let told = judge.told().cloned();
    if !judge.is_suspicious() {
        known.judges.remove(&key);
    }
    if !changed {
        return;
    }
    let Some(verdict) = told else {
        if known.findings.remove(&key).is_some() {
            let text = format!(
                "pods on {} can be reached again ({})",
                peer.node, peer.family
            );
            tracing::info!("{text}");
            tell(events, "OverlayReachable", &text);
        }
        return;
    };
    if verdict == (Verdict::Checksum { theirs: false }) {
        match remedy::switch_off(pair).await {
            Ok(Some(done)) => {
                tracing::warn!("{done}");
                tell(events, reason(&verdict), &done);
                known.remedies.insert(done);
            }
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "checksum offload stays on");
            }
        }
    }
    pair.find_rules(&mut measured).await;
    let text = words(pair.shared, pair.end, peer, &measured, &verdict);
    tracing::warn!("{text} ({})", peer.family);
    tell(events, reason(&verdict), &text);
    let finding = Finding {
        node: peer.node.clone(),
        family: peer.family,
        kind: verdict.kind(),
        text,
    };
    known.findings.insert(key, finding);
}

/// The verdict in words.
pub(super) fn words(
    shared: &Shared,
    end: &End,
    peer: &Target,
    measured: &Measurement,
    verdict: &Verdict,
) -> String {
    let scene = Scene {
        own: &shared.config.own,
        peer: &peer.node,
        port: end.port,
        interface: &end.parent,
        rule_here: measured.rule_here.as_deref(),
        rule_there: measured.rule_there.as_deref(),
    };
    scene.tell(verdict)
}

fn tell(events: Option<&Events>, reason: &'static str, text: &str) {
    if let Some(events) = events {
        events.tell(reason, text);
    }
}

/// The reason of an event.
fn reason(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy => "OverlayReachable",
        Verdict::Silent => "OverlayPeerSilent",
        Verdict::Blocked { .. } => "OverlayBlocked",
        Verdict::Mtu { .. } => "OverlayMTU",
        Verdict::Checksum { .. } => "OverlayChecksum",
        Verdict::Partly(_) => "OverlayPartlyBlocked",
    }
}

impl Known {
    fn forget_the_gone(&mut self, directory: &Directory) {
        let there: BTreeSet<Key> = directory
            .targets
            .iter()
            .map(|target| (target.node.clone(), target.family))
            .collect();
        self.judges.retain(|key, _| there.contains(key));
        self.findings.retain(|key, _| there.contains(key));
    }

    fn publish(&self, directory: &Directory, reports: &Reports) {
        let findings: Vec<Finding> = self.findings.values().cloned().collect();
        let nodes: BTreeSet<&Arc<str>> = directory.targets.iter().map(|t| &t.node).collect();
        let failing: BTreeSet<&Arc<str>> = findings.iter().map(|f| &f.node).collect();
        let told = findings.get(..TOLD).unwrap_or(&findings);
        reports
            .metrics
            .probes
            .round(nodes.len(), failing.len(), told, self.remedies.len());
        reports.status.store(Arc::new(ProbeStatus {
            findings,
            remedies: self.remedies.iter().cloned().collect(),
        }));
    }
}

/// Those to ask now: both neighbours of `own` in the order of names, some by chance, and suspicious ones; of each
/// node all families. `targets` are sorted by name.
fn choose<'a>(
    targets: &'a [Target],
    own: &str,
    judges: &BTreeMap<Key, Judge>,
    random: &mut impl Rng,
) -> Vec<&'a Target> {
    let mut names: Vec<&Arc<str>> = targets.iter().map(|target| &target.node).collect();
    names.dedup();
    if names.is_empty() {
        return Vec::new();
    }
    let count = names.len();
    let next = names.partition_point(|name| ***name < *own);
    let mut chosen: BTreeSet<&str> = [next % count, (next + count - 1) % count]
        .into_iter()
        .chain(sample(random, count, BY_CHANCE.min(count)))
        .filter_map(|index| names.get(index).map(|name| &***name))
        .collect();
    // Another part of them each time, should there be that many.
    let suspicious: BTreeSet<&str> = judges.keys().map(|(name, _)| &**name).collect();
    let suspicious: Vec<&str> = suspicious.into_iter().collect();
    let asked = sample(random, suspicious.len(), SUSPICIOUS.min(suspicious.len()));
    chosen.extend(asked.into_iter().filter_map(|index| suspicious.get(index)));
    targets
        .iter()
        .filter(|target| chosen.contains(&*target.node))
        .collect()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn targets(nodes: usize) -> Vec<Target> {
        let node = |n: usize| {
            Family::ALL.map(|family| Target {
                node: format!("node-{n:04}").into(),
                family,
                host: [192, 0, 2, 1].into(),
                hosts: Vec::new(),
                tunnel: [10, 0, 0, 0].into(),
            })
        };
        (0..nodes)
            .filter(|n| *n != nodes / 2)
            .flat_map(node)
            .collect()
    }

    #[test]
    fn a_round_asks_neighbours_and_a_few_others_however_many_there_are_and_all_in_time() {
        let mut random = SmallRng::seed_from_u64(1);
        for nodes in [1, 2, 3, 10, 1000] {
            let targets = targets(nodes);
            let own = format!("node-{:04}", nodes / 2);
            let mut asked: BTreeSet<&str> = BTreeSet::new();
            for _ in 0..10 * nodes {
                let chosen = choose(&targets, &own, &BTreeMap::new(), &mut random);
                assert!(chosen.len() <= 2 * (2 + BY_CHANCE));
                let now: BTreeSet<&str> = chosen.iter().map(|target| &*target.node).collect();
                assert_eq!(chosen.len(), 2 * now.len());
                if nodes >= 3 {
                    for neighbour in [nodes / 2 - 1, nodes / 2 + 1] {
                        assert!(now.contains(&*format!("node-{neighbour:04}")));
                    }
                }
                asked.extend(now);
            }
            assert_eq!(asked.len(), nodes - 1);
        }
    }

    #[test]
    fn suspicious_peers_are_asked_again_but_never_too_many_at_a_time() {
        let (targets, mut random) = (targets(1000), SmallRng::seed_from_u64(1));
        let judge = |target: &Target| ((target.node.clone(), target.family), Judge::default());
        let few: BTreeMap<Key, Judge> = targets.iter().take(6).map(judge).collect();
        let chosen = choose(&targets, "node-0500", &few, &mut random);
        assert!(
            targets
                .iter()
                .take(6)
                .all(|target| chosen.contains(&target))
        );
        let all: BTreeMap<Key, Judge> = targets.iter().map(judge).collect();
        let chosen = choose(&targets, "node-0500", &all, &mut random);
        assert!(chosen.len() <= 2 * (2 + BY_CHANCE + SUSPICIOUS));
    }
}
