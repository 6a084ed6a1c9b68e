//! Results of scenarios on one kernel, read from what the guest printed, and the table of all kernels.
//!
//! A second boot of a kernel prints to the same file, so a scenario may have run twice. A scenario that failed first and
//! passed then is reported as such.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What came of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScenarioVerdict {
    Passed,
    Skipped,
    /// It did not end in its time, or the machine ended before it.
    Late,
    Failed,
}

/// A scenario's verdict, and the reason for anything but a plain pass.
type ScenarioOutcome = (ScenarioVerdict, String);

/// All scenarios of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Results {
    /// As `uname -r` prints it.
    pub(crate) kernel: String,
    outcomes: BTreeMap<String, ScenarioOutcome>,
    /// How many ended, in this boot or an earlier one.
    ended: usize,
}

impl Results {
    /// Reads what the script of a suite printed. `names` are those that should have run.
    pub(crate) fn read(kernel: &str, names: &[String], printed: &str) -> Results {
        let mut results = Results {
            kernel: kernel.to_owned(),
            ..Results::default()
        };
        let printed = format!("\n{}", printed.replace('\r', ""));
        for section in printed.split("\nBEGIN ").skip(1) {
            let Some((name, rest)) = section.split_once('\n') else {
                continue;
            };
            let end = format!("\nEND {name} ");
            let (said, code) = rest.split_once(&end).unwrap_or((rest, ""));
            let code = code
                .lines()
                .next()
                .and_then(|code| code.trim().parse().ok());
            results.ended += usize::from(code.is_some());
            let mut outcome = judge(said, code);
            if let Some((ScenarioVerdict::Failed | ScenarioVerdict::Late, first)) =
                results.outcomes.get(name)
                && outcome.0 == ScenarioVerdict::Passed
            {
                outcome.1 = format!("passed the second time; the first time: {first}");
            }
            results.outcomes.insert(name.to_owned(), outcome);
        }
        for name in names {
            let missing = || (ScenarioVerdict::Late, "not reached".to_owned());
            results.outcomes.entry(name.clone()).or_insert_with(missing);
        }
        results
    }

    /// Names of the scenarios with this verdict.
    pub(crate) fn with(&self, verdict: ScenarioVerdict) -> Vec<String> {
        let found = self
            .outcomes
            .iter()
            .filter(|(_, outcome)| outcome.0 == verdict);
        found.map(|(name, _)| name.clone()).collect()
    }

    /// Whether nothing ran to its end.
    pub(crate) fn is_empty(&self) -> bool {
        self.ended == 0
    }
}

/// The meaning of a test's output and exit code; without a code it never ended.
fn judge(said: &str, code: Option<i32>) -> ScenarioOutcome {
    let find = |mark: &str| {
        let mut lines = said.lines();
        lines.find_map(|line| Some(line.split_once(mark)?.1.trim().to_owned()))
    };
    match (code, find("SKIPPED: ")) {
        (Some(0), Some(why)) => (ScenarioVerdict::Skipped, why),
        (Some(0), None) => (
            ScenarioVerdict::Passed,
            find("FALLBACK: ").unwrap_or_default(),
        ),
        (None, _) => (ScenarioVerdict::Late, "the machine ended with it".into()),
        (Some(124 | 137), _) => (ScenarioVerdict::Late, "time limit".into()),
        _ => {
            let is_error = |line: &&str| line.contains("Error: ") || line.contains("panicked at");
            let error = said.lines().skip_while(|line| !is_error(line)).take(5);
            let error: Vec<&str> = error.map(str::trim).collect();
            (ScenarioVerdict::Failed, error.join(" "))
        }
    }
}

/// Scenario by kernel, in Markdown, with the reasons below.
pub(crate) fn table(all: &[Results]) -> String {
    let kernels: Vec<&str> = all.iter().map(|results| results.kernel.as_str()).collect();
    let mut text = format!("| scenario | {} |\n", kernels.join(" | "));
    let _ = writeln!(text, "|---|{}", "---|".repeat(all.len()));
    let names: BTreeSet<&String> = all
        .iter()
        .flat_map(|results| results.outcomes.keys())
        .collect();
    let mut reasons = String::new();
    for name in names {
        let _ = write!(text, "| {name} |");
        for results in all {
            let Some((verdict, why)) = results.outcomes.get(name) else {
                text.push_str(" - |");
                continue;
            };
            let mark = if why.is_empty() { "" } else { " *" };
            let _ = write!(text, " {}{mark} |", format!("{verdict:?}").to_lowercase());
            if !why.is_empty() {
                let _ = writeln!(reasons, "- {name} on {}: {why}", results.kernel);
            }
        }
        text.push('\n');
    }
    format!("{text}\n{reasons}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str], printed: &str) -> Results {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Results::read("5.10", &names, printed)
    }

    #[test]
    fn each_scenario_is_judged_by_its_own_output_and_code() {
        let results = read(
            &["a", "b", "c", "d", "e", "f"],
            "kernel 5.10\nBEGIN a\nok\n\nEND a 0\nBEGIN b\nSKIPPED: x because of y\n\nEND b 0\n\
             BEGIN c\ntest c ... Error: lost\n\nEND c 1\nBEGIN d\nFALLBACK: a guard\n\nEND d 0\nBEGIN e\npanic",
        );
        assert_eq!(results.with(ScenarioVerdict::Passed), ["a", "d"]);
        assert_eq!(results.with(ScenarioVerdict::Skipped), ["b"]);
        assert_eq!(results.with(ScenarioVerdict::Failed), ["c"]);
        assert_eq!(results.with(ScenarioVerdict::Late), ["e", "f"]);
        let table = table(&[results]);
        assert!(table.contains("| d | passed * |"), "{table}");
        assert!(table.contains("- d on 5.10: a guard"), "{table}");
        assert!(
            table.contains("- c on 5.10: test c ... Error: lost"),
            "{table}"
        );
    }

    #[test]
    fn a_pass_at_the_second_try_names_the_first_failure() {
        let printed = "BEGIN a\nError: lost\n\nEND a 1\nBEGIN a\nok\n\nEND a 0\n";
        let results = read(&["a"], printed);
        assert!(results.with(ScenarioVerdict::Failed).is_empty());
        assert!(table(&[results]).contains("the first time: Error: lost"));
    }
}
