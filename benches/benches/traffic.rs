//! What counting the traffic of Services costs (`--service-traffic`), per connection and at 10,000 new connections a second.
//!
//! Clients connect as fast as this machine lets them, and conntrack forgets ended connections after a second, so that all of them end
//! while the processor time of the counting thread is measured. The cost of a connection holds for other rates: ended connections
//! are received together, at most 50 times a second. Listings of the table are in it.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Probe, Protocol, ThreeNodes, wait_until};
use portolan_benches::{Report, Row, program, quick, wanted};

const BENCH: &str = "traffic";
const PATIENCE: Duration = Duration::from_secs(120);
/// Clients at a time.
const STREAMS: usize = 8;
/// The rate of the goal.
const RATE: f64 = 10_000.0;
/// Name of the thread that counts.
const THREAD: &str = "traffic";

fn main() -> Result<()> {
    if !wanted(BENCH) {
        return Ok(());
    }
    let program = program()?;
    let count = if quick() { 2_000 } else { 200_000 };
    let stage = ThreeNodes::new()?;
    stage.nodes[0].run(|| {
        fs::write(
            "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close",
            "1",
        )
    })??;
    let daemon = stage.start(&program, &["--service-traffic=on"])?;
    stage.wait_for_pods(4)?;
    let flows = || metric(&stage, "portolan_service_flows_total{");
    let (flows_before, spent_before, start) = (flows()?, spent(&daemon)?, Instant::now());
    let probe = Probe::new(Protocol::Tcp, stage.web_address());
    let streams = (0..STREAMS).map(|_| stage.client.stream_connections(probe, Duration::ZERO));
    let streams = streams.collect::<Result<Vec<_>>>()?;
    let answered = || -> usize {
        let reports = streams.iter().map(|stream| stream.report());
        reports.map(|report| report.tally.answered()).sum()
    };
    wait_until("connections", PATIENCE, || answered() >= count)?;
    let reports = streams.into_iter().map(|stream| stream.stop());
    let made: usize = reports.map(|report| report.tally.answered()).sum();
    let elapsed = start.elapsed();
    wait_until("all to be counted", PATIENCE, || {
        flows().is_ok_and(|flows| flows - flows_before >= made as f64)
    })?;
    let lost = metric(&stage, "portolan_service_traffic_losses_total ")?;
    let each = (spent(&daemon)? - spent_before).as_secs_f64() / made as f64;
    let mut report = Report::default();
    report.row(Row {
        quantity: format!(
            "counting the traffic of Services, {made} connections at {:.0} a second, {lost} losses",
            made as f64 / elapsed.as_secs_f64()
        ),
        target: String::new(),
        measured: format!("{:.2} us a connection", each * 1e6),
        ..Row::default()
    });
    report.row(Row {
        quantity: "the same at 10,000 connections a second, of one processor".into(),
        target: "<= 10 %".into(),
        measured: format!("{:.1} %", each * RATE * 100.0),
        ..Row::default()
    });
    report.print();
    Ok(())
}

/// Processor time of the counting thread.
fn spent(daemon: &Daemon) -> Result<Duration> {
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid()))? {
        let thread = thread?.path();
        // A thread may have ended meanwhile.
        let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
        if name.trim() == THREAD {
            // Nanoseconds on a processor come first (Documentation/scheduler/sched-stats.rst).
            let text = fs::read_to_string(thread.join("schedstat"))?;
            let first = text.split_whitespace().next().context("no time")?;
            return Ok(Duration::from_nanos(first.parse()?));
        }
    }
    anyhow::bail!("no thread {THREAD}")
}

/// The sum of a metric's series.
fn metric(stage: &ThreeNodes, name: &str) -> Result<f64> {
    let to = SocketAddr::from(([127, 0, 0, 1], 10249));
    let answer = stage.nodes[0].http_get(to, "/metrics")?;
    let (code, text) = answer.context("no metrics")?;
    ensure!(code == 200, "{code}");
    let lines = text.lines().filter(|line| line.starts_with(name));
    let numbers = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
    Ok(numbers.sum())
}
