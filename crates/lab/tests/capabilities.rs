//! A skip is loud, and a failure in CI. Its own process: the rule reads the environment.

use std::process::{Command, Output};

use anyhow::Result;
use lab::Capability;

/// In the environment of the process that asks.
const ASKS: &str = "LAB_TEST_ASKS_FOR";

/// Not a test by itself: it is what the tests below run, with an environment of their choice.
#[test]
fn asking() {
    let needed = match std::env::var(ASKS).as_deref() {
        Ok("nothing") => vec![],
        Ok("sctp") => vec![Capability::Sctp],
        _ => return,
    };
    println!("went on: {}", lab::require(&needed));
}

/// Asks with this `PATH` and `CI`, passing tests captured as usual.
fn ask(needed: &str, path: &str, ci: Option<&str>) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "asking", "--show-output"])
        .env(ASKS, needed)
        .env("PATH", path)
        .env_remove("CI");
    command.envs(ci.map(|value| ("CI", value)));
    Ok(command.output()?)
}

fn said(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn without_a_program_a_test_is_skipped_loudly_and_in_ci_fails() -> Result<()> {
    let skipped = ask("nothing", "/nonexistent", None)?;
    assert!(skipped.status.success());
    let stderr = String::from_utf8_lossy(&skipped.stderr);
    assert!(
        stderr.contains("SKIPPED: ") && stderr.contains("setpriv"),
        "{stderr}"
    );
    assert!(said(&skipped).contains("went on: false"));

    let failed = ask("nothing", "/nonexistent", Some("true"))?;
    assert!(!failed.status.success(), "{}", said(&failed));
    Ok(())
}

#[test]
fn what_even_ci_machines_may_lack_is_never_a_failure() -> Result<()> {
    let path = std::env::var("PATH")?;
    let output = ask("sctp", &path, Some("true"))?;
    assert!(output.status.success(), "{}", said(&output));
    let has = lab::require(&[]) && Capability::Sctp.missing().is_none();
    assert!(said(&output).contains(&format!("went on: {has}")));
    Ok(())
}

#[test]
fn every_capability_is_probed_and_a_missing_one_has_its_reason() {
    for &(capability, ref missing) in lab::capabilities() {
        assert_eq!(capability.missing(), missing.as_deref());
        if let Some(why) = missing {
            assert!(!why.is_empty(), "{capability}");
        }
    }
    assert_eq!(lab::capabilities().len(), Capability::ALL.len());
}
