//! Parses the plain YAML that programs write for Kubernetes objects: block mappings and sequences of short scalars.
//!
//! Most documents of a large folder are like that, and the library takes twenty times as long for them, as it has to expect
//! all of YAML. Whatever is not certainly plain (comments, anchors, tags, block scalars, escapes, numbers but short
//! decimals, words that some versions of YAML read as booleans) is left to the library, and so are all errors.
//!
//! Invariant: a value that is returned is the one that the library returns for the same text.

use serde_json::{Map, Value};

/// Deeper documents are left to the library, which limits its recursion.
const MAX_DEPTH: usize = 32;

/// The value of a document, with its separator, if it has one, and the line on which it begins. `None`: ask the library.
pub(super) fn parse(document: &str) -> Option<(Value, usize)> {
    let mut lines = Vec::new();
    for (number, text) in (1..).zip(document.lines()) {
        let content = text.trim_start_matches(' ');
        if content.is_empty() && text.is_empty() || (number == 1 && text == "---") {
            continue;
        }
        let is_plain = content.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        // Separators of documents are found before, and `...` would end one.
        if !is_plain || content.ends_with(' ') || content.starts_with("...") {
            return None;
        }
        let indent = text.len() - content.len();
        lines.push(Line {
            indent,
            content,
            number,
        });
    }
    let first = lines.first()?;
    let (line, is_mapping) = (first.number, first.indent == 0 && !is_item(first.content));
    if !is_mapping {
        return None;
    }
    let mut parser = Parser { lines, at: 0 };
    let value = parser.mapping(0, 0)?;
    (parser.at == parser.lines.len()).then_some((value, line))
}

#[derive(Clone, Copy)]
struct Line<'t> {
    indent: usize,
    content: &'t str,
    number: usize,
}

struct Parser<'t> {
    lines: Vec<Line<'t>>,
    at: usize,
}

impl<'t> Parser<'t> {
    /// The next line, unless it is indented less: then the collection ends. `None` outside: indented more.
    fn next_of(&self, indent: usize) -> Option<Option<Line<'t>>> {
        match self.lines.get(self.at) {
            Some(line) if line.indent > indent => None,
            Some(line) if line.indent == indent => Some(Some(*line)),
            _ => Some(None),
        }
    }

    fn mapping(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut map = Map::new();
        while let Some(line) = self.next_of(indent)? {
            if is_item(line.content) {
                // Of a sequence around this mapping, which begins further left: not at this indentation.
                return None;
            }
            let (key, rest) = key(line.content)?;
            self.at += 1;
            let value = match rest {
                "" => self.nested(indent, depth)?,
                rest => scalar(rest)?,
            };
            // The library refuses a key that comes twice.
            if map.insert(key.to_owned(), value).is_some() {
                return None;
            }
        }
        Some(Value::Object(map))
    }

    /// What follows a key without a value.
    fn nested(&mut self, indent: usize, depth: usize) -> Option<Value> {
        if depth >= MAX_DEPTH {
            return None;
        }
        match self.lines.get(self.at).copied() {
            Some(line) if line.indent >= indent && is_item(line.content) => {
                self.sequence(line.indent, depth + 1)
            }
            Some(line) if line.indent > indent => self.mapping(line.indent, depth + 1),
            _ => Some(Value::Null),
        }
    }

    fn sequence(&mut self, indent: usize, depth: usize) -> Option<Value> {
        let mut items = Vec::new();
        while let Some(line) = self.next_of(indent)? {
            let Some(content) = line.content.strip_prefix("- ") else {
                // The next key of the mapping that holds the sequence, at the same indentation.
                break;
            };
            if is_item(content) || content.starts_with(' ') || depth >= MAX_DEPTH {
                return None;
            }
            if key(content).is_none() {
                items.push(scalar(content)?);
                self.at += 1;
                continue;
            }
            // A mapping that begins on the line of its dash.
            let indent = indent + 2;
            if let Some(here) = self.lines.get_mut(self.at) {
                *here = Line {
                    indent,
                    content,
                    ..line
                };
            }
            items.push(self.mapping(indent, depth + 1)?);
        }
        Some(Value::Array(items))
    }
}

fn is_item(content: &str) -> bool {
    content == "-" || content.starts_with("- ")
}

/// The key of a line and what follows it; `None` if there is no key, or not certainly one.
fn key(content: &str) -> Option<(&str, &str)> {
    let (key, rest) = match content.split_once(": ") {
        Some((key, rest)) => (key, rest),
        None => (content.strip_suffix(':')?, ""),
    };
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_./:-".contains(&byte);
    let begins_well = key == "." || key.starts_with(|first: char| first.is_ascii_alphabetic());
    let is_plain = key.bytes().all(is_allowed) && !key.ends_with(':');
    let rest_is_there = rest.is_empty() == content.ends_with(':') && !rest.starts_with(' ');
    (begins_well && is_plain && !is_special(key) && rest_is_there).then_some((key, rest))
}

fn scalar(text: &str) -> Option<Value> {
    let string = |text: &str| Some(Value::String(text.to_owned()));
    match text {
        "{}" => return Some(Value::Object(Map::new())),
        "[]" => return Some(Value::Array(Vec::new())),
        "true" => return Some(Value::Bool(true)),
        "false" => return Some(Value::Bool(false)),
        "null" => return Some(Value::Null),
        _ => {}
    }
    let quoted = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    if text.starts_with(['"', '\'']) {
        let inner = quoted('"').or_else(|| quoted('\''))?;
        return (!inner.contains(['"', '\'', '\\'])).then(|| string(inner))?;
    }
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b" _./:+=,@()-".contains(&byte);
    if !text.bytes().all(is_allowed) || text.contains(": ") || text.ends_with(':') {
        return None;
    }
    if text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '/') {
        return (!is_special(text)).then(|| string(text))?;
    }
    let is_number = text.len() <= 15 && text.bytes().all(|byte| byte.is_ascii_digit());
    if is_number {
        let number = text.parse::<u64>().ok()?;
        return (number.to_string() == text).then(|| number.into());
    }
    (is_address(text) || is_uid(text)).then(|| string(text))?
}

/// An IPv4 address or range (two dots make it no number), or an IPv6 address with `::`.
fn is_address(text: &str) -> bool {
    let is_v4 = |byte: u8| byte.is_ascii_digit() || b"./".contains(&byte);
    let is_v6 = |byte: u8| byte.is_ascii_hexdigit() || b":./".contains(&byte);
    let begins_well = text.starts_with(|first: char| first.is_ascii_digit());
    let has_dots = text.bytes().filter(|byte| *byte == b'.').count() >= 2;
    let has_colons = text.contains("::");
    begins_well && (has_dots && text.bytes().all(is_v4) || has_colons && text.bytes().all(is_v6))
}

/// A UID: five groups of hexadecimal digits.
fn is_uid(text: &str) -> bool {
    let groups = text.split('-').map(str::len);
    groups.eq([8, 4, 4, 4, 12])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Words that are not strings in all versions of YAML.
fn is_special(text: &str) -> bool {
    const WORDS: [&str; 12] = [
        "null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "infinity",
    ];
    text.len() <= 8 && WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::seq::IndexedRandom;
    use rand::{Rng, SeedableRng};

    use super::super::document::parse_yaml;
    use super::*;

    /// Parses a text both ways. Returns whether it is plain.
    #[track_caller]
    fn agree(text: &str) -> bool {
        let plain = parse(text);
        if let Some(value) = &plain {
            assert_eq!(parse_yaml(text), Ok(vec![value.clone()]), "{text}");
        }
        plain.is_some()
    }

    #[test]
    fn an_object_as_programs_write_it_is_plain() {
        let text = "\
---
apiVersion: v1
kind: Service
metadata:
  name: web
  uid: 00000001-5c1e-4a6b-9d3f-0242ac120002
  resourceVersion: \"100000\"
  creationTimestamp: '2026-01-05T10:00:00Z'
  labels:
    app.kubernetes.io/name: web
  managedFields:
  - manager: kubectl
    fieldsV1:
      f:metadata:
        .: {}
        f:labels: {}
spec:
  clusterIP: 10.96.0.1
  clusterIPs:
    - 10.96.0.1
    - 2001:db8::1
  publishNotReadyAddresses: false
  ports:
  - name: http
    port: 80
    targetPort: http
  externalName:
status:
  loadBalancer: {}
";
        assert!(agree(text));
        assert_eq!(parse(text).map(|(_, line)| line), Some(2));
        let value = parse(text).unwrap().0;
        assert_eq!(value["spec"]["ports"][0]["port"], 80);
        assert_eq!(value["spec"]["externalName"], Value::Null);
    }

    #[test]
    fn doubtful_scalars_are_left_to_the_library() {
        for scalar in [
            "0x10",
            "010",
            "1e3",
            "1.5",
            "-1",
            "+1",
            ".5",
            "yes",
            "No",
            "~",
            "NaN",
            "Inf",
            "1:20",
            "1_000",
            "0o7",
            "*a",
            "&a b",
            "!!str a",
            "|",
            ">-",
            "a # b",
            "a: b",
            "\"a\\n\"",
            "'it''s'",
            "[a]",
            "{a: b}",
            "@a",
            "%a",
            "`a`",
            "9999999999999999999",
            "2026-01-05",
            "a:",
            "? a",
            "- a",
            "\u{e9}",
            "1.2e3.4",
            "1::2:",
            "\"a\" b",
            "a\tb",
        ] {
            let text = format!("a: {scalar}\n");
            agree(&text);
            agree(&format!("a:\n- {scalar}\n"));
            agree(&format!("{scalar}: 1\n"));
            agree(&format!("a:\n  {scalar}\n"));
        }
        assert!(!agree("a: 0x10\n") && !agree("a: yes\n") && !agree("a: 1\na: 2\n"));
    }

    /// Lines that fit together in many ways, most of them wrong.
    #[test]
    fn random_texts_mean_what_the_library_says() {
        let pieces = [
            "a:",
            "b:",
            "c: 1",
            "d: x y",
            "- e",
            "- f: g",
            "- h:",
            "-",
            "- - i",
            "j: {}",
            "k: \"l\"",
            "m",
            "- n: 1",
            "o: []",
            "# p",
            "q: 'r'",
            "",
            "---",
            "a: 10.0.0.1",
            "f:a: {}",
            ".: {}",
            "s: null",
        ];
        let mut random = SmallRng::seed_from_u64(7);
        let mut plain = 0;
        for _ in 0..30_000 {
            let mut text = String::new();
            for _ in 0..random.random_range(1..7) {
                let indent = *[0, 0, 2, 2, 4, 1].choose(&mut random).unwrap_or(&0);
                text += &" ".repeat(indent);
                text += pieces.choose(&mut random).unwrap();
                text += "\n";
            }
            plain += usize::from(agree(&text));
        }
        assert!(plain > 300, "{plain}");
    }
}
