//! Suppresses repeated warnings about an object until the object recovers.
//!
//! A problem is logged once while it stays true, however often the object is listed, changed elsewhere or planned, and
//! again after the object was valid in between. At most [`REMEMBERED`] problems of one object are logged. How many lines
//! all objects together can cause is left to `line_limit`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use object_source::{Problem, SourceEvent, Subject};
use service_dataplane::{Claim, Conflict};
use service_model::{ObjectEvent, ObjectKind, ObjectName, Watched};

/// Maximum number of problems of an object that are logged.
const REMEMBERED: usize = 16;
/// Maximum number of pairs of Services remembered; beyond it, all are forgotten and logged again.
const PAIRS: usize = 1024;

/// Which pairs of Services claim the same frontends, to log each pair once.
#[derive(Debug, Default)]
pub(super) struct ConflictLog {
    /// By winner and loser: the number of frontends.
    logged: HashMap<(ObjectName, ObjectName), usize>,
    /// Pairs with a Service of the current commit. A pair that the commit does not report again is solved.
    before: HashMap<(ObjectName, ObjectName), usize>,
}

impl ConflictLog {
    /// Records that these Services are being committed again.
    pub(super) fn renewed<'a>(&mut self, services: impl Iterator<Item = &'a ObjectName>) {
        if self.logged.is_empty() {
            return;
        }
        let services: HashSet<&ObjectName> = services.collect();
        let concerned = |(winner, loser): &(ObjectName, ObjectName)| {
            services.contains(winner) || services.contains(loser)
        };
        let pairs = self.logged.extract_if(|pair, _| concerned(pair));
        self.before.extend(pairs);
    }

    /// Returns the pairs that are new or whose number of contested frontends has changed.
    pub(super) fn new_contests<'a>(&mut self, conflicts: &'a [Conflict]) -> Vec<Contest<'a>> {
        let mut pairs: BTreeMap<(&ObjectName, &ObjectName), BTreeSet<Claim>> = BTreeMap::new();
        for conflict in conflicts {
            let pair = pairs.entry((&conflict.winner, &conflict.loser));
            pair.or_default().insert(conflict.claim);
        }
        if self.logged.len() > PAIRS {
            self.logged.clear();
        }
        let contests = pairs.into_iter().map(|((winner, loser), claims)| Contest {
            winner,
            loser,
            claims,
        });
        let is_new = |contest: &Contest<'_>| {
            let pair = (contest.winner.clone(), contest.loser.clone());
            let frontends = contest.claims.len();
            let before = self.before.remove(&pair);
            let known = self.logged.insert(pair, frontends).or(before);
            known != Some(frontends)
        };
        let new = contests.filter(is_new).collect();
        self.before.clear();
        new
    }
}

/// The frontends that two Services claim.
#[derive(Debug)]
pub(super) struct Contest<'a> {
    pub(super) winner: &'a ObjectName,
    pub(super) loser: &'a ObjectName,
    pub(super) claims: BTreeSet<Claim>,
}

/// The problems that were logged.
#[derive(Debug, Default)]
pub(super) struct ProblemLog {
    logged: HashMap<Subject, LoggedProblems>,
}

/// The logged problems of one object.
#[derive(Debug, Default)]
struct LoggedProblems {
    /// Problems of the current version.
    now: Vec<Problem>,
    /// Problems of parts of the previous version. The problems of a version arrive after the version itself, and one that
    /// is in this list is not logged again.
    before: Vec<Problem>,
}

impl ProblemLog {
    /// Records which objects have a new version, are deleted or are valid again.
    pub(super) fn event(&mut self, event: &SourceEvent) {
        match event {
            SourceEvent::Service(event) => self.objects(event),
            SourceEvent::EndpointSlice(event) => self.objects(event),
            SourceEvent::Node(event) => self.objects(event),
            SourceEvent::ServiceCidr(event) => self.objects(event),
            SourceEvent::Solved(subject) => self.solved(subject),
            SourceEvent::Problem(_) | SourceEvent::Connection { .. } => {}
        }
    }

    fn objects<T: Watched>(&mut self, event: &ObjectEvent<T>) {
        let kind = T::KIND;
        match event {
            _ if self.logged.is_empty() => {}
            ObjectEvent::Apply(object) => self.renewed(kind, object.name()),
            ObjectEvent::Delete(name) => self.solved(&Subject::Object(kind, name.clone())),
            ObjectEvent::Reset { objects, invalid } => {
                let names = || objects.iter().map(|object| object.name());
                for name in names() {
                    self.renewed(kind, name);
                }
                let listed: HashSet<&ObjectName> = names().chain(invalid).collect();
                self.logged.retain(|subject, _| match subject {
                    Subject::Object(of, object) => *of != kind || listed.contains(object),
                    Subject::File(_) => true,
                });
            }
        }
    }

    fn solved(&mut self, subject: &Subject) {
        self.logged.remove(subject);
    }

    fn renewed(&mut self, kind: ObjectKind, object: &ObjectName) {
        let key = Subject::Object(kind, object.clone());
        if let Some(logged) = self.logged.get_mut(&key) {
            logged.before = std::mem::take(&mut logged.now);
            logged.before.retain(|problem| !problem.is_whole());
            if logged.before.is_empty() {
                self.logged.remove(&key);
            }
        }
    }

    /// Whether the current version of an object has a problem. An object without one is forgotten, so that a problem of
    /// this version that is reported later counts as new.
    pub(super) fn has(&mut self, subject: &Subject) -> bool {
        let has = self
            .logged
            .get(subject)
            .is_some_and(|problems| !problems.now.is_empty());
        if !has {
            self.logged.remove(subject);
        }
        has
    }

    /// Whether the problem must be logged; it counts as logged from then on.
    pub(super) fn is_new(&mut self, problem: &Problem) -> bool {
        let logged = self.logged.entry(problem.subject()).or_default();
        let entry = problem.clone().without_place();
        if logged.now.contains(&entry) {
            return false;
        }
        // An object that is invalid as a whole has one problem at a time.
        if problem.is_whole() {
            logged.now.clear();
        }
        if logged.now.len() == REMEMBERED {
            return false;
        }
        let is_new = !logged.before.contains(&entry);
        logged.now.push(entry);
        is_new
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use service_model::{Invalid, Service};

    use super::*;

    const KIND: ObjectKind = ObjectKind::Service;

    fn name() -> ObjectName {
        ObjectName::new("default", "web")
    }

    fn problem(reason: &str, whole_object: bool) -> Problem {
        let invalid = Invalid {
            kind: KIND,
            object: name(),
            field: "spec".into(),
            reason: reason.into(),
        };
        match whole_object {
            true => Problem::Object { at: None, invalid },
            false => Problem::Field { at: None, invalid },
        }
    }

    fn applied() -> ObjectEvent<Service> {
        ObjectEvent::Apply(Arc::new(Service::named(name())))
    }

    fn listed(objects: Vec<ObjectName>, invalid: Vec<ObjectName>) -> ObjectEvent<Service> {
        let objects = objects
            .into_iter()
            .map(Service::named)
            .map(Arc::new)
            .collect();
        ObjectEvent::Reset { objects, invalid }
    }

    #[test]
    fn a_problem_that_stays_is_logged_once() {
        let mut log = ProblemLog::default();
        let (whole, part) = (problem("bad", true), problem("odd", false));
        assert!(log.is_new(&whole));
        for _ in 0..3 {
            log.objects(&listed(vec![], vec![name()]));
            assert!(!log.is_new(&whole));
        }
        assert!(log.is_new(&problem("bad otherwise", true)));
        assert!(log.is_new(&whole));
        log.objects(&applied());
        assert!(log.is_new(&part));
        for _ in 0..3 {
            log.objects(&listed(vec![name()], vec![]));
            assert!(!log.is_new(&part));
            // Also when planning reports it.
            assert!(!log.is_new(&part));
        }
        assert!(log.is_new(&problem("odd elsewhere", false)));
    }

    #[test]
    fn an_object_with_a_thousand_problems_fills_no_log() {
        let mut log = ProblemLog::default();
        let thousand = |log: &mut ProblemLog, version: usize| {
            log.objects(&applied());
            let mut problems = (0..1_000).map(|n| problem(&format!("{version} {n}"), false));
            problems
                .by_ref()
                .filter(|problem| log.is_new(problem))
                .count()
        };
        assert_eq!(thousand(&mut log, 1), REMEMBERED);
        assert_eq!(thousand(&mut log, 1), 0);
    }

    #[test]
    fn a_conflict_of_two_services_is_one_line() {
        let conflict = |port| Conflict {
            claim: Claim {
                address: service_model::FrontendAddress::External([192, 0, 2, 1].into()),
                protocol: service_model::Protocol::Tcp,
                port,
            },
            winner: ObjectName::new("a", "old"),
            loser: name(),
        };
        let mut log = ConflictLog::default();
        let contested: Vec<Conflict> = (0..1_000).map(conflict).collect();
        let contests = log.new_contests(&contested);
        let lines: Vec<usize> = contests
            .iter()
            .map(|contest| contest.claims.len())
            .collect();
        assert_eq!(lines, [1_000]);
        assert!(
            log.new_contests(&contested).is_empty(),
            "nothing has changed"
        );
        log.renewed([&name()].into_iter());
        assert!(
            log.new_contests(&contested).is_empty(),
            "an edit elsewhere in the object"
        );
        assert_eq!(log.new_contests(&contested[1..]).len(), 1);
        // The conflict is solved, and comes back.
        log.renewed([&name()].into_iter());
        assert!(log.new_contests(&[]).is_empty());
        assert_eq!(log.new_contests(&contested[1..]).len(), 1);
    }

    #[test]
    fn an_object_has_a_problem_until_a_version_without_one() {
        let mut log = ProblemLog::default();
        let subject = Subject::Object(KIND, name());
        for problem in [problem("bad", true), problem("odd", false)] {
            assert!(log.is_new(&problem));
            assert!(log.has(&subject));
            log.objects(&applied());
            assert!(!log.has(&subject));
            // The new version has the problem as well, and nothing has named the object.
            assert!(log.is_new(&problem));
            assert!(log.has(&subject));
            log.objects(&ObjectEvent::<Service>::Delete(name()));
            assert!(!log.has(&subject));
        }
    }

    #[test]
    fn a_problem_that_comes_back_is_logged_again() {
        let mut log = ProblemLog::default();
        let (whole, part) = (problem("bad", true), problem("odd", false));
        assert!(log.is_new(&whole));
        log.objects(&applied());
        assert!(log.is_new(&whole));
        log.objects(&ObjectEvent::<Service>::Delete(name()));
        assert!(log.is_new(&whole));
        log.objects(&listed(vec![], vec![]));
        assert!(log.is_new(&whole));
        assert!(log.is_new(&part));
        log.objects(&applied());
        log.objects(&applied());
        assert!(log.is_new(&part));
        log.solved(&Subject::Object(KIND, name()));
        assert!(log.is_new(&part));
        assert!(log.logged.len() == 1);
        log.objects(&listed(vec![], vec![]));
        assert!(log.logged.is_empty());
    }
}
