//! Processes in the lab, and that nothing outlives it: not after a panic, not after SIGKILL.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Lab, scenario};

const TIMEOUT: Duration = Duration::from_secs(10);

/// In the environment of the process that is to be killed.
const VICTIM: &str = "LAB_TEST_VICTIM";

fn is_alive(pid: i32) -> bool {
    // A zombie is dead; its parent may be slow to notice.
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn links_of_this_namespace() -> Result<BTreeSet<String>> {
    Ok(fs::read_to_string("/proc/thread-self/net/dev")?
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
        .collect())
}

fn small_lab() -> Result<(Lab, Daemon)> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    node.pod("web")?;
    let sleeper = node.spawn_daemon("sleep", ["1000"])?;
    Ok((lab, sleeper))
}

#[scenario]
fn a_daemon_runs_inside_and_what_it_prints_is_kept() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    let daemon = node.spawn_daemon(
        "sh",
        [
            "-c",
            "cat /proc/self/net/if_inet6; echo ready >&2; exec sleep 1000",
        ],
    )?;
    daemon.wait_for_line("ready", TIMEOUT)?;
    lab::wait_until("the node's address", TIMEOUT, || {
        let lines = daemon.lines();
        lines
            .iter()
            .any(|line| line.starts_with("fd000077") && line.ends_with("eth0"))
    })?;
    assert!(daemon.is_running() && is_alive(daemon.pid()));
    assert!(!daemon.kill()?.success());
    assert!(!daemon.is_running() && !is_alive(daemon.pid()));
    Ok(())
}

#[scenario(Nft)]
fn a_command_that_fails_is_an_error_with_its_words() -> Result<()> {
    let lab = Lab::new()?;
    let node = lab.node("node-a")?;
    node.nft(&["add", "table", "ip", "mine"])?;
    assert_eq!(node.nft(&["list", "tables"])?, "table ip mine\n");
    let error = node.nft(&["list", "table", "ip", "other"]).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
    // More than a pipe holds, in both directions.
    let comment = "# some words that go nowhere\n".repeat(20_000);
    node.nft_stdin(&comment)?;
    Ok(())
}

#[scenario]
fn a_dropped_lab_ends_what_handles_still_refer_to() -> Result<()> {
    let (lab, sleeper) = small_lab()?;
    let node = lab.node("node-b")?;
    assert!(sleeper.is_running());
    drop(lab);
    sleeper.wait(TIMEOUT)?;
    assert!(node.run(|| ()).is_err());
    Ok(())
}

#[scenario]
fn a_panic_leaves_no_process_and_no_link() -> Result<()> {
    let before = links_of_this_namespace()?;
    let (pids, seen) = mpsc::channel();
    let test = catch_unwind(AssertUnwindSafe(|| {
        let (_lab, sleeper) = small_lab().unwrap();
        pids.send(sleeper.pid()).unwrap();
        assert_eq!(links_of_this_namespace().unwrap(), before);
        panic!("as a failing test does");
    }));
    assert!(test.is_err());
    let pid = seen.recv()?;
    lab::wait_until("the end of the sleeper", TIMEOUT, || !is_alive(pid))?;
    assert_eq!(links_of_this_namespace()?, before);
    Ok(())
}

#[scenario]
fn a_panic_inside_a_namespace_is_the_callers() -> Result<()> {
    let namespace = lab::Namespace::new("it")?;
    let job = catch_unwind(AssertUnwindSafe(|| namespace.run(|| panic!("inside"))));
    assert!(job.is_err());
    assert_eq!(namespace.run(|| 7)?, 7);
    Ok(())
}

/// Not a test by itself: it is the process that the next test kills.
#[test]
fn victim_with_a_lab() -> Result<()> {
    if std::env::var_os(VICTIM).is_none() {
        return Ok(());
    }
    let (_lab, sleeper) = small_lab()?;
    println!("sleeper {}", sleeper.pid());
    sleeper.wait(Duration::from_secs(1_000)).map(drop)
}

#[scenario]
fn a_killed_process_leaves_no_child_behind() -> Result<()> {
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "victim_with_a_lab", "--nocapture"])
        .env(VICTIM, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(victim.stdout.take().context("its output")?);
    let pid: i32 = said
        .lines()
        .map_while(Result::ok)
        .find_map(|line| Some(line.split_once("sleeper ")?.1.to_owned()))
        .context("the sleeper's number")?
        .parse()?;
    ensure!(is_alive(pid), "the sleeper never ran");
    victim.kill()?;
    victim.wait()?;
    lab::wait_until("the end of the sleeper", TIMEOUT, || !is_alive(pid))?;
    assert!(!Path::new(&format!("/proc/{pid}/ns/net")).exists());
    Ok(())
}
