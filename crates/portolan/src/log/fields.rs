//! Fields of a line of the text log.
//!
//! Owns their quoting. The line's head is left to `tracing-subscriber`. Invariant: a value never ends its line and never
//! looks like another field, whatever foreign text it contains.

use std::fmt::{self, Debug};

use tracing::field::{Field, Visit};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Writes the message and then `key=value` for each field, in quotes where the value is not one plain word.
#[derive(Debug)]
pub(super) struct Fields;

impl<'w> FormatFields<'w> for Fields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line {
            writer,
            separator: "",
            result: Ok(()),
        };
        fields.record(&mut line);
        line.result
    }
}

struct Line<'w> {
    writer: Writer<'w>,
    separator: &'static str,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, key: &str, text: &str, is_plain: fn(&str) -> bool) -> fmt::Result {
        self.writer.write_str(self.separator)?;
        self.separator = " ";
        if key != "message" {
            write!(self.writer, "{key}=")?;
        }
        match is_plain(text) {
            true => self.writer.write_str(text),
            false => write!(self.writer, "{text:?}"),
        }
    }

    fn field(&mut self, field: &Field, text: &str, is_plain: fn(&str) -> bool) {
        // Fields that begin so are metadata of events from the `log` crate.
        if self.result.is_ok() && !field.name().starts_with("log.") {
            self.result = self.write(field.name(), text, is_plain);
        }
    }
}

impl Visit for Line<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.field(field, value, is_sentence),
            _ => self.field(field, value, |_| false),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let is_plain = match field.name() {
            "message" => is_sentence,
            _ => is_word,
        };
        self.field(field, &format!("{value:?}"), is_plain);
    }
}

/// Whether a value can stand as it is: one word, or text that `Debug` has put in quotes.
fn is_word(text: &str) -> bool {
    let is_special = |c: char| c.is_whitespace() || matches!(c, '"' | '=' | '\\');
    let is_plain =
        !text.contains(is_special) || outside_quotes(text).is_some_and(|text| text.is_empty());
    !text.is_empty() && is_visible(text) && is_plain
}

/// Whether a message can stand as it is: outside quotes nothing looks like a field. A flag with its value may stand.
fn is_sentence(text: &str) -> bool {
    let is_field = |word: &str| word.contains('=') && !word.starts_with("--");
    let is_plain = |text: String| !text.split_whitespace().any(is_field);
    is_visible(text) && outside_quotes(text).is_some_and(is_plain)
}

/// What is outside quotes, in which a backslash escapes the next character; `None` where the last quote has no end.
fn outside_quotes(text: &str) -> Option<String> {
    let (mut outside, mut in_quotes) = (String::new(), false);
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (in_quotes, char) {
            (_, '"') => in_quotes = !in_quotes,
            (true, '\\') => drop(chars.next()),
            (true, _) => {}
            (false, char) => outside.push(char),
        }
    }
    (!in_quotes).then_some(outside)
}

/// Whether no character needs an escape to be seen.
fn is_visible(text: &str) -> bool {
    let is_visible = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    text.chars().all(is_visible)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use serde_json::Value;
    use tracing::Subscriber;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Written {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const HOSTILE: [&str; 15] = [
        "default/web",
        "default/x object=default/planted",
        "default/x\" object=\"default/planted",
        "default/x\\\" object=\"default/planted",
        "default/x\\",
        "\"default/x\" object=\"default/planted\"",
        "\"default/x\\\"",
        "default/x\n2026-01-01T00:00:00Z ERROR planted: planted object=default/planted",
        "default/x\r\u{85}\u{2028}object=default/planted",
        "default/x\u{1b}[2Kplanted",
        "default/\u{202e}detnalp",
        "default/x\u{a0}object=default/planted",
        "default/x\",\"object\":\"default/planted",
        "--x object=default/planted",
        "",
    ];

    /// The line that a problem with the object of this name makes in a log.
    fn line<S: Subscriber + Send + Sync>(log: impl FnOnce(Written) -> S, name: &str) -> String {
        let written = Written::default();
        tracing::subscriber::with_default(log(written.clone()), || {
            tracing::error!(object = %name, quoted = ?name, field = name, "{name}: has \"no\" port; ignored");
        });
        let text = written.text();
        let line = text.strip_suffix('\n').expect("a line");
        assert!(!line.contains('\n'), "{line:?}");
        line.to_owned()
    }

    fn text(written: Written) -> impl Subscriber {
        let log = tracing_subscriber::fmt().fmt_fields(Fields);
        log.with_ansi(false)
            .with_writer(move || written.clone())
            .finish()
    }

    fn json(written: Written) -> impl Subscriber {
        let log = tracing_subscriber::fmt().json().flatten_event(true);
        log.with_writer(move || written.clone()).finish()
    }

    /// Keys as a reader of `key=value` finds them: what is between quotes is no key.
    fn keys(line: &str) -> Vec<String> {
        let (mut outside, mut in_quotes, mut is_escaped) = (String::new(), false, false);
        for char in line.chars() {
            match (in_quotes, char) {
                (true, _) if is_escaped => is_escaped = false,
                (true, '\\') => is_escaped = true,
                (_, '"') => in_quotes = !in_quotes,
                (true, _) => {}
                (false, char) => outside.push(char),
            }
        }
        assert!(!in_quotes, "no end of a quote in {line:?}");
        let words = outside.split_whitespace();
        words
            .filter_map(|word| Some(word.split_once('=')?.0.to_owned()))
            .collect()
    }

    #[test]
    fn hostile_name_adds_neither_field_nor_line_to_the_text_log() {
        for name in HOSTILE {
            let line = line(text, name);
            assert!(!line.contains(char::is_control), "{line:?}");
            assert_eq!(keys(&line), ["object", "quoted", "field"], "{line}");
            let escaped = format!("{name:?}");
            let shown = [format!(" object={name} "), format!(" object={escaped} ")];
            assert!(shown.iter().any(|shown| line.contains(shown)), "{line}");
            assert!(
                line.contains(&format!(" quoted={escaped} field={escaped}")),
                "{line}"
            );
        }
    }

    #[test]
    fn hostile_name_adds_neither_field_nor_line_to_the_json_log() {
        for name in HOSTILE {
            let line: Value = serde_json::from_str(&line(json, name)).unwrap();
            let mut keys: Vec<&String> = line.as_object().unwrap().keys().collect();
            keys.sort_unstable();
            let of_event = [
                "field",
                "level",
                "message",
                "object",
                "quoted",
                "target",
                "timestamp",
            ];
            assert_eq!(keys, of_event, "{line}");
            assert_eq!(
                (&line["object"], &line["field"]),
                (&name.into(), &name.into())
            );
        }
    }

    #[test]
    fn plain_values_and_messages_stay_without_quotes() {
        let written = Written::default();
        tracing::subscriber::with_default(text(written.clone()), || {
            let (to, error) = ("10.96.0.1:443", "no route (os error 113)");
            tracing::warn!(%to, %error, count = 3, seconds = 0.5, "cannot use --v=2 \"as x=1\"");
        });
        let text = written.text();
        let end = "cannot use --v=2 \"as x=1\" to=10.96.0.1:443 error=\"no route (os error 113)\" count=3 seconds=0.5\n";
        assert!(text.ends_with(end), "{text}");
    }
}
