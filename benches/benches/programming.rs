//! From objects to kernel: the first list, one change, and a restart with nothing changed.
//!
//! Beside each: the same elements as bare netlink messages. kube-proxy itself is in the bench `peers`.

use std::time::Duration;

use anyhow::{Result, anyhow};
use criterion::{BenchmarkId, Criterion, SamplingMode};
use nft::{Kernel, Monitor, Transaction};
use portolan_benches::{
    Node, Report, Row, Samples, Sandbox, Shape, encode, microseconds, milliseconds, quick, ratio,
    wanted,
};
use service_model::EndpointSlice;

const FIRST_LIST: &str = "first list";
const RESTART: &str = "restart, nothing changed";
const CHANGE: &str = "one endpoint changed";
/// Changes kept to be repeated as bare messages.
const RECORDED: usize = 5_000;
/// The kernel frees what was deleted, and namespaces that were left, in its own time.
const SETTLE: Duration = Duration::from_millis(300);

fn main() -> Result<()> {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4))
        .configure_from_args();
    let mut report = Report::default();
    let (small, middle, large, huge, wide) = if quick() {
        (
            Shape::new(20, 10),
            Shape::new(40, 10),
            Shape::new(80, 10),
            Shape::new(160, 10),
            Shape::new(10, 50),
        )
    } else {
        (
            Shape::new(1_000, 10),
            Shape::new(5_000, 10),
            Shape::new(10_000, 10),
            Shape::new(40_000, 10),
            Shape::new(5_000, 50),
        )
    };
    if wanted(FIRST_LIST) {
        for (shape, target) in [
            (small, ""),
            (middle, ""),
            (large, "< 1 s"),
            (wide, "< 2.5 s"),
        ] {
            first_list(&mut criterion, &mut report, shape, target)?;
        }
    }
    if wanted(RESTART) {
        restart(&mut criterion, &mut report, large)?;
    }
    if wanted(CHANGE) {
        let mut medians = Vec::new();
        for (shape, target) in [
            (small, ""),
            (middle, ""),
            (large, "median < 1 ms, p99 < 5 ms"),
            (huge, ""),
        ] {
            medians.push(change(&mut criterion, &mut report, shape, target)?);
        }
        let spread = medians.iter().max().zip(medians.iter().min());
        report.row(Row {
            quantity: format!("one change, slowest to fastest median, {small} to {huge}"),
            target: "<= 2".into(),
            measured: spread
                .map(|(most, least)| ratio(*most, *least))
                .unwrap_or_default(),
            ..Row::default()
        });
    }
    criterion.final_summary();
    report.print();
    Ok(())
}

/// Carries an error out of a closure that criterion calls.
fn keep(failure: &mut Option<anyhow::Error>, result: Result<Duration>) -> Duration {
    result.unwrap_or_else(|error| {
        failure.get_or_insert(error);
        Duration::from_nanos(1)
    })
}

fn settled(failure: Option<anyhow::Error>) -> Result<()> {
    failure.map_or(Ok(()), Err)
}

/// Times of the parts of a first list.
#[derive(Default)]
struct Parts {
    total: Samples,
    indexing: Samples,
    planning: Samples,
    preparing: Samples,
    committing: Samples,
}

fn first_list(
    criterion: &mut Criterion,
    report: &mut Report,
    shape: Shape,
    target: &str,
) -> Result<()> {
    let (services, slices) = (shape.services(), shape.slices());
    let mut parts = Parts::default();
    let mut first = None;
    let mut failure = None;
    let mut group = criterion.benchmark_group(FIRST_LIST);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::from_parameter(shape), |bencher| {
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| {
                    let lists = (services.clone(), slices.clone());
                    keep(
                        &mut failure,
                        take_first_list(shape, lists, &mut parts, &mut first),
                    )
                })
                .sum()
        });
    });
    group.finish();
    settled(failure)?;

    let first = first.ok_or_else(|| anyhow!("no first list was measured"))?;
    let (elements, batch) = (first.element_count(), encode(&first)?);
    let mut floor = Samples::new();
    for _ in 0..10 {
        let sandbox = Sandbox::new()?;
        floor.push(sandbox.bare()?.send(&batch)?);
        drop(sandbox);
        std::thread::sleep(SETTLE);
    }
    let total = parts.total.median();
    report.row(Row {
        quantity: format!("first list to committed, {shape} ({elements} elements)"),
        target: target.into(),
        measured: milliseconds(total),
        floor: milliseconds(floor.median()),
        ratio: format!("floor {}", ratio(total, floor.median())),
    });
    report.row(Row {
        quantity: format!(
            "of which index {}, plan {}, ledger and difference {}, kernel commit:",
            milliseconds(parts.indexing.median()),
            milliseconds(parts.planning.median()),
            milliseconds(parts.preparing.median()),
        ),
        target: "<= 2 x floor".into(),
        measured: milliseconds(parts.committing.median()),
        floor: milliseconds(floor.median()),
        ratio: format!("floor {}", ratio(parts.committing.median(), floor.median())),
    });
    Ok(())
}

fn take_first_list(
    shape: Shape,
    lists: (Vec<service_model::Service>, Vec<EndpointSlice>),
    parts: &mut Parts,
    first: &mut Option<Transaction>,
) -> Result<Duration> {
    let sandbox = Sandbox::new()?;
    let mut kernel = sandbox.kernel()?;
    let monitor = sandbox.monitor(&mut kernel)?;
    let mut node = Node::new(kernel, shape.facts());
    node.dataplane.backend_mut().record = first.is_none();
    let committed = node.list(lists.0, lists.1)?;
    let committing = node.dataplane.backend().committing;
    if let Some(transaction) = node.dataplane.backend_mut().recorded.pop() {
        *first = Some(transaction);
    }
    parts.total.push(committed.total());
    parts.indexing.push(committed.indexing);
    parts.planning.push(committed.planning);
    parts
        .preparing
        .push(committed.dataplane.saturating_sub(committing));
    parts.committing.push(committing);
    drop((node, monitor, sandbox));
    std::thread::sleep(SETTLE);
    Ok(committed.total())
}

fn restart(criterion: &mut Criterion, report: &mut Report, shape: Shape) -> Result<()> {
    let sandbox = Sandbox::new()?;
    Node::new(sandbox.kernel()?, shape.facts()).list(shape.services(), shape.slices())?;
    let (services, slices) = (shape.services(), shape.slices());
    let (mut samples, mut listing, mut messages) = (Samples::new(), Samples::new(), (0, 0));
    let mut once = || -> Result<Duration> {
        let mut node = Node::new(sandbox.kernel()?, shape.facts());
        let committed = node.list(services.clone(), slices.clone())?;
        samples.push(committed.total());
        listing.push(node.dataplane.backend().listing);
        let sent = node.dataplane.backend().inner().sent().messages;
        messages = messages.max((committed.outcome.elements, sent));
        Ok(committed.total())
    };
    let mut failure = None;
    let mut group = criterion.benchmark_group(RESTART);
    group.sampling_mode(SamplingMode::Flat);
    group.bench_function(BenchmarkId::from_parameter(shape), |bencher| {
        bencher.iter_custom(|iterations| (0..iterations).map(|_| keep(&mut failure, once())).sum());
    });
    group.finish();
    settled(failure)?;
    report.row(Row {
        quantity: format!("restart with nothing changed, {shape}: first list to synced"),
        measured: milliseconds(samples.median()),
        floor: format!("{} (reading the table)", milliseconds(listing.median())),
        ratio: format!("floor {}", ratio(samples.median(), listing.median())),
        ..Row::default()
    });
    report.row(Row {
        quantity: format!(
            "elements written then, {shape} (and messages, of which 2 adopt the orphaned tables)"
        ),
        target: "0".into(),
        measured: format!("{} ({})", messages.0, messages.1),
        ..Row::default()
    });
    Ok(())
}

/// A node that changes one endpoint after another.
struct Churn {
    shape: Shape,
    node: Node<Kernel>,
    monitor: Monitor,
    slices: Vec<EndpointSlice>,
    next: u32,
    samples: Samples,
    elements: usize,
}

impl Churn {
    fn new(shape: Shape, sandbox: &Sandbox) -> Result<Self> {
        let mut kernel = sandbox.kernel()?;
        let mut monitor = sandbox.monitor(&mut kernel)?;
        let mut node = Node::new(kernel, shape.facts());
        let slices = shape.slices();
        node.dataplane.backend_mut().record = true;
        node.list(shape.services(), slices.clone())?;
        while monitor.try_next()?.is_some() {}
        Ok(Churn {
            shape,
            node,
            monitor,
            slices,
            next: 0,
            samples: Samples::new(),
            elements: 0,
        })
    }

    fn one(&mut self) -> Result<Duration> {
        let (service, endpoint, address) = self.shape.change(self.next);
        self.next += 1;
        let slice = self
            .slices
            .get_mut(service as usize)
            .ok_or_else(|| anyhow!("no Service {service}"))?;
        if let Some(endpoint) = slice.endpoints.get_mut(endpoint as usize) {
            endpoint.address = address.into();
        }
        let event = slice.clone();
        let backend = self.node.dataplane.backend_mut();
        backend.record = backend.recorded.len() <= RECORDED;
        let committed = self.node.apply(event)?;
        while self.monitor.try_next()?.is_some() {}
        self.samples.push(committed.total());
        self.elements += committed.outcome.elements;
        Ok(committed.total())
    }
}

fn change(
    criterion: &mut Criterion,
    report: &mut Report,
    shape: Shape,
    target: &str,
) -> Result<Duration> {
    let sandbox = Sandbox::new()?;
    let mut churn = Churn::new(shape, &sandbox)?;
    let mut failure = None;
    let mut group = criterion.benchmark_group(CHANGE);
    group.bench_function(BenchmarkId::from_parameter(shape), |bencher| {
        bencher.iter_custom(|iterations| {
            (0..iterations)
                .map(|_| keep(&mut failure, churn.one()))
                .sum()
        });
    });
    group.finish();
    settled(failure)?;
    let floor = replay(&churn.node.dataplane.backend().recorded)?;
    let both = |samples: &Samples| {
        format!(
            "{}, p99 {}",
            microseconds(samples.median()),
            microseconds(samples.p99())
        )
    };
    let (measured, elements) = (
        churn.samples.median(),
        churn.elements as f64 / churn.samples.len() as f64,
    );
    report.row(Row {
        quantity: format!(
            "one endpoint changed, event to acknowledgement, {shape} ({elements:.1} elements)"
        ),
        target: target.into(),
        measured: format!("{} of {}", both(&churn.samples), churn.samples.len()),
        floor: both(&floor),
        ratio: format!("floor {}", ratio(measured, floor.median())),
    });
    Ok(measured)
}

/// The recorded transactions once more, as bare messages: the first one makes the table, the others are the samples.
fn replay(recorded: &[Transaction]) -> Result<Samples> {
    let sandbox = Sandbox::new()?;
    let bare = sandbox.bare()?;
    let mut samples = Samples::new();
    for (n, transaction) in recorded.iter().enumerate() {
        let elapsed = bare.send(&encode(transaction)?)?;
        if n == 0 {
            std::thread::sleep(SETTLE);
        } else {
            samples.push(elapsed);
        }
    }
    Ok(samples)
}
