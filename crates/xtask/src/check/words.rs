//! Words that strings of shipped code, `--help` and pages must not have.
//!
//! The list has the words that the glossary replaces, if the word alone shows that it is wrong.

use anyhow::Result;
use regex::Regex;

use super::help;
use super::source::{Sources, Violation};

/// Uses that are permitted of words that the list has.
const PERMITTED: &[&str] = &[
    "such as",
    "stand-in",
    "stand-alone",
    "remembered set",
    "is no longer",
];

/// Expressions without regard to case, and what to write.
const BANNED: &[(&str, &str)] = &[
    (r"(no|some)body", "name who"),
    (r"told|tells?|telling", "notify, report, print"),
    (r"heard|hears?|hearing", "receive, read"),
    (r"spared?|spares|sparing", "mute, skip"),
    (r"wish(es|ed)?", "request, option"),
    (r"of (ours|theirs)|theirs", "name whose"),
    (r"stands?", "is committed, is in place"),
    (r"such", "name what"),
    (r"so many|so few", "a number of"),
    (r"in step", "synced"),
    (
        r"(a|the|each|every|this|that|one|next|last|first) look",
        "check, reconcile",
    ),
    (
        r"(a|the|each|every|this|that|one|next|last|first) turn",
        "reconcile, round",
    ),
    (r"set aside", "quarantined"),
    (r"(leave|leaves|left|leaving) out", "skip, ignore, omit"),
    (r"meaningless|means? nothing", "invalid, ignored, no effect"),
    (r"(do|does|done|doing) without", "fallback"),
    (
        r"leads? nowhere|what (it|they) leads? to",
        "endpoint, backend, blackhole",
    ),
    (
        r"learn(s|ed)|remembers?|remembered",
        "cache, affinity entry",
    ),
    (r"no news|is news", "unchanged"),
    (r"no more:|is no \w+|are no \w+s", "is not"),
];

/// Every banned word in a text for users.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    let banned = banned()?;
    let mut found = Vec::new();
    for source in &sources.files {
        let mut texts = help::texts(source);
        if source.is_shipped() {
            // A word alone is a name in some protocol, not a text.
            let strings = source.strings().into_iter();
            texts.extend(strings.filter(|(_, text)| text.trim().contains(' ')));
        }
        if source.is_page() {
            texts.extend(source.lines());
        }
        for (line, text) in texts {
            for what in judge(&banned, &text) {
                found.push(source.violation(line, what));
            }
        }
    }
    Ok(found)
}

fn banned() -> Result<Vec<(Regex, &'static str)>> {
    let compiled = BANNED.iter().map(|(words, instead)| {
        let regex = Regex::new(&format!(r"(?i-u)\b({words})\b"))?;
        Ok((regex, *instead))
    });
    compiled.collect()
}

/// What is wrong with a text.
fn judge(banned: &[(Regex, &'static str)], text: &str) -> Vec<String> {
    let mut text = text.to_lowercase();
    for permitted in PERMITTED {
        text = text.replace(permitted, "");
    }
    let found = banned.iter().flat_map(|(regex, instead)| {
        let found = regex.find_iter(&text);
        found.map(move |word| format!("\"{}\" (write: {instead})", word.as_str()))
    });
    found.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_banned_word_in_a_log_line_and_a_page_is_found() {
        let sources = Sources::of(&[
            (
                "crates/portolan/src/a.rs",
                "fn f() { info!(\"the rules stand\"); g(\"told\") }\n",
            ),
            ("README.md", "Nobody's rules, such as these.\n"),
            ("tests/src/b.rs", "fn f() { g(\"nobody told us\") }\n"),
            ("docs/conformance.md", "| Pod should be told | pass |\n"),
        ]);
        let found: Vec<String> = violations(&sources)
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            found,
            [
                "crates/portolan/src/a.rs:1: \"stand\" (write: is committed, is in place)",
                "README.md:1: \"nobody\" (write: name who)",
            ]
        );
    }
}
