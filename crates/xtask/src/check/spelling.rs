//! American spelling, in comments, strings, pages and identifiers.

use anyhow::Result;
use regex::Regex;

use super::source::{Sources, Violation};

/// British spellings, as parts of words, and the American ones.
const BRITISH: &[(&str, &str)] = &[
    (r"behaviour", "behavior"),
    (r"neighbour", "neighbor"),
    (r"licen[c]e", "license"),
    (r"colour", "color"),
    (r"favour", "favor"),
    (r"honour", "honor"),
    (r"\bcentre", "center"),
    (r"\bgrey\b", "gray"),
    (r"labell", "label"),
    (r"cancell(ed|ing)\b", "canceled"),
    (r"diall(ed|ing)", "dialed"),
    (
        r"(travell|modell|signall|tunnell|channell)(ed|ing)",
        "one l",
    ),
    (
        r"\b(recogn|organ|normal|initial|serial|synchron|optim|summar|minim|maxim|prior)is(e|ed|es|ing|ation)\b",
        "-ize",
    ),
    (r"\banalys(e|ed|es|ing)\b", "analyze"),
    (r"artefact", "artifact"),
    (r"catalogue", "catalog"),
    (r"\bprogrammes?\b", "program"),
    (r"\bwhilst\b", "while"),
    (r"\bcheque", "check"),
];

/// British names that dependencies have given.
const FOREIGN: &[&str] = &[
    "DelNeighbour",
    "GetNeighbour",
    "NeighbourAddress",
    "NeighbourAttribute",
    "NeighbourFlags",
    "NeighbourMessage",
    "NeighbourState",
    "NewNeighbour",
    "cancelled",
    "is_cancelled",
    "netlink_packet_route::neighbour",
    "run_until_cancelled",
];

/// Every British spelling.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    let all: Vec<&str> = BRITISH.iter().map(|(word, _)| *word).collect();
    let any = Regex::new(&format!("(?i-u){}", all.join("|")))?;
    let foreign = Regex::new(&format!(r"(?-u)\b(?:{})\b", FOREIGN.join("|")))?;
    let mut found = Vec::new();
    for source in &sources.files {
        let mut check = |line, text: &str| {
            let words = any.find_iter(text).map(|word| word.as_str());
            found.extend(
                words.map(|word| source.violation(line, format!("\"{word}\": American spelling"))),
            );
        };
        for (line, text) in source.prose() {
            // In back quotes are names that others gave.
            text.split('`')
                .step_by(2)
                .for_each(|text| check(line, text));
        }
        for (line, code) in source.code() {
            check(line, &words(&foreign.replace_all(&code, "")));
        }
    }
    Ok(found)
}

/// Code as words: `PutNeighbor` and `put_neighbor` as `put neighbor`.
fn words(code: &str) -> String {
    let word = |c: char| match c {
        _ if c.is_uppercase() => vec![' ', c],
        '_' => vec![' '],
        _ => vec![c],
    };
    code.chars().flat_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn british_words_are_found_in_comments_and_names() {
        let sources = Sources::of(&[(
            "a.rs",
            "// The neighbour, not `neighbours()`.\nuse netlink_packet_route::neighbour::NeighbourState;\n\
             fn f(x: X) { x.grey_cat(\"a // b\"); if x.is_cancelled() {} }\nstruct PutNeighbours;\n",
        )]);
        let found = violations(&sources).unwrap();
        let places: Vec<&str> = found.iter().map(|found| found.place.as_str()).collect();
        assert_eq!(places, ["a.rs:1", "a.rs:3", "a.rs:4"]);
    }
}
