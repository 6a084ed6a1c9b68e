//! Services that cost a node much, in place from the start and touched every second: the latency of changes of other Services, and
//! the memory of the program. Each kind has a name (`worst slice`), so a filter runs a part.

use std::time::Duration;

use anyhow::Result;
use portolan_benches::peers::{Contender, Figures, Plan, Stage, Worst, measure};
use portolan_benches::{Report, Row, Shape, milliseconds, program, quick, ratio, wanted};

fn main() -> Result<()> {
    let (shape, plan) = size();
    let is_wanted = |kind: &Worst| wanted(&format!("worst {}", kind.name));
    let kinds: Vec<Worst> = Worst::ALL.into_iter().filter(is_wanted).collect();
    let mut report = Report::default();
    for kind in kinds {
        let contender = Contender::Portolan {
            program: program()?,
            has_overlay: false,
        };
        // Each kind beside a measurement without it: a machine that is busy for a while is busy in both.
        let without = measure(&contender, &Stage::new(shape)?, &plan)?;
        let with = measure(&contender, &Stage::with_worst(shape, kind)?, &plan)?;
        rows(&mut report, &kind, &with, &without);
    }
    report.print();
    Ok(())
}

fn size() -> (Shape, Plan) {
    let (services, seconds) = if quick() { (50, 1) } else { (1_000, 40) };
    let plan = Plan {
        changes: 0,
        pause: Duration::ZERO,
        churn: Duration::from_secs(seconds),
        rate: 1,
        // No part of a second, so that changes come at all times after a touch.
        probe_every: Duration::from_millis(130),
        patience: Duration::from_secs(120),
    };
    (Shape::new(services, 10), plan)
}

fn rows(report: &mut Report, kind: &Worst, with: &Figures, without: &Figures) {
    let latency = |figures: &Figures| {
        let samples = &figures.churn;
        format!(
            "p50 {}, p99 {}, longest {} of {}",
            milliseconds(samples.median()),
            milliseconds(samples.p99()),
            milliseconds(samples.max()),
            samples.len()
        )
    };
    report.row(Row {
        quantity: format!(
            "`{}`, {}: a change of another Service, until a packet takes the new way",
            kind.name, kind.description
        ),
        target: "p99 <= 20 ms".into(),
        measured: latency(with),
        floor: format!("without: {}", latency(without)),
        ratio: ratio(with.churn.p99(), without.churn.p99()),
    });
    let memory = |figures: &Figures| {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (end, peak) = (mebibytes(figures.resident), mebibytes(figures.peak));
        format!("{end:.1} MiB, peak {peak:.1} MiB")
    };
    let times = |with: u64, without: u64| with as f64 / without.max(1) as f64;
    report.row(Row {
        quantity: format!("`{}`: memory after the touches, and peak", kind.name),
        target: "<= 1.5 x".into(),
        measured: memory(with),
        floor: format!("without: {}", memory(without)),
        ratio: format!(
            "{:.2}, peak {:.2}",
            times(with.resident, without.resident),
            times(with.peak, without.peak)
        ),
    });
    let processor = |figures: &Figures| milliseconds(figures.churn_usage.total());
    report.row(Row {
        quantity: format!(
            "`{}`: processor time of {:.0} s of touches",
            kind.name,
            with.churn_time.as_secs_f64()
        ),
        measured: processor(with),
        floor: format!("without: {}", processor(without)),
        ..Row::default()
    });
}
