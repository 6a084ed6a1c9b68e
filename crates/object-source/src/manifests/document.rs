//! One file's text becomes objects and problems: a function of the text.
//!
//! A file that is not YAML (or JSON) gives an error only. In every other file an invalid object does not affect the other
//! objects. The meaning of an object is decided by `service_model::wire`.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};
use serde_saphyr::{Location, MessageFormatter, Options, Spanned, UserMessageFormatter};
use service_model::wire::{self, ConversionContext, Metadata};
use service_model::{
    EndpointSlice, Invalid, Node, ObjectKind, ObjectName, Service, ServiceCidr, printable,
};

use super::line::Lines;
use crate::{MAX_TEXT, Problem};

/// Nodes in one document: a list of 100,000 endpoints has about two million. Bounds memory.
const MAX_NODES: usize = 16_000_000;
/// Nodes that aliases may expand to, in one document: enough for shared labels, too few for a "billion laughs" file.
const MAX_REPLAYED: usize = 100_000;
/// How many problems of a file get the line of their field; further ones get the first line of their object.
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

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Contents {
    /// Objects of our kinds, in the order of the file.
    pub(super) objects: Vec<Found>,
    /// Documents that are not objects.
    pub(super) strays: Vec<Remark>,
    /// Kinds that are ignored, each at its first line.
    pub(super) ignored: Vec<Remark>,
}

/// A remark about a line of a file.
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

/// An object as found in a file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    /// First line.
    pub(super) line: usize,
    /// `None`: the object is invalid, see `problems`.
    pub(super) object: Option<Object>,
    pub(super) problems: Vec<Problem>,
}

/// Parses the text of a file. The error is at the line at which the file stops being YAML.
pub(super) fn read(
    path: &Path,
    text: &str,
    node_ports: &RangeInclusive<u16>,
    context: &mut ConversionContext,
) -> Result<Contents, Remark> {
    let mut reader = Reader {
        path,
        lines: Lines::of(text),
        node_ports,
        context,
        placed: 0,
        contents: Contents::default(),
    };
    for (before, document) in documents(text) {
        for (value, line) in
            parse(document).map_err(|error| Remark::new(before + error.line, error.reason))?
        {
            let line = before + line;
            reader.node(value, line, String::new(), line, None);
        }
    }
    Ok(reader.contents)
}

/// The documents of a file, each with the number of lines before it and with its separator, if it has one:
/// in YAML, three dashes at the start of a line can be nothing else. A file with directives (`%YAML`) stays
/// whole, since they stand before the dashes.
fn documents(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let has_directives = text.starts_with('%') || text.contains("\n%");
    let mut rest = (!text.is_empty()).then_some(text);
    let mut lines = 0;
    std::iter::from_fn(move || {
        let here = rest?;
        let end = here
            .match_indices("\n---")
            .map(|(at, _)| at + 1)
            .find(|at| {
                let after = here.as_bytes().get(at + 3);
                !has_directives && after.is_none_or(u8::is_ascii_whitespace)
            });
        let (document, left) = end.map_or((here, None), |end| (&here[..end], Some(&here[end..])));
        let before = lines;
        lines += document.bytes().filter(|byte| *byte == b'\n').count();
        rest = left;
        Some((before, document))
    })
}

/// The values of a document (none, if it is empty) with their lines, from 1.
fn parse(document: &str) -> Result<Vec<(Value, usize)>, Remark> {
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
    let line = |location: Location| usize::try_from(location.line()).unwrap_or_default();
    serde_saphyr::from_multiple_with_options::<Spanned<Value>>(document, options())
        .map(|values| {
            values
                .into_iter()
                .map(|spanned| (spanned.value, line(spanned.referenced)))
                .collect()
        })
        // The message has no line: it would be the document's, not the file's.
        .map_err(|error| {
            let reason = clamped(UserMessageFormatter.format_message(&error));
            Remark::new(error.location().map_or(0, line), reason)
        })
}

/// Strict where YAML is ambiguous, bounded where it can explode.
fn options() -> Options {
    serde_saphyr::options! {
        emit_comments: false,
        with_snippet: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_REPLAYED },
        budget: serde_saphyr::budget! {
            max_events: 2 * MAX_NODES,
            max_nodes: MAX_NODES,
            max_documents: usize::MAX,
        },
    }
}

struct Reader<'a> {
    path: &'a Path,
    lines: Lines<'a>,
    node_ports: &'a RangeInclusive<u16>,
    context: &'a mut ConversionContext,
    placed: usize,
    contents: Contents,
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
            return self.contents.strays.push(Remark::new(
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
            Claim::Refused(reason) => self.contents.strays.push(Remark::new(line, reason)),
            Claim::Foreign(kind) => {
                let ignored = &mut self.contents.ignored;
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
                return self.contents.strays.push(Remark::new(
                    position.line,
                    "items of the list is not a sequence",
                ));
            }
        };
        let path = join(&position.path, "items");
        let lines = self.lines.of_items(position.document, &path);
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
            .and_then(|object| object.into_model(self.context));
        let (object, invalid, whole_object) = match converted {
            Ok(converted) => (Some(wrap(converted.object)), converted.warnings, false),
            Err(invalid) => (None, vec![invalid], true),
        };
        let problems = invalid
            .into_iter()
            .map(|invalid| {
                let line = self.line(position, &invalid.field);
                let at = Some((self.path.to_owned(), line));
                match whole_object {
                    true => Problem::Object { at, invalid },
                    false => Problem::Field { at, invalid },
                }
            })
            .collect();
        self.contents.objects.push(Found {
            key: (O::KIND, name),
            line: position.line,
            object,
            problems,
        });
    }

    fn line(&mut self, position: &Position, field: &str) -> usize {
        self.placed += 1;
        if self.placed > MAX_PLACED {
            return position.line;
        }
        let found = self
            .lines
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
