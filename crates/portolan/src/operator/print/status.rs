//! The status on one screen.

use super::table::labeled;
use super::{Terminal, ago, count, short};
use crate::operator::documents::{
    EncryptionDocument, Latency, OverlayStatus, ServicesStatus, State, Status,
};

/// Items of a list that fit on a screen.
const LISTED: usize = 8;

pub(in crate::operator) fn status(status: &Status, terminal: Terminal) -> String {
    let width = terminal.width;
    let (node, kernel) = (&status.node, &status.kernel);
    let state = match status.state {
        State::Ok => "OK",
        State::Starting => "STARTING",
        State::Standby => "STANDBY: another daemon of this node owns the tables",
        State::Degraded => "DEGRADED",
    };
    let is_good = matches!(status.state, State::Ok | State::Standby);
    let up = ago(status.uptime_seconds);
    let mut out = labeled("Node", &format!("{node}, Linux {kernel}"), width);
    out += &labeled(
        "Daemon",
        &format!("portolan {}, up {up}", status.version),
        width,
    );
    out += &format!("{:<12}{}\n", "State", terminal.marked(state, is_good));
    out += &all("  because", &status.reasons, width);
    out += &labeled("Source", &source(status), width);
    out += &all("  outage", &status.source.outages, width);
    if let Some(services) = &status.services {
        out += &services_lines(status, services, width);
    }
    // An overlay ignores objects as well.
    out += &list("Ignored", &status.ignored, status.ignored_count, width);
    if let Some(overlay) = &status.overlay {
        out += &overlay_lines(overlay, width);
    }
    let listeners = status.listeners.iter().map(|listener| {
        let address = listener.address.as_deref().unwrap_or("not bound");
        format!("{} {address}", listener.name)
    });
    let listeners: Vec<String> = listeners.collect();
    out += &labeled("Listeners", &listeners.join(", "), width);
    out += &match status.fallbacks.as_slice() {
        [] => labeled("Kernel", "has all features", width),
        fallbacks => all("Fallback", fallbacks, width),
    };
    out + &all("Remark", &status.remarks, width)
}

/// One paragraph for each item.
fn all(label: &str, items: &[String], width: Option<usize>) -> String {
    list(label, items, items.len(), width)
}

/// One paragraph for each of the first items, and how many there are besides.
fn list(label: &str, items: &[String], count: usize, width: Option<usize>) -> String {
    let listed = items.iter().take(LISTED);
    let mut out: String = listed.map(|item| labeled(label, item, width)).collect();
    if count > LISTED {
        let more = format!("and {} more (--output json)", count - LISTED);
        out += &labeled("", &more, width);
    }
    out
}

fn services_lines(status: &Status, services: &ServicesStatus, width: Option<usize>) -> String {
    let mut out = labeled("Services", &services_line(services), width);
    out += &labeled("Commits", &commits_line(services), width);
    if let Some(latency) = &services.programming_latency {
        let text = format!("{} from a change to its rules", quantiles(latency));
        out += &labeled("Programming", &text, width);
    }
    out += &labeled("Repairs", &repairs_line(services), width);
    out += &all("Quarantined", &status.quarantined, width);
    out + &list("Conflict", &status.conflicts, status.conflict_count, width)
}

fn overlay_lines(overlay: &OverlayStatus, width: Option<usize>) -> String {
    let ready = if overlay.ready { "ready" } else { "not ready" };
    let peers = count(overlay.peers, "peer", "peers");
    let repairs = count(overlay.repairs as usize, "repair", "repairs");
    let mut out = labeled("Overlay", &format!("{ready}, {peers}, {repairs}"), width);
    out += &all("  device", &overlay.devices, width);
    out += &all("  finding", &overlay.findings, width);
    out += &all("  skipped", &overlay.problems, width);
    out += &all("  held", &overlay.held, width);
    let encryption = overlay.encryption.as_ref();
    let lines = encryption.map_or_else(Vec::new, EncryptionDocument::lines);
    out + &all("  wireguard", &lines, width)
}

fn source(status: &Status) -> String {
    let source = &status.source;
    let is_watched = source.outages.is_empty();
    let state = if is_watched { "watched" } else { "not watched" };
    let last = source
        .last_event_seconds
        .map(|since| format!(", last event {} ago", ago(since)));
    let (first, more) = match source.addresses.as_slice() {
        [] => (String::new(), String::new()),
        [one] => (one.clone(), String::new()),
        [one, others @ ..] => (one.clone(), format!(" (and {})", others.join(" "))),
    };
    format!(
        "{} {first}{more}, {state}{}",
        source.kind,
        last.unwrap_or_default()
    )
}

fn services_line(services: &ServicesStatus) -> String {
    let sync = match (services.synced, services.pending_seconds) {
        (false, _) => "not synced yet".to_owned(),
        (true, None) => "in sync".to_owned(),
        (true, Some(pending)) => format!("a change has been waiting for {}", ago(pending)),
    };
    let endpoints = count(services.endpoints, "endpoint", "endpoints");
    format!(
        "{}, {endpoints}; {sync}",
        count(services.services, "Service", "Services")
    )
}

fn commits_line(services: &ServicesStatus) -> String {
    let last = services
        .last_commit_seconds
        .map(|since| format!(", last {} ago", ago(since)));
    let latency = services
        .commit_latency
        .as_ref()
        .map(|latency| format!("; {}", quantiles(latency)));
    format!(
        "{}, {} failed{}{}",
        services.commits,
        services.failed,
        last.unwrap_or_default(),
        latency.unwrap_or_default()
    )
}

fn quantiles(latency: &Latency) -> String {
    format!(
        "median {}, p99 {}, longest {}",
        short(latency.median_seconds),
        short(latency.p99_seconds),
        short(latency.longest_seconds)
    )
}

fn repairs_line(services: &ServicesStatus) -> String {
    let last = services
        .last_repair_seconds
        .map(|since| format!(", last {} ago", ago(since)));
    let repairs = count(
        services.repairs as usize,
        "foreign change",
        "foreign changes",
    );
    format!(
        "{repairs} of the tables repaired{}",
        last.unwrap_or_default()
    )
}
