//! The value of a plain document, made from the events of the library's parser.
//!
//! The library's deserializer has to expect all of YAML, which takes half of the time of a large folder. A document of
//! mappings, sequences and scalars needs no more than the events. The library reads all other documents: with anchors, tags,
//! directives, merged or repeated keys, and with errors. It also decides what a scalar is that may be no string.
//!
//! Invariant: a value is the one that the library's deserializer makes of the same document.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::{Map, Value};
use serde_saphyr::granit_parser::{self, Event, Parser, ScalarStyle};
use serde_saphyr::{Location, MessageFormatter, Options, Spanned, UserMessageFormatter};

/// Nodes in one document: a list of 100,000 endpoints has about two million. Bounds memory.
const MAX_NODES: usize = 16_000_000;
/// Nodes that aliases may expand to, in one document: enough for shared labels, too few for a "billion laughs" file.
const MAX_REPLAYED: usize = 100_000;
/// The library allows twice as many levels.
const MAX_DEPTH: usize = 32;
/// Scalars that begin with a letter and are longer can be nothing but strings: `infinity` is the longest other word.
const LONGEST_WORD: usize = 8;
/// Scalars whose meaning is kept; the longest of them.
const KEPT: usize = 1024;
const LONGEST_KEPT: usize = 8;

/// The meaning of scalars that came before.
#[derive(Debug, Default)]
pub(super) struct Scalars(HashMap<Box<str>, Value>);

impl Scalars {
    /// The value of a plain scalar; `None` if the library does not read it.
    fn value(&mut self, text: Cow<'_, str>) -> Option<Value> {
        let begins_with_letter = text.starts_with(|first: char| first.is_ascii_alphabetic());
        if begins_with_letter && text.len() > LONGEST_WORD {
            return Some(Value::String(text.into_owned()));
        }
        if let Some(known) = self.0.get(&*text) {
            return Some(known.clone());
        }
        if text.contains('\n') {
            return None;
        }
        // In a sequence no scalar is taken for the beginning or end of a document.
        let alone = format!("- {text}");
        let read = serde_saphyr::from_str_with_options::<Vec<Value>>(&alone, options());
        let [value] = <[Value; 1]>::try_from(read.ok()?).ok()?;
        if text.len() <= LONGEST_KEPT && self.0.len() < KEPT {
            self.0.insert(text.into(), value.clone());
        }
        Some(value)
    }
}

/// A collection whose end has not come yet.
enum Open {
    Mapping(Map<String, Value>, Option<String>),
    Sequence(Vec<Value>),
}

/// The value of a document and its line; `None`: the library has to read the document.
pub(super) fn read(document: &str, scalars: &mut Scalars) -> Option<(Value, usize)> {
    let options = granit_parser::options! { emit_comments: false };
    let mut parser = Parser::new_from_str_with_options(document, options);
    let (mut open, mut nodes, mut root) = (Vec::<Open>::new(), 0, None);
    while let Some(event) = parser.next_event() {
        let (event, span) = event.ok()?;
        let value = match event {
            Event::StreamStart | Event::DocumentStart(_, None) | Event::DocumentEnd => continue,
            Event::StreamEnd => break,
            // A second document.
            _ if root
                .as_ref()
                .is_some_and(|(value, _)| *value != Value::Null) =>
            {
                return None;
            }
            Event::MappingStart(_, 0, None) if open.len() < MAX_DEPTH => {
                root.get_or_insert((Value::Null, span.start.line()));
                open.push(Open::Mapping(Map::new(), None));
                continue;
            }
            Event::SequenceStart(_, 0, None) if (1..MAX_DEPTH).contains(&open.len()) => {
                open.push(Open::Sequence(Vec::new()));
                continue;
            }
            Event::Scalar(text, ScalarStyle::Plain, 0, None) => scalars.value(text)?,
            Event::Scalar(text, _, 0, None) => Value::String(text.into_owned()),
            Event::MappingEnd | Event::SequenceEnd => match open.pop()? {
                Open::Mapping(map, None) => Value::Object(map),
                Open::Mapping(..) => return None,
                Open::Sequence(items) => Value::Array(items),
            },
            _ => return None,
        };
        nodes += 1;
        if nodes > MAX_NODES {
            return None;
        }
        match open.last_mut() {
            None => root.as_mut()?.0 = value,
            Some(Open::Sequence(items)) => items.push(value),
            Some(Open::Mapping(map, key)) => match key.take() {
                None => *key = Some(new_key(map, value)?),
                Some(key) => {
                    map.insert(key, value);
                }
            },
        }
    }
    root.filter(|(value, _)| *value != Value::Null)
}

fn new_key(map: &Map<String, Value>, value: Value) -> Option<String> {
    match value {
        Value::String(key) if key != "<<" && !map.contains_key(&key) => Some(key),
        _ => None,
    }
}

/// The values of any document, by the library's deserializer; or the line at which it stops being YAML (0: unknown), and why.
pub(super) fn of_library(document: &str) -> Result<Vec<(Value, usize)>, (usize, String)> {
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
            let reason = UserMessageFormatter.format_message(&error).into_owned();
            (error.location().map_or(0, line), reason)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the document is plain. Its value is the library's then.
    fn is_plain(document: &str) -> bool {
        let mut scalars = Scalars::default();
        let first = read(document, &mut scalars);
        assert_eq!(read(document, &mut scalars), first, "{document:?}");
        let Some(value) = first else { return false };
        assert_eq!(of_library(document), Ok(vec![value]), "{document:?}");
        true
    }

    #[test]
    fn plain_documents_have_the_librarys_values() {
        for document in [
            "a: b\n",
            "---\n# why\na:\n- b: c\n  d: [1, x, {e: f}]\n- {}\n- []\n- ''\n",
            "---\na: |\n  text\n  more\nb: >-\n  folded\n  text\nc: 'it''s'\nd: \"\\u00e9\\n\"\ne: two\n  lines\n",
            "\n\n  a: ~\n  b:\n  c: null\n  d: \"null\"\n",
            "a: 10.96.0.1\nb: 00000001-5c1e-4a6b-9d3f-0242ac120002\nc: fd00::1\nd: true\ne: 80\n",
            "\"1\": a\n'': b\n",
        ] {
            assert!(is_plain(document), "{document:?}");
        }
    }

    /// Whether one is plain is no matter, but its value is.
    #[test]
    fn doubtful_scalars_have_the_librarys_values() {
        for text in [
            "yes",
            "No",
            "on",
            "TRUE",
            "infinity",
            ".inf",
            "-.Inf",
            ".nan",
            "NaN",
            "y",
            "n",
            "Null",
            "-2",
            "1.5",
            "0x1f",
            "0o17",
            "1e3",
            "007",
            "1_000",
            "+1",
            "-0",
            "1.",
            ".5",
            "12:30",
            "2026-01-05",
            "--- x",
            "...",
            "-",
            "- x",
            "18446744073709551616",
            "a: b",
            "a #b",
            "a#b",
            "*x",
            "=",
            "<<",
            "~",
            "e5",
            "0b1",
            "1e400",
        ] {
            is_plain(&format!("a: {text}\n"));
            is_plain(&format!("a: [{text}]\n"));
            is_plain(&format!("a:\n- {text}\n"));
            is_plain(&format!("{text}: a\n"));
        }
    }

    #[test]
    fn other_documents_are_left_to_the_library() {
        for document in [
            "",
            "---\n",
            "just text\n",
            "- a\n",
            "a: &x 1\nb: *x\n",
            "a: !!str 1\n",
            "%YAML 1.2\n---\na: b\n",
            "a: b\na: c\n",
            "<<: {a: b}\n",
            "1: a\n",
            "? [a]\n: b\n",
            "a: [\n",
            "a: b\n---\nc: d\n",
            "a: b\n...\nc: d\n",
            "a: \u{7}\n",
        ] {
            assert!(!is_plain(document), "{document:?}");
        }
        let deep = |depth: usize| format!("a: {}{}\n", "[".repeat(depth), "]".repeat(depth));
        assert!(is_plain(&deep(MAX_DEPTH - 1)));
        assert!(!is_plain(&deep(MAX_DEPTH)));
    }

    #[test]
    fn mutated_manifests_have_the_librarys_values() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/manifests");
        fuzz::fuzz(&corpus, [], |bytes| {
            let text = std::str::from_utf8(bytes);
            fuzz::outcome(text.is_ok_and(is_plain))
        });
    }
}
