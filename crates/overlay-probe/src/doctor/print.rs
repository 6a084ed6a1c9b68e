//! A report as text for people.

use std::fmt::Write;

use crate::measurement::{Measurement, PacketOutcome, Sizes};

use super::{DoctorReport, PeerReport};

pub(super) fn text(report: &DoctorReport, tables: bool) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write(&mut out, report, tables);
    out
}

fn write(out: &mut String, report: &DoctorReport, tables: bool) -> std::fmt::Result {
    let node = &report.node;
    if let Some(trouble) = &report.trouble {
        return writeln!(out, "{node}: {trouble}");
    }
    for peer in &report.peers {
        if tables {
            table(out, node, peer)?;
        }
        let mark = if peer.healthy { "ok" } else { "BROKEN" };
        writeln!(
            out,
            "{mark:<6} {} {}: {}",
            peer.node, peer.family, peer.text
        )?;
        if tables {
            writeln!(out)?;
        }
    }
    for fault in &report.faults {
        writeln!(out, "BROKEN {node}: {fault}")?;
    }
    for line in report.remedies.iter().chain(&report.notes) {
        writeln!(out, "{node}: {line}")?;
    }
    if report.left_out > 0 {
        writeln!(
            out,
            "{} more peers were not tested: name one with --to",
            report.left_out
        )?;
    }
    if report.peers.is_empty() && report.faults.is_empty() {
        writeln!(out, "{node} has no peers")?;
    }
    Ok(())
}

fn table(out: &mut String, node: &str, report: &PeerReport) -> std::fmt::Result {
    let PeerReport {
        node: peer,
        family,
        measured,
        ..
    } = report;
    let Measurement { host, tunnel, .. } = measured;
    writeln!(out, "{node} to {peer}, {family}")?;
    writeln!(out, "  {:<28}{:<14}through the tunnel", "", "host path")?;
    for (name, host, tunnel) in [
        ("UDP", host.udp, tunnel.udp),
        ("TCP", host.tcp, tunnel.tcp),
        ("ping", host.ping, tunnel.ping),
    ] {
        writeln!(out, "  {name:<28}{:<14}{}", word(host), word(tunnel))?;
    }
    let Sizes { full, forth, back } = measured.sizes;
    if full > 0 {
        let size = |size: Option<u32>| match size {
            None => "not tested".to_owned(),
            Some(0) => "none".to_owned(),
            Some(size) => format!("{size} bytes"),
        };
        let name = format!("largest of {full} bytes");
        writeln!(
            out,
            "  {name:<28}{:<14}{} there, {} back",
            "",
            size(forth),
            size(back)
        )?;
    }
    if let Some(us) = measured.round_trip {
        writeln!(out, "  {:<28}{:<14}{us} us", "round trip", "")?;
    }
    for (name, there, here) in [
        (
            "VXLAN packets arrive",
            measured.counted_there,
            measured.counted_here,
        ),
        (
            "inner packets arrive",
            measured.received_there,
            measured.received_here,
        ),
        (
            "wrong checksums",
            measured.corrupt_there,
            measured.corrupt_here,
        ),
    ] {
        if there.is_some() || here.is_some() {
            let there = format!("at {peer}: {}", answer(there));
            writeln!(out, "  {name:<28}{there}, at {node}: {}", answer(here))?;
        }
    }
    Ok(())
}

fn word(outcome: PacketOutcome) -> &'static str {
    match outcome {
        PacketOutcome::Untried => "-",
        PacketOutcome::Answered => "answered",
        PacketOutcome::Refused => "refused",
        PacketOutcome::Silent => "silent",
        PacketOutcome::Unsent => "not sent",
    }
}

fn answer(value: Option<bool>) -> &'static str {
    match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    }
}
