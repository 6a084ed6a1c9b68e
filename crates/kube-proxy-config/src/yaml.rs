//! A YAML file as a tree whose nodes know their lines, so that every complaint can name one.
//!
//! kube-proxy reads its file with a decoder of YAML 1.1 (sigs.k8s.io/yaml): `yes`, `on` and `off` are booleans there,
//! and numbers may have Go's prefixes. [`Node::plain`] follows that. Aliases and merge keys (`<<`) are resolved here.
//! Invariant: the tree is bounded in depth and size, whatever the text.

use std::collections::BTreeMap;

use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle, StrInput};

use crate::go;
use crate::value::Value;

const MAX_DEPTH: usize = 32;
const MAX_NODES: usize = 20_000;
/// etcd holds no larger ConfigMap.
const MAX_BYTES: usize = 2 << 20;

/// A document of a file.
#[derive(Debug)]
pub(crate) struct Document {
    /// Line of the first node, from 1.
    pub(crate) line: usize,
    pub(crate) root: Node,
}

/// A node with the line it begins at.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) content: Content,
}

#[derive(Clone, Debug)]
pub(crate) enum Content {
    Scalar {
        text: String,
        /// Without quotes: its kind follows from its text.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a mapping; keys may repeat.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) node: Node,
}

/// Why a text is no tree.
#[derive(Debug)]
pub(crate) struct Broken {
    pub(crate) line: usize,
    pub(crate) reason: String,
}

impl Node {
    /// A scalar as YAML 1.1 resolves it; `None` for lists and mappings.
    pub(crate) fn plain(&self) -> Option<Value> {
        match &self.content {
            Content::Scalar { text, plain: true } => Some(resolve(text)),
            Content::Scalar { text, plain: false } => Some(Value::Text(text.clone())),
            Content::List(_) | Content::Map(_) => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.plain(), Some(Value::Null))
    }

    /// The node in a message.
    pub(crate) fn describe(&self) -> String {
        match &self.content {
            Content::Scalar { text, .. } => text.clone(),
            Content::List(_) => "a list".to_owned(),
            Content::Map(_) => "a mapping".to_owned(),
        }
    }

    fn size(&self) -> usize {
        1 + match &self.content {
            Content::Scalar { .. } => 0,
            Content::List(items) => items.iter().map(Node::size).sum(),
            Content::Map(entries) => entries.iter().map(|entry| entry.node.size()).sum(),
        }
    }
}

/// The kind of a scalar without quotes (go-yaml's `resolve`).
fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Value::Bool(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if let Some(number) = go::parse_int(text) {
        return Value::Int(number);
    }
    let numeric = |c: char| c.is_ascii_digit() || matches!(c, '.' | '-' | '+' | 'e' | 'E');
    let float = text.chars().all(numeric).then(|| text.parse::<f64>().ok());
    match float.flatten() {
        Some(number) => Value::Float(number),
        None => Value::Text(text.to_owned()),
    }
}

/// The documents of a file; empty ones are left out.
pub(crate) fn documents(text: &str) -> Result<Vec<Document>, Broken> {
    if text.len() > MAX_BYTES {
        return Err(Broken {
            line: 1,
            reason: format!("longer than {MAX_BYTES} bytes"),
        });
    }
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! { emit_comments: false };
    let mut reader = Reader {
        parser: Parser::new_from_str_with_options(text, options),
        anchors: BTreeMap::new(),
        nodes: 0,
    };
    let mut documents = Vec::new();
    while let Some((event, line)) = reader.next()? {
        if !event.is_node() {
            continue;
        }
        reader.anchors.clear();
        let root = reader.node(event, line, 0)?;
        if !root.is_null() {
            documents.push(Document { line, root });
        }
    }
    Ok(documents)
}

struct Reader<'t> {
    parser: Parser<'t, StrInput<'t>>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<Option<(Event<'t>, usize)>, Broken> {
        match self.parser.next_event() {
            None => Ok(None),
            Some(Ok((event, span))) => Ok(Some((event, span.start.line()))),
            Some(Err(error)) => Err(Broken {
                line: error.marker().line(),
                reason: error.info(),
            }),
        }
    }

    /// The next event of a collection, or `None` at its end.
    fn item(&mut self, line: usize) -> Result<Option<(Event<'t>, usize)>, Broken> {
        let cut = || Broken {
            line,
            reason: "the file ends within this collection".to_owned(),
        };
        let (event, line) = self.next()?.ok_or_else(cut)?;
        Ok(event.is_node().then_some((event, line)))
    }

    fn node(&mut self, event: Event<'t>, line: usize, depth: usize) -> Result<Node, Broken> {
        let broken = |reason: &str| Broken {
            line,
            reason: reason.to_owned(),
        };
        if depth > MAX_DEPTH {
            return Err(broken("nested too deeply"));
        }
        let is_alias = matches!(event, Event::Alias(_));
        let (content, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let is_text = tag.is_some_and(|tag| tag.suffix() == "str");
                let content = Content::Scalar {
                    text: text.into_owned(),
                    plain: style == ScalarStyle::Plain && !is_text,
                };
                (content, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.list(line, depth)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.map(line, depth)?, anchor),
            Event::Alias(anchor) => {
                let node = self.anchors.get(&anchor).cloned();
                let node = node.ok_or_else(|| broken("an alias without its anchor"))?;
                (node.content, 0)
            }
            _ => return Err(broken("not a value")),
        };
        let node = Node { line, content };
        let cost = if is_alias { node.size() } else { 1 };
        self.nodes = self.nodes.saturating_add(cost);
        if self.nodes > MAX_NODES {
            return Err(broken("too many values"));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, line: usize, depth: usize) -> Result<Content, Broken> {
        let mut items = Vec::new();
        while let Some((event, line)) = self.item(line)? {
            items.push(self.node(event, line, depth + 1)?);
        }
        Ok(Content::List(items))
    }

    fn map(&mut self, line: usize, depth: usize) -> Result<Content, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        while let Some((event, line)) = self.item(line)? {
            let key = self.node(event, line, depth + 1)?;
            let Content::Scalar { text, plain } = key.content else {
                let reason = "a key must be a string".to_owned();
                return Err(Broken { line, reason });
            };
            let Some((event, value_line)) = self.item(line)? else {
                let reason = format!("{text:?} has no value");
                return Err(Broken { line, reason });
            };
            let node = self.node(event, value_line, depth + 1)?;
            match (plain, text.as_str()) {
                (true, "<<") => merge(node, &mut merged),
                _ => entries.push(Entry {
                    key: text,
                    line,
                    node,
                }),
            }
        }
        for entry in merged {
            if !entries.iter().any(|own| own.key == entry.key) {
                entries.push(entry);
            }
        }
        Ok(Content::Map(entries))
    }
}

/// The entries that a merge key brings: of a mapping, or of several in order.
fn merge(node: Node, into: &mut Vec<Entry>) {
    match node.content {
        Content::Map(entries) => into.extend(entries),
        Content::List(items) => items.into_iter().for_each(|item| merge(item, into)),
        Content::Scalar { .. } => {}
    }
}
