//! Which nodes or endpoints are suspects, since when, and when each is probed again.
//!
//! A pure function of instants and findings. Rules:
//! * At most half of the nodes are suspects: if more seem to be down, it is rather this node that is cut off.
//! * A probe that is answered ends a suspicion at once. A node that falls again within [`CALM`] has to stay away for longer
//!   each time, up to [`LONGEST_HOLD`].
//! * A node that has never answered any probe may have rules that drop probes. Its suspicion ends after [`UNPROVEN`], and
//!   nothing leads to another one for a pause that doubles each time, up to [`LONGEST_PAUSE`].
//! * One that has answered before may have such rules since, or be another with the same address: its suspicion ends after
//!   [`PROVEN`], and it counts as one that has never answered from then on. What is down for so long is no endpoint any more.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Interval between probes of a suspect.
const INTERVAL: Duration = Duration::from_secs(1);
/// Suspects that are probed in one interval at most; the others wait for their turn.
const AT_ONCE: usize = 32;
/// A node that does not fall within this time after its return is as good as one that never fell.
const CALM: Duration = Duration::from_secs(300);
const LONGEST_HOLD: Duration = Duration::from_secs(60);
const UNPROVEN: Duration = Duration::from_secs(60);
const PROVEN: Duration = Duration::from_secs(600);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// See the module.
#[derive(Debug)]
pub(super) struct Suspicions<K> {
    suspects: BTreeMap<K, Suspicion>,
    /// Those that have answered a probe.
    proven: BTreeSet<K>,
    /// When some came back, and how often in a row they had fallen before.
    returned: BTreeMap<K, (Instant, u32)>,
    /// Those whose suspicion ended without an answer: until when nothing leads to another, and that pause.
    paused: BTreeMap<K, (Instant, Duration)>,
    /// When suspects were last probed.
    probed_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Suspicion {
    since: Instant,
    /// An answer before this instant does not end the suspicion.
    held_until: Instant,
    next_probe: Instant,
    /// How often in a row the node has fallen soon after its return.
    falls: u32,
}

impl<K> Default for Suspicions<K> {
    fn default() -> Self {
        Suspicions {
            suspects: BTreeMap::new(),
            proven: BTreeSet::new(),
            returned: BTreeMap::new(),
            paused: BTreeMap::new(),
            probed_at: None,
        }
    }
}

impl<K: Ord + Clone> Suspicions<K> {
    /// The suspects.
    pub(super) fn all(&self) -> impl Iterator<Item = &K> {
        self.suspects.keys()
    }

    /// How much is kept, about suspects and others.
    pub(super) fn remembered(&self) -> usize {
        self.proven.len() + self.returned.len() + self.paused.len()
    }

    /// Drops everything about those that are no suspects.
    pub(super) fn forget_others(&mut self) {
        let suspects = &self.suspects;
        self.proven.retain(|node| suspects.contains_key(node));
        self.returned.clear();
        self.paused.retain(|node, _| suspects.contains_key(node));
    }

    /// Whether this one is a suspect.
    pub(super) fn is_suspect<Q: Ord + ?Sized>(&self, node: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.suspects.contains_key(node)
    }

    /// Whether unanswered attempts are a reason to probe this node.
    pub(super) fn may_probe<Q: Ord + ?Sized>(&self, node: &Q, now: Instant) -> bool
    where
        K: Borrow<Q>,
    {
        let paused = self.paused.get(node);
        !self.is_suspect(node) && paused.is_none_or(|(until, _)| now >= *until)
    }

    /// How many more may be probed for a reason, of `most` at a time. Those that are suspects already do not count: they are
    /// probed again and again.
    pub(super) fn room(&self, most: usize, probing: &BTreeSet<K>) -> usize {
        let begun = probing.iter().filter(|node| !self.is_suspect(*node));
        most.saturating_sub(begun.count())
    }

    /// Makes a node a suspect, unless half of `nodes` are suspects already.
    pub(super) fn suspect(&mut self, node: K, nodes: usize, now: Instant) -> bool {
        if self.suspects.len() >= nodes / 2 {
            return false;
        }
        let returned = self.returned.remove(&node);
        let again = returned.filter(|(at, _)| now < *at + CALM);
        let falls = again.map_or(0, |(_, falls)| falls + 1);
        let hold = match falls {
            0 => Duration::ZERO,
            n => Duration::from_secs(1 << n.min(6)).min(LONGEST_HOLD),
        };
        let suspicion = Suspicion {
            since: now,
            held_until: now + hold,
            next_probe: now + INTERVAL,
            falls,
        };
        self.suspects.insert(node, suspicion);
        true
    }

    /// Notes that a node has answered. Returns how long it was a suspect, if it is none any longer.
    pub(super) fn answered(&mut self, node: &K, now: Instant) -> Option<Duration> {
        self.proven.insert(node.clone());
        self.paused.remove(node);
        let suspicion = self.suspects.get(node)?;
        if now < suspicion.held_until {
            return None;
        }
        let (since, falls) = (suspicion.since, suspicion.falls);
        self.suspects.remove(node);
        self.returned.insert(node.clone(), (now, falls));
        Some(now - since)
    }

    /// Ends the suspicions that are too old, of nodes that have never answered and of those that have.
    pub(super) fn expire(&mut self, now: Instant) -> Vec<K> {
        let proven = &self.proven;
        let expired = self.suspects.extract_if(.., |node, suspicion| {
            let longest = match proven.contains(node) {
                true => PROVEN,
                false => UNPROVEN,
            };
            now >= suspicion.since + longest
        });
        let expired: Vec<K> = expired.map(|(node, _)| node).collect();
        for node in &expired {
            self.proven.remove(node);
            let before = self.paused.get(node).map(|(_, pause)| *pause);
            let pause = before.map_or(UNPROVEN, |pause| (pause * 2).min(LONGEST_PAUSE));
            self.paused.insert(node.clone(), (now + pause, pause));
        }
        expired
    }

    /// Drops everything about nodes that do not exist. Returns those of them that were suspects.
    pub(super) fn retain(&mut self, exists: impl Fn(&K) -> bool) -> Vec<K> {
        self.proven.retain(|node| exists(node));
        self.returned.retain(|node, _| exists(node));
        self.paused.retain(|node, _| exists(node));
        let gone = self.suspects.extract_if(.., |node, _| !exists(node));
        gone.map(|(node, _)| node).collect()
    }

    /// When the next suspect is to be probed.
    pub(super) fn due(&self) -> Option<Instant> {
        let suspects = self.suspects.values();
        let first = suspects.map(|suspicion| suspicion.next_probe).min()?;
        let rest = self.probed_at.map(|at| at + INTERVAL / 2);
        Some(rest.map_or(first, |rest| rest.max(first)))
    }

    /// The suspects to probe now: those that have waited longest.
    pub(super) fn take_due(&mut self, now: Instant) -> BTreeSet<K> {
        let mut due: Vec<(Instant, K)> = self
            .suspects
            .iter()
            .filter(|(_, suspicion)| suspicion.next_probe <= now)
            .map(|(node, suspicion)| (suspicion.next_probe, node.clone()))
            .collect();
        if due.is_empty() {
            return BTreeSet::new();
        }
        self.probed_at = Some(now);
        due.sort();
        due.truncate(AT_ONCE);
        for (_, node) in &due {
            if let Some(suspicion) = self.suspects.get_mut(node) {
                suspicion.next_probe = now + INTERVAL;
            }
        }
        due.into_iter().map(|(_, node)| node).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn b() -> Arc<str> {
        "node-b".into()
    }

    #[test]
    fn an_answer_ends_a_suspicion_at_once() {
        let (mut suspicions, start) = (Suspicions::<Arc<str>>::default(), Instant::now());
        assert!(suspicions.may_probe("node-b", start));
        assert!(suspicions.suspect(b(), 3, start));
        assert!(!suspicions.may_probe("node-b", start));
        assert_eq!(suspicions.due(), Some(start + INTERVAL));
        assert!(suspicions.take_due(start).is_empty());
        assert_eq!(suspicions.take_due(start + SECOND), BTreeSet::from([b()]));
        let lasted = suspicions.answered(&b(), start + SECOND);
        assert_eq!(
            (lasted, suspicions.is_suspect("node-b")),
            (Some(SECOND), false)
        );
        assert!(suspicions.may_probe("node-b", start + SECOND));
    }

    #[test]
    fn a_node_that_falls_again_stays_away_for_longer() {
        let (mut suspicions, mut now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        let mut stays = Vec::new();
        for _ in 0..9 {
            assert!(suspicions.suspect(b(), 2, now));
            let fell = now;
            while suspicions.answered(&b(), now).is_none() {
                now += SECOND;
            }
            stays.push((now - fell).as_secs());
            now += 10 * SECOND;
        }
        assert_eq!(stays, [0, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += CALM;
        assert!(suspicions.suspect(b(), 2, now));
        assert!(suspicions.answered(&b(), now).is_some());
    }

    #[test]
    fn at_most_half_of_the_nodes_are_suspects() {
        let (mut suspicions, now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        let name = |n: usize| -> Arc<str> { format!("node-{n}").into() };
        let taken = (0..9).filter(|n| suspicions.suspect(name(*n), 9, now));
        assert_eq!(taken.count(), 4);
        assert!(
            !suspicions.suspect(b(), 1, now),
            "this node is the only one"
        );
    }

    #[test]
    fn a_node_that_never_answered_is_tried_again() {
        let (mut suspicions, mut now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(suspicions.suspect(b(), 2, now));
            assert!(suspicions.expire(now + UNPROVEN - SECOND).is_empty());
            now += UNPROVEN;
            assert_eq!(suspicions.expire(now), [b()]);
            let from = now;
            while !suspicions.may_probe("node-b", now) {
                now += SECOND;
            }
            pauses.push((now - from).as_secs());
        }
        assert_eq!(pauses, [60, 120, 240, 480, 960, 1920, 3600, 3600]);
        suspicions.answered(&b(), now);
        assert!(suspicions.suspect(b(), 2, now));
        assert!(suspicions.expire(now + PROVEN - SECOND).is_empty());
        // What answered once may be dropping probes by now.
        assert_eq!(suspicions.expire(now + PROVEN), [b()]);
        now += PROVEN + UNPROVEN;
        assert!(suspicions.may_probe("node-b", now) && suspicions.suspect(b(), 2, now));
        assert_eq!(suspicions.expire(now + UNPROVEN), [b()]);
    }

    #[test]
    fn what_is_forgotten_is_not_about_suspects() {
        let (mut suspicions, now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        suspicions.answered(&b(), now);
        for n in 0..9 {
            suspicions.answered(&format!("node-{n}").into(), now);
        }
        assert!(suspicions.suspect(b(), 20, now));
        assert_eq!(suspicions.remembered(), 10);
        suspicions.forget_others();
        assert_eq!(suspicions.remembered(), 1);
        assert!(suspicions.is_suspect("node-b"));
        assert!(suspicions.expire(now + UNPROVEN).is_empty());
    }

    #[test]
    fn probes_of_suspects_take_no_room_of_others() {
        let (mut suspicions, now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        let name = |n: usize| -> Arc<str> { format!("node-{n}").into() };
        for n in 0..80 {
            assert!(suspicions.suspect(name(n), 200, now));
        }
        let mut probing: BTreeSet<Arc<str>> = (0..64).map(name).collect();
        assert_eq!(suspicions.room(32, &probing), 32);
        probing.extend((100..140).map(name));
        assert_eq!(suspicions.room(32, &probing), 0);
    }

    #[test]
    fn nodes_that_are_gone_are_dropped() {
        let (mut suspicions, now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        suspicions.answered(&"node-c".into(), now);
        assert!(suspicions.suspect(b(), 3, now));
        assert_eq!(suspicions.retain(|node| **node != *"node-b"), [b()]);
        assert_eq!(suspicions.due(), None);
        assert_eq!(suspicions.retain(|_| false), [] as [Arc<str>; 0]);
        assert!(suspicions.proven.is_empty());
    }

    #[test]
    fn many_suspects_are_probed_in_turns() {
        let (mut suspicions, now) = (Suspicions::<Arc<str>>::default(), Instant::now());
        for n in 0..100 {
            assert!(suspicions.suspect(format!("node-{n}").into(), 200, now));
        }
        let (mut probed, mut at) = (BTreeSet::new(), now + INTERVAL);
        for _ in 0..8 {
            let some = suspicions.take_due(at);
            assert!(some.len() <= AT_ONCE);
            probed.extend(some);
            at += INTERVAL / 2;
            assert!(suspicions.due().is_some_and(|due| due >= at));
        }
        assert_eq!(probed.len(), 100);
    }
}
