//! Services: a table of all, or one with everything about it.

use super::table::{Table, labeled, lines};
use super::{Terminal, count};
use crate::operator::documents::{Endpoint, Frontend, Service, Services};

/// All Services, one line each.
pub(in crate::operator) fn services(all: &Services, terminal: Terminal) -> String {
    let mut table = Table::new(&[
        "SERVICE",
        "TYPE",
        "FRONTEND",
        "ENDPOINTS",
        "CONNS",
        "REMARK",
    ]);
    for service in &all.services {
        let connections = match all.uncounted {
            None => service.traffic.connections.to_string(),
            Some(_) => "?".to_owned(),
        };
        table.row([
            service.name.clone(),
            service.kind.clone(),
            first_frontend(service),
            format!("{}/{}", service.used_count, service.endpoint_count),
            connections,
            remark(service),
        ]);
    }
    let mut out = table.text(0, terminal.width);
    if table.is_empty() {
        out += "no Services\n";
    }
    out += &lines(&uncounted(all), terminal.width);
    out
}

fn uncounted(all: &Services) -> String {
    let reason = all.uncounted.as_ref();
    reason.map_or_else(String::new, |reason| {
        format!("connections are not counted: {reason}\n")
    })
}

fn first_frontend(service: &Service) -> String {
    let Some(first) = service.frontends.first() else {
        return "-".to_owned();
    };
    match service.frontends.len() {
        1 => place(first),
        several => format!("{} (+{})", place(first), several - 1),
    }
}

/// `10.96.0.1:80/TCP`, or the number of a node port.
fn place(frontend: &Frontend) -> String {
    let Frontend { port, protocol, .. } = frontend;
    match &frontend.address {
        Some(address) if address.contains(':') => format!("[{address}]:{port}/{protocol}"),
        Some(address) => format!("{address}:{port}/{protocol}"),
        None => format!("{port}/{protocol}"),
    }
}

fn remark(service: &Service) -> String {
    if service.quarantined.is_some() {
        return "quarantined".to_owned();
    }
    if let Some(why) = &service.unprogrammed {
        return why.clone();
    }
    let lost = service
        .frontends
        .iter()
        .filter_map(|frontend| frontend.held_by.as_ref());
    let lost: Vec<&String> = lost.collect();
    match (lost.first(), service.used_count, service.ignored.len()) {
        (Some(holder), ..) => {
            let lost = count(lost.len(), "frontend", "frontends");
            format!("{holder} has {lost} of it")
        }
        (None, 0, _) => "no endpoint takes connections".to_owned(),
        (None, _, 0) => String::new(),
        (None, _, ignored) => count(ignored, "part ignored", "parts ignored"),
    }
}

/// One Service.
pub(in crate::operator) fn service(
    all: &Services,
    service: &Service,
    terminal: Terminal,
) -> String {
    let width = terminal.width;
    let mut out = labeled(
        "Service",
        &format!("{}, {}, on {}", service.name, service.kind, all.node),
        width,
    );
    let affinity = service
        .affinity_seconds
        .map(|seconds| format!("; session affinity ClientIP, {seconds} s"));
    let policies = format!(
        "internal {}, external {}{}",
        service.internal_policy,
        service.external_policy,
        affinity.unwrap_or_default()
    );
    out += &labeled("Policies", &policies, width);
    for (label, text) in [
        ("Not served", &service.unprogrammed),
        ("Quarantined", &service.quarantined),
    ] {
        if let Some(text) = text {
            out += &labeled(label, text, width);
        }
    }
    for ignored in &service.ignored {
        out += &labeled("Ignored", ignored, width);
    }
    if !service.frontends.is_empty() {
        out += "Frontends\n";
        out += &frontends(service).text(2, width);
    }
    if !service.endpoints.is_empty() {
        out += "Endpoints\n";
        out += &endpoints(service, terminal).text(2, width);
    }
    out += &lines(&uncounted(all), terminal.width);
    out
}

fn frontends(service: &Service) -> Table {
    let mut table = Table::new(&["KIND", "AT", "CONNS", "NEW CONNECTIONS ARE"]);
    for frontend in &service.frontends {
        let family = match &frontend.address {
            Some(_) => String::new(),
            None => format!("{} ", frontend.family),
        };
        let mut fate = match &frontend.held_by {
            Some(holder) => format!("not here: Service {holder} has this frontend"),
            None => frontend.disposition.clone(),
        };
        if let (Some(outside), None) = (&frontend.outside, &frontend.held_by) {
            fate += &format!("; from outside {outside}");
        }
        if !frontend.allowed_sources.is_empty() {
            fate += &format!("; only from {}", frontend.allowed_sources.join(" "));
        }
        table.row([
            format!("{family}{}", frontend.kind),
            place(frontend),
            frontend.traffic.connections.to_string(),
            fate,
        ]);
    }
    table
}

/// Pods and zones have columns where there is room, and are behind all else where not.
fn endpoints(service: &Service, terminal: Terminal) -> Table {
    let is_known = |endpoint: &Endpoint| endpoint.pod.is_some() || endpoint.zone.is_some();
    let has_columns = terminal.is_wide() && service.endpoints.iter().any(is_known);
    let mut heading = vec!["PORT", "ENDPOINT", "NODE", "CONDITION", "CONNS", "USED"];
    if has_columns {
        heading.splice(3..3, ["ZONE", "POD"]);
    }
    let mut table = Table::new(&heading);
    for endpoint in &service.endpoints {
        let name = port_name(&endpoint.port_name, &endpoint.protocol);
        let node = endpoint.node.as_deref().unwrap_or("?");
        let mut cells = vec![
            name,
            endpoint.address.clone(),
            match endpoint.local {
                true => format!("{node} (here)"),
                false => node.to_owned(),
            },
            endpoint.conditions.join(" "),
            endpoint.traffic.connections.to_string(),
            used(endpoint),
        ];
        if has_columns {
            let unknown = || "?".to_owned();
            let pod = pod(endpoint).map(str::to_owned);
            let zone = endpoint.zone.clone();
            cells.splice(
                3..3,
                [zone.unwrap_or_else(unknown), pod.unwrap_or_else(unknown)],
            );
        } else if let Some(last) = cells.last_mut() {
            let zone = endpoint.zone.as_deref();
            let parts = [
                pod(endpoint).map(|pod| ("pod", pod)),
                zone.map(|zone| ("zone", zone)),
            ];
            for (kind, name) in parts.into_iter().flatten() {
                *last += &format!("; {kind} {name}");
            }
        }
        table.row(cells);
    }
    table
}

/// Name of the pod without its namespace, which is that of the Service.
fn pod(endpoint: &Endpoint) -> Option<&str> {
    let (_, name) = endpoint.pod.as_deref()?.split_once('/')?;
    Some(name)
}

/// `http/TCP`, or `TCP` for a port without a name.
pub(super) fn port_name(name: &str, protocol: &str) -> String {
    match name {
        "" => protocol.to_owned(),
        name => format!("{name}/{protocol}"),
    }
}

fn used(endpoint: &Endpoint) -> String {
    let mut text = match &endpoint.reason {
        None => "yes".to_owned(),
        Some(reason) => format!("no: {reason}"),
    };
    if endpoint.used_locally && !endpoint.used {
        text += " (yes under policy Local)";
    }
    let hints = [
        ("zones", &endpoint.zone_hints),
        ("nodes", &endpoint.node_hints),
    ];
    for (kind, names) in hints.iter().filter(|(_, names)| !names.is_empty()) {
        text += &format!("; for {kind} {}", names.join(" "));
    }
    text
}
