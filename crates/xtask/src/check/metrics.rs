//! Help of metrics: a noun phrase without a period (the library adds one).

use super::help::PRONOUNS;
use super::source::{Sources, Violation};

/// Files that declare metrics have this in their path.
const DECLARED_IN: &str = "crates/portolan/src/metrics";

/// Words that begin a clause or a sentence, beside pronouns.
const NO_NOUNS: &[&str] = &[
    "from", "to", "in", "by", "is", "are", "was", "has", "how", "when",
];

/// Help texts that are no noun phrase.
pub(super) fn violations(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    let files = sources.files.iter();
    for source in files.filter(|source| source.is_shipped() && source.path.starts_with(DECLARED_IN))
    {
        for (line, text) in source.strings() {
            // Names of metrics and labels are words alone.
            if text.contains(' ')
                && let Some(what) = judge(&text)
            {
                found.push(source.violation(line, what));
            }
        }
    }
    found
}

fn judge(help: &str) -> Option<String> {
    let word = help.split_whitespace().next().unwrap_or_default();
    let lower = word.to_lowercase();
    if PRONOUNS.contains(&lower.as_str()) || NO_NOUNS.contains(&lower.as_str()) {
        Some(format!("metric help begins with \"{word}\": {help:?}"))
    } else if help.ends_with('.') {
        Some(format!("metric help ends with a period: {help:?}"))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_that_is_no_noun_phrase_is_found() {
        let text = "fn f(r: R) { r.register(\"a_total\", \"Such addresses\", x); \
                    r.register(\"b\", \"Peers kept.\", x); r.register(\"c\", \"Peers kept\", x); }";
        let found = violations(&Sources::of(&[("crates/portolan/src/metrics.rs", text)]));
        let found: Vec<&str> = found.iter().map(|one| one.what.as_str()).collect();
        assert_eq!(
            found,
            [
                "metric help begins with \"Such\": \"Such addresses\"",
                "metric help ends with a period: \"Peers kept.\"",
            ]
        );
    }
}
