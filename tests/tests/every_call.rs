//! The daemon is killed at each system call that sends something, the only ones that change the kernel's state.

use anyhow::{Result, ensure};
use lab::{scenario, wait_until};
use portolan_tests::stage::{PATIENCE, Stage, service};
use portolan_tests::traffic::Traffic;

/// Fewer kills than this, and the tracer has not traced.
const FEWEST: usize = 20;

#[scenario(Nft)]
#[ignore = "needs strace"]
fn kills_at_every_message_to_the_kernel_lose_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let (changed, added) = (service("changed", 81), service("added", 82));
    let first = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let traffic = Traffic::start(&stage)?;
    first.kill()?;
    let folder = stage.manifests.path().display().to_string();
    let mut kills = 0;
    loop {
        // Something to write at each start, and after it.
        let pods = kills % 4 + 1;
        stage.add(&changed, 0..pods)?;
        let kill = format!("inject=sendto,sendmsg:signal=SIGKILL:when={}", kills + 1);
        let tracer = [
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=sendto,sendmsg",
            "-e",
            &kill,
        ];
        let traced = stage.start_traced(&tracer, &["--manifests", &folder])?;
        let has = |service, pods| stage.has_backends(service, pods).unwrap_or(false);
        wait_until("a kill or a sync", PATIENCE, || {
            !traced.is_running() || has(&changed, pods)
        })?;
        stage.add(&added, 0..pods)?;
        wait_until("a kill or a commit", PATIENCE, || {
            !traced.is_running() || has(&added, pods)
        })?;
        if traced.is_running() {
            break;
        }
        kills += 1;
        let next = stage.start_synced(&[])?;
        stage.wait_for_backends(&changed, pods)?;
        stage.wait_for_backends(&added, pods)?;
        next.kill()?;
    }
    println!("{kills} kills");
    ensure!(kills >= FEWEST, "{kills} kills");
    traffic.lost_nothing()?;
    Ok(())
}
