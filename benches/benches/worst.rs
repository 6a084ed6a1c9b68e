//! The worst Service within its budget, there from the start and touched every second: what changes of other Services take beside
//! it, and what memory the program needs.

use std::time::Duration;

use anyhow::Result;
use portolan_benches::peers::{Contender, Figures, Plan, Stage, measure};
use portolan_benches::{Report, Row, Shape, milliseconds, program, quick, ratio};

fn main() -> Result<()> {
    let (services, seconds) = if quick() { (50, 1) } else { (1_000, 60) };
    let shape = Shape::new(services, 10);
    let plan = Plan {
        changes: 0,
        pause: Duration::ZERO,
        churn: Duration::from_secs(seconds),
        rate: 1,
        patience: Duration::from_secs(120),
    };
    let contender = Contender::Portolan {
        program: program()?,
    };
    let without = measure(&contender, &Stage::new(shape)?, &plan)?;
    let with = measure(&contender, &Stage::with_worst(shape)?, &plan)?;
    let mut report = Report::default();
    let changes = |figures: &Figures| {
        let samples = &figures.churn;
        format!(
            "{}, p99 {}, longest {} of {}",
            milliseconds(samples.median()),
            milliseconds(samples.p99()),
            milliseconds(samples.max()),
            samples.len()
        )
    };
    report.row(Row {
        quantity: format!(
            "a change beside the worst Service, {shape}: until a packet takes the new way"
        ),
        target: "p99 <= 20 ms".into(),
        measured: changes(&with),
        floor: format!("without it {}", changes(&without)),
        ratio: ratio(with.churn.p99(), without.churn.p99()),
    });
    let mebibytes = |figures: &Figures| format!("{} MiB", figures.peak >> 20);
    report.row(Row {
        quantity: "peak memory".into(),
        target: "<= 1.5 times".into(),
        measured: mebibytes(&with),
        floor: format!("without it {}", mebibytes(&without)),
        ratio: format!("{:.2}", with.peak as f64 / without.peak.max(1) as f64),
    });
    report.row(Row {
        quantity: "processor time in the run's seconds".into(),
        measured: milliseconds(with.churn_usage.total()),
        floor: format!("without it {}", milliseconds(without.churn_usage.total())),
        ..Row::default()
    });
    report.print();
    Ok(())
}
