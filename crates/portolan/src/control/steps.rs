//! Commits a Service with many elements in steps, so that a commit of others never waits for all of its elements.
//!
//! A step is an intent of its own: the frontends up to some point as they should be, the others as they are. Each frontend
//! changes at once, and no frontend is missing meanwhile that is there before and after.
//!
//! Further steps have a pace of their own: a change of others does not wait for the batching interval after a step, and a
//! batch of others has a step only if one is due.
//!
//! A group of session affinity has one time-out at a time, so a step changes it for all frontends of the group, and nothing else
//! of them.
//!
//! Invariant: the last step is the intent that was asked for, and each step brings at least one frontend nearer to it. A step
//! begins where the one before has ended, also when the Service has changed meanwhile: no frontend waits for longer than a
//! round of all of them, however often endpoints change.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use service_dataplane::{Claim, Update, in_slots, side_by_side};
use service_model::{Affinity, Disposition, Frontend, ObjectName, ServiceIntent};

/// Elements that one step changes, deleted and added ones together: a few milliseconds.
const STEP: usize = 1024;
/// So many endpoints that keep their slot count as an element, which takes 3 to 4 us: rendering one takes 0.17 us, and they are
/// copied and compared as well.
const COMPARED: usize = 8;
/// The pause after a further step is as long as the step took, within these limits.
const PAUSES: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(20)];

/// Services of which not all frontends are committed yet, and what they need.
#[derive(Debug, Default)]
pub(super) struct Steps {
    unfinished: BTreeMap<ObjectName, Unfinished>,
    /// The Service that had the last further step; the next one is another's turn.
    last: Option<ObjectName>,
    /// Earliest time of the next further step.
    not_before: Option<Instant>,
    /// What the batch under way has of further steps.
    share: Share,
}

/// A Service with frontends that are not as they should be.
#[derive(Clone, Debug)]
struct Unfinished {
    target: Arc<ServiceIntent>,
    /// The frontend with which the last step has ended. Work on those before it does not move it, so that a state that comes
    /// again and again delays no others.
    reached: Option<Claim>,
}

/// How much of a batch is a further step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Share {
    #[default]
    None,
    Part,
    All,
}

impl Steps {
    /// Whether no further step is to be committed.
    pub(super) fn is_empty(&self) -> bool {
        self.unfinished.is_empty()
    }

    /// When the next further step is due; `None` if there is none.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.not_before.map_or(now, |at| at.max(now));
        (!self.is_empty()).then_some(due)
    }

    /// Sets the pause after a commit that took `elapsed`. Returns whether the commit was a further step and nothing else.
    pub(super) fn committed(&mut self, now: Instant, elapsed: Duration) -> bool {
        let share = std::mem::take(&mut self.share);
        if share != Share::None {
            let [shortest, longest] = PAUSES;
            self.not_before = Some(now + elapsed.clamp(shortest, longest));
        }
        share == Share::All
    }

    /// Forgets a Service that is quarantined.
    pub(super) fn forget(&mut self, service: &ObjectName) {
        self.unfinished.remove(service);
    }

    /// Adds all that is unfinished to a batch that is committed whole.
    pub(super) fn finish(&mut self, updates: &mut Vec<Update>) {
        self.share = Share::None;
        let unfinished = std::mem::take(&mut self.unfinished).into_iter();
        let planned: BTreeSet<ObjectName> = updates.iter().map(|one| one.service.clone()).collect();
        let missing = unfinished.filter(|(service, _)| !planned.contains(service));
        updates.extend(missing.map(|(service, unfinished)| Update {
            service,
            intent: Some(unfinished.target),
        }));
    }

    /// Replaces updates of many elements by their first step, and adds a further step of one Service that is not among them,
    /// if that is due. `current` returns the intent that was committed last.
    pub(super) fn limit(
        &mut self,
        updates: &mut Vec<Update>,
        now: Instant,
        current: impl Fn(&ObjectName) -> Option<Arc<ServiceIntent>>,
    ) {
        let is_due = self.due(now).is_some_and(|at| at <= now);
        let further = is_due.then(|| self.next(updates)).flatten();
        self.share = match (&further, updates.is_empty()) {
            (None, _) => Share::None,
            (Some(_), false) => Share::Part,
            (Some(_), true) => Share::All,
        };
        updates.extend(further);
        for update in updates {
            let before = self.unfinished.remove(&update.service);
            let Some(target) = update.intent.clone() else {
                continue;
            };
            let reached = before.and_then(|unfinished| unfinished.reached);
            let current = current(&update.service);
            let from = current
                .as_deref()
                .map(|current| beginning(current, &target));
            if let Some((step, reached)) = step(&from.unwrap_or_default(), &target, reached) {
                let unfinished = Unfinished { target, reached };
                self.unfinished.insert(update.service.clone(), unfinished);
                update.intent = Some(Arc::new(step));
            }
        }
    }

    fn next(&mut self, updates: &[Update]) -> Option<Update> {
        let planned: BTreeSet<&ObjectName> = updates.iter().map(|one| &one.service).collect();
        let waiting = || {
            let unfinished = self.unfinished.iter();
            unfinished.filter(|(service, _)| !planned.contains(service))
        };
        let later = waiting().find(|(service, _)| Some(*service) > self.last.as_ref());
        let (service, unfinished) = later.or_else(|| waiting().next())?;
        let next = Update {
            service: service.clone(),
            intent: Some(unfinished.target.clone()),
        };
        self.last = Some(next.service.clone());
        Some(next)
    }
}

/// The frontends with which the steps to an intent begin: those that are committed. Of an earlier Service of the name, or of an
/// address that the Service had, only those that the intent has as well: the others may be those of another Service by now, and go
/// at once, as those of a deleted Service do.
fn beginning<'a>(current: &'a ServiceIntent, to: &ServiceIntent) -> Cow<'a, [Frontend]> {
    if current.is_of(to.created, &to.cluster_ips()) {
        return Cow::Borrowed(&current.frontends);
    }
    let pairs = side_by_side(&current.frontends, &to.frontends);
    let kept = pairs.filter_map(|(old, new)| new.and(old).cloned());
    Cow::Owned(kept.collect())
}

/// A step from these frontends to an intent, which begins behind `reached`, and the frontend with which it ends; `None` if one
/// commit can have all of it.
fn step(
    from: &[Frontend],
    to: &ServiceIntent,
    reached: Option<Claim>,
) -> Option<(ServiceIntent, Option<Claim>)> {
    let cost = |frontends: &[Frontend]| -> usize { frontends.iter().map(Frontend::elements).sum() };
    if cost(from) + cost(&to.frontends) <= STEP {
        return None;
    }
    if let Some(frontends) = with_affinity_of(from, &to.frontends) {
        let step = ServiceIntent {
            frontends,
            ..to.clone()
        };
        return (step.frontends != to.frontends).then_some((step, reached));
    }
    let pairs: Vec<_> = side_by_side(from, &to.frontends).collect();
    let claim = |(old, new): &(Option<&Frontend>, Option<&Frontend>)| new.or(*old).map(Claim::from);
    let place = pairs.partition_point(|pair| claim(pair) <= reached);
    let (done, ahead) = pairs.split_at(if place < pairs.len() { place } else { 0 });
    let (mut spent, mut taken, mut last) = (0, BTreeSet::new(), reached);
    let ahead = ahead.iter().map(|pair| (pair, true));
    for (pair, is_ahead) in ahead.chain(done.iter().map(|pair| (pair, false))) {
        let (old, new) = pair;
        if old != new {
            spent += cost_of(*old, *new);
            taken.insert(claim(pair));
            last = if is_ahead { claim(pair) } else { last };
        }
        if spent >= STEP {
            break;
        }
    }
    let frontends = pairs
        .iter()
        .filter_map(|pair| match taken.contains(&claim(pair)) {
            true => pair.1.cloned(),
            false => pair.0.cloned(),
        });
    let frontends: Vec<Frontend> = frontends.collect();
    let is_part = spent >= STEP && frontends != to.frontends;
    let step = ServiceIntent {
        frontends,
        ..to.clone()
    };
    is_part.then_some((step, last))
}

/// What a frontend's change costs: the elements that it deletes and adds, at most, and a part of those for endpoints that keep
/// their slot.
fn cost_of(old: Option<&Frontend>, new: Option<&Frontend>) -> usize {
    let all = |one: Option<&Frontend>| one.map_or(0, Frontend::elements);
    let whole = all(old) + all(new);
    let dispositions = (
        old.map(|one| &one.disposition),
        new.map(|one| &one.disposition),
    );
    match dispositions {
        // The same number of endpoints has the same map, in which only other slots change.
        (Some(Disposition::Balance(old)), Some(Disposition::Balance(new)))
            if old.len() == new.len() =>
        {
            let same = match old == new {
                true => old.len(),
                false => {
                    let (old, new) = (in_slots(old), in_slots(new));
                    let pairs = old.iter().zip(new.iter());
                    pairs.filter(|(old, new)| old == new).count()
                }
            };
            whole - 2 * same + same / COMPARED
        }
        _ => whole,
    }
}

/// These frontends, some groups of them with the affinity that others have in the same group; `None` if no group differs.
fn with_affinity_of(frontends: &[Frontend], others: &[Frontend]) -> Option<Vec<Frontend>> {
    let affinity = others.iter().filter_map(|frontend| frontend.affinity);
    let wanted: BTreeMap<u32, Affinity> = affinity.map(|one| (one.group, one)).collect();
    let new = |frontend: &Frontend| {
        let old = frontend.affinity?;
        let wanted = wanted.get(&old.group).copied();
        wanted.filter(|wanted| *wanted != old)
    };
    let mut costs: BTreeMap<u32, usize> = BTreeMap::new();
    for frontend in frontends {
        if let Some(affinity) = new(frontend) {
            *costs.entry(affinity.group).or_default() += frontend.elements();
        }
    }
    let (mut spent, mut groups) = (0, BTreeSet::new());
    for (group, cost) in costs {
        if spent < STEP {
            spent += cost;
            groups.insert(group);
        }
    }
    let changed = frontends.iter().map(|frontend| {
        let affinity = new(frontend).filter(|affinity| groups.contains(&affinity.group));
        Frontend {
            affinity: affinity.or(frontend.affinity),
            ..frontend.clone()
        }
    });
    (!groups.is_empty()).then(|| changed.collect())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use service_model::{Backend, FrontendAddress, Masquerade, Protocol};

    use super::*;

    /// A Service of so many frontends, each with these endpoints.
    fn service(name: &str, frontends: u16, endpoints: std::ops::Range<u8>) -> Arc<ServiceIntent> {
        let backend = |host| Backend {
            address: IpAddr::from([10, 244, 0, host]),
            port: 8080,
            local: false,
        };
        let backends: Arc<[Backend]> = endpoints.map(backend).collect();
        let frontend = |port| Frontend {
            address: FrontendAddress::ClusterIp([10, 96, 0, 1].into()),
            protocol: Protocol::Tcp,
            port,
            service_port: port,
            disposition: Disposition::Balance(backends.clone()),
            outside: None,
            masquerade: Masquerade::OffCluster,
            allowed_sources: None,
            affinity: None,
            counted: false,
            serving: backends.clone(),
        };
        Arc::new(ServiceIntent {
            service: ObjectName::new("default", name),
            created: None,
            frontends: (1..=frontends).map(frontend).collect(),
            load_balancer_ips: Vec::new(),
            relays: BTreeMap::new(),
            reset_removed: false,
            health_check: None,
        })
    }

    fn update(intent: &Arc<ServiceIntent>) -> Update {
        Update {
            service: intent.service.clone(),
            intent: Some(intent.clone()),
        }
    }

    #[test]
    fn a_large_service_is_committed_in_steps_that_end_at_its_intent() {
        let (mut steps, mut current) = (Steps::default(), None::<Arc<ServiceIntent>>);
        for target in [service("large", 800, 0..100), service("large", 700, 1..101)] {
            let mut updates = vec![update(&target)];
            let mut taken = 0;
            loop {
                steps.limit(&mut updates, Instant::now(), |_| current.clone());
                let [one] = updates.as_slice() else {
                    panic!("{}", updates.len())
                };
                let next = one.intent.clone().unwrap();
                let changed = |frontend: &&Frontend| {
                    let mut known = current.iter().flat_map(|intent| &intent.frontends);
                    !known.any(|known| known == *frontend)
                };
                let elements = next
                    .frontends
                    .iter()
                    .filter(changed)
                    .map(Frontend::elements);
                assert!(elements.sum::<usize>() <= STEP + 220);
                // What is there before and after is never missing.
                let keeps = current
                    .iter()
                    .flat_map(|intent| &intent.frontends)
                    .filter(|old| target.frontends.iter().any(|new| new.port == old.port));
                for old in keeps {
                    assert!(next.frontends.iter().any(|new| new.port == old.port));
                }
                current = Some(next);
                taken += 1;
                if steps.is_empty() {
                    break;
                }
                updates.clear();
            }
            assert_eq!(current.as_ref(), Some(&target));
            assert!((40..320).contains(&taken), "{taken} steps");
        }
    }

    #[test]
    fn slots_that_stay_are_a_small_part_of_a_step() {
        // Four steps if all 100 endpoints of each were elements.
        let mut current = (*service("large", 20, 0..100)).clone();
        let other = &service("large", 1, 100..101).frontends[0].disposition;
        let Disposition::Balance(other) = other else {
            panic!("{other:?}")
        };
        for frontend in &mut current.frontends {
            if let Disposition::Balance(backends) = &mut frontend.disposition {
                let first = other.iter().chain(backends.iter().skip(1));
                *backends = first.copied().collect();
            }
        }
        let (mut steps, current) = (Steps::default(), Some(Arc::new(current)));
        let target = service("large", 20, 0..100);
        let mut updates = vec![update(&target)];
        steps.limit(&mut updates, Instant::now(), |_| current.clone());
        assert!(steps.is_empty());
        assert_eq!(updates[0].intent.as_ref(), Some(&target));
    }

    #[test]
    fn frontends_whose_serving_endpoints_change_take_steps() {
        // Nothing of these is an element, and comparing them takes milliseconds.
        let current = service("large", 300, 0..250);
        let mut target = (*current).clone();
        for frontend in &mut target.frontends {
            frontend.serving = [].into();
        }
        let (mut steps, target) = (Steps::default(), Arc::new(target));
        let mut updates = vec![update(&target)];
        steps.limit(&mut updates, Instant::now(), |_| Some(current.clone()));
        let step = updates[0].intent.as_ref().unwrap();
        let changed = step.frontends.iter().filter(|one| one.serving.is_empty());
        assert!((1..=30).contains(&changed.count()));
        assert!(!steps.is_empty());
    }

    #[test]
    fn a_group_of_session_affinity_has_one_timeout_in_each_step() {
        // Two frontends a group, also one that goes, one that comes, and one that has other endpoints.
        let sticky = |endpoints, ports: std::ops::RangeInclusive<u16>, seconds| {
            let mut intent = (*service("sticky", 90, endpoints)).clone();
            intent.frontends.retain(|one| ports.contains(&one.port));
            for frontend in &mut intent.frontends {
                let group = u32::from(frontend.port).div_ceil(2);
                let map = 7;
                frontend.affinity = Some(Affinity {
                    seconds,
                    group,
                    map,
                });
            }
            Arc::new(intent)
        };
        let mut current = sticky(0..100, 1..=81, 3600);
        for target in [sticky(1..101, 2..=84, 3601), sticky(1..101, 2..=84, 3602)] {
            let (mut steps, mut taken) = (Steps::default(), 0);
            let mut updates = vec![update(&target)];
            while current != target {
                steps.limit(&mut updates, Instant::now(), |_| Some(current.clone()));
                current = updates[0].intent.clone().unwrap();
                let mut timeouts = BTreeMap::new();
                for affinity in current.frontends.iter().filter_map(|one| one.affinity) {
                    let seconds = *timeouts.entry(affinity.group).or_insert(affinity.seconds);
                    assert_eq!(seconds, affinity.seconds, "group {}", affinity.group);
                }
                updates.clear();
                taken += 1;
                assert!(taken < 100);
            }
            assert!(steps.is_empty() && taken > 5, "{taken}");
        }
    }

    #[test]
    fn no_frontend_waits_for_ever_while_its_service_changes() {
        const ROUND: usize = 200 * 500 / STEP + 1;
        let mut steps = Steps::default();
        let mut current = service("large", 200, 0..250);
        // The version in which each frontend was last as it should be.
        let mut right = vec![0; current.frontends.len()];
        for version in 1..=3 * ROUND {
            let begin = u8::try_from(version % 6).unwrap();
            let target = service("large", 200, begin..begin + 250);
            let mut updates = vec![update(&target)];
            steps.limit(&mut updates, Instant::now(), |_| Some(current.clone()));
            let next = updates[0].intent.clone().unwrap();
            let both = next.frontends.iter().zip(&target.frontends);
            for (at, (found, wanted)) in right.iter_mut().zip(both) {
                if found == wanted {
                    *at = version;
                }
            }
            current = next;
        }
        assert!(right.iter().all(|at| *at > ROUND), "{right:?}");
    }

    #[test]
    fn others_are_committed_whole_beside_a_step_of_a_large_one() {
        let mut steps = Steps::default();
        let all = [service("a", 800, 0..100), service("b", 800, 0..100)];
        let mut updates = all.iter().map(update).collect();
        steps.limit(&mut updates, Instant::now(), |_| None);
        assert!(!steps.is_empty());
        let small = service("small", 3, 0..9);
        let mut updates = vec![update(&small)];
        steps.limit(&mut updates, Instant::now(), |_| None);
        assert_eq!(updates.len(), 2);
        assert_eq!(updates[0].intent.as_ref(), Some(&small));
        // The next step waits for as long as this one took; others do not.
        let (now, took) = (Instant::now(), Duration::from_millis(8));
        assert!(!steps.committed(now, took));
        assert_eq!(steps.due(now), Some(now + took));
        let mut updates = vec![update(&small)];
        steps.limit(&mut updates, now, |_| None);
        assert_eq!(updates.len(), 1);
        assert!(!steps.committed(now, took));
        let mut updates = Vec::new();
        steps.limit(&mut updates, now + took, |_| None);
        assert_eq!(updates.len(), 1);
        assert!(steps.committed(now, took));
        // A Service that goes is gone at once.
        let gone = |name: &str| Update {
            service: ObjectName::new("default", name),
            intent: None,
        };
        let mut updates = vec![gone("a"), gone("b")];
        steps.limit(&mut updates, Instant::now(), |_| None);
        assert!(steps.is_empty() && updates.iter().all(|update| update.intent.is_none()));
    }
}
