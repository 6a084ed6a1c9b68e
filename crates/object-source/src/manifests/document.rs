//! One document of a file becomes objects and faults: a function of the document's text.
//!
//! Text that is not YAML (or JSON) gives an error only. In every other text an invalid object does not affect the other
//! objects. The meaning of an object is decided by `service_model::wire`. Lines are counted from 1, in the document.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use service_model::wire::{self, ConversionContext, Metadata};
use service_model::{
    EndpointSlice, Invalid, Node, ObjectKind, ObjectName, Service, ServiceCidr, printable,
};

use smallvec::SmallVec;

use super::line::Lines;
use super::value::{self, Scalars};
use crate::MAX_TEXT;

/// How many faults of a document get the line of their field; further ones get the first line of their object.
const MAX_PLACED: usize = 100;

/// Identifies an object.
pub(super) type Key = (ObjectKind, ObjectName);

/// A usable object.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    Node(Arc<Node>),
    ServiceCidr(Arc<ServiceCidr>),
}

/// The contents of a document.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// Objects of our kinds, in the order of the document.
    pub(super) objects: SmallVec<[Found; 1]>,
    /// Values that are not objects.
    pub(super) strays: Vec<Remark>,
    /// Kinds that are ignored, each at its first line.
    pub(super) ignored: Vec<Remark>,
    /// The document cannot be parsed, so it is not known which objects it should hold.
    pub(super) is_broken: bool,
}

impl Parsed {
    /// A document that cannot be parsed.
    pub(super) fn broken(Remark { line, reason }: Remark) -> Self {
        Parsed {
            strays: vec![Remark::new(line, format!("cannot be parsed: {reason}"))],
            is_broken: true,
            ..Parsed::default()
        }
    }
}

/// A remark about a line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) line: usize,
    pub(super) reason: String,
}

impl Remark {
    fn new(line: usize, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Remark { line, reason }
    }
}

/// An object as found in a document.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    /// First line.
    pub(super) line: usize,
    /// `None`: the object is invalid, see `faults`.
    pub(super) object: Option<Object>,
    pub(super) faults: Vec<Fault>,
}

/// An invalid object or field.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) line: usize,
    pub(super) invalid: Invalid,
    /// The whole object is ignored.
    pub(super) is_whole: bool,
}

/// Parses a document, with its separator, if it has one. The error is at the line at which it stops being YAML.
pub(super) fn read(
    text: &str,
    node_ports: &RangeInclusive<u16>,
    context: &Mutex<ConversionContext>,
    scalars: &mut Scalars,
) -> Result<Parsed, Remark> {
    let mut reader = Reader {
        text,
        lines: None,
        node_ports,
        context,
        placed: 0,
        parsed: Parsed::default(),
    };
    for (value, line) in parse(text, scalars)? {
        reader.node(value, line, String::new(), line, None);
    }
    Ok(reader.parsed)
}

/// The values of a document (none, if it is empty) with their lines, from 1.
fn parse(document: &str, scalars: &mut Scalars) -> Result<Vec<(Value, usize)>, Remark> {
    // JSON is YAML, and parsing it as JSON is many times faster. The YAML parser reports the errors of either.
    let body = document.strip_prefix("---").unwrap_or(document);
    if body.trim_start().starts_with('{')
        && let Ok(value) = serde_json::from_str(body)
    {
        let blank = body.len() - body.trim_start().len();
        let line = 1 + body
            .bytes()
            .take(blank)
            .filter(|byte| *byte == b'\n')
            .count();
        return Ok(vec![(value, line)]);
    }
    match value::read(document, scalars) {
        Some(found) => Ok(vec![found]),
        None => {
            value::of_library(document).map_err(|(line, reason)| Remark::new(line, clamped(reason)))
        }
    }
}

struct Reader<'a> {
    text: &'a str,
    /// Found when first needed.
    lines: Option<Lines<'a>>,
    node_ports: &'a RangeInclusive<u16>,
    context: &'a Mutex<ConversionContext>,
    placed: usize,
    parsed: Parsed,
}

/// Position of an object: the line of its document's root, its path in the document, its own line.
struct Position {
    document: usize,
    path: String,
    line: usize,
}

/// The kind of an object by its own fields.
enum Claim {
    Ours(ObjectKind),
    /// A list whose items are of this kind and version unless they say otherwise.
    List(Option<(String, String)>),
    Foreign(String),
    Refused(String),
}

impl Reader<'_> {
    /// Adds an object or a list. `path` leads there from the root of the document that begins at line `document`.
    fn node(
        &mut self,
        value: Value,
        document: usize,
        path: String,
        line: usize,
        default: Option<&(String, String)>,
    ) {
        let Value::Object(object) = value else {
            return self.parsed.strays.push(Remark::new(
                line,
                "not an object: a mapping with apiVersion and kind is expected",
            ));
        };
        let position = Position {
            document,
            path,
            line,
        };
        match claim(&object, default) {
            Claim::Refused(reason) => self.parsed.strays.push(Remark::new(line, reason)),
            Claim::Foreign(kind) => {
                let ignored = &mut self.parsed.ignored;
                if !ignored.iter().any(|known| known.reason == kind) {
                    ignored.push(Remark::new(line, kind));
                }
            }
            Claim::List(item) => self.list(object, &position, item.as_ref()),
            Claim::Ours(kind) => self.ours(kind, Value::Object(object), &position),
        }
    }

    fn list(
        &mut self,
        mut object: Map<String, Value>,
        position: &Position,
        default: Option<&(String, String)>,
    ) {
        let items = match object.remove("items") {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => return,
            Some(_) => {
                return self.parsed.strays.push(Remark::new(
                    position.line,
                    "items of the list is not a sequence",
                ));
            }
        };
        let path = join(&position.path, "items");
        let lines = self.lines().of_items(position.document, &path);
        for (i, item) in items.into_iter().enumerate() {
            let line = lines.get(i).copied().unwrap_or(position.line);
            self.node(
                item,
                position.document,
                format!("{path}[{i}]"),
                line,
                default,
            );
        }
    }

    fn ours(&mut self, kind: ObjectKind, value: Value, position: &Position) {
        match kind {
            ObjectKind::Service => {
                let range = self.node_ports;
                self.object::<wire::Service>(
                    value,
                    position,
                    |s| s.check_node_ports(range),
                    |s| Object::Service(Arc::new(s)),
                );
            }
            ObjectKind::EndpointSlice => {
                self.object::<wire::EndpointSlice>(
                    value,
                    position,
                    |_| Ok(()),
                    |s| Object::EndpointSlice(Arc::new(s)),
                );
            }
            ObjectKind::Node => self.object::<wire::Node>(
                value,
                position,
                |_| Ok(()),
                |n| Object::Node(Arc::new(n)),
            ),
            ObjectKind::ServiceCidr => {
                self.object::<wire::ServiceCidr>(
                    value,
                    position,
                    |_| Ok(()),
                    |c| Object::ServiceCidr(Arc::new(c)),
                );
            }
        }
    }

    fn object<O: wire::Object>(
        &mut self,
        value: Value,
        position: &Position,
        check: impl FnOnce(&O) -> Result<(), Invalid>,
        wrap: impl FnOnce(O::Model) -> Object,
    ) {
        let name = name_of(&value, O::KIND);
        let converted = serde_path_to_error::deserialize::<_, O>(value)
            .map_err(|error| Invalid {
                kind: O::KIND,
                object: name.clone(),
                field: clamped(error.path()),
                reason: clamped(error.inner()),
            })
            .and_then(|object| check(&object).map(|()| object))
            .and_then(|object| {
                let mut context = self.context.lock().unwrap_or_else(PoisonError::into_inner);
                object.into_model(&mut context)
            });
        let (object, invalid, is_whole) = match converted {
            Ok(converted) => (Some(wrap(converted.object)), converted.warnings, false),
            Err(invalid) => (None, vec![invalid], true),
        };
        let faults = invalid
            .into_iter()
            .map(|invalid| Fault {
                line: self.line(position, &invalid.field),
                invalid,
                is_whole,
            })
            .collect();
        self.parsed.objects.push(Found {
            key: (O::KIND, name),
            line: position.line,
            object,
            faults,
        });
    }

    fn lines(&mut self) -> &Lines<'_> {
        self.lines.get_or_insert_with(|| Lines::of(self.text))
    }

    fn line(&mut self, position: &Position, field: &str) -> usize {
        self.placed += 1;
        if self.placed > MAX_PLACED {
            return position.line;
        }
        let found = self
            .lines()
            .of_field(position.document, &join(&position.path, field));
        // A path through an alias ends early: use the object's line then.
        found.max(position.line)
    }
}

/// Which kind, by apiVersion and kind. Other groups have kinds of the same names.
fn claim(object: &Map<String, Value>, default: Option<&(String, String)>) -> Claim {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let version = text("apiVersion").or(default.map(|(version, _)| version.as_str()));
    let Some(kind) = text("kind").or(default.map(|(_, kind)| kind.as_str())) else {
        return Claim::Refused("kind is missing".into());
    };
    if let Some(item) = kind.strip_suffix("List")
        && object.contains_key("items")
    {
        let item =
            (!item.is_empty()).then(|| (version.unwrap_or_default().to_owned(), item.to_owned()));
        return Claim::List(item);
    }
    let (ours, group) = match kind {
        "Service" => (ObjectKind::Service, ""),
        "Node" => (ObjectKind::Node, ""),
        "EndpointSlice" => (ObjectKind::EndpointSlice, "discovery.k8s.io/"),
        "ServiceCIDR" => (ObjectKind::ServiceCidr, "networking.k8s.io/"),
        _ => return Claim::Foreign(clamped(kind)),
    };
    let Some(version) = version else {
        return Claim::Refused(format!(
            "apiVersion of a {kind} is missing: {group}v1 is expected"
        ));
    };
    match version.strip_prefix(group) {
        Some("v1") => Claim::Ours(ours),
        Some(other) if !other.contains('/') => Claim::Refused(format!(
            "apiVersion {} of a {kind}: {group}v1 is expected",
            clamped(format!("{version:?}"))
        )),
        _ => Claim::Foreign(clamped(format!("{version} {kind}"))),
    }
}

/// The name of an object that may be malformed in every other respect.
fn name_of(value: &Value, kind: ObjectKind) -> ObjectName {
    let text = |key: &str| value.get("metadata")?.get(key)?.as_str().map(str::to_owned);
    let metadata = Metadata {
        name: text("name").unwrap_or_default(),
        namespace: text("namespace"),
        ..Metadata::default()
    };
    metadata.object_name(kind)
}

fn join(path: &str, field: &str) -> String {
    match (path.is_empty(), field.is_empty()) {
        (true, _) => field.to_owned(),
        (_, true) => path.to_owned(),
        _ => format!("{path}.{field}"),
    }
}

/// Foreign text in a message, on one line.
fn clamped(text: impl Display) -> String {
    printable(&text.to_string().replace(['\n', '\t'], " "), MAX_TEXT)
}
