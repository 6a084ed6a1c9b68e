//! The table of `docs/metrics.md`, made from the registry. `PORTOLAN_EXPECTED=write` writes it.

use std::fmt::Write as _;

use net_types::Family;
use overlay_probe::{Finding, Measurement, PacketOutcome, Paths, RoundSummary};
use service_model::ObjectKind;

use super::{Format, KindLabel, Metrics};
use crate::{counters, service_traffic};

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
const MARK: &str = "<!-- Generated below: name, type, help. -->\n";

/// A scrape leaves families without a series out.
fn give_each_family_a_series(metrics: &Metrics) {
    let kind = KindLabel::from(ObjectKind::Service);
    let own = &metrics.own;
    own.invalid_objects.get_or_create(&kind).set(0);
    own.object_problems.get_or_create(&kind).inc();
    own.source_connected.get_or_create(&kind).set(1);
    metrics.set_foreign_legacy(0);
    let answered = Paths {
        udp: PacketOutcome::Answered,
        ..Paths::default()
    };
    metrics.probes.measured(&Measurement {
        host: answered,
        ..Measurement::default()
    });
    let finding = Finding {
        node: "node-b".into(),
        family: Family::Ip,
        kind: "silent",
        text: String::new(),
    };
    metrics.probes.round(&RoundSummary {
        peers: 1,
        failing: 1,
        findings: &[finding],
        remedies: 0,
    });
}

/// Name, type and help of each metric of Portolan's own.
fn table() -> String {
    let mut metrics = Metrics::new();
    metrics.collect(Box::new(service_traffic::Exposed::default()));
    give_each_family_a_series(&metrics);
    let scrape = metrics.encode(Format::Text);
    let mut rows = Vec::new();
    let mut help = "";
    for line in scrape.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or("", |(_, help)| help);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
            && name.starts_with("portolan_")
        {
            rows.push((name.to_owned(), kind, help.trim_end_matches('.')));
        }
    }
    let (name, help) = counters::METRIC;
    rows.push((format!("{name}_total"), "counter", help));
    rows.sort();
    let mut table = String::from("\n| metric | type | what it is |\n|---|---|---|\n");
    for (name, kind, help) in rows {
        let _ = writeln!(table, "| `{name}` | {kind} | {help} |");
    }
    table
}

#[test]
fn the_page_of_metrics_has_every_metric_of_ours() {
    let page = std::fs::read_to_string(PAGE).unwrap();
    let (text, _) = page.split_once(MARK).unwrap();
    let expected = format!("{text}{MARK}{}", table());
    assert!(expected.contains("| `portolan_build_info` | gauge |"));
    if std::env::var_os("PORTOLAN_EXPECTED").is_some_and(|value| value == "write") {
        std::fs::write(PAGE, &expected).unwrap();
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    assert!(page == expected, "stale: PORTOLAN_EXPECTED=write writes it");
}
