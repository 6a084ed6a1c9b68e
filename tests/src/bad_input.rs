//! Bad input of every kind, as a table: what there is instead of a good Service, what of it the log must name, and
//! what a client must find.
//!
//! The good Service is the [`Victim`]. Numbers such as F42 are the catalogue's of bad input.

// The table's own addresses and pointers are right, or the tests stop at once.
#![allow(clippy::expect_used)]

use std::net::SocketAddr;

use lab::{TcpService, node_object};
use serde_json::{Map, Value, json};

use crate::stage::{Stage, service};

mod files;
mod rows;

pub use files::files;
pub use rows::rows;

/// Stands in names, annotations and whatever else is foreign text, and must stand nowhere else.
pub const MARK: &str = "planted";

/// Which of the victim's objects a change is about.
const SERVICE: usize = 0;
const SLICE: usize = 1;
const SLICE_V6: usize = 2;

/// Where objects come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A folder of manifests.
    Manifests,
    /// An API server.
    Api,
}

/// What a client finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// So many servers, in turn, and nothing but them.
    Servers(usize),
    /// A refusal.
    Refusal,
    /// Nobody who knows the address.
    Nothing,
}

/// What there is instead of the victim's good objects.
#[derive(Clone, Debug)]
pub enum Content {
    /// Objects.
    Objects(Vec<Value>),
    /// Files by name, which are no objects.
    Files(Vec<(String, Vec<u8>)>),
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is bad.
    pub what: &'static str,
    /// The bad thing.
    pub content: Content,
    /// The only source that is asked, if not both are.
    pub only: Option<Source>,
    /// What was good before serves on, so a program that never saw it cannot know better.
    pub keeps_last_good: bool,
    /// For each thing that must be named, what stands in its line of the log. From manifests, file and line stand
    /// there as well.
    pub named: Vec<Vec<String>>,
    /// What else must be said, wherever the objects are from.
    pub said: Vec<Vec<String>>,
    /// Where a client connects to.
    pub to: SocketAddr,
    /// What it finds there.
    pub find: Find,
}

/// A good Service that goes bad.
pub struct Victim<'a> {
    stage: &'a Stage,
    /// The Service.
    pub service: TcpService,
}

impl<'a> Victim<'a> {
    /// On this stage.
    pub fn new(stage: &'a Stage) -> Victim<'a> {
        Victim {
            stage,
            service: service("victim", 90),
        }
    }

    /// As it is before it goes bad: two of the pods serve.
    pub fn good(&self) -> Vec<Value> {
        self.stage.objects(&self.service, 0..2)
    }

    /// A row in which three pods serve, until something is changed.
    fn row(&self, what: &'static str) -> Row {
        Row {
            what,
            content: Content::Objects(self.stage.objects(&self.service, 0..3)),
            only: None,
            keeps_last_good: false,
            named: Vec::new(),
            said: Vec::new(),
            to: self.address(0, self.service.port),
            find: Find::Servers(3),
        }
    }

    fn address(&self, family: usize, port: u16) -> SocketAddr {
        let address = self.service.cluster_ips[family].parse();
        SocketAddr::new(address.expect("a cluster IP"), port)
    }

    fn node(&self) -> Value {
        node_object(&self.stage.node)
    }
}

impl Row {
    /// Whether it has objects besides the victim's.
    pub fn is_about_others(&self) -> bool {
        matches!(&self.content, Content::Objects(objects) if objects.len() > 3)
    }

    /// Puts a value at a place of an object (`/spec/ports/0/port`), or takes it into a sequence at its end.
    fn put(mut self, object: usize, pointer: &str, value: Value) -> Row {
        put(&mut self.objects()[object], pointer, value);
        self
    }

    /// One more object.
    fn with(mut self, object: Value) -> Row {
        self.objects().push(object);
        self
    }

    /// One more object, in which `field` is to be named.
    fn with_bad(self, object: Value, field: &str) -> Row {
        let mut row = self.with(object);
        let last = row.objects().len() - 1;
        row.names(last, &[field])
    }

    /// Fields of an object that are to be named.
    fn names(mut self, object: usize, fields: &[&str]) -> Row {
        let name = name_of(&self.objects()[object]);
        let lines = fields
            .iter()
            .map(|field| vec![format!("{name}: {field}: ")]);
        self.named.extend(lines);
        self
    }

    /// A line of the log that stands there, with a place in a file.
    fn names_line(mut self, parts: &[&str]) -> Row {
        self.named
            .push(parts.iter().map(ToString::to_string).collect());
        self
    }

    /// A line of the log that stands there.
    fn says(mut self, parts: &[&str]) -> Row {
        self.said
            .push(parts.iter().map(ToString::to_string).collect());
        self
    }

    fn finds(self, find: Find) -> Row {
        Row { find, ..self }
    }

    fn keeps_last_good(self) -> Row {
        Row {
            keeps_last_good: true,
            ..self
        }
    }

    fn at(self, to: SocketAddr) -> Row {
        Row { to, ..self }
    }

    fn only(self, source: Source) -> Row {
        Row {
            only: Some(source),
            ..self
        }
    }

    fn objects(&mut self) -> &mut Vec<Value> {
        match &mut self.content {
            Content::Objects(objects) => objects,
            Content::Files(_) => panic!("{}: has no objects", self.what),
        }
    }
}

/// `Service default/web`, as the log has it, for names that need no escaping.
fn name_of(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").unwrap_or_default();
    let name = text("/metadata/name").unwrap_or_default();
    match text("/metadata/namespace") {
        Some(namespace) => format!("{kind} {namespace}/{name}"),
        None => format!("{kind} {name}"),
    }
}

/// See [`Row::put`].
fn put(object: &mut Value, pointer: &str, value: Value) {
    let (parent, last) = pointer.rsplit_once('/').expect("a pointer begins with /");
    let parent = match object.pointer(parent) {
        Some(_) => object.pointer_mut(parent).expect("it is there"),
        None => {
            put(object, parent, Value::Object(Map::new()));
            return put(object, pointer, value);
        }
    };
    let last = last.replace("~1", "/");
    match parent {
        Value::Array(items) => match last.parse::<usize>() {
            Ok(i) if i < items.len() => items[i] = value,
            _ => items.push(value),
        },
        parent => parent[last.as_str()] = value,
    }
}

fn endpoint(addresses: Value) -> Value {
    json!({ "addresses": addresses })
}
