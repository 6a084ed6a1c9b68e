//! Portolan and kube-proxy itself, side by side: see `portolan_benches::peers`.
//!
//! Needs the programs of `cargo xtask control-plane` in `PORTOLAN_CONTROL_PLANE`. Each pair of a contender and a
//! cluster has a name (`peers 10000x10 kube-proxy v1.37.1, 1 s`), so a filter runs a part.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use portolan_benches::peers::{Contender, Figures, Plan, Stage, measure, table};
use portolan_benches::{Shape, program, quick, wanted};

/// Where the programs of `cargo xtask control-plane` are.
const CONTROL_PLANE: &str = "PORTOLAN_CONTROL_PLANE";

fn main() -> Result<()> {
    let (plan, shapes) = size();
    let cases = cases(&shapes, &programs()?)?;
    let (mut results, mut failed) = (Vec::new(), Vec::new());
    for (shape, contenders) in cases {
        let mut figures: Vec<(String, Figures)> = Vec::new();
        for contender in contenders {
            eprintln!("peers {shape} {}", contender.name());
            let stage = Stage::new(shape)?;
            match measure(&contender, &stage, &plan) {
                Ok(measured) => figures.push((contender.name(), measured)),
                // What took an hour until here shall not be lost.
                Err(error) => {
                    failed.push(format!("{} at {shape}: {error:#}", contender.name()));
                    if figures.is_empty() {
                        // Without us there is nothing to compare with.
                        break;
                    }
                }
            }
            // All that is known so far, since a run takes long.
            eprintln!("{}", table::table(shape, plan.patience, &figures));
        }
        results.push((shape, figures));
    }
    for (shape, figures) in &results {
        print!("{}", table::table(*shape, plan.patience, figures));
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// How much is measured of which clusters, the smallest first.
fn size() -> (Plan, Vec<Shape>) {
    if quick() {
        let plan = Plan {
            changes: 2,
            pause: Duration::from_millis(1100),
            churn: Duration::from_secs(2),
            rate: 20,
            probe_every: Duration::from_millis(250),
            patience: Duration::from_secs(60),
        };
        return (plan, vec![Shape::new(50, 10)]);
    }
    let plan = Plan {
        changes: 15,
        pause: Duration::from_millis(1200),
        churn: Duration::from_secs(60),
        rate: 100,
        probe_every: Duration::from_millis(250),
        patience: Duration::from_secs(300),
    };
    let shapes = [1_000, 5_000, 10_000].map(|services| Shape::new(services, 10));
    (plan, shapes.to_vec())
}

/// Portolan, and the folder of the others if there is one.
fn programs() -> Result<Option<(PathBuf, PathBuf)>> {
    match std::env::var_os(CONTROL_PLANE) {
        Some(folder) => Ok(Some((program()?, folder.into()))),
        None => {
            eprintln!(
                "SKIPPED: kube-proxy beside us: {CONTROL_PLANE} does not name a folder with it"
            );
            Ok(None)
        }
    }
}

/// What the command line asks for. Portolan is in each comparison: the ratios are to it.
fn cases(
    shapes: &[Shape],
    programs: &Option<(PathBuf, PathBuf)>,
) -> Result<Vec<(Shape, Vec<Contender>)>> {
    let Some((portolan, control_plane)) = programs else {
        return Ok(Vec::new());
    };
    let contenders = Contender::all(portolan, control_plane)?;
    let of = |shape: Shape| {
        let asked = |contender: &Contender| wanted(&format!("peers {shape} {}", contender.name()));
        let any = contenders.iter().any(asked);
        let asked: Vec<Contender> = contenders
            .iter()
            .filter(|contender| {
                any && (matches!(contender, Contender::Portolan { .. }) || asked(contender))
            })
            .cloned()
            .collect();
        (shape, asked)
    };
    let cases = shapes.iter().map(|shape| of(*shape));
    Ok(cases
        .filter(|(_, contenders)| !contenders.is_empty())
        .collect())
}
