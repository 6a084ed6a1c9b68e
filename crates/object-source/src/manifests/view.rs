//! What the files say together, and what of it has been told: a function of the files' contents.
//!
//! Files speak in the order of their names. The first to hold an object has it, whether or not it can be used
//! there; in every other place it is a problem. An object that cannot be used stays as it was last told.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use service_model::{
    EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service, ServiceCidr,
};

use super::document::{Found, Key, Object};
use super::folder::Folder;
use crate::{Problem, SourceEvent, Subject};

/// What has been told.
#[derive(Debug, Default)]
pub(super) struct View {
    told: BTreeMap<Key, Object>,
    problems: BTreeMap<Subject, Vec<Problem>>,
}

/// What the files say now.
struct Now<'f> {
    /// The place and version of each object that counts.
    objects: BTreeMap<&'f Key, (PathBuf, &'f Found)>,
    problems: BTreeMap<Subject, Vec<Problem>>,
}

impl View {
    /// Everything: one `Reset` of each kind, then the problems.
    pub(super) fn tell_all(&mut self, folder: &Folder) -> Vec<SourceEvent> {
        let now = Now::of(folder);
        self.told = now
            .usable()
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        self.problems = now.problems.clone();
        let mut lists = Lists::default();
        for object in self.told.values() {
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

    /// What is different from what was told.
    pub(super) fn tell_changes(&mut self, folder: &Folder) -> Vec<SourceEvent> {
        let now = Now::of(folder);
        let mut events = Vec::new();
        let gone: Vec<Key> = self
            .told
            .keys()
            .filter(|key| !now.objects.contains_key(key))
            .cloned()
            .collect();
        for key in gone {
            self.told.remove(&key);
            events.push(deleted(key));
        }
        let mut applied = BTreeSet::new();
        for (key, object) in now.usable() {
            if self.told.get(key) != Some(object) {
                self.told.insert(key.clone(), object.clone());
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
            for (line, reason) in &file.contents.strays {
                now.problem(Problem::File {
                    path: path.clone(),
                    line: *line,
                    reason: reason.clone(),
                });
            }
            for found in &file.contents.objects {
                now.object(&path, found);
            }
        }
        now
    }

    fn object(&mut self, path: &Path, found: &'f Found) {
        if let Some((first, winner)) = self.objects.get(&found.key) {
            let reason = format!("is also at {first:?}:{}, which counts", winner.line);
            let (kind, object) = found.key.clone();
            let invalid = Invalid {
                kind,
                object,
                field: "metadata.name".into(),
                reason,
            };
            let at = Some((path.to_owned(), found.line));
            return self.problem(Problem::Object { at, invalid });
        }
        for problem in &found.problems {
            self.problem(problem.clone());
        }
        // An object without a name is none that another could be a double of.
        if !found.key.1.name.is_empty() {
            self.objects.insert(&found.key, (path.to_owned(), found));
        }
    }

    fn problem(&mut self, problem: Problem) {
        let subject = problem.subject();
        self.problems.entry(subject).or_default().push(problem);
    }

    fn usable(&self) -> impl Iterator<Item = (&'f Key, &'f Object)> {
        self.objects
            .iter()
            .filter_map(|(key, (_, found))| Some((*key, found.object.as_ref()?)))
    }

    fn unusable(&self) -> impl Iterator<Item = &'f Key> {
        self.objects
            .iter()
            .filter(|(_, (_, found))| found.object.is_none())
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
