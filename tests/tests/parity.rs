//! The table of docs/kube-proxy-parity.md holds every row, and nothing in it or in docs/kube-proxy-flags.md is shown by
//! a test that does not exist.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Rows of the specification.
const ROWS: u32 = 85;

fn root() -> Result<&'static Path> {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the workspace")
}

/// Words in back quotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Names of all functions marked as tests, of Rust and of Rust only.
fn tests(folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            tests(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path)?;
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let function = line.strip_prefix("async fn ").or(line.strip_prefix("fn "));
                match function.and_then(|rest| rest.split_once('(')) {
                    Some((name, _)) if is_test => drop(found.insert(name.to_owned())),
                    _ => {}
                }
                is_test = line.starts_with("#[test]")
                    || line.starts_with("#[scenario")
                    || line.starts_with("#[tokio::test")
                    || is_test && line.starts_with("#[");
            }
        }
    }
    Ok(())
}

#[test]
fn every_row_is_in_the_table_and_shown_by_tests_that_exist() -> Result<()> {
    let root = root()?;
    let text = fs::read_to_string(root.join("docs/kube-proxy-parity.md"))?;
    let cases = fs::read_dir(root.join("tests/cases"))?;
    let cases: BTreeSet<String> = cases
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    let mut names = cases.clone();
    for folder in ["crates", "tests/src", "tests/tests"] {
        tests(&root.join(folder), &mut names)?;
    }
    let mut rows: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
    let mut missing = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let Some(Ok(number)) = cells.first().map(|cell| cell.parse()) else {
            continue;
        };
        let shown_by: Vec<&str> = quoted(cells.last().context("no cells")?).collect();
        let unknown = shown_by.iter().filter(|name| !names.contains(**name));
        missing.extend(unknown.map(|name| format!("row {number}: {name}")));
        let before = rows.insert(number, shown_by);
        ensure!(before.is_none(), "row {number} twice");
    }
    // Names outside the table are those of cases.
    let others = text
        .lines()
        .filter(|line| !line.starts_with('|'))
        .flat_map(quoted);
    let others = others.filter(|name| name.contains('-') && !name.contains([' ', '.']));
    missing.extend(
        others
            .filter(|name| !cases.contains(*name))
            .map(str::to_owned),
    );
    ensure!(missing.is_empty(), "no such tests: {missing:#?}");
    let absent: Vec<u32> = (1..=ROWS)
        .filter(|row| rows.get(row).is_none_or(Vec::is_empty))
        .collect();
    ensure!(absent.is_empty(), "rows without a test: {absent:?}");
    ensure!(rows.len() == ROWS as usize, "rows: {:?}", rows.keys());
    Ok(())
}

#[test]
fn every_test_that_the_page_of_flags_names_exists() -> Result<()> {
    let root = root()?;
    let text = fs::read_to_string(root.join("docs/kube-proxy-flags.md"))?;
    let mut names = BTreeSet::new();
    for folder in ["crates", "tests/src", "tests/tests"] {
        tests(&root.join(folder), &mut names)?;
    }
    let rows = text.lines().filter(|line| line.starts_with("| "));
    let (mut missing, mut count) = (Vec::new(), 0);
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        let shown_by: Vec<&str> = quoted(cells.last().context("no cells")?).collect();
        let is_setting = row.starts_with("| `");
        ensure!(
            !is_setting || !shown_by.is_empty(),
            "shown by nothing: {row}"
        );
        count += shown_by.len();
        missing.extend(shown_by.into_iter().filter(|name| !names.contains(*name)));
    }
    ensure!(count > 100, "{count} names: is the table still there?");
    ensure!(missing.is_empty(), "no such tests: {missing:?}");
    Ok(())
}

#[test]
fn every_case_is_named_by_the_table() -> Result<()> {
    let root = root()?;
    let text = fs::read_to_string(root.join("docs/kube-proxy-parity.md"))?;
    let named: BTreeSet<&str> = text.lines().flat_map(quoted).collect();
    let mut forgotten = Vec::new();
    for entry in fs::read_dir(root.join("tests/cases"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !named.contains(name.as_str()) {
            forgotten.push(name);
        }
    }
    ensure!(forgotten.is_empty(), "not in the table: {forgotten:?}");
    Ok(())
}
