//! Time that jumps: a daemon that is stopped for a while (SIGSTOP, a suspended machine), and a clock that is set.
//!
//! `PORTOLAN_STOP_SECONDS` is how long the daemon is stopped; longer ones are in `cargo xtask test --nightly`.

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::fake_api::{FakeApi, Resource};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, HEALTH_PORT, Host, Outcome, scenario, wait_until,
};
use nix::sys::signal::Signal;
use portolan_tests::clock::Clock;
use portolan_tests::doctor::doctor;
use portolan_tests::overlay::OverlayStage;
use portolan_tests::stage::{PATIENCE, Stage, portolan, service};
use portolan_tests::traffic::Traffic;
use portolan_tests::{number_from_env, slowness};
use serde_json::Value;

const HOUR: i64 = 3600;
/// A datagram may be late by this on a busy machine; an outage lasts longer.
const SHORT: Duration = Duration::from_secs(5);

/// Code and body of an answer of a node's health port.
fn health(node: &Host, path: &str) -> Result<(u16, String)> {
    let to = SocketAddr::new([127, 0, 0, 1].into(), HEALTH_PORT);
    node.http_get(to, path)?.context("refused")
}

/// Lists of whole kinds so far, also those that come as a stream.
fn lists(api: &FakeApi) -> usize {
    api.seen()
        .iter()
        .filter(|seen| seen.is_whole_list())
        .count()
}

#[scenario(Nft)]
fn a_stopped_daemon_goes_on_with_all_that_it_missed() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let (changing, going, coming) = (
        service("changing", 81),
        service("going", 82),
        service("coming", 83),
    );
    api.apply_all(stage.objects(&changing, 0..4))?;
    api.apply_all(stage.objects(&going, 0..4))?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    for service in [&stage.web, &changing, &going] {
        stage.wait_for_backends(service, 4)?;
    }
    let (tables, listed) = (stage.tables()?, lists(&api));
    let traffic = Traffic::start_gently(&stage)?;

    daemon.signal(Signal::SIGSTOP)?;
    let end = Instant::now() + Duration::from_secs(number_from_env("PORTOLAN_STOP_SECONDS", 5));
    api.apply_all(stage.objects(&changing, 0..2))?;
    api.apply_all(stage.objects(&coming, 0..3))?;
    ensure!(api.delete(Resource::Services, "default", "going"));
    // More than the sockets hold.
    for round in 0..2_000 {
        let count = round % 3 + 1;
        api.apply_all(stage.objects(&coming, 0..count))?;
    }
    api.apply_all(stage.objects(&coming, 0..3))?;
    let silent = health(&stage.node, "/healthz");
    ensure!(silent.is_err(), "a stopped daemon has answered: {silent:?}");
    while Instant::now() < end {
        traffic.goes_on(20)?;
    }
    ensure!(stage.tables()? == tables, "tables have changed meanwhile");

    daemon.signal(Signal::SIGCONT)?;
    let start = Instant::now();
    stage.wait_for_backends(&changing, 2)?;
    stage.wait_for_backends(&coming, 3)?;
    wait_until("the deleted Service to be gone", PATIENCE, || {
        let outcome = stage.connect(&stage.client, &going);
        outcome.is_ok_and(|outcome| outcome == Outcome::Unreachable)
    })?;
    println!("caught up {:?} after SIGCONT", start.elapsed());
    for path in ["/healthz", "/livez", "/readyz"] {
        let (code, body) = health(&stage.node, path)?;
        ensure!(code == 200, "{path}: {code} {body}");
    }
    ensure!(daemon.is_running(), "the daemon has ended");
    let again = lists(&api) - listed;
    ensure!(again <= 4, "listed {again} times, of four kinds");
    traffic.lost_nothing()?;
    Ok(())
}

/// Starts the program on the node under test with a clock of its own.
fn start(stage: &Stage, clock: &Clock, kubeconfig: &str) -> Result<Daemon> {
    let mut command = stage.node.command(portolan()?);
    command.args([
        "run",
        "--kubeconfig",
        kubeconfig,
        "--hostname-override",
        "node-a",
    ]);
    command.arg(format!(
        "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
    ));
    clock.give(&mut command);
    let daemon = stage.node.spawn("portolan", command)?;
    stage.wait_until_ready(&daemon)?;
    Ok(daemon)
}

/// How many seconds the clock of a node's daemon is from the machine's.
fn shift_of(node: &Host) -> Result<i64> {
    let (code, body) = health(node, "/healthz")?;
    ensure!(code == 200, "{code}: {body}");
    let body: Value = serde_json::from_str(&body)?;
    let text = body["currentTime"].as_str().context("currentTime")?;
    let stated: jiff::Timestamp = text.parse()?;
    let now = jiff::Timestamp::try_from(SystemTime::now())?;
    Ok(stated.as_second() - now.as_second())
}

/// Sets the clock of a node's daemon to this many hours from the machine's.
fn set_hours(clock: &Clock, node: &Host, hours: i64) -> Result<()> {
    clock.set(hours * HOUR)?;
    let shift = shift_of(node)?;
    let error = shift - hours * HOUR;
    ensure!(error.abs() < HOUR / 2, "shifted by {shift} s");
    Ok(())
}

/// Skips a test whose daemon does not have the clock of the test: loudly, and as a failure with `CI` set.
fn skip_without_clock() -> Result<()> {
    const WHY: &str = "the program is not linked dynamically";
    ensure!(std::env::var_os("CI").is_none(), WHY);
    // Past the capture of the test harness; nowhere to report that stderr is closed.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {WHY}");
    Ok(())
}

#[scenario(Nft)]
fn a_clock_that_jumps_by_hours_changes_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let changing = service("changing", 81);
    let clock = Clock::new()?;
    clock.set(-HOUR)?;
    let mut daemon = start(&stage, &clock, &kubeconfig)?;
    stage.wait_for_backends(&stage.web, 4)?;
    if shift_of(&stage.node)? > -HOUR / 2 {
        return skip_without_clock();
    }
    let traffic = Traffic::start_gently(&stage)?;
    let mut listed = lists(&api);
    for (n, hours) in [0, 1, 0, -1, 24, -24].into_iter().enumerate() {
        set_hours(&clock, &stage.node, hours)?;
        for count in [n % 4 + 1, 4 - n % 4] {
            api.apply_all(stage.objects(&changing, 0..count))?;
            stage.wait_for_backends(&changing, count)?;
        }
        for path in ["/healthz", "/livez", "/readyz"] {
            let (code, body) = health(&stage.node, path)?;
            ensure!(code == 200, "{path} at {hours} hours: {code} {body}");
        }
        ensure!(
            lists(&api) == listed,
            "a clock that jumps is no reason to list"
        );
        // The next process finds what was written by another clock.
        daemon.kill()?;
        clock.set(-hours * HOUR)?;
        daemon = start(&stage, &clock, &kubeconfig)?;
        listed = lists(&api);
    }
    traffic.lost_nothing()?;
    Ok(())
}

#[scenario(Nft)]
fn the_doctor_names_a_clock_that_differs_from_the_servers() -> Result<()> {
    let stage = Stage::new()?;
    let (_api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let clock = Clock::new()?;
    clock.set(HOUR)?;
    let daemon = start(&stage, &clock, &kubeconfig)?;
    if shift_of(&stage.node)? < HOUR / 2 {
        return skip_without_clock();
    }
    let (code, text) = doctor(&stage.node, &[])?;
    let fault = text.lines().find(|line| line.starts_with("BROKEN"));
    ensure!(
        code == Some(1)
            && fault.is_some_and(|line| line.contains("s ahead of that of the API server")),
        "{code:?} {text}"
    );
    daemon.kill()?;
    clock.set(0)?;
    let _daemon = start(&stage, &clock, &kubeconfig)?;
    let (code, text) = doctor(&stage.node, &[])?;
    ensure!(code == Some(0) && text.contains("clock"), "{code:?} {text}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn an_overlay_whose_clock_jumps_keeps_and_gains_peers() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let clock = Clock::new()?;
    let daemon = stage.start_with_clock(0, &clock)?;
    let _others = [stage.start(1, &[])?, stage.start(2, &[])?];
    stage.wait_for_mesh()?;
    clock.set(HOUR)?;
    if shift_of(&stage.nodes[0])? < HOUR / 2 {
        return skip_without_clock();
    }
    let beats = stage.beats()?;
    // By manifests a peer that goes is followed at once.
    for hours in [1, 0, -1] {
        set_hours(&clock, &stage.nodes[0], hours)?;
        stage.write_nodes(0..2)?;
        wait_until("the peer to be gone", PATIENCE, || {
            let routes = stage.ip(0, "route show dev flannel.1");
            routes.is_ok_and(|routes| routes.lines().count() == 1)
        })?;
        stage.write_nodes(0..3)?;
        stage.wait_for_mesh()?;
    }
    ensure!(daemon.is_running(), "the daemon has ended");
    // From node-0 to node-1, which stays.
    for beat in beats.into_iter().take(2) {
        let report = beat.stop()?;
        ensure!(report.longest_gap < SHORT * slowness(), "{report:?}");
    }
    Ok(())
}
