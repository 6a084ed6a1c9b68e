//! The line of a field, so that a problem of `spec.ports[0].nodePort` can be found in the file.
//!
//! Reads parser events and builds nothing. Only a file with a problem or a list is read this way, from the line of the
//! document to the field.

use serde_saphyr::granit_parser::{self, Event, Parser, StrInput};

/// The lines of one file.
#[derive(Debug)]
pub(super) struct Lines<'t> {
    text: &'t str,
    /// Byte offset of each line.
    starts: Vec<usize>,
}

impl<'t> Lines<'t> {
    pub(super) fn of(text: &'t str) -> Self {
        let after_breaks = text
            .bytes()
            .enumerate()
            .filter(|(_, byte)| *byte == b'\n')
            .map(|(at, _)| at + 1);
        Lines {
            text,
            starts: std::iter::once(0).chain(after_breaks).collect(),
        }
    }

    /// The line (from 1) of the field `path` of the document whose root node begins at line `document`; that
    /// of its nearest parent when the field is absent.
    pub(super) fn of_field(&self, document: usize, path: &str) -> usize {
        let Some(mut walk) = self.walk(document) else {
            return document;
        };
        walk.descend(path);
        document + walk.line.saturating_sub(1)
    }

    /// The lines (from 1) of the items of the sequence at `path`.
    pub(super) fn of_items(&self, document: usize, path: &str) -> Vec<usize> {
        let Some(mut walk) = self.walk(document) else {
            return Vec::new();
        };
        walk.descend(path);
        walk.item_lines()
            .into_iter()
            .map(|line| document + line.saturating_sub(1))
            .collect()
    }

    fn walk(&self, document: usize) -> Option<Walk<'t>> {
        let start = *self.starts.get(document.checked_sub(1)?)?;
        let options = granit_parser::options! { emit_comments: false };
        let mut parser = Parser::new_from_str_with_options(self.text.get(start..)?, options);
        loop {
            let (event, span) = parser.next_event()?.ok()?;
            if event.is_node() {
                return Some(Walk {
                    parser,
                    node: event,
                    line: span.start.line(),
                });
            }
        }
    }
}

/// A position in the tree of one document: a node whose first event has been read.
struct Walk<'t> {
    parser: Parser<'t, StrInput<'t>>,
    node: Event<'t>,
    line: usize,
}

impl<'t> Walk<'t> {
    /// Goes down as far as the path leads. Keys may hold dots: the rest of a path is compared with them.
    fn descend(&mut self, path: &str) {
        let mut rest = path;
        while !rest.is_empty() {
            let step = match self.node {
                Event::MappingStart(..) => self.enter_mapping(rest),
                Event::SequenceStart(..) => self.enter_sequence(rest),
                _ => None,
            };
            match step {
                Some(left) => rest = left,
                None => return,
            }
        }
    }

    /// Moves to the value of the key that `rest` begins with; returns what follows the key.
    fn enter_mapping<'p>(&mut self, rest: &'p str) -> Option<&'p str> {
        loop {
            let (key, line) = self.next()?;
            let (text, _) = key.scalar()?;
            if let Some(left) = after_key(rest, text) {
                let (value, _) = self.next()?;
                (self.node, self.line) = (value, line);
                return Some(left);
            }
            let (value, _) = self.next()?;
            self.skip(&value)?;
        }
    }

    /// Moves to the item that `rest` begins with (`[3]`); returns what follows.
    fn enter_sequence<'p>(&mut self, rest: &'p str) -> Option<&'p str> {
        let (index, left) = rest.strip_prefix('[')?.split_once(']')?;
        let index: usize = index.parse().ok()?;
        for _ in 0..index {
            let (item, _) = self.next()?;
            self.skip(&item)?;
        }
        (self.node, self.line) = self.next()?;
        Some(left.strip_prefix('.').unwrap_or(left))
    }

    fn item_lines(&mut self) -> Vec<usize> {
        let mut lines = Vec::new();
        if matches!(self.node, Event::SequenceStart(..)) {
            while let Some((item, line)) = self.next() {
                lines.push(line);
                if self.skip(&item).is_none() {
                    break;
                }
            }
        }
        lines
    }

    /// The first event of the next node in this collection, and its line; `None` at the end of it.
    fn next(&mut self) -> Option<(Event<'t>, usize)> {
        let (event, span) = self.parser.next_event()?.ok()?;
        event.is_node().then(|| (event, span.start.line()))
    }

    /// Reads the rest of a node.
    fn skip(&mut self, node: &Event<'t>) -> Option<()> {
        let opens =
            |event: &Event<'_>| matches!(event, Event::MappingStart(..) | Event::SequenceStart(..));
        let mut depth = usize::from(opens(node));
        while depth > 0 {
            let (event, _) = self.parser.next_event()?.ok()?;
            if opens(&event) {
                depth += 1;
            } else if matches!(event, Event::MappingEnd | Event::SequenceEnd) {
                depth -= 1;
            }
        }
        Some(())
    }
}

/// What follows the key in a path that begins with it.
fn after_key<'p>(path: &'p str, key: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(key)?;
    match rest.as_bytes().first() {
        None | Some(b'[') => Some(rest),
        Some(b'.') => rest.get(1..),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# a comment
kind: Service
metadata:
  labels:
    kubernetes.io/service-name: web
    kubernetes.io: x
  name: web
spec:
  ports:
  - {name: a, port: 1}
  - name: b
    # why
    nodePort: 5

    port: 2
---
{\"kind\": \"List\",
 \"items\": [
  {\"a\": 1},
  {\"a\": 2,
   \"b\": [[1], [2,
    3]]}
 ]}
";

    #[test]
    fn a_field_is_found_at_its_line() {
        let lines = Lines::of(FILE);
        for (document, path, line) in [
            (2, "kind", 2),
            (2, "metadata", 3),
            (2, "metadata.labels.kubernetes.io/service-name", 5),
            (2, "metadata.labels.kubernetes.io", 6),
            (2, "spec.ports[0].port", 10),
            (2, "spec.ports[1]", 11),
            (2, "spec.ports[1].nodePort", 13),
            (2, "spec.ports[1].port", 15),
            (17, "items[0].a", 19),
            (17, "items[1].b[1][1]", 22),
        ] {
            assert_eq!(lines.of_field(document, path), line, "{path}");
        }
        assert_eq!(lines.of_items(17, "items"), [19, 20]);
    }

    #[test]
    fn an_absent_field_is_at_its_nearest_parent() {
        let lines = Lines::of(FILE);
        assert_eq!(lines.of_field(2, "spec.ports[1].protocol"), 11);
        assert_eq!(lines.of_field(2, "spec.ports[7].port"), 9);
        assert_eq!(lines.of_field(2, "metadata.name.x[0]"), 7);
        assert_eq!(lines.of_field(2, "nowhere"), 2);
        assert_eq!(lines.of_field(99, "kind"), 99);
        assert!(lines.of_items(2, "spec").is_empty());
    }
}
