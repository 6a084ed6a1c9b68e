//! The work of the released program: processor time of a change, of a start and of a restart, on the clusters of `peers`, and
//! time and memory on the largest clusters.
//!
//! Times of this bench are processor time, which a busy machine changes less than latency. The floor of a change is its
//! transaction sent as a ready-made message on an open socket.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use portolan_benches::peers::{Contender, Figures, Plan, Stage, measure};
use portolan_benches::{
    Node, Report, Row, Sandbox, Shape, encode, microseconds, milliseconds, program, quick, ratio,
    wanted,
};

fn main() -> Result<()> {
    let (plan, shapes) = size();
    let mut report = Report::default();
    for (shape, peers) in shapes {
        if !wanted(&format!("work {shape}")) {
            continue;
        }
        let contender = Contender::Portolan {
            program: program()?,
            has_overlay: peers > 0,
        };
        let stage = match peers {
            0 => Stage::new(shape)?,
            peers => Stage::with_peers(shape, peers)?,
        };
        let figures = measure(&contender, &stage, &plan)?;
        drop(stage);
        rows(&mut report, shape, &plan, &figures)?;
    }
    if wanted("work rates") {
        rates(&mut report)?;
    }
    report.print();
    Ok(())
}

/// The same change, at different distances from the one before: what depends on these is the price of waking up, and of what other
/// programs have put into the processor's caches meanwhile.
fn rates(report: &mut Report) -> Result<()> {
    let (base, _) = size();
    let (shape, seconds) = match quick() {
        true => (Shape::new(50, 10), 1),
        false => (Shape::new(1_000, 10), 20),
    };
    for rate in [10, 100, 1_000] {
        let contender = Contender::Portolan {
            program: program()?,
            has_overlay: false,
        };
        let plan = Plan {
            changes: 1,
            churn: Duration::from_secs(seconds),
            rate,
            ..base
        };
        let figures = measure(&contender, &Stage::new(shape)?, &plan)?;
        report.row(Row {
            quantity: format!(
                "processor time of a change at {rate} a second, {shape}, all threads"
            ),
            measured: microseconds(per_change(&figures, &plan)),
            ..Row::default()
        });
    }
    Ok(())
}

fn per_change(figures: &Figures, plan: &Plan) -> Duration {
    // The probing Service's changes come to those of the plan.
    let changes = plan.rate * plan.churn.as_secs() as u32 + figures.churn.len() as u32;
    figures.churn_usage.total() / changes.max(1)
}

/// The plan, and each shape with its number of peers.
fn size() -> (Plan, Vec<(Shape, u32)>) {
    let plan = |changes, seconds, rate| Plan {
        changes,
        pause: Duration::from_millis(1100),
        churn: Duration::from_secs(seconds),
        rate,
        probe_every: Duration::from_millis(250),
        patience: Duration::from_secs(120),
    };
    if quick() {
        let shapes = vec![(Shape::new(50, 10), 0), (Shape::new(50, 5), 20)];
        return (plan(1, 1, 20), shapes);
    }
    let mut shapes = vec![];
    shapes.extend([1, 1_000, 10_000].map(|services| (Shape::new(services, 10), 0)));
    // The largest clusters that Kubernetes supports have 5,000 nodes.
    shapes.extend([(Shape::new(50_000, 5), 0), (Shape::new(5_000, 50), 5_000)]);
    (plan(5, 60, 100), shapes)
}

fn rows(report: &mut Report, shape: Shape, plan: &Plan, figures: &Figures) -> Result<()> {
    let per_change = per_change(figures, plan);
    let floor = floor(shape)?;
    let target = match shape.services {
        1_000 => "<= 1.5 s a minute",
        10_000 => "<= 2 s a minute",
        _ => "",
    };
    report.row(Row {
        quantity: format!(
            "processor time of a change at {} a second, {shape}",
            plan.rate
        ),
        target: target.into(),
        measured: format!(
            "{}; {:.1} s a minute, {:.1} s of it kernel",
            microseconds(per_change),
            a_minute(figures.churn_usage.total(), plan),
            a_minute(figures.churn_usage.kernel, plan),
        ),
        floor: microseconds(floor),
        ratio: format!("floor {}", ratio(per_change, floor)),
    });
    report.row(Row {
        quantity: format!(
            "a change at {} a second, {shape}: until a packet takes the new way",
            plan.rate
        ),
        measured: format!(
            "{}, p99 {} of {}",
            milliseconds(figures.churn.median()),
            milliseconds(figures.churn.p99()),
            figures.churn.len(),
        ),
        ..Row::default()
    });
    let target = match shape.services {
        1 => "<= 40 ms",
        10_000 => "<= 450 ms",
        _ => "",
    };
    let time = |time: Option<Duration>| time.map_or("too long".to_owned(), milliseconds);
    report.row(Row {
        quantity: format!("process start, until the last Service answers, {shape}"),
        target: target.into(),
        measured: format!(
            "{}; processor {}",
            time(figures.cold),
            milliseconds(figures.cold_usage.total())
        ),
        ..Row::default()
    });
    report.row(Row {
        quantity: format!("restart with rules in place, until a packet takes the new way, {shape}"),
        target: if shape.services == 1_000 {
            "<= 60 ms"
        } else {
            ""
        }
        .into(),
        measured: time(figures.restart),
        ..Row::default()
    });
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    report.row(Row {
        quantity: format!("memory in the end, and peak, {shape}"),
        measured: format!(
            "{:.1} and {:.1} MiB",
            mebibytes(figures.resident),
            mebibytes(figures.peak)
        ),
        ..Row::default()
    });
    Ok(())
}

fn a_minute(used: Duration, plan: &Plan) -> f64 {
    used.as_secs_f64() * 60.0 / plan.churn.as_secs_f64()
}

/// Processor time of the bare messages of a change.
fn floor(shape: Shape) -> Result<Duration> {
    const CHANGES: u32 = 500;
    let sandbox = Sandbox::new()?;
    let mut node = Node::new(sandbox.kernel()?, shape.facts());
    let mut slices = shape.slices();
    node.dataplane.backend_mut().record = true;
    node.list(shape.services(), slices.clone())?;
    for n in 0..CHANGES {
        let (service, endpoint, address) = shape.change(n);
        let slice = slices.get_mut(service as usize).context("no Service")?;
        if let Some(endpoint) = slice.endpoints.get_mut(endpoint as usize) {
            endpoint.address = address.into();
        }
        node.apply(slice.clone())?;
    }
    let sandbox = Sandbox::new()?;
    let bare = sandbox.bare()?;
    let mut batches = Vec::new();
    for transaction in &node.dataplane.backend().recorded {
        batches.push(encode(transaction)?);
    }
    let (first, others) = batches.split_first().context("nothing was committed")?;
    bare.send(first)?;
    let before = on_processor()?;
    for batch in others {
        bare.send(batch)?;
    }
    Ok((on_processor()? - before) / others.len().max(1) as u32)
}

/// Processor time of this thread (Documentation/scheduler/sched-stats.rst).
fn on_processor() -> Result<Duration> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    let nanoseconds = text.split_whitespace().next().context("no time")?;
    Ok(Duration::from_nanos(nanoseconds.parse()?))
}
