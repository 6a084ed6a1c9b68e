//! American spelling, in comments, strings and pages.

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

/// Every British spelling.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    let all: Vec<&str> = BRITISH.iter().map(|(word, _)| *word).collect();
    let any = Regex::new(&format!("(?i-u){}", all.join("|")))?;
    let mut found = Vec::new();
    for source in &sources.files {
        for (line, text) in source.prose() {
            // In back quotes are names that others gave.
            for text in text.split('`').step_by(2) {
                for word in any.find_iter(text) {
                    found.push(
                        source.violation(line, format!("\"{}\": American spelling", word.as_str())),
                    );
                }
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn british_words_are_found_in_comments_but_not_in_code() {
        let sources = Sources::of(&[(
            "a.rs",
            "// The neighbour, not `neighbours()`.\nfn f(x: X) { x.neighbours(); }\n",
        )]);
        let found = violations(&sources).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].place, "a.rs:1");
    }
}
