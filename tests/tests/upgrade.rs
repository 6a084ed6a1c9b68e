//! One version of the program after another: the next adopts the tables of the one before, and no connection notices.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use lab::{Daemon, scenario};
use nix::sys::signal::Signal;
use portolan_tests::stage::{PATIENCE, Stage, portolan, service};
use portolan_tests::traffic::Traffic;

/// Names the program of version 0.1.0.
const OLD: &str = "PORTOLAN_OLD_PROGRAM";

/// The older program. Without one this is nothing, reported loudly; with `CI` set it is a failure.
fn old() -> Option<PathBuf> {
    let program = std::env::var_os(OLD).map(PathBuf::from);
    if program.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no {OLD}");
        // Past the capture of the test harness; nowhere to report that stderr is closed.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no program of version 0.1.0 ({OLD})"
        );
    }
    program
}

fn start(stage: &Stage, program: &std::path::Path) -> Result<Daemon> {
    let folder = stage.manifests.path().display().to_string();
    let daemon = stage.start_program(program, &["--manifests", &folder], &[])?;
    stage.wait_until_ready(&daemon)?;
    Ok(daemon)
}

#[scenario(Nft)]
#[ignore = "needs the program of version 0.1.0"]
fn upgrade_and_downgrade_lose_no_connection() -> Result<()> {
    let Some(old) = old() else {
        return Ok(());
    };
    let new = portolan()?;
    let stage = Stage::new()?;
    let mut daemon = start(&stage, &old)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let traffic = Traffic::start_gently(&stage)?;
    for (round, program) in [new, &*old, new].into_iter().enumerate() {
        // As a rolling update does it.
        daemon.signal(Signal::SIGTERM)?;
        ensure!(
            daemon.wait(PATIENCE)?.success(),
            "round {round}: {daemon:?} failed",
            daemon = daemon.lines()
        );
        traffic.goes_on(50)?;
        daemon = start(&stage, program)?;
        // It serves what it adopted, and what changes from now on.
        let added = service(&format!("added-{round}"), 100 + u8::try_from(round)?);
        stage.add(&added, 0..round + 1)?;
        stage.wait_for_backends(&added, round + 1)?;
        stage.add(&stage.web, 0..4 - round)?;
        stage.wait_for_backends(&stage.web, 4 - round)?;
        traffic.goes_on(50)?;
    }
    traffic.lost_nothing()?;
    nothing_is_left_of_the_old_version(&stage, daemon)
}

/// The tables are those that the new version writes where there are none.
fn nothing_is_left_of_the_old_version(stage: &Stage, daemon: Daemon) -> Result<()> {
    let adopted = stage.tables()?;
    daemon.kill()?;
    let mut cleanup = stage.node.command(portolan()?);
    cleanup.arg("cleanup");
    let output = stage.node.output(cleanup)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(stage.tables()? == [None, None], "tables are left");
    let _daemon = start(stage, portolan()?)?;
    ensure!(
        stage.tables()? == adopted,
        "the adopted tables differ from new ones"
    );
    Ok(())
}
