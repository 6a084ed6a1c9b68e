//! The objects of a list that is under way: one of each name, with its problems.

use std::collections::BTreeMap;
use std::sync::Arc;

use service_model::ObjectName;

use super::batches::Batches;
use super::decode::Decoded;
use crate::Problem;

/// The objects received so far, and their problems.
pub(super) struct Gathered<M> {
    /// `None` for an invalid object. A map, since a list may name an object twice.
    objects: BTreeMap<ObjectName, Option<Arc<M>>>,
    problems: Vec<Problem>,
    /// Objects that are not decoded yet.
    pub(super) batches: Batches<M>,
}

impl<M> Default for Gathered<M> {
    fn default() -> Self {
        Gathered {
            objects: BTreeMap::new(),
            problems: Vec::new(),
            batches: Batches::default(),
        }
    }
}

impl<M> Gathered<M> {
    /// Adds an object, or replaces one of the same name.
    pub(super) fn add(&mut self, object: Decoded<M>) {
        let name = object.name.clone();
        if self.objects.insert(object.name, object.model).is_some() {
            self.forget_problems_of(&name);
        }
        self.problems.extend(object.problems);
    }

    /// Removes an object that was deleted before the list is complete.
    pub(super) fn remove(&mut self, name: &ObjectName) {
        if self.objects.remove(name).is_some() {
            self.forget_problems_of(name);
        }
    }

    fn forget_problems_of(&mut self, name: &ObjectName) {
        let is_other = |problem: &Problem| problem.invalid().is_none_or(|i| i.object != *name);
        self.problems.retain(is_other);
    }

    /// Objects, names of invalid objects, and all problems.
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

/// A list by pages that is under way.
pub(super) struct Pages<M> {
    pub(super) gathered: Gathered<M>,
    /// The version of the first page, whose state all pages show.
    pub(super) version: Option<String>,
    pub(super) continue_token: Option<String>,
}

impl<M> Default for Pages<M> {
    fn default() -> Self {
        Pages {
            gathered: Gathered::default(),
            version: None,
            continue_token: None,
        }
    }
}
