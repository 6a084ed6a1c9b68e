//! References that a reader can follow: no numbers of catalogs that are not in the repository (`F12`, `B42`), and no sections of
//! documents without a name.

use anyhow::Result;
use regex::Regex;

use super::source::{Sources, Violation};

/// The one catalog of the repository, whose rows have such numbers.
const CATALOG: &str = "docs/reliability.md";

/// Every reference of that form in prose, and tests named after one.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    let number = Regex::new(r"(?-u)\b[FB]\d{1,2}\b")?;
    let section = Regex::new(r"(?-u)\b[Ss]ection \d+\.\d+")?;
    let test = Regex::new(r"(?-u)\bfn ([fb]\d{1,2}_\w+)")?;
    let mut found = Vec::new();
    for source in sources.files.iter().filter(|source| source.path != CATALOG) {
        for (line, text) in source.prose() {
            for reference in number.find_iter(&text) {
                found.push(source.violation(
                    line,
                    format!("{}: no such catalog here", reference.as_str()),
                ));
            }
            for reference in section.find_iter(&text).filter(|_| !text.contains("RFC")) {
                found.push(
                    source.violation(line, format!("{}: of which document", reference.as_str())),
                );
            }
        }
        for (line, text) in source.lines() {
            if let Some(name) = test.captures(&text).and_then(|found| found.get(1)) {
                found.push(
                    source.violation(line, format!("{}: named after a catalog", name.as_str())),
                );
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_catalogs_are_found_in_comments_strings_and_names() {
        let rows = ("docs/reliability.md", "| B1 | met |\n");
        assert!(violations(&Sources::of(&[rows])).unwrap().is_empty());
        let section = "// As section 1.6 says.\n// As RFC 791, section 3.1 says.\n";
        let found = violations(&Sources::of(&[("a.rs", section)])).unwrap();
        assert_eq!(found.len(), 1, "{}", found[0]);
        let text = "// As F12 says.\nfn f41_slices() { g(\"bar B6\", 0xF1, B2::new()) }\n";
        let found = violations(&Sources::of(&[("a.rs", text)])).unwrap();
        let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
        assert_eq!(places, ["a.rs:1", "a.rs:2", "a.rs:2"]);
    }
}
