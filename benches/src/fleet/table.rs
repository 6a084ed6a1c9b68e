//! The figures as Markdown: a line for each quantity, a column for each fleet.

use std::time::Duration;

use super::cluster::Baseline;
use super::load::Load;
use super::run::Figures;
use crate::report::{microseconds, milliseconds};
use crate::{Samples, Shape};

/// A quantity of one fleet, as text.
type Cell = fn(&Figures, &Baseline) -> String;

/// Phase, quantity, and the quantity of one fleet.
const LINES: &[(&str, &str, Cell)] = &[
    ("start", "all nodes have all watches after", |of, _| {
        seconds(of.watching)
    }),
    ("start", "the last bytes of lists come after", |of, _| {
        seconds(of.listed)
    }),
    ("start", "requests", |of, _| requests(&of.start, of.nodes)),
    ("start", BYTES, |of, _| bytes(&of.start, nodes(of))),
    ("start", PROCESSOR, |of, baseline| {
        above(&of.start, baseline, Duration::ZERO, nodes(of))
    }),
    ("start", "open watches, connections", |of, _| {
        let watches = of.start.watches.saturating_sub(of.watches_before);
        let connections = of.start.traffic.connections;
        format!(
            "{:.1}, {:.1}",
            per_node(watches, of.nodes),
            per_node(connections, of.nodes)
        )
    }),
    ("start", "the server's resident memory", |of, _| {
        format!("{} MiB", of.start.memory >> 20)
    }),
    ("idle", "requests", |of, _| requests(&of.idle, of.nodes)),
    ("idle", "bytes a minute, from and to the server", |of, _| {
        bytes(&of.idle, nodes(of) * minutes(&of.idle))
    }),
    (
        "idle",
        "the server's processor time a minute",
        |of, baseline| {
            above(
                &of.idle,
                baseline,
                Duration::ZERO,
                nodes(of) * minutes(&of.idle),
            )
        },
    ),
    ("changes", "number a second, of the cluster", |of, _| {
        format!("{:.1}", f64::from(of.changes) / of.churning.as_secs_f64())
    }),
    ("changes", "requests", |of, _| requests(&of.churn, of.nodes)),
    (
        "changes",
        "bytes a change, from and to the server",
        |of, _| bytes(&of.churn, nodes(of) * f64::from(of.changes)),
    ),
    (
        "changes",
        "the server's processor time a change",
        |of, baseline| {
            let parts = nodes(of) * f64::from(of.changes.max(1));
            above(&of.churn, baseline, baseline.change * of.changes, parts)
        },
    ),
    ("changes", "the server, of one processor", |of, _| {
        let part = of.churn.processor.as_secs_f64() / of.churn.elapsed.as_secs_f64();
        format!("{:.0} %", part * 100.0)
    }),
    (
        "changes",
        "from the request for a change until a node has it",
        |of, _| deliveries(of),
    ),
    ("changes", LOST, |of, _| of.lost_changes.to_string()),
    ("outage", "the server is away for", |of, _| {
        seconds(of.back.away)
    }),
    (
        "return",
        "from the start of the server's process until the first answer",
        |of, _| seconds(of.back.until_first),
    ),
    (
        "return",
        "from there until each node's first answer",
        |of, _| spread(&of.back.first),
    ),
    (
        "return",
        "from there until all watches of a node are open",
        |of, _| spread(&of.back.watching),
    ),
    ("return", "nodes without all watches at the end", |of, _| {
        of.back.absent.to_string()
    }),
    ("return", "requests", |of, _| {
        requests(&of.back.load, of.nodes)
    }),
    (
        "return",
        "requests of all nodes in the busiest second",
        |of, _| of.back.busiest.to_string(),
    ),
    (
        "return",
        "whole lists that the proxy got, of four kinds",
        |of, _| {
            let lists = of.back.whole_lists.map(|lists| lists as u64);
            let lists = lists.map(|lists| format!("{:.2}", per_node(lists, of.nodes)));
            lists.unwrap_or_default()
        },
    ),
    ("return", BYTES, |of, _| bytes(&of.back.load, nodes(of))),
    ("return", PROCESSOR, |of, baseline| {
        above(&of.back.load, baseline, of.back.startup, nodes(of))
    }),
    ("return", LOST, |of, _| of.back.lost_changes.to_string()),
];

const BYTES: &str = "bytes, from and to the server";
const PROCESSOR: &str = "the server's processor time";
const LOST: &str = "Services of which a node lacks the last change, all nodes together";

fn nodes(of: &Figures) -> f64 {
    f64::from(of.nodes)
}

fn deliveries(of: &Figures) -> String {
    let Some(samples) = &of.deliveries else {
        return String::new();
    };
    let [median, p99, max] = [samples.median(), samples.p99(), samples.max()].map(milliseconds);
    format!("{median}, p99 {p99}, at most {max} of {}", samples.len())
}

/// The results of all fleets on one cluster.
pub fn table(shape: Shape, baseline: &Baseline, fleets: &[Figures]) -> String {
    let mut text = format!(
        "\n{} Services of {} endpoints. The server without nodes: {} a second, {} a change. Of one node, if nothing else is \
         said:\n\n| |",
        shape.services,
        shape.endpoints,
        milliseconds(baseline.idle),
        milliseconds(baseline.change)
    );
    for of in fleets {
        text += &format!(" | {} x {}", of.nodes, of.name);
    }
    text += &format!(" |\n|---|---|{}\n", "---|".repeat(fleets.len()));
    for (phase, quantity, cell) in LINES {
        let cells: Vec<String> = fleets.iter().map(|of| cell(of, baseline)).collect();
        text += &format!("| {phase} | {quantity} | {} |\n", cells.join(" | "));
    }
    text
}

fn per_node(number: u64, nodes: u32) -> f64 {
    number as f64 / f64::from(nodes)
}

fn minutes(load: &Load) -> f64 {
    load.elapsed.as_secs_f64() / 60.0
}

/// The server's processor time in a load for each of `parts`, less what the server takes without nodes: idle, and `own`.
fn above(load: &Load, baseline: &Baseline, own: Duration, parts: f64) -> String {
    let own = own + baseline.idle.mul_f64(load.elapsed.as_secs_f64());
    let more = load.processor.saturating_sub(own);
    // What the server takes without nodes varies.
    if more < own / 4 {
        return "too little to be seen".to_owned();
    }
    match more.div_f64(parts) {
        each if each < Duration::from_millis(1) => microseconds(each),
        each => milliseconds(each),
    }
}

/// Requests of a load for each node, and what they are.
fn requests(load: &Load, nodes: u32) -> String {
    let of = load.requests;
    let parts = [
        ("streamed lists", of.streamed),
        ("other lists", of.lists),
        ("comparisons of versions", of.versions),
        ("watches", of.watches),
        ("others", of.others),
        ("refused with 429", of.throttled),
        ("refused otherwise", of.refused - of.throttled),
    ];
    let count = |number: u32| format!("{:.2}", per_node(number.into(), nodes));
    let parts: Vec<String> = parts
        .into_iter()
        .filter(|(_, number)| *number > 0)
        .map(|(name, number)| format!("{} {name}", count(number)))
        .collect();
    match parts.is_empty() {
        true => count(of.total()),
        false => format!("{}: {}", count(of.total()), parts.join(", ")),
    }
}

fn bytes(load: &Load, parts: f64) -> String {
    let size = |bytes: u64| match bytes as f64 / parts {
        size if size < 10_000.0 => format!("{size:.0} B"),
        size if size < 1e6 => format!("{:.1} kB", size / 1e3),
        size => format!("{:.2} MB", size / 1e6),
    };
    format!(
        "{}, {}",
        size(load.traffic.received),
        size(load.traffic.sent)
    )
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

fn spread(samples: &Samples) -> String {
    let [p5, p50, p95, max] =
        [samples.p5(), samples.median(), samples.p95(), samples.max()].map(seconds);
    format!("p5 {p5}, p50 {p50}, p95 {p95}, longest {max}")
}
