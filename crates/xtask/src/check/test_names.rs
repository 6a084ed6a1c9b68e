//! Names of tests: at most 60 characters, so that a list of failures can be read.

use super::source::{Sources, Violation};

/// The longest name, in characters.
const LONGEST: usize = 60;

/// Attributes that make a function a test.
const ATTRIBUTES: &[&str] = &["#[test]", "#[tokio::test", "#[scenario"];

/// Tests with a longer name.
pub(super) fn violations(sources: &Sources) -> Vec<Violation> {
    let mut found = Vec::new();
    // By lines, since many tests are inside of macros.
    for source in sources.files.iter().filter(|source| source.rust.is_some()) {
        let mut is_marked = false;
        for (number, line) in source.lines() {
            let line = line.trim();
            if let Some(name) = function(line).filter(|_| is_marked) {
                let length = name.chars().count();
                if length > LONGEST {
                    found.push(source.violation(number, format!("{name} has {length} characters")));
                }
            }
            let is_test = ATTRIBUTES
                .iter()
                .any(|attribute| line.starts_with(attribute));
            is_marked = is_test || is_marked && line.starts_with('#');
        }
    }
    found
}

/// The name of the function that the line begins.
fn function(line: &str) -> Option<&str> {
    let line = line.strip_prefix("async ").unwrap_or(line);
    let name = line.strip_prefix("fn ")?;
    name.split(|c: char| !c.is_alphanumeric() && c != '_')
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_name_is_found_behind_other_attributes() {
        let (long, short) = ("x".repeat(61), "x".repeat(60));
        let text = format!(
            "#[test]\n#[ignore = \"x\"]\nfn {long}() {{}}\n#[tokio::test]\nasync fn {long}() {{}}\n\
             #[test]\nfn {short}() {{}}\nfn {long}() {{}}\n"
        );
        let found = violations(&Sources::of(&[("a.rs", &text)]));
        let places: Vec<&str> = found.iter().map(|one| one.place.as_str()).collect();
        assert_eq!(places, ["a.rs:3", "a.rs:5"]);
    }
}
