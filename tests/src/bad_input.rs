//! Bad input of every kind: what there is instead of a good Service, what of it the log must name, and what a client must
//! find.
//!
//! The good Service is `victim`, with three of its pods. A case is a file in `tests/bad-input/`, named by its situation;
//! what is too long for a file, or no object at all, is made in [`generated`]. Documents contain the addresses of the
//! lab, see the table there.

// The table's own addresses and pointers are right, or the tests stop at once.
#![allow(clippy::expect_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, Result};
use lab::{TcpService, node_object};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::stage::{Stage, service};

mod generated;

/// Foreign text in names, annotations and elsewhere, which must not reach any ruleset.
pub const MARK: &str = "planted";

const SERVICE: usize = 0;
const SLICE: usize = 1;

/// Where objects come from.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    Manifests,
    Api,
}

/// What a client finds.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
pub enum Find {
    /// This number of servers, in turn, and nothing else.
    Servers(usize),
    Refusal,
    /// ICMP unreachable: no machine has the address.
    Nothing,
}

/// What there is instead of the victim's good objects.
#[derive(Clone, Debug)]
pub enum Content {
    Objects(Vec<Value>),
    /// Files by name, which hold no objects, or hold them badly.
    Files(Vec<(String, Vec<u8>)>),
}

/// One case.
#[derive(Clone, Debug)]
pub struct Row {
    pub what: String,
    pub content: Content,
    /// The only source that is tried, if not both are.
    pub only: Option<Source>,
    /// The last good version keeps serving, so a program that never saw it cannot know better.
    pub keeps_last_good: bool,
    /// For each problem, the words of its line in the log: object and field. From manifests, the file is there as well.
    pub named: Vec<Vec<String>>,
    /// Texts of further lines, wherever the objects are from.
    pub said: Vec<Vec<String>>,
    /// Where a client connects to.
    pub to: SocketAddr,
    pub find: Find,
}

impl Row {
    /// Whether it has objects besides the victim's.
    pub fn is_about_others(&self) -> bool {
        matches!(&self.content, Content::Objects(objects) if objects.len() > 3)
    }

    /// Adds an object, of which these fields are to be named.
    fn push(&mut self, object: Value, display: &str, fields: &[String]) {
        if let Content::Objects(objects) = &mut self.content {
            objects.push(object);
        }
        self.name(display, fields);
    }

    fn name(&mut self, display: &str, fields: &[String]) {
        let line = |field: &String| vec![display.to_owned(), field.clone()];
        self.named.extend(fields.iter().map(line));
    }
}

/// Whether all words are in a line of a log, each as a whole: `spec` is not in `spec.ports`.
pub fn has_words(line: &str, words: &[String]) -> bool {
    words.iter().all(|word| {
        line.match_indices(word.as_str()).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + word.len()..].chars().next();
            let goes_on = |c: char| c.is_alphanumeric() || c == '.';
            !before.is_some_and(goes_on) && !after.is_some_and(|c| goes_on(c) || c == '[')
        })
    })
}

/// The Service that goes bad.
pub fn victim() -> TcpService {
    service("victim", 90)
}

/// Its objects before: two of the pods serve.
pub fn good(stage: &Stage) -> Vec<Value> {
    stage.objects(&victim(), 0..2)
}

/// All cases of the folder and those that are generated.
pub fn rows(stage: &Stage) -> Result<Vec<Row>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("bad-input");
    let mut files: Vec<_> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    let mut rows = Vec::new();
    for file in files {
        let document = std::fs::read_to_string(&file)?;
        let document: Document =
            serde_saphyr::from_str(&document).with_context(|| file.display().to_string())?;
        let what = file.file_stem().unwrap_or_default().to_string_lossy();
        rows.push(document.row(&what, stage));
    }
    rows.extend(generated::objects(stage));
    Ok(rows)
}

pub use generated::files;

/// An object of the victim, or the Node under test.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
enum Part {
    Service,
    Slice,
    SliceV6,
    Node,
}

/// A case as it is written.
#[derive(Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
struct Document {
    only: Option<Source>,
    keeps_last_good: bool,
    /// Values by JSON pointer; with `/-` at its end a list of values that are appended.
    change: BTreeMap<Part, BTreeMap<String, Value>>,
    /// Addresses of further endpoints, each to be skipped and named.
    skipped_endpoints: BTreeMap<Part, Vec<Value>>,
    /// Fields to be named.
    names: BTreeMap<Part, Vec<String>>,
    /// See [`Row::said`].
    says: Vec<Vec<String>>,
    copies: Option<Copies>,
    objects: Vec<Object>,
    services: Vec<Services>,
    to: SocketAddr,
    find: Find,
}

impl Default for Document {
    fn default() -> Self {
        Document {
            only: None,
            keeps_last_good: false,
            change: BTreeMap::new(),
            skipped_endpoints: BTreeMap::new(),
            names: BTreeMap::new(),
            says: Vec::new(),
            copies: None,
            objects: Vec::new(),
            services: Vec::new(),
            to: ([10, 96, 0, 90], 80).into(),
            find: Find::Servers(3),
        }
    }
}

/// Copies of an object, each bad in one way: of a Service at 10.96.0.91, or of a slice with the fourth pod.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copies {
    of: Part,
    each: Vec<Copy>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Copy {
    at: String,
    to: Value,
    /// The field to be named.
    field: String,
    /// The object's name in the log, if not `default/bad-N`.
    shown: Option<String>,
}

/// One more object.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    object: Value,
    names: Vec<String>,
}

/// One more good Service, with its slices.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Services {
    name: String,
    number: u8,
    pods: usize,
    created: String,
}

impl Document {
    fn row(self, what: &str, stage: &Stage) -> Row {
        let mut objects = stage.objects(&victim(), 0..3);
        if self.change.contains_key(&Part::Node) {
            objects.push(node_object(&stage.node));
        }
        for (part, changes) in self.change {
            let object = &mut objects[part as usize];
            for (pointer, value) in changes {
                match value {
                    Value::Array(items) if pointer.ends_with("/-") => {
                        items
                            .into_iter()
                            .for_each(|item| put(object, &pointer, item));
                    }
                    value => put(object, &pointer, value),
                }
            }
        }
        let mut row = Row {
            what: what.to_owned(),
            content: Content::Objects(Vec::new()),
            only: self.only,
            keeps_last_good: self.keeps_last_good,
            named: Vec::new(),
            said: self.says,
            to: self.to,
            find: self.find,
        };
        for (part, addresses) in self.skipped_endpoints {
            let object = &mut objects[part as usize];
            for (i, addresses) in (3..).zip(addresses) {
                put(object, "/endpoints/-", json!({ "addresses": addresses }));
                let field = format!("endpoints[{i}].addresses[0]");
                row.name(&display_name(object), &[field]);
            }
        }
        for (part, fields) in self.names {
            row.name(&display_name(&objects[part as usize]), &fields);
        }
        row.content = Content::Objects(objects);
        for (i, copy) in self
            .copies
            .iter()
            .flat_map(|c| c.each.iter().map(|e| (c.of, e)))
            .enumerate()
        {
            let (
                of,
                Copy {
                    at,
                    to,
                    field,
                    shown,
                },
            ) = copy;
            let mut bad = match of {
                Part::Service => service("nowhere", 91).object(),
                _ => stage.objects(&victim(), 3..4)[SLICE].clone(),
            };
            put(&mut bad, "/metadata/name", json!(format!("bad-{i}")));
            put(&mut bad, at, to.clone());
            let display = shown.clone().unwrap_or_else(|| format!("default/bad-{i}"));
            row.push(bad, &display, std::slice::from_ref(field));
        }
        for Object { object, names } in self.objects {
            let display = display_name(&object);
            row.push(object, &display, &names);
        }
        for more in self.services {
            let mut objects = stage.objects(&service(&more.name, more.number), 0..more.pods);
            put(
                &mut objects[SERVICE],
                "/metadata/creationTimestamp",
                json!(more.created),
            );
            objects
                .into_iter()
                .for_each(|object| row.push(object, "", &[]));
        }
        row
    }
}

/// `default/web`, as the log has it, for names that need no escaping.
fn display_name(object: &Value) -> String {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let name = text("/metadata/name").unwrap_or_default();
    match text("/metadata/namespace") {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}

/// Puts a value at a place of an object (`/spec/ports/0/port`), or appends it to a sequence (`/spec/ports/-`).
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
