//! Objects and files that have a problem, counted, so that a turn of the control loop costs the same however many there are.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use object_source::{Problem, Subject};
use service_model::{ObjectKind, ObjectName};

/// Objects and files that have a problem.
#[derive(Debug, Default)]
pub(super) struct InvalidObjects {
    /// Nothing of their current version is used, because of this problem.
    whole: BTreeMap<Subject, String>,
    /// Parts of their current version are ignored.
    in_part: BTreeSet<Subject>,
    /// Number of objects of each kind in both.
    by_kind: BTreeMap<ObjectKind, usize>,
}

impl InvalidObjects {
    /// Records a problem.
    pub(super) fn add(&mut self, problem: &Problem) {
        let subject = problem.subject();
        let is_known = self.whole.contains_key(&subject) || self.in_part.contains(&subject);
        if let (false, Subject::Object(kind, _)) = (is_known, &subject) {
            *self.by_kind.entry(*kind).or_default() += 1;
        }
        if problem.is_whole() {
            self.in_part.remove(&subject);
            self.whole.insert(subject, problem.to_string());
        } else if !self.whole.contains_key(&subject) {
            self.in_part.insert(subject);
        }
    }

    /// Removes what is valid again, or gone.
    pub(super) fn remove(&mut self, subject: &Subject) {
        let is_known = self.whole.remove(subject).is_some() || self.in_part.remove(subject);
        if let (true, Subject::Object(kind, _)) = (is_known, subject)
            && let Some(count) = self.by_kind.get_mut(kind)
        {
            *count = count.saturating_sub(1);
        }
    }

    /// Removes the objects of a kind except those that a new list names as invalid.
    pub(super) fn listed(&mut self, kind: ObjectKind, invalid: &[ObjectName]) {
        if self.count(kind) == 0 {
            return;
        }
        let invalid: HashSet<&ObjectName> = invalid.iter().collect();
        let stays = |subject: &Subject| match subject {
            Subject::Object(of, name) => *of != kind || invalid.contains(name),
            Subject::File(_) => true,
        };
        let all = self.whole.keys().chain(&self.in_part);
        let gone: Vec<Subject> = all.filter(|subject| !stays(subject)).cloned().collect();
        gone.iter().for_each(|subject| self.remove(subject));
    }

    /// Number of objects of a kind.
    pub(super) fn count(&self, kind: ObjectKind) -> usize {
        self.by_kind.get(&kind).copied().unwrap_or_default()
    }

    /// Problems of objects and files of which nothing is used.
    pub(super) fn whole(&self) -> impl ExactSizeIterator<Item = &str> {
        self.whole.values().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use service_model::Invalid;

    use super::*;

    fn problem(kind: ObjectKind, name: &str, is_whole: bool) -> Problem {
        let invalid = Invalid {
            kind,
            object: ObjectName::new("default", name),
            field: "spec".into(),
            reason: "bad".into(),
        };
        match is_whole {
            true => Problem::Object { at: None, invalid },
            false => Problem::Field { at: None, invalid },
        }
    }

    #[test]
    fn counts_follow_problems_lists_and_removals() {
        const KIND: ObjectKind = ObjectKind::Service;
        let mut all = InvalidObjects::default();
        for (name, is_whole) in [("a", false), ("a", true), ("a", false), ("b", false)] {
            all.add(&problem(KIND, name, is_whole));
        }
        all.add(&problem(ObjectKind::Node, "a", true));
        assert_eq!((all.count(KIND), all.count(ObjectKind::Node)), (2, 1));
        assert_eq!(all.whole().len(), 2);
        all.listed(KIND, &[ObjectName::new("default", "a")]);
        assert_eq!((all.count(KIND), all.whole().len()), (1, 2));
        let subject = problem(KIND, "a", true).subject();
        all.remove(&subject);
        all.remove(&subject);
        assert_eq!((all.count(KIND), all.whole().len()), (0, 1));
        all.listed(ObjectKind::Node, &[]);
        assert_eq!((all.count(ObjectKind::Node), all.whole().len()), (0, 0));
    }
}
