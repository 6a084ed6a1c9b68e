//! Rounds of probes: whom to ask, and what becomes of the answers.
//!
//! Each round asks the neighbours in the ring of names, some others by chance and those that were suspicious before: a
//! node's load is the same in a cluster of any size, every direction of every pair of neighbours is looked at in every
//! round, and any other that is blocked for many is found by somebody soon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use nft::Family;
use rand::Rng;
use rand::seq::index::sample;
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{Judge, Measurement, Scene, Verdict};

use crate::events::{Severity, Subject};

use super::directory::{Directory, End, Target};
use super::measure::Pair;
use super::{Finding, ProbeStatus, Reports, Shared, firewall, remedy};

/// Peers asked by chance in a round.
const BY_CHANCE: usize = 3;
/// Suspicious peers asked in a round.
const SUSPICIOUS: usize = 16;
/// Looks for rules in a round.
const LOOKS: usize = 3;
/// What did not help is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(30);
/// How often this node's own rules are looked at.
const NOTE: Duration = Duration::from_secs(300);
/// Findings that are told as metrics of their own.
const TOLD: usize = 64;

type Key = (Arc<str>, Family);

/// What is known of peers, of those only that are worth another look, and where it is told.
struct Rounds {
    reports: Reports,
    judges: BTreeMap<Key, Judge>,
    findings: BTreeMap<Key, Finding>,
    remedies: BTreeSet<String>,
    /// When checksum offload was last switched off, to see whether that helps.
    tried: Option<Instant>,
    notes: Vec<String>,
    noted: Option<Instant>,
}

/// Probes until cancelled.
pub(super) async fn run(shared: Arc<Shared>, reports: Reports, cancel: CancellationToken) {
    let mut rounds = Rounds {
        reports,
        judges: BTreeMap::new(),
        findings: BTreeMap::new(),
        remedies: BTreeSet::new(),
        tried: None,
        notes: Vec::new(),
        noted: None,
    };
    let probing = async {
        loop {
            // Not all nodes at the same time.
            let jitter = rand::rng().random_range(0.75..1.25);
            tokio::time::sleep(shared.config.interval.mul_f64(jitter)).await;
            rounds.round(&shared).await;
        }
    };
    cancel.run_until_cancelled(probing).await;
}

impl Rounds {
    async fn round(&mut self, shared: &Shared) {
        if self.noted.is_none_or(|at| at.elapsed() >= NOTE) {
            self.note().await;
        }
        let directory = shared.directory();
        self.forget_the_gone(&directory);
        let names: Vec<&Arc<str>> = directory.names().into_iter().collect();
        let chosen = choose(&names, &shared.config.own, &self.judges, &mut rand::rng());
        let chosen = chosen.into_iter().flat_map(|name| directory.targets(name));
        let chosen: Vec<Target> = chosen.collect();
        let pairs: Vec<Pair<'_>> = chosen
            .iter()
            .filter_map(|peer| {
                let end = directory.end(peer.family)?;
                Some(Pair { shared, end, peer })
            })
            .collect();
        let measured = join_all(pairs.iter().map(|pair| pair.measure(false))).await;
        let mut looks = 0;
        for (pair, mut measured) in pairs.iter().zip(measured) {
            self.reports.metrics.probes.measured(&measured);
            let news = self.hear(pair, &measured);
            if self.is_to_be_mended(pair, news.is_some()) && self.remedy(pair).await {
                continue;
            }
            let Some(verdict) = news else {
                continue;
            };
            if looks < LOOKS {
                looks += 1;
                pair.find_rules(&mut measured).await;
            }
            self.alarm(pair, &measured, &verdict);
        }
        self.publish(&directory);
    }

    /// Looks for what no probe meets: those go from node to node, pods' packets are forwarded.
    async fn note(&mut self) {
        self.noted = Some(Instant::now());
        let notes = firewall::notes().await;
        for note in notes.iter().filter(|note| !self.notes.contains(note)) {
            tracing::warn!("{note}");
        }
        self.notes = notes;
    }

    /// Takes in what was measured. The verdict, if it is a new one and bad.
    fn hear(&mut self, pair: &Pair<'_>, measured: &Measurement) -> Option<Verdict> {
        let peer = pair.peer;
        let key = (peer.node.clone(), peer.family);
        let judge = self.judges.entry(key.clone()).or_default();
        let changed = judge.hear(measured.verdict());
        let told = judge.told().cloned();
        if !judge.is_suspicious() {
            self.judges.remove(&key);
        }
        if told.is_none() && self.findings.remove(&key).is_some() {
            let (node, family) = (&peer.node, peer.family);
            let text = format!("pods on {node} can be reached again ({family})");
            tracing::info!("{text}");
            self.tell(REACHABLE, &text);
        }
        told.filter(|_| changed)
    }

    /// Whether this node's own checksums arrive wrong, and it is time to do something about it.
    fn is_to_be_mended(&self, pair: &Pair<'_>, news: bool) -> bool {
        let key = (pair.peer.node.clone(), pair.peer.family);
        let told = self.judges.get(&key).and_then(Judge::told);
        let ours = told == Some(&Verdict::Checksum { theirs: false });
        ours && (news || self.tried.is_none_or(|at| at.elapsed() >= TRY_AGAIN))
    }

    /// Whether this node could do something about its checksums.
    async fn remedy(&mut self, pair: &Pair<'_>) -> bool {
        self.tried = Some(Instant::now());
        match remedy::switch_off(pair).await {
            Ok(Some(done)) => {
                tracing::warn!("{done}");
                self.tell(CHECKSUM, &done);
                self.remedies.insert(done);
                true
            }
            Ok(None) => false,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "checksum offload stays on");
                false
            }
        }
    }

    fn alarm(&mut self, pair: &Pair<'_>, measured: &Measurement, verdict: &Verdict) {
        let Pair { shared, end, peer } = pair;
        let text = words(shared, end, peer, measured, verdict);
        tracing::warn!("{text} ({})", peer.family);
        self.tell(reason(verdict), &text);
        self.reports.metrics.probes.alarm();
        let finding = Finding {
            node: peer.node.clone(),
            family: peer.family,
            kind: verdict.kind(),
            text,
        };
        self.findings
            .insert((peer.node.clone(), peer.family), finding);
    }

    fn tell(&self, reason: &'static str, text: &str) {
        let severity = match reason {
            REACHABLE => Severity::Normal,
            _ => Severity::Warning,
        };
        let words = (reason, "Probe");
        self.reports
            .recorder
            .tell(Subject::Node, severity, words, text);
    }

    fn forget_the_gone(&mut self, directory: &Directory) {
        let is_there = |(name, family): &Key| directory.target(name, *family).is_some();
        self.judges.retain(|key, _| is_there(key));
        self.findings.retain(|key, _| is_there(key));
    }

    fn publish(&self, directory: &Directory) {
        let findings: Vec<Finding> = self.findings.values().cloned().collect();
        let nodes = directory.names();
        let failing: BTreeSet<&Arc<str>> = findings.iter().map(|f| &f.node).collect();
        let told = findings.get(..TOLD).unwrap_or(&findings);
        self.reports
            .metrics
            .probes
            .round(nodes.len(), failing.len(), told, self.remedies.len());
        self.reports.status.store(Arc::new(ProbeStatus {
            findings,
            remedies: self.remedies.iter().cloned().collect(),
            notes: self.notes.clone(),
        }));
    }
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

const REACHABLE: &str = "OverlayReachable";
const CHECKSUM: &str = "OverlayChecksum";

/// The reason of an event.
fn reason(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Healthy => REACHABLE,
        Verdict::Silent => "OverlayPeerSilent",
        Verdict::Blocked { .. } => "OverlayBlocked",
        Verdict::Mtu { .. } => "OverlayMTU",
        Verdict::Checksum { .. } => CHECKSUM,
        Verdict::Partly(_) => "OverlayPartlyBlocked",
    }
}

/// Those to ask now, of `names`, which are sorted: both neighbours of `own`, some by chance, and suspicious ones.
fn choose<'a>(
    names: &[&'a Arc<str>],
    own: &str,
    judges: &'a BTreeMap<Key, Judge>,
    random: &mut impl Rng,
) -> BTreeSet<&'a str> {
    if names.is_empty() {
        return BTreeSet::new();
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
    fn a_round_asks_neighbours_and_a_few_others_however_many_there_are_and_all_in_time() {
        let (mut random, nobody) = (SmallRng::seed_from_u64(1), BTreeMap::new());
        for nodes in [1, 2, 3, 10, 1000] {
            let names = names(nodes);
            let names: Vec<&Arc<str>> = names.iter().collect();
            let own = format!("node-{:04}", nodes / 2);
            let mut asked: BTreeSet<&str> = BTreeSet::new();
            for _ in 0..10 * nodes {
                let chosen = choose(&names, &own, &nobody, &mut random);
                assert!(chosen.len() <= 2 + BY_CHANCE);
                if nodes >= 3 {
                    for neighbour in [nodes / 2 - 1, nodes / 2 + 1] {
                        assert!(chosen.contains(&*format!("node-{neighbour:04}")));
                    }
                }
                asked.extend(chosen);
            }
            assert_eq!(asked.len(), nodes - 1);
        }
    }

    #[test]
    fn suspicious_peers_are_asked_again_but_never_too_many_at_a_time() {
        let (names, mut random) = (names(1000), SmallRng::seed_from_u64(1));
        let names: Vec<&Arc<str>> = names.iter().collect();
        let judge = |name: &&Arc<str>| (((*name).clone(), Family::Ip), Judge::default());
        let few: BTreeMap<Key, Judge> = names.iter().take(6).map(judge).collect();
        let chosen = choose(&names, "node-0500", &few, &mut random);
        assert!(names.iter().take(6).all(|name| chosen.contains(&***name)));
        let all: BTreeMap<Key, Judge> = names.iter().map(judge).collect();
        let chosen = choose(&names, "node-0500", &all, &mut random);
        assert!(chosen.len() <= 2 + BY_CHANCE + SUSPICIOUS);
    }
}
