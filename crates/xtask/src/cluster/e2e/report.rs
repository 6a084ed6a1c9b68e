//! Reads ginkgo's results for `docs/conformance.md`.
//!
//! Owns the reading of results; [`page`] has the text of the page. Invariant: every outcome comes from a JUnit file. A later run of
//! a test replaces an earlier one, and a test that failed beside others and passed alone is listed as such.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::selection::GROUP;
use crate::run::root;

mod page;

/// The file with commit, date and options of a run, in the run's folder.
pub(super) const ABOUT: &str = "about.json";
/// The page, from the root of the repository.
const PAGE: &str = "docs/conformance.md";
/// Suffix of the result files of tests that were run again, one at a time.
pub(super) const ALONE: &str = "-alone";

/// The outcome of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
enum TestOutcome {
    Passed,
    /// Failed beside other tests, with the first line of the reason, and passed alone.
    PassedAlone(String),
    /// Failed, with the first line of the reason.
    Failed(String),
    /// Skipped, with the test's own reason.
    Skipped(String),
}

type Outcomes = BTreeMap<String, TestOutcome>;

/// The runs with one service proxy.
#[derive(Default)]
struct Column {
    outcomes: Outcomes,
    /// The text of [`ABOUT`] of each run, and the number of its outcomes.
    runs: Vec<(Value, usize)>,
}

/// Writes the page about the runs in two folders. `names` are all tests of networking.
pub(super) fn write(kube_proxy: &Path, portolan: &Path, names: &[String]) -> Result<()> {
    let text = page::text(&column(kube_proxy)?, &column(portolan)?, names);
    let path = root()?.join(PAGE);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

/// The names of tests that fail with Portolan and do not with kube-proxy, by the runs in their folders.
pub(super) fn worse(kube_proxy: &Path, portolan: &Path) -> Result<Vec<String>> {
    let (theirs, ours) = (column(kube_proxy)?.outcomes, column(portolan)?.outcomes);
    Ok(failures(&ours)
        .filter(|name| !matches!(theirs.get(*name), Some(TestOutcome::Failed(_))))
        .cloned()
        .collect())
}

/// The names of tests that fail in a run with Portolan and do not with kube-proxy, by the page as it is.
pub(super) fn worse_than_the_page(run: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(root()?.join(PAGE)).with_context(|| format!("read {PAGE}"))?;
    Ok(failures(&outcomes_of(run)?)
        .filter(|name| !page::has_failure_of_kube_proxy(&text, name))
        .cloned()
        .collect())
}

fn failures(outcomes: &Outcomes) -> impl Iterator<Item = &String> {
    let failed = |outcome: &TestOutcome| matches!(outcome, TestOutcome::Failed(_));
    let failed = outcomes.iter().filter(move |(_, outcome)| failed(outcome));
    failed.map(|(name, _)| name)
}

/// The names of tests that failed.
pub(super) fn failed(results: &Path) -> Result<Vec<String>> {
    Ok(failures(&read(results)?).cloned().collect())
}

/// All runs in a folder, in the order of their names, which are times.
fn column(folder: &Path) -> Result<Column> {
    let mut column = Column::default();
    for run in sorted(folder)? {
        let about = run.join(ABOUT);
        let about =
            fs::read_to_string(&about).with_context(|| format!("read {}", about.display()))?;
        let outcomes = outcomes_of(&run)?;
        let about = serde_json::from_str(&about)?;
        column.runs.push((about, outcomes.len()));
        column.outcomes.extend(outcomes);
    }
    Ok(column)
}

/// The outcomes in the folder of a run.
fn outcomes_of(run: &Path) -> Result<Outcomes> {
    let (mut together, mut alone) = (Outcomes::new(), Outcomes::new());
    for file in sorted(run)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_suffix(".xml") {
            Some(name) if name.ends_with(ALONE) => alone.extend(read(&file)?),
            Some(_) => together.extend(read(&file)?),
            None => {}
        }
    }
    repeat(&mut together, alone);
    Ok(together)
}

fn sorted(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Adds the outcomes of failed tests when they ran alone.
fn repeat(outcomes: &mut Outcomes, alone: Outcomes) {
    for (name, again) in alone {
        if let (Some(TestOutcome::Failed(why)), TestOutcome::Passed) = (outcomes.get(&name), &again)
        {
            let why = why.clone();
            outcomes.insert(name, TestOutcome::PassedAlone(why));
        }
    }
}

/// The outcomes in a file, without tests that the run did not select.
fn read(path: &Path) -> Result<Outcomes> {
    let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    outcomes(&text).with_context(|| format!("in {}", path.display()))
}

/// The outcome of each test of networking in a JUnit file.
fn outcomes(text: &str) -> Result<Outcomes> {
    let document = roxmltree::Document::parse(text)?;
    let cases = document
        .descendants()
        .filter(|node| node.has_tag_name("testcase"));
    let mut outcomes = BTreeMap::new();
    for case in cases {
        let name = case.attribute("name").unwrap_or_default();
        let name = name
            .strip_prefix("[It] ")
            .and_then(|name| name.strip_prefix(GROUP));
        let Some(name) = name else { continue };
        let message = |tag: &str| {
            let child = case.children().find(|child| child.has_tag_name(tag))?;
            let message = child.attribute("message").unwrap_or_default();
            Some(message.lines().next().unwrap_or_default().to_owned())
        };
        let outcome = match case.attribute("status") {
            Some("passed") => TestOutcome::Passed,
            Some("skipped" | "pending") => {
                let said = message("skipped").unwrap_or_default();
                match said.strip_prefix("skipped - ") {
                    Some(why) => TestOutcome::Skipped(why.to_owned()),
                    // ginkgo lists every test of the program, selected or not.
                    None => continue,
                }
            }
            _ => TestOutcome::Failed(message("failure").or(message("error")).unwrap_or_default()),
        };
        // Labels are in the name as well.
        let name = name.split(" [sig-network").next().unwrap_or_default();
        outcomes.insert(name.to_owned(), outcome);
    }
    Ok(outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULTS: &str = r#"<testsuites><testsuite>
        <testcase name="[It] [sig-network] Services should a [Conformance] [sig-network, Conformance]" status="passed"/>
        <testcase name="[It] [sig-network] Services c [sig-network]" status="skipped"><skipped message="skipped - needs x"/></testcase>
        <testcase name="[It] [sig-network] Services not selected [sig-network]" status="skipped"><skipped message="skipped"/></testcase>
        <testcase name="[It] [sig-storage] storage" status="passed"/>
        </testsuite></testsuites>"#;

    fn failing() -> String {
        let failed = "status=\"failed\"><failure message=\"a|b&#xA;more\"/></testcase>";
        RESULTS.replacen("status=\"passed\"/>", failed, 1)
    }

    fn column(outcomes: Outcomes) -> Column {
        let about =
            serde_json::json!({"commit": "0123456789abcdef", "date": "2026-11-29", "procs": 4});
        let runs = vec![(about, outcomes.len())];
        Column { outcomes, runs }
    }

    #[test]
    fn a_difference_between_the_two_has_its_reason() -> Result<()> {
        let names = [
            "Services should a [Conformance]",
            "Services c",
            "Services d",
        ];
        let names = names.map(str::to_owned);
        let (passing, failing) = (outcomes(RESULTS)?, outcomes(&failing())?);
        let text = page::text(&column(passing.clone()), &column(failing.clone()), &names);
        for row in [
            "| `[Conformance]` | 1 of 1 passed | 0 of 1 passed, 1 failed |",
            "| Services should a [Conformance] | pass | **FAIL** | Portolan: a\\|b |",
            "| Services c | skip | skip | the test: needs x |",
            "| Services d | not selected |",
        ] {
            assert!(text.contains(row), "{row}\n{text}");
        }
        assert!(!text.contains("storage"), "{text}");
        let text = page::text(&column(failing), &column(passing), &names);
        let row = "| Services should a [Conformance] | **FAIL** | pass, kube-proxy fails | kube-proxy: a\\|b |";
        assert!(text.contains(row), "{text}");
        let fails = |name| page::has_failure_of_kube_proxy(&text, name);
        assert!(fails("Services should a [Conformance]") && !fails("Services c"));
        Ok(())
    }

    #[test]
    fn a_failure_that_does_not_repeat_alone_stays_visible() -> Result<()> {
        let mut together = outcomes(&failing())?;
        repeat(&mut together, outcomes(RESULTS)?);
        let name = "Services should a [Conformance]";
        let expected = TestOutcome::PassedAlone("a|b".to_owned());
        assert_eq!(together.get(name), Some(&expected));
        let text = page::text(&column(outcomes(RESULTS)?), &column(together), &[]);
        let row = "| pass | pass, alone | Portolan, beside other tests: a\\|b |";
        assert!(text.contains(row), "{text}");
        Ok(())
    }
}
