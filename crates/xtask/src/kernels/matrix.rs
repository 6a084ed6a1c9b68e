//! Tables of results, in Markdown: scenario by kernel with the reasons below, and what each kernel can do, as the
//! README has it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::printed::{Column, Verdict};

/// Scenario by kernel; a number in a cell leads to a reason below.
pub(crate) fn scenarios(columns: &[Column]) -> String {
    let mut reasons: Vec<String> = Vec::new();
    let mut out = String::from("| scenario |");
    for column in columns {
        let _ = write!(out, " {} |", column.kernel);
    }
    let _ = writeln!(out, "\n|---|{}", "---|".repeat(columns.len()));
    let names: BTreeSet<&String> = columns.iter().flat_map(|c| c.results.keys()).collect();
    for name in names {
        let _ = write!(out, "| {} |", name.replace('_', " "));
        for column in columns {
            let cell = match column.results.get(name) {
                None => "-".to_owned(),
                Some(verdict) => cell(verdict, &mut reasons),
            };
            let _ = write!(out, " {cell} |");
        }
        out.push('\n');
    }
    out.push_str("| all of it |");
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
        Verdict::FellBack(elapsed, why) | Verdict::Again(elapsed, why) => {
            format!("{:.1} s ({})", elapsed.as_secs_f64(), number(why))
        }
        Verdict::Skipped(why) => format!("skipped ({})", number(why)),
        Verdict::Late(why) => format!("LATE ({})", number(why)),
        Verdict::Failed(why) => format!("FAILED ({})", number(why)),
    }
}

/// A row of verdicts that are counted, and which.
type Kind = (&'static str, fn(&Verdict) -> bool);

/// What each kernel can do and how the scenarios fared there, to be pasted into the README.
pub(crate) fn support(columns: &[Column], date: &str) -> String {
    let mut out = format!("Made by `cargo xtask kernels` on {date}:\n\n| |");
    for column in columns {
        let _ = write!(out, " {} |", series(&column.kernel));
    }
    let _ = writeln!(
        out,
        " what is done without |\n|---|{}---|",
        "---|".repeat(columns.len())
    );
    let mut everywhere = Vec::new();
    for name in feature_names(columns) {
        let answers: Vec<&str> = columns.iter().map(|column| answer(column, name)).collect();
        if answers.iter().all(|answer| *answer == "yes") {
            everywhere.push(name);
            continue;
        }
        let _ = writeln!(
            out,
            "| {name} | {} | {} |",
            answers.join(" | "),
            instead(columns, name)
        );
    }
    if !everywhere.is_empty() {
        let yes = vec!["yes"; columns.len()].join(" | ");
        let _ = writeln!(out, "| {} | {yes} | |", everywhere.join(", "));
    }
    let kinds: [Kind; 5] = [
        ("scenarios that hold", |v| {
            matches!(
                v,
                Verdict::Passed(_) | Verdict::FellBack(..) | Verdict::Again(..)
            )
        }),
        ("of these by another way", |v| {
            matches!(v, Verdict::FellBack(..))
        }),
        ("scenarios left out", |v| matches!(v, Verdict::Skipped(_))),
        ("scenarios without time to end", |v| {
            matches!(v, Verdict::Late(_))
        }),
        ("scenarios that fail", |v| matches!(v, Verdict::Failed(_))),
    ];
    for (what, is_it) in kinds {
        let counts = columns.iter().map(|column| {
            let verdicts = column.results.values();
            verdicts
                .filter(|verdict| is_it(verdict))
                .count()
                .to_string()
        });
        let counts: Vec<String> = counts.collect();
        let _ = writeln!(out, "| {what} | {} | |", counts.join(" | "));
    }
    out.push('\n');
    for (why, kernels) in reasons(columns) {
        let _ = writeln!(out, "- {}: {why}.", kernels.join(", "));
    }
    let exceptions: BTreeSet<&String> = columns.iter().flat_map(|c| &c.exceptions).collect();
    for exception in exceptions {
        let _ = writeln!(out, "- {exception}.");
    }
    out
}

/// In the order of the probe, of all kernels.
fn feature_names(columns: &[Column]) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for feature in columns.iter().flat_map(|column| &column.features) {
        if !names.contains(&feature.name.as_str()) {
            names.push(&feature.name);
        }
    }
    names
}

fn answer<'a>(column: &'a Column, name: &str) -> &'a str {
    let feature = column.features.iter().find(|feature| feature.name == name);
    feature.map_or("?", |feature| &feature.answer)
}

fn instead<'a>(columns: &'a [Column], name: &str) -> &'a str {
    let features = columns.iter().rev().flat_map(|column| &column.features);
    let mut words = features
        .filter(|feature| feature.name == name)
        .map(|feature| feature.instead.as_str());
    words.find(|words| !words.is_empty()).unwrap_or_default()
}

/// Why a scenario held by another way or was left out, with the scenario and the kernels.
fn reasons(columns: &[Column]) -> BTreeMap<String, Vec<String>> {
    let mut reasons: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for column in columns {
        for (name, verdict) in &column.results {
            let (Verdict::FellBack(_, why) | Verdict::Skipped(why)) = verdict else {
                continue;
            };
            let test = name.rsplit("::").next().unwrap_or(name).replace('_', " ");
            let what = match verdict {
                Verdict::Skipped(_) => format!("not tried, {test}: {why}"),
                _ => format!("{test}: {why}"),
            };
            let kernels = reasons.entry(what).or_default();
            kernels.push(series(&column.kernel));
        }
    }
    reasons
}

/// `6.12` of `6.12.117+deb13-amd64`.
fn series(kernel: &str) -> String {
    kernel.split('.').take(2).collect::<Vec<_>>().join(".")
}

/// One kernel, a line a scenario.
pub(crate) fn summary(column: &Column) -> String {
    let mut out = format!("{}: {:.0} s\n", column.kernel, column.elapsed.as_secs_f64());
    for (name, verdict) in &column.results {
        let _ = writeln!(out, "  {name}: {verdict:?}");
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::printed::Feature;
    use super::*;

    fn column(kernel: &str, owner: &str) -> Column {
        let feature = |name: &str, answer: &str| Feature {
            name: name.into(),
            answer: answer.into(),
            instead: if answer == "no" {
                "repaired".into()
            } else {
                String::new()
            },
        };
        Column {
            kernel: kernel.into(),
            results: [
                ("a::b_c".to_owned(), Verdict::Skipped("no SCTP".into())),
                ("d".to_owned(), Verdict::Passed(Duration::from_secs(1))),
            ]
            .into(),
            features: vec![feature("owner", owner), feature("fib", "yes")],
            exceptions: ["nft 1.0.6 cannot".to_owned()].into(),
            elapsed: Duration::from_secs(2),
        }
    }

    #[test]
    fn equal_reasons_are_told_once() {
        assert_eq!(
            scenarios(&[column("5.10", "no"), column("6.1", "yes")]),
            "| scenario | 5.10 | 6.1 |\n|---|---|---|\n| a::b c | skipped (1) | skipped (1) |\n| d | 1.0 s | 1.0 s |\n\
             | all of it | 2 s | 2 s |\n\n1. no SCTP\n"
        );
    }

    #[test]
    fn what_differs_between_kernels_has_a_line_and_what_all_have_shares_one() {
        assert_eq!(
            support(
                &[column("5.10.0-46", "no"), column("6.1.0", "yes")],
                "2026-01-01"
            ),
            "Made by `cargo xtask kernels` on 2026-01-01:\n\n\
             | | 5.10 | 6.1 | what is done without |\n|---|---|---|---|\n\
             | owner | no | yes | repaired |\n| fib | yes | yes | |\n\
             | scenarios that hold | 1 | 1 | |\n| of these by another way | 0 | 0 | |\n\
             | scenarios left out | 1 | 1 | |\n| scenarios without time to end | 0 | 0 | |\n| scenarios that fail | 0 | 0 | |\n\n\
             - 5.10, 6.1: not tried, b c: no SCTP.\n- nft 1.0.6 cannot.\n"
        );
    }
}
