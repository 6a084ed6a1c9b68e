//! Commit messages: an imperative subject of at most 65 characters, and a body.

use anyhow::Result;

use super::help::PRONOUNS;
use super::source::Violation;
use crate::run::{git, output};

/// Commits up to this one were written before the rule.
const BEFORE: &str = "75600aa";
const LONGEST: usize = 65;

/// Verbs whose imperative looks like a past or a participle.
const IMPERATIVES: &[&str] = &[
    "embed", "feed", "need", "seed", "shed", "speed", "exceed", "bring", "ping", "ring",
];

/// First words that begin no imperative, beside pronouns.
const NO_VERBS: &[&str] = &[
    "a",
    "all",
    "an",
    "and",
    "are",
    "as",
    "at",
    "both",
    "by",
    "clippy",
    "docs",
    "every",
    "everybody",
    "everything",
    "for",
    "from",
    "if",
    "in",
    "is",
    "more",
    "most",
    "no",
    "not",
    "nothing",
    "on",
    "one",
    "only",
    "other",
    "some",
    "something",
    "the",
    "to",
    "two",
    "was",
    "when",
    "why",
    "wip",
    "with",
];

/// A commit as git prints it.
struct Commit<'a> {
    hash: &'a str,
    parents: &'a str,
    subject: &'a str,
    body: &'a str,
}

/// What is wrong with the commits of the branch. Where the history is not here (a shallow clone), says so.
pub(super) fn violations() -> Result<Vec<Violation>> {
    let known = git(&["merge-base", "--is-ancestor", BEFORE, "HEAD"])?.output();
    if !known.is_ok_and(|known| known.status.success()) {
        eprintln!("SKIPPED: commit messages: this clone does not have the history since {BEFORE}");
        return Ok(Vec::new());
    }
    let range = format!("{BEFORE}..HEAD");
    let log = output(&mut git(&[
        "log",
        "--format=%h%x1f%p%x1f%s%x1f%b%x1e",
        &range,
    ])?)?;
    let log = String::from_utf8_lossy(&log);
    let commits = log.split('\x1e').filter_map(commit);
    Ok(commits.flat_map(|commit| judge(&commit)).collect())
}

fn commit(text: &str) -> Option<Commit<'_>> {
    let mut fields = text.trim_start().split('\x1f');
    Some(Commit {
        hash: fields.next().filter(|hash| !hash.is_empty())?,
        parents: fields.next()?,
        subject: fields.next()?,
        body: fields.next()?,
    })
}

fn judge(commit: &Commit<'_>) -> Vec<Violation> {
    let mut wrong = Vec::new();
    let length = commit.subject.chars().count();
    if length > LONGEST {
        wrong.push(format!("the subject has {length} characters"));
    }
    // An area may come first: `nft: Mute ...`.
    let change = commit
        .subject
        .split_once(": ")
        .map_or(commit.subject, |(_, change)| change);
    let mut words = change.split_whitespace().map(str::to_lowercase);
    let verb = words.next().unwrap_or_default();
    if !is_imperative(&verb) {
        wrong.push(format!("\"{verb}\" is no imperative"));
    }
    if words.next().is_none() {
        wrong.push("the subject does not say what is changed".into());
    }
    if commit.body.trim().is_empty() {
        wrong.push("no body".into());
    }
    if commit.parents.split_whitespace().count() > 1 {
        wrong.push("a merge".into());
    }
    let place = format!("commit {} ({})", commit.hash, commit.subject);
    wrong
        .into_iter()
        .map(|what| Violation {
            place: place.clone(),
            what,
        })
        .collect()
}

/// Whether the word may be an imperative: neither a participle, nor the third person, nor a word that is no verb.
fn is_imperative(word: &str) -> bool {
    let is_participle = ["ed", "ing"].iter().any(|end| word.ends_with(end));
    let is_third_person = word.ends_with('s') && !word.ends_with("ss") && word != "focus";
    let is_other = PRONOUNS.contains(&word) || NO_VERBS.contains(&word);
    IMPERATIVES.contains(&word) || !(is_participle || is_third_person || is_other)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(parents: &str, subject: &str, body: &str) -> Vec<String> {
        let text = format!("\nabc\x1f{parents}\x1f{subject}\x1f{body}");
        judge(&commit(&text).unwrap())
            .into_iter()
            .map(|one| one.what)
            .collect()
    }

    #[test]
    fn an_imperative_with_a_body_is_right() {
        assert!(wrong("a", "Drop endpoints of deleted slices", "Because.").is_empty());
        assert!(wrong("a", "nft: Embed the list", "Because.").is_empty());
    }

    #[test]
    fn participles_long_subjects_merges_and_missing_bodies_are_found() {
        assert_eq!(
            wrong("a", "nft: fixed a bug", "x"),
            ["\"fixed\" is no imperative"]
        );
        assert_eq!(wrong("a b", "Merge branch", ""), ["no body", "a merge"]);
        assert_eq!(
            wrong("a", &format!("Do {}", "x".repeat(63)), "x"),
            ["the subject has 66 characters"]
        );
    }

    #[test]
    fn statements_and_subjects_of_one_word_are_found() {
        for (subject, what) in [
            (
                "Nobody serves at the gateways",
                "\"nobody\" is no imperative",
            ),
            ("benches: flushes rest", "\"flushes\" is no imperative"),
            ("What the numbers are", "\"what\" is no imperative"),
            ("Format", "the subject does not say what is changed"),
        ] {
            assert_eq!(wrong("a", subject, "x"), [what], "{subject}");
        }
        assert!(wrong("a", "Pass the text by value", "x").is_empty());
    }
}
