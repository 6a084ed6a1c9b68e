//! How long new connections fail after a node is unplugged, and what noticing that costs.
//!
//! Three nodes; a Service with two pods on each of the others. Clients connect about 200 times a second through cluster IP,
//! node port and load balancer. The cable of one node is pulled; nobody changes an EndpointSlice. A fresh process for each
//! repetition. kube-proxy in the same place fails until the slice changes, 40 s and more: it has nothing to be measured.

use std::net::SocketAddr;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{ThreeNodes, wait_until};
use portolan_benches::{Report, Row, Samples, milliseconds, program, quick, wanted};

const BENCH: &str = "failover";
const PATIENCE: Duration = Duration::from_secs(60);
/// After this time attempts say nothing about the next outage: no other node dies seconds after it has come back.
const OLD: Duration = Duration::from_secs(4);
/// Between two connections of a stream.
const PAUSE: Duration = Duration::from_millis(60);

fn main() -> Result<()> {
    if !wanted(BENCH) {
        return Ok(());
    }
    let program = program()?;
    let repetitions = if quick() { 1 } else { 20 };
    let stage = ThreeNodes::new()?;
    let (mut last, mut noticed) = (Samples::new(), Samples::new());
    for _ in 0..repetitions {
        let unplugged = unplug(&stage, &program)?;
        eprintln!(
            "last failure after {:?}, noticed after {:?}",
            unplugged.last, unplugged.noticed
        );
        last.push(unplugged.last);
        noticed.push(unplugged.noticed);
    }
    let mut report = Report::default();
    for (quantity, target, samples) in [
        (
            "node unplugged: last connection that fails begins after",
            "p95 <= 2 s",
            &last,
        ),
        ("node unplugged: the node is a suspect after", "", &noticed),
    ] {
        report.row(Row {
            quantity: quantity.into(),
            target: target.into(),
            measured: format!(
                "p50 {}, p95 {}, at most {} of {repetitions}",
                milliseconds(samples.median()),
                milliseconds(samples.p95()),
                milliseconds(samples.max()),
            ),
            ..Row::default()
        });
    }
    let cost = cost_of_readings(&stage, &program)?;
    report.row(Row {
        quantity: "reading conntrack meanwhile, of one processor".into(),
        target: "<= 0.5 %".into(),
        measured: format!("{:.2} %", cost * 100.0),
        ..Row::default()
    });
    report.print();
    Ok(())
}

struct Unplugged {
    /// When the last attempt began that failed.
    last: Duration,
    noticed: Duration,
}

/// The value of a metric of the program.
fn metric(stage: &ThreeNodes, name: &str) -> Result<f64> {
    let to = SocketAddr::from(([127, 0, 0, 1], 10249));
    let answer = stage.nodes[0].http_get(to, "/metrics")?;
    let (_, text) = answer.context("no metrics")?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
    Ok(values.next().context("no such metric")?.trim().parse()?)
}

fn wait_for_suspects(stage: &ThreeNodes, count: f64) -> Result<()> {
    wait_until("suspects", PATIENCE, || {
        let suspects = metric(stage, "portolan_failover_suspects ");
        suspects.is_ok_and(|suspects| suspects == count)
    })
}

fn unplug(stage: &ThreeNodes, program: &Path) -> Result<Unplugged> {
    let _daemon = stage.start(program, &[])?;
    stage.wait_for_pods(4)?;
    let streams = stage.connect(PAUSE)?;
    streams.wait_for(100)?;
    let (unplugged_at, cable) = (Instant::now(), stage.nodes[1].unplug()?);
    wait_for_suspects(stage, 1.0)?;
    let noticed = unplugged_at.elapsed();
    streams.wait_for(300)?;
    let last = streams.last_failure(unplugged_at).unwrap_or_default();
    drop((streams, cable));
    wait_for_suspects(stage, 0.0)?;
    sleep(OLD);
    Ok(Unplugged { last, noticed })
}

/// The part of a processor that reading conntrack takes, while all is well and clients connect.
fn cost_of_readings(stage: &ThreeNodes, program: &Path) -> Result<f64> {
    let _daemon = stage.start(program, &[])?;
    stage.wait_for_pods(4)?;
    let streams = stage.connect(PAUSE)?;
    let seconds = || metric(stage, "portolan_failover_conntrack_reading_seconds_total ");
    streams.wait_for(100)?;
    let (start, before) = (Instant::now(), seconds()?);
    streams.wait_for(if quick() { 100 } else { 4_000 })?;
    let spent = seconds()? - before;
    Ok(spent / start.elapsed().as_secs_f64())
}
