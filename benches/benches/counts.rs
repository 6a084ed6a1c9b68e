//! Different numbers of endpoints: each number above 16 has a map and a chain in the table, for as long as a frontend has it.
//!
//! Services of 17, 18, 19, ... endpoints beside Services of one number that have as many elements altogether: what the first
//! list takes, a change of another Service, and a Service whose number of endpoints changes each time.

use std::time::Duration;

use anyhow::{Result, anyhow};
use nft::{Kernel, Monitor};
use portolan_benches::{
    Node, Report, Row, Samples, Sandbox, Shape, microseconds, milliseconds, quick, ratio,
};
use service_model::EndpointSlice;

/// The smallest number of endpoints that has no set of its own.
const FIRST: usize = 17;
/// Endpoints of the Service that changes.
const SMALL: usize = 10;

fn main() -> Result<()> {
    let (sizes, changes): (&[u32], u32) = match quick() {
        true => (&[4], 4),
        false => (&[1, 128, 256, 512, 1024], 400),
    };
    let mut report = Report::default();
    for services in sizes {
        let different = measure(*services, changes, |n| FIRST + n)?;
        let mean = FIRST + (*services as usize - 1) / 2;
        let equal = measure(*services, changes, |_| mean)?;
        rows(&mut report, *services, &different, &equal);
    }
    report.print();
    Ok(())
}

#[derive(Default)]
struct Figures {
    elements: usize,
    first_list: Duration,
    /// An endpoint of another Service is replaced.
    change: Samples,
    /// A Service gets a number of endpoints that no other one has, and loses it again.
    new_number: Samples,
}

fn rows(report: &mut Report, services: u32, different: &Figures, equal: &Figures) {
    let beside = format!("{services} numbers of endpoints");
    report.row(Row {
        quantity: format!(
            "first list to committed, {beside} ({} elements)",
            different.elements
        ),
        measured: milliseconds(different.first_list),
        floor: format!("one number: {}", milliseconds(equal.first_list)),
        ratio: ratio(different.first_list, equal.first_list),
        ..Row::default()
    });
    for (what, different, equal) in [
        (
            "an endpoint of another Service",
            &different.change,
            &equal.change,
        ),
        (
            "a number that no other has",
            &different.new_number,
            &equal.new_number,
        ),
    ] {
        let both = |of: &Samples| {
            format!(
                "{}, p99 {}",
                microseconds(of.median()),
                microseconds(of.p99())
            )
        };
        report.row(Row {
            quantity: format!("{what} beside {beside}"),
            measured: both(different),
            floor: format!("one number: {}", both(equal)),
            ratio: ratio(different.median(), equal.median()),
            ..Row::default()
        });
    }
}

/// Loads this many Services with these numbers of endpoints, and a small one that changes.
fn measure(services: u32, changes: u32, number: impl Fn(usize) -> usize) -> Result<Figures> {
    let largest = FIRST + services as usize;
    let shape = Shape::new(services + 1, u32::try_from(largest)?);
    let mut slices = shape.slices();
    for (n, slice) in slices.iter_mut().enumerate() {
        let endpoints = n.checked_sub(1).map_or(SMALL, &number);
        slice.endpoints.truncate(endpoints);
    }
    let sandbox = Sandbox::new()?;
    let mut kernel = sandbox.kernel()?;
    let mut monitor = sandbox.monitor(&mut kernel)?;
    let mut node = Node::new(kernel, shape.facts());
    let committed = node.list(shape.services(), slices.clone())?;
    drain(&mut monitor)?;
    let mut figures = Figures {
        elements: committed.outcome.elements,
        first_list: committed.total(),
        ..Figures::default()
    };
    let mut small = slices.first().cloned().ok_or_else(|| anyhow!("no slice"))?;
    for n in 0..changes {
        if let Some(endpoint) = small.endpoints.get_mut(n as usize % SMALL) {
            endpoint.address = shape.change(n).2.into();
        }
        figures
            .change
            .push(apply(&mut node, &mut monitor, small.clone())?);
    }
    let whole = shape.slices().swap_remove(1);
    for n in 0..changes {
        let mut slice = whole.clone();
        slice
            .endpoints
            .truncate(if n % 2 == 0 { largest } else { FIRST });
        let elapsed = apply(&mut node, &mut monitor, slice)?;
        figures.new_number.push(elapsed);
    }
    Ok(figures)
}

fn apply(node: &mut Node<Kernel>, monitor: &mut Monitor, slice: EndpointSlice) -> Result<Duration> {
    let committed = node.apply(slice)?;
    drain(monitor)?;
    Ok(committed.total())
}

fn drain(monitor: &mut Monitor) -> Result<()> {
    while monitor.try_next()?.is_some() {}
    Ok(())
}
