//! Which problems are news: what was said of an object is not said again while it stays true, however often the object
//! is listed, changed elsewhere or planned. When it was well in between, it is said again.

use std::collections::{HashMap, HashSet};

use service_model::{ObjectEvent, ObjectKind, ObjectName};

use object_source::{Problem, Subject};

/// What is remembered of one object; beyond that, things are said again.
const REMEMBERED: usize = 16;

/// What was said.
#[derive(Debug, Default)]
pub(super) struct News {
    said: HashMap<Subject, Said>,
}

#[derive(Debug, Default)]
struct Said {
    /// Of the object as it is.
    now: Vec<Problem>,
    /// Of its parts, before it came anew: problems of the new version come after it.
    before: Vec<Problem>,
}

impl News {
    /// Takes in that objects came or went.
    pub(super) fn heard<T>(
        &mut self,
        kind: ObjectKind,
        event: &ObjectEvent<T>,
        name: impl Fn(&T) -> &ObjectName,
    ) {
        match event {
            _ if self.said.is_empty() => {}
            ObjectEvent::Apply(object) => self.renewed(kind, name(object)),
            ObjectEvent::Delete(name) => self.solved(&Subject::Object(kind, name.clone())),
            ObjectEvent::Reset { objects, invalid } => {
                let names = || objects.iter().map(|object| name(object));
                for name in names() {
                    self.renewed(kind, name);
                }
                let there: HashSet<&ObjectName> = names().chain(invalid).collect();
                self.said.retain(|subject, _| match subject {
                    Subject::Object(of, object) => *of != kind || there.contains(object),
                    Subject::File(_) => true,
                });
            }
        }
    }

    /// Nothing that was said of the subject holds any more.
    pub(super) fn solved(&mut self, subject: &Subject) {
        self.said.remove(subject);
    }

    fn renewed(&mut self, kind: ObjectKind, object: &ObjectName) {
        let key = Subject::Object(kind, object.clone());
        if let Some(said) = self.said.get_mut(&key) {
            said.before = std::mem::take(&mut said.now);
            said.before.retain(|problem| !problem.is_whole());
            if said.before.is_empty() {
                self.said.remove(&key);
            }
        }
    }

    /// Whether the problem has not been said, which it is now.
    pub(super) fn is_news(&mut self, problem: &Problem) -> bool {
        let said = self.said.entry(problem.subject()).or_default();
        let entry = problem.clone().without_place();
        if said.now.contains(&entry) {
            return false;
        }
        // As a whole an object has one problem at a time.
        if problem.is_whole() || said.now.len() == REMEMBERED {
            said.now.clear();
        }
        let is_news = !said.before.contains(&entry);
        said.now.push(entry);
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use service_model::Invalid;

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

    fn listed(objects: Vec<ObjectName>, invalid: Vec<ObjectName>) -> ObjectEvent<ObjectName> {
        let objects = objects.into_iter().map(Arc::new).collect();
        ObjectEvent::Reset { objects, invalid }
    }

    #[test]
    fn a_problem_that_stays_is_said_once_however_often_the_object_is_listed() {
        let mut news = News::default();
        let (whole, part) = (problem("bad", true), problem("odd", false));
        assert!(news.is_news(&whole));
        for _ in 0..3 {
            news.heard(KIND, &listed(vec![], vec![name()]), |n| n);
            assert!(!news.is_news(&whole));
        }
        assert!(news.is_news(&problem("bad otherwise", true)));
        assert!(news.is_news(&whole));
        news.heard(KIND, &ObjectEvent::Apply(Arc::new(name())), |n| n);
        assert!(news.is_news(&part));
        for _ in 0..3 {
            news.heard(KIND, &listed(vec![name()], vec![]), |n| n);
            assert!(!news.is_news(&part));
            // Also where it is said by what plans.
            assert!(!news.is_news(&part));
        }
        assert!(news.is_news(&problem("odd elsewhere", false)));
    }

    #[test]
    fn a_problem_that_went_and_came_back_is_said_again() {
        let mut news = News::default();
        let (whole, part) = (problem("bad", true), problem("odd", false));
        assert!(news.is_news(&whole));
        news.heard(KIND, &ObjectEvent::Apply(Arc::new(name())), |n| n);
        assert!(news.is_news(&whole));
        news.heard(KIND, &ObjectEvent::<ObjectName>::Delete(name()), |n| n);
        assert!(news.is_news(&whole));
        news.heard(KIND, &listed(vec![], vec![]), |n| n);
        assert!(news.is_news(&whole));
        assert!(news.is_news(&part));
        news.heard(KIND, &ObjectEvent::Apply(Arc::new(name())), |n| n);
        news.heard(KIND, &ObjectEvent::Apply(Arc::new(name())), |n| n);
        assert!(news.is_news(&part));
        news.solved(&Subject::Object(KIND, name()));
        assert!(news.is_news(&part));
        assert!(news.said.len() == 1);
        news.heard(KIND, &listed(vec![], vec![]), |n| n);
        assert!(news.said.is_empty());
    }
}
