//! Tests and cases that pages name exist: a promise whose test is gone is none.

use std::collections::BTreeSet;

use anyhow::Result;
use regex::Regex;

use super::source::{Sources, Violation};

/// Names of metrics, of functions of the kernel and of packages, which look like names of tests.
const OTHERS: &[&str] = &[
    "portolan_",
    "kubeproxy_",
    "rest_client_",
    "network_programming_",
    "nf_",
    "nft_",
    "gcc-",
];

/// Where cases are, one in each folder.
const CASES: &str = "tests/cases/";

/// Names in backticks on pages that read like a test (four words or more) or a case (five or more), and are none.
pub(super) fn violations(sources: &Sources) -> Result<Vec<Violation>> {
    let function = Regex::new(r"(?-u)\bfn ([a-z][a-z0-9_]*)")?;
    let named = Regex::new(r"`([a-z0-9]+(?:_[a-z0-9]+){3,}|[a-z0-9]+(?:-[a-z0-9]+){4,})`")?;
    let mut known = BTreeSet::new();
    for source in &sources.files {
        if source.rust.is_some() {
            let functions = function.captures_iter(&source.text);
            known.extend(functions.filter_map(|found| Some(found.get(1)?.as_str())));
        } else if let Some(case) = source.path.strip_prefix(CASES) {
            known.extend(case.split('/').next());
        }
    }
    let mut found = Vec::new();
    let pages = sources.files.iter();
    for page in pages.filter(|source| source.path.ends_with(".md") && source.is_page()) {
        for (number, line) in page.lines() {
            for name in named.captures_iter(&line).filter_map(|name| name.get(1)) {
                let name = name.as_str();
                let is_other = OTHERS.iter().any(|other| name.starts_with(other));
                if !is_other && !known.contains(name) {
                    found.push(page.violation(number, format!("{name} is no test and no case")));
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
    fn names_of_tests_and_cases_that_are_gone_are_found() {
        let page = "`a_test_that_is_there` and `a_test_that_is_gone`,\n\
                    `a-case-that-is-there`, `a-case-that-is-gone`, `portolan_a_b_total`, `short_name`\n";
        let files = [
            ("docs/page.md", page),
            (
                "crates/a/src/lib.rs",
                "#[test]\nfn a_test_that_is_there() {}\n",
            ),
            ("tests/cases/a-case-that-is-there/case.yaml", ""),
        ];
        let found = violations(&Sources::of(&files)).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "docs/page.md:1: a_test_that_is_gone is no test and no case",
                "docs/page.md:2: a-case-that-is-gone is no test and no case"
            ]
        );
    }
}
