//! `cargo xtask check`: the project's rules that a machine can check.
//!
//! Owns the order of the checks and the baseline. Each rule is a file below `check/` that returns its violations; it
//! neither prints nor fails. The baseline is, for each rule, the number of violations that are older than the rule: a rule
//! fails when it finds more, and the number may only be lowered.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

use crate::run::{cargo, root, run};

mod catalogs;
mod circles;
mod commits;
pub(crate) mod dependencies;
mod directions;
mod help;
mod links;
mod metrics;
mod named_tests;
mod reference;
mod source;
mod spelling;
mod test_names;
mod words;

use source::{Sources, Violation};

/// The baseline of each rule.
const BASELINE: &[(&str, usize)] = &[
    ("catalogs", 0),
    ("circles", 0),
    ("commits", 0),
    ("help", 0),
    ("links", 0),
    ("metrics", 0),
    ("named tests", 0),
    ("reference", 0),
    ("spelling", 0),
    ("test names", 0),
    ("words", 0),
];

/// What to check and print.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Print what the rules of language and structure find, and run no other check
    #[arg(long)]
    list: bool,
}

/// Runs all checks, or prints what the rules find.
pub(crate) fn check(options: &Options) -> Result<()> {
    if options.list {
        for (rule, violations) in found()? {
            println!("{rule}: {}", violations.len());
            violations.iter().for_each(|one| println!("  {one}"));
        }
        return Ok(());
    }
    all()
}

/// Runs all checks, cheap ones first.
pub(crate) fn all() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])?)?;
    directions::check()?;
    rules()?;
    run(
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet"])?
            .args(["--", "-D", "warnings"]),
    )
}

/// The violations of each rule.
fn found() -> Result<Vec<(&'static str, Vec<Violation>)>> {
    let root = root()?;
    let sources = Sources::read(&root)?;
    Ok(vec![
        ("catalogs", catalogs::violations(&sources)?),
        ("circles", circles::violations(&sources)),
        ("commits", commits::violations()?),
        ("help", help::violations(&sources)),
        ("links", links::violations(&root, &sources)?),
        ("metrics", metrics::violations(&sources)),
        ("named tests", named_tests::violations(&sources)?),
        ("reference", reference::violations(&sources)?),
        ("spelling", spelling::violations(&sources)?),
        ("test names", test_names::violations(&sources)),
        ("words", words::violations(&sources)?),
    ])
}

/// Fails when a rule has more violations than the baseline.
fn rules() -> Result<()> {
    let baseline: BTreeMap<&str, usize> = BASELINE.iter().copied().collect();
    let mut failed = Vec::new();
    for (rule, violations) in found()? {
        let (count, known) = (violations.len(), baseline.get(rule).copied().unwrap_or(0));
        if count > known {
            violations.iter().for_each(|one| eprintln!("{rule}: {one}"));
            failed.push(format!("{rule}: {count}, baseline {known}"));
        } else if count < known {
            eprintln!(
                "{rule}: {count} violations, baseline {known}: lower the baseline in crates/xtask/src/check.rs"
            );
        }
    }
    ensure!(
        failed.is_empty(),
        "more violations than the baseline: {}",
        failed.join("; ")
    );
    eprintln!("rules of language and structure: no violation beyond the baseline");
    Ok(())
}
