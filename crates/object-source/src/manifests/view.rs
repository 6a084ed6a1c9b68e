//! The objects of all files together, and the events that lead to them: a function of the files' contents.
//!
//! The first file, in the order of names, that holds an object owns it, even if the object is invalid there; the object is a
//! problem in every other file. An invalid object stays as it was last delivered.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use service_model::{
    EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service, ServiceCidr,
};

use super::contents::Placed;
use super::document::{Key, Object};
use super::folder::Folder;
use crate::{Problem, SourceEvent, Subject};

/// The delivered objects and problems.
#[derive(Debug, Default)]
pub(super) struct FolderView {
    delivered: BTreeMap<Key, Object>,
    problems: BTreeMap<Subject, Vec<Problem>>,
}

/// The contents of the files now.
struct Now<'f> {
    /// File and version of each object.
    objects: BTreeMap<&'f Key, (Rc<Path>, Placed<'f>)>,
    problems: BTreeMap<Subject, Vec<Problem>>,
}

impl FolderView {
    /// All objects: one `Reset` of each kind, then the problems.
    pub(super) fn reset_events(&mut self, folder: &Folder) -> Vec<SourceEvent> {
        let now = Now::of(folder);
        self.delivered = now
            .usable()
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        self.problems = now.problems.clone();
        let mut lists = Lists::default();
        for object in self.delivered.values() {
            lists.push(object);
        }
        for (kind, name) in now.unusable() {
            lists.invalid.entry(*kind).or_default().push(name.clone());
        }
        let mut events = lists.into_events();
        events.extend(
            self.problems
                .values()
                .flatten()
                .cloned()
                .map(SourceEvent::Problem),
        );
        events
    }

    /// The differences from what was delivered.
    pub(super) fn change_events(&mut self, folder: &Folder) -> Vec<SourceEvent> {
        let now = Now::of(folder);
        let mut events = Vec::new();
        let gone: Vec<Key> = self
            .delivered
            .keys()
            .filter(|key| !now.objects.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            self.delivered.remove(&key);
            events.push(deleted(key));
        }
        let mut applied = BTreeSet::new();
        for (key, object) in now.usable() {
            if self.delivered.get(key) != Some(object) {
                self.delivered.insert(key.clone(), object.clone());
                events.push(event(object));
                let (kind, name) = key.clone();
                applied.insert(Subject::Object(kind, name));
            }
        }
        let before = self.problems.keys();
        let solved = before.filter(|subject| !now.problems.contains_key(subject));
        events.extend(solved.cloned().map(SourceEvent::Solved));
        for (subject, problems) in &now.problems {
            // An applied object has no problems any more, so its problems are sent again.
            if applied.contains(subject) || self.problems.get(subject) != Some(problems) {
                events.extend(problems.iter().cloned().map(SourceEvent::Problem));
            }
        }
        self.problems = now.problems;
        events
    }
}

impl<'f> Now<'f> {
    fn of(folder: &'f Folder) -> Self {
        let mut now = Now {
            objects: BTreeMap::new(),
            problems: BTreeMap::new(),
        };
        for (path, file) in folder.files() {
            if let Some(problem) = &file.problem {
                now.problem(problem.clone());
            }
            for (line, reason) in file.contents.strays() {
                now.problem(Problem::File {
                    path: path.clone(),
                    line,
                    reason: reason.to_owned(),
                });
            }
            let path: Rc<Path> = path.into();
            for placed in file.contents.objects() {
                now.object(&path, placed);
            }
        }
        now
    }

    fn object(&mut self, path: &Rc<Path>, placed: Placed<'f>) {
        let found = placed.found;
        if let Some((first, winner)) = self.objects.get(&found.key) {
            let reason = format!("is also at {first:?}:{}, which is used", winner.line());
            let (kind, object) = found.key.clone();
            let invalid = Invalid {
                kind,
                object,
                field: "metadata.name".into(),
                reason,
            };
            let at = Some((path.to_path_buf(), placed.line()));
            return self.problem(Problem::Object { at, invalid });
        }
        for problem in placed.problems(path) {
            self.problem(problem);
        }
        // Objects without a name are not duplicates of each other.
        if !found.key.1.name.is_empty() {
            self.objects.insert(&found.key, (path.clone(), placed));
        }
    }

    fn problem(&mut self, problem: Problem) {
        let subject = problem.subject();
        self.problems.entry(subject).or_default().push(problem);
    }

    fn usable(&self) -> impl Iterator<Item = (&'f Key, &'f Object)> {
        self.objects
            .iter()
            .filter_map(|(key, (_, placed))| Some((*key, placed.found.object.as_ref()?)))
    }

    fn unusable(&self) -> impl Iterator<Item = &'f Key> {
        self.objects
            .iter()
            .filter(|(_, (_, placed))| placed.found.object.is_none())
            .map(|(key, _)| *key)
    }
}

/// Objects sorted into kinds.
#[derive(Default)]
struct Lists {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
    nodes: Vec<Arc<Node>>,
    cidrs: Vec<Arc<ServiceCidr>>,
    invalid: BTreeMap<ObjectKind, Vec<ObjectName>>,
}

impl Lists {
    fn push(&mut self, object: &Object) {
        match object {
            Object::Service(service) => self.services.push(service.clone()),
            Object::EndpointSlice(slice) => self.slices.push(slice.clone()),
            Object::Node(node) => self.nodes.push(node.clone()),
            Object::ServiceCidr(cidr) => self.cidrs.push(cidr.clone()),
        }
    }

    fn into_events(mut self) -> Vec<SourceEvent> {
        let mut invalid = |kind| self.invalid.remove(&kind).unwrap_or_default();
        vec![
            SourceEvent::Node(ObjectEvent::Reset {
                objects: self.nodes,
                invalid: invalid(ObjectKind::Node),
            }),
            SourceEvent::ServiceCidr(ObjectEvent::Reset {
                objects: self.cidrs,
                invalid: invalid(ObjectKind::ServiceCidr),
            }),
            SourceEvent::Service(ObjectEvent::Reset {
                objects: self.services,
                invalid: invalid(ObjectKind::Service),
            }),
            SourceEvent::EndpointSlice(ObjectEvent::Reset {
                objects: self.slices,
                invalid: invalid(ObjectKind::EndpointSlice),
            }),
        ]
    }
}

fn event(object: &Object) -> SourceEvent {
    match object {
        Object::Service(service) => SourceEvent::Service(ObjectEvent::Apply(service.clone())),
        Object::EndpointSlice(slice) => {
            SourceEvent::EndpointSlice(ObjectEvent::Apply(slice.clone()))
        }
        Object::Node(node) => SourceEvent::Node(ObjectEvent::Apply(node.clone())),
        Object::ServiceCidr(cidr) => SourceEvent::ServiceCidr(ObjectEvent::Apply(cidr.clone())),
    }
}

fn deleted((kind, name): Key) -> SourceEvent {
    match kind {
        ObjectKind::Service => SourceEvent::Service(ObjectEvent::Delete(name)),
        ObjectKind::EndpointSlice => SourceEvent::EndpointSlice(ObjectEvent::Delete(name)),
        ObjectKind::Node => SourceEvent::Node(ObjectEvent::Delete(name)),
        ObjectKind::ServiceCidr => SourceEvent::ServiceCidr(ObjectEvent::Delete(name)),
    }
}
