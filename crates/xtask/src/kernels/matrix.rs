//! The table of results: scenario by kernel, with the reasons below it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::scenarios::Verdict;

/// What came of the suite on one kernel.
pub(crate) struct Column {
    /// As `uname -r` tells it.
    pub(crate) kernel: String,
    /// By scenario.
    pub(crate) results: BTreeMap<String, Verdict>,
    /// With booting.
    pub(crate) elapsed: Duration,
}

/// A table in Markdown; a number in a cell leads to a reason below.
pub(crate) fn table(scenarios: &[String], columns: &[Column]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    let mut out = String::from("| scenario |");
    for column in columns {
        let _ = write!(out, " {} |", column.kernel);
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(columns.len()));
    for scenario in scenarios {
        let _ = write!(out, "| {} |", scenario.replace('_', " "));
        for column in columns {
            let cell = match column.results.get(scenario) {
                None => "-".to_owned(),
                Some(verdict) => cell(verdict, &mut reasons),
            };
            let _ = write!(out, " {cell} |");
        }
        out.push('\n');
    }
    let _ = write!(out, "| all of it |");
    for column in columns {
        let _ = write!(out, " {:.0} s |", column.elapsed.as_secs_f64());
    }
    out.push('\n');
    for (number, reason) in reasons.iter().enumerate() {
        let _ = write!(out, "\n{}. {reason}", number + 1);
    }
    out.push('\n');
    out
}

fn cell(verdict: &Verdict, reasons: &mut Vec<String>) -> String {
    let mut number = |reason: &String| {
        let known = reasons.iter().position(|other| other == reason);
        known.unwrap_or_else(|| {
            reasons.push(reason.clone());
            reasons.len() - 1
        }) + 1
    };
    match verdict {
        Verdict::Passed(elapsed) => format!("{:.1} s", elapsed.as_secs_f64()),
        Verdict::FellBack(elapsed, way) => {
            format!("{:.1} s ({})", elapsed.as_secs_f64(), number(way))
        }
        Verdict::Skipped(why) => format!("skipped ({})", number(why)),
        Verdict::Failed(why) => format!("FAILED ({})", number(why)),
    }
}

/// One column, a line a scenario.
pub(crate) fn summary(column: &Column) -> String {
    let mut out = format!("{}: {:.0} s\n", column.kernel, column.elapsed.as_secs_f64());
    for (name, verdict) in &column.results {
        let _ = writeln!(out, "  {name}: {verdict:?}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_reasons_are_told_once() {
        let why = || Verdict::Skipped("no SCTP".into());
        let column = |kernel: &str| Column {
            kernel: kernel.into(),
            results: [
                ("a::b_c".to_owned(), why()),
                ("d".to_owned(), Verdict::Passed(Duration::from_secs(1))),
            ]
            .into(),
            elapsed: Duration::from_secs(2),
        };
        let table = table(
            &["a::b_c".into(), "d".into()],
            &[column("5.10"), column("6.1")],
        );
        assert_eq!(
            table,
            "| scenario | 5.10 | 6.1 |\n|---|---|---|\n| a::b c | skipped (1) | skipped (1) |\n| d | 1.0 s | 1.0 s |\n\
             | all of it | 2 s | 2 s |\n\n1. no SCTP\n"
        );
    }
}
