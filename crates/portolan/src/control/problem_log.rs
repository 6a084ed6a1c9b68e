//! Suppresses repeated warnings about an object until the object recovers.
//!
//! A problem is logged once while it stays true, however often the object is listed, changed elsewhere or planned, and
//! again after the object was valid in between.

use std::collections::{HashMap, HashSet};

use object_source::{Problem, SourceEvent, Subject};
use service_model::{ObjectEvent, ObjectKind, ObjectName, Watched};

/// Maximum number of problems remembered per object; beyond that, problems are logged again.
const REMEMBERED: usize = 16;

/// The problems that were logged.
#[derive(Debug, Default)]
pub(super) struct ProblemLog {
    logged: HashMap<Subject, Logged>,
}

#[derive(Debug, Default)]
struct Logged {
    /// Problems of the current version.
    now: Vec<Problem>,
    /// Problems of parts of the version before: those of the current version arrive after it.
    before: Vec<Problem>,
}

impl ProblemLog {
    /// Notes which objects are renewed, deleted or valid again.
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

    /// Whether the problem has to be logged, which it then counts as.
    pub(super) fn is_new(&mut self, problem: &Problem) -> bool {
        let logged = self.logged.entry(problem.subject()).or_default();
        let entry = problem.clone().without_place();
        if logged.now.contains(&entry) {
            return false;
        }
        // As a whole an object has one problem at a time.
        if problem.is_whole() || logged.now.len() == REMEMBERED {
            logged.now.clear();
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
