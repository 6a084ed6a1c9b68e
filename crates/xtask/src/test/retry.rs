//! Runs tests, and those that failed a second time, alone.
//!
//! Tests of a few milliseconds share two busy cores with daemons and other tests. Like a scenario on another kernel
//! ([`crate::kernels`]), a test that fails there runs once more, and is named even if the second run passes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::THREADS;
use crate::run::shown;

/// More failures than this are no accident.
const MOST: usize = 3;

/// What the test harness printed of its results.
#[derive(Debug, Default, PartialEq, Eq)]
struct Report {
    /// Test programs that started, and those that printed a result.
    started: usize,
    ended: usize,
    /// The failures that results count, and the names that lists of failures have.
    failed: usize,
    names: Vec<String>,
    is_list: bool,
}

impl Report {
    fn read(&mut self, line: &str) {
        let is_name = self.is_list && line.starts_with("    ");
        self.is_list = line == "failures:" || is_name;
        if is_name {
            self.names.push(line.trim().to_owned());
        } else if line.starts_with("running ") && line.trim_end_matches('s').ends_with(" test") {
            self.started += 1;
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.ended += 1;
            let failed = result
                .split("; ")
                .find_map(|part| part.strip_suffix(" failed"));
            self.failed += failed.and_then(|failed| failed.parse().ok()).unwrap_or(0);
        }
    }

    /// The tests to try again; none if there are too many of them, or if anything else failed as well.
    fn again(&self) -> Option<&[String]> {
        let is_whole = self.started == self.ended && self.failed == self.names.len();
        (is_whole && (1..=MOST).contains(&self.names.len())).then_some(&self.names)
    }
}

/// Runs a test program, or `cargo test` with arguments for its test programs; fails when a test failed twice.
pub(super) fn run(tests: &mut Command) -> Result<()> {
    let (is_good, report) = watch(tests)?;
    if is_good {
        return Ok(());
    }
    let Some(names) = report.again() else {
        bail!("{} failed", shown(tests));
    };
    eprintln!("failed beside other tests, now alone: {}", names.join(", "));
    tests.env(THREADS, "1").arg("--exact").args(names);
    let (is_good, second) = watch(tests)?;
    ensure!(is_good, "failed twice: {}", second.names.join(", "));
    for name in names {
        eprintln!("UNSTABLE: {name} failed beside other tests and passed alone");
    }
    Ok(())
}

/// Runs it and shows what it prints.
fn watch(tests: &mut Command) -> Result<(bool, Report)> {
    eprintln!("+ {}", shown(tests));
    let mut child = tests
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("could not start {}", shown(tests)))?;
    let output = child.stdout.take().context("no output")?;
    let mut report = Report::default();
    let mut stdout = std::io::stdout();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        stdout.write_all(&line)?;
        stdout.write_all(b"\n")?;
        report.read(&String::from_utf8_lossy(&line));
    }
    Ok((child.wait()?.success(), report))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 2 tests
test a ... ok
test m::b ... FAILED

failures:

---- m::b stdout ----
    not a name

failures:
    m::b

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    fn report(output: &str) -> Report {
        let mut report = Report::default();
        output.lines().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn a_failed_test_is_tried_again_by_name() {
        assert_eq!(report(OUTPUT).again(), Some(&["m::b".to_owned()][..]));
    }

    #[test]
    fn a_program_that_crashed_is_not_forgiven_for_another_failure() {
        assert_eq!(report(&format!("{OUTPUT}\nrunning 1 test\n")).again(), None);
    }

    #[test]
    fn many_failures_and_none_are_not_tried_again() {
        assert_eq!(report(&OUTPUT.repeat(MOST + 1)).again(), None);
        assert_eq!(report("running 0 tests\n").again(), None);
    }
}
