//! The objects of a list that is under way.

use std::collections::BTreeMap;
use std::sync::Arc;

use service_model::ObjectName;

use super::decode::Decoded;
use crate::Problem;

/// A list under way.
pub(super) struct Gathered<M> {
    /// `None` for those that cannot be used. A map, since a list may name an object twice.
    objects: BTreeMap<ObjectName, Option<Arc<M>>>,
    problems: Vec<Problem>,
}

impl<M> Default for Gathered<M> {
    fn default() -> Self {
        Gathered {
            objects: BTreeMap::new(),
            problems: Vec::new(),
        }
    }
}

impl<M> Gathered<M> {
    /// A later one of the same name takes the place of an earlier.
    pub(super) fn add(&mut self, object: Decoded<M>) {
        let name = object.name.clone();
        if self.objects.insert(object.name, object.model).is_some() {
            self.problems
                .retain(|problem| problem.invalid.object != name);
        }
        self.problems.extend(object.problems);
    }

    /// It is gone before the list is complete.
    pub(super) fn remove(&mut self, name: &ObjectName) {
        if self.objects.remove(name).is_some() {
            self.problems
                .retain(|problem| problem.invalid.object != *name);
        }
    }

    /// Objects, names of those that cannot be used, and what is wrong with any.
    pub(super) fn finish(self) -> (Vec<Arc<M>>, Vec<ObjectName>, Vec<Problem>) {
        let mut objects = Vec::with_capacity(self.objects.len());
        let mut invalid = Vec::new();
        for (name, object) in self.objects {
            match object {
                Some(object) => objects.push(object),
                None => invalid.push(name),
            }
        }
        (objects, invalid, self.problems)
    }
}
