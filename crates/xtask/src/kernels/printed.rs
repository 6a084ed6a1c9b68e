//! What was printed on a kernel, read back: what came of each scenario, and what the kernel can do.
//!
//! A kernel that was booted a second time has printed to the same file, so a scenario may have run twice. What failed
//! at first and held then is told as such.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What came of a scenario on a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It held.
    Passed(Duration),
    /// It held by another way, in its words.
    FellBack(Duration, String),
    /// It held the second time; what was wrong the first time.
    Again(Duration, String),
    /// Something is missing, in its words.
    Skipped(String),
    /// It did not end in its time, or was not reached.
    Late(String),
    /// It did not hold.
    Failed(String),
}

/// What a kernel can or cannot do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Feature {
    /// As `portolan version --features` calls it.
    pub(crate) name: String,
    /// `yes`, `no` or `not tried`.
    pub(crate) answer: String,
    /// What is done without it.
    pub(crate) instead: String,
}

/// All of one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Column {
    /// As `uname -r` tells it.
    pub(crate) kernel: String,
    /// By scenario.
    pub(crate) results: BTreeMap<String, Verdict>,
    /// In the order of the probe.
    pub(crate) features: Vec<Feature>,
    /// What programs beside ours cannot do, in the words of scenarios.
    pub(crate) exceptions: BTreeSet<String>,
    /// Of all scenarios, without booting.
    pub(crate) elapsed: Duration,
}

/// The name under which the kernel's features are printed.
pub(super) const FEATURES: &str = "features";

impl Column {
    /// Reads what the script of a suite printed. `names` are those that should have run.
    pub(crate) fn read(kernel: &str, names: &[String], printed: &str) -> Column {
        let mut column = Column {
            kernel: kernel.to_owned(),
            ..Column::default()
        };
        let printed = format!("\n{}", printed.replace('\r', ""));
        for section in printed.split("\nBEGIN ").skip(1) {
            let Some((name, rest)) = section.split_once('\n') else {
                continue;
            };
            let end = format!("\nEND {name} ");
            let (said, numbers) = rest.split_once(&end).unwrap_or((rest, ""));
            if name == FEATURES {
                column.features = said.lines().filter_map(feature).collect();
            } else {
                column.add(name, said, numbers);
            }
        }
        for name in names {
            let missing = || Verdict::Late("not reached".into());
            column.results.entry(name.clone()).or_insert_with(missing);
        }
        column
    }

    fn add(&mut self, name: &str, said: &str, numbers: &str) {
        let mut numbers = numbers.lines().next().unwrap_or_default().split(' ');
        let code = numbers.next().and_then(|n| n.parse().ok());
        let millis = numbers.next().and_then(|n| n.parse().ok()).unwrap_or(0);
        let elapsed = Duration::from_millis(millis);
        self.elapsed += elapsed;
        let exceptions = said.lines().filter_map(|line| after(line, "EXCEPTION: "));
        self.exceptions.extend(exceptions);
        let verdict = match (self.results.get(name), judge(said, code, elapsed)) {
            (
                Some(Verdict::Failed(first) | Verdict::Late(first)),
                Verdict::Passed(_) | Verdict::FellBack(..),
            ) => Verdict::Again(
                elapsed,
                format!("held at the second try; at the first: {first}"),
            ),
            (_, verdict) => verdict,
        };
        self.results.insert(name.to_owned(), verdict);
    }

    /// Names of what failed.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.names(|verdict| matches!(verdict, Verdict::Failed(_)))
    }

    /// Names of what there was no time for.
    pub(crate) fn late(&self) -> Vec<String> {
        self.names(|verdict| matches!(verdict, Verdict::Late(_)))
    }

    fn names(&self, is_it: impl Fn(&Verdict) -> bool) -> Vec<String> {
        let results = self.results.iter();
        let found = results.filter(|(_, verdict)| is_it(verdict));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// How many were left out.
    pub(crate) fn skipped(&self) -> usize {
        let verdicts = self.results.values();
        verdicts
            .filter(|v| matches!(v, Verdict::Skipped(_)))
            .count()
    }

    /// Whether nothing ran at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.elapsed.is_zero()
    }
}

/// What follows a mark in a line.
fn after(line: &str, mark: &str) -> Option<String> {
    Some(line.split_once(mark)?.1.trim().to_owned())
}

/// `NAME yes`, `NAME no (WHY); WHAT IS DONE`, `NAME not tried (WHY)`.
fn feature(line: &str) -> Option<Feature> {
    let (name, words) = line.trim().split_once(' ')?;
    let words = words.trim();
    let answer = ["yes", "no", "not tried"]
        .into_iter()
        .find(|answer| words == *answer || words.starts_with(&format!("{answer} (")))?;
    let instead = words.split_once("); ").map_or("", |(_, instead)| instead);
    Some(Feature {
        name: name.to_owned(),
        answer: answer.to_owned(),
        instead: instead.to_owned(),
    })
}

/// What the words and the exit code of a test's process mean; without a code it never ended.
fn judge(said: &str, code: Option<i32>, elapsed: Duration) -> Verdict {
    let find = |mark: &str| said.lines().find_map(|line| after(line, mark));
    match (code, find("SKIPPED: "), find("FALLBACK: ")) {
        (Some(0), Some(why), _) => Verdict::Skipped(why),
        (Some(0), None, Some(way)) => Verdict::FellBack(elapsed, way),
        (Some(0), None, None) => Verdict::Passed(elapsed),
        (None, ..) => Verdict::Late("the machine ended with it".into()),
        (Some(124 | 137), ..) => Verdict::Late(format!("not over in {} s", elapsed.as_secs())),
        _ => {
            let is_error = |line: &&str| line.contains("Error: ") || line.contains("panicked at");
            let lines: Vec<&str> = said.lines().collect();
            let at = lines.iter().position(is_error);
            let words = at.and_then(|at| lines.get(at..)).unwrap_or_default();
            let words: Vec<&str> = words.iter().take(5).map(|line| line.trim()).collect();
            Verdict::Failed(match words.is_empty() {
                true => "no words".into(),
                false => words.join(" "),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str], printed: &str) -> Column {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Column::read("5.10", &names, printed)
    }

    #[test]
    fn each_scenario_is_judged_by_its_own_words_and_code() {
        let printed = "kernel 5.10\nBEGIN a\nok\n\nEND a 0 1500\nBEGIN b\nSKIPPED: x because of y\n\nEND b 0 1\n\
                       BEGIN c\ntest c ... Error: lost\n\nEND c 1 1\nBEGIN d\nFALLBACK: a guard\n\nEND d 0 2000\nBEGIN e\npanic";
        let column = read(&["a", "b", "c", "d", "e", "f"], printed);
        let expected = [
            ("a", Verdict::Passed(Duration::from_millis(1500))),
            ("b", Verdict::Skipped("x because of y".into())),
            ("c", Verdict::Failed("test c ... Error: lost".into())),
            (
                "d",
                Verdict::FellBack(Duration::from_secs(2), "a guard".into()),
            ),
            ("e", Verdict::Late("the machine ended with it".into())),
            ("f", Verdict::Late("not reached".into())),
        ];
        assert_eq!(
            column.results,
            expected.map(|(name, v)| (name.to_owned(), v)).into()
        );
        assert_eq!(column.failed(), ["c"]);
        assert_eq!(column.late(), ["e", "f"]);
    }

    #[test]
    fn what_held_at_the_second_try_is_told_as_such() {
        let printed = "BEGIN a\nError: lost\n\nEND a 1 1\nBEGIN a\nok\n\nEND a 0 2\n";
        let column = read(&["a"], printed);
        assert!(column.failed().is_empty());
        let verdict = column.results.get("a").unwrap();
        assert!(
            matches!(verdict, Verdict::Again(_, why) if why.contains("lost")),
            "{verdict:?}"
        );
    }

    #[test]
    fn features_come_with_what_is_done_without() {
        let printed = "BEGIN features\nportolan 0.1.0\nfib   yes\n\
                       table-owner  no (the kernel says EINVAL: Invalid argument); repaired: at once\n\
                       vxlan   not tried (no right)\n\nEND features 0 0\nBEGIN a\n\nEND a 0 2\nEXCEPTION: none\n";
        let column = read(&["a"], printed);
        let told: Vec<_> = column
            .features
            .iter()
            .map(|f| (f.name.as_str(), f.answer.as_str(), f.instead.as_str()))
            .collect();
        assert_eq!(
            told,
            [
                ("fib", "yes", ""),
                ("table-owner", "no", "repaired: at once"),
                ("vxlan", "not tried", "")
            ]
        );
        assert!(column.exceptions.is_empty(), "after the end nothing counts");
    }
}
