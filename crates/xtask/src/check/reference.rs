//! The reference of Events, annotations and labels has all that the code has, and nothing else.

use std::collections::BTreeSet;

use anyhow::Result;
use regex::Regex;

use super::source::{Sources, Violation};

/// The page, whose rows begin with a name in backticks.
const PAGE: &str = "docs/events.md";
/// Names that the program only reads or writes for others.
const OTHERS: [&str; 1] = ["lab/"];

/// Names that the page lacks, and names that no code has.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    // Reason and action of an Event.
    let event =
        Regex::new(r#"\([ \n]*"([A-Z][a-z]+(?:[A-Z][a-z]+)*)",[ \n]*"[A-Z][A-Za-z]+"[ \n]*\)"#)?;
    let constant = Regex::new(
        r#"const (?:[A-Z_]*ANNOTATION|LABEL|TRIGGER)[A-Z_]*: &str = "([a-z.]+/[a-z-]+)""#,
    )?;
    let row = Regex::new(r"^\| `([A-Za-z./-]+)` \|")?;
    let Some(page) = sources.files.iter().find(|source| source.path == PAGE) else {
        return Ok(Vec::new());
    };
    let rows: BTreeSet<String> = page
        .lines()
        .filter_map(|(_, line)| Some(row.captures(&line)?.get(1)?.as_str().to_owned()))
        .collect();
    let (mut found, mut known) = (Vec::new(), BTreeSet::new());
    for source in sources.files.iter().filter(|source| source.is_shipped()) {
        let shipped = source.text.split("#[cfg(test)]\nmod tests {").next();
        let shipped = shipped.unwrap_or_default();
        for expression in [&event, &constant] {
            for captures in expression.captures_iter(shipped) {
                let Some(name) = captures.get(1) else {
                    continue;
                };
                let line = shipped
                    .get(..name.start())
                    .unwrap_or_default()
                    .lines()
                    .count();
                let name = name.as_str();
                if OTHERS.iter().any(|other| name.starts_with(other)) {
                    continue;
                }
                known.insert(name.to_owned());
                if !rows.contains(name) {
                    found.push(source.violation(line, format!("{name} is not in {PAGE}")));
                }
            }
        }
    }
    for name in rows.difference(&known) {
        found.push(page.violation(1, format!("{name} is in no code")));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_page_or_code_lacks_are_found() {
        let code = "const ANNOTATION_A: &str = \"portolan/a\";\nconst LABEL_B: &str = \"x.io/b\";\n\
                    fn f() { g((\"TookOver\", \"Remove\"), (\"Known\", \"Do\")) }\n\
                    #[cfg(test)]\nmod tests { const E: (&str, &str) = (\"Never\", \"Do\"); }\n";
        let page = "| `portolan/a` | x |\n| `Known` | x |\n| `Gone` | x |\n";
        let files = [("crates/a/src/lib.rs", code), (PAGE, page)];
        let found = violations(&Sources::of(&files)).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "crates/a/src/lib.rs:3: TookOver is not in docs/events.md",
                "crates/a/src/lib.rs:2: x.io/b is not in docs/events.md",
                "docs/events.md:1: Gone is in no code",
            ]
        );
    }
}
