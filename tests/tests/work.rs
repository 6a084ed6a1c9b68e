//! What a change may cost, in counted work: transactions, elements, walks of conntrack, wake-ups of threads. Counts do not
//! depend on the speed of the machine, so that a change that makes each change cost more fails here first.

use std::fs;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, HEALTH_PORT, scenario, wait_until};
use nft::{Backend, Family, Kernel};
use portolan_tests::overlay::metric;
use portolan_tests::stage::{PATIENCE, Stage};
use service_dataplane::layout;

/// Changes that are counted.
const CHANGES: u64 = 60;
/// Elements of a change: a pod comes to a Service with a cluster IP and a node port, or goes. At each of the two a slot, and
/// the move from one set of sizes to another.
const ELEMENTS: u64 = 6;
/// Wake-ups of all threads for a change: the source's, the control loop's, and what other machines may need.
const MOST_WAKE_UPS: u64 = 10;

/// Work so far.
#[derive(Debug)]
struct Work {
    commits: u64,
    elements: u64,
    walks: u64,
    wake_ups: u64,
}

impl Work {
    fn of(stage: &Stage, daemon: &Daemon) -> Result<Work> {
        let counter = |name: &str| metric(&stage.node, &format!("portolan_{name}_total "));
        Ok(Work {
            commits: counter("commits")?,
            elements: counter("elements_written")?,
            walks: counter("conntrack_walks")?,
            wake_ups: wake_ups(daemon)?,
        })
    }
}

/// How often threads of the program have waited (`voluntary_ctxt_switches` in proc_pid_status(5)).
fn wake_ups(daemon: &Daemon) -> Result<u64> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        // A thread may have ended meanwhile.
        let status = fs::read_to_string(thread?.path().join("status")).unwrap_or_default();
        let mut lines = status.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += count.map_or(Ok(0), |count| count.trim().parse())?;
    }
    Ok(sum)
}

/// Slots of IPv4 cluster IPs in the kernel.
fn slots(stage: &Stage) -> Result<usize> {
    stage.node.run(|| {
        let mut kernel = Kernel::open_to_read(layout::TABLE.into())?;
        let table = kernel.list(Family::Ip)?.context("no table")?;
        Ok(table.elements.get("backends").map_or(0, Vec::len))
    })?
}

#[scenario(Nft)]
fn sixty_changes_take_no_more_work_than_they_need() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let before = Work::of(&stage, &daemon)?;
    for n in 0..CHANGES {
        let pods = if n % 2 == 0 { 0..3 } else { 0..4 };
        let wanted = pods.len();
        let objects = stage.objects(&stage.web, pods).into_iter();
        let slice = { objects }.find(|object| object["addressType"] == "IPv4");
        api.apply(slice.context("no slice")?)?;
        wait_until("the change to be committed", PATIENCE, || {
            slots(&stage).is_ok_and(|slots| slots == wanted)
        })?;
    }
    // The commit is counted after the kernel has acknowledged it.
    wait_until("all commits to be counted", PATIENCE, || {
        let commits = metric(&stage.node, "portolan_commits_total ");
        commits.is_ok_and(|commits| commits >= before.commits + CHANGES)
    })?;
    let after = Work::of(&stage, &daemon)?;
    eprintln!("{before:?}, {after:?}");
    let (elements, walks) = (after.elements - before.elements, after.walks - before.walks);
    ensure!(
        after.commits - before.commits == CHANGES,
        "one transaction for each change"
    );
    ensure!(
        elements <= CHANGES * ELEMENTS,
        "{elements} elements written"
    );
    ensure!(
        walks == 0,
        "{walks} walks of conntrack, where nothing is stale"
    );
    let wake_ups = after.wake_ups - before.wake_ups;
    ensure!(wake_ups <= CHANGES * MOST_WAKE_UPS, "{wake_ups} wake-ups");
    Ok(())
}

/// What comes in an hour on a quiet cluster: scrapes each 15 s, and probes each 10 s.
const SCRAPES: usize = 240;
const PROBES: usize = 360;

/// Lines are counted over what comes from outside in an hour, which needs no hour. Ends of watches are not in it.
#[scenario(Nft)]
fn an_hours_work_on_a_quiet_cluster_logs_one_line() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let source = ["--kubeconfig", &kubeconfig];
    let daemon = stage.start_with(&source, &["--service-traffic=on"])?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)?;
    let get = |port: u16, path: &str| -> Result<()> {
        let answer = stage.node.http_get(([127, 0, 0, 1], port).into(), path)?;
        let (code, text) = answer.context("refused")?;
        ensure!(code == 200, "{path}: {code} {text}");
        Ok(())
    };
    get(10_249, "/metrics")?;
    let before = daemon.lines().len();
    for _ in 0..SCRAPES {
        get(10_249, "/metrics")?;
    }
    for _ in 0..PROBES {
        get(HEALTH_PORT, "/healthz")?;
        get(HEALTH_PORT, "/livez")?;
    }
    // A change comes through, so all that was to be logged before is there.
    api.apply_all(stage.objects(&stage.web, 0..3))?;
    stage.wait_for_backends(&stage.web, 3)?;
    let lines = daemon.lines().split_off(before);
    let others: Vec<&String> = lines
        .iter()
        .filter(|line| !line.contains("committed"))
        .collect();
    ensure!(others.len() <= 1, "{others:#?}");
    Ok(())
}
