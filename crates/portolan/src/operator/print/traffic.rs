//! Traffic: the busiest Services, and flows.

use super::Terminal;
use super::services::port_name;
use super::table::{Table, lines};
use crate::operator::documents::{Flow, Flows, Rates, Top};

/// Services, or endpoints, that fit on a screen.
const LISTED: usize = 20;
/// Headings of the numbers.
const NUMBERS: [&str; 4] = ["CONNS", "NEW/S", "PACKETS/S", "BYTES/S"];

/// The busiest Services, or with `is_named` one Service with its endpoints. A terminal shows them in place.
pub(in crate::operator) fn top(top: &Top, is_named: bool, terminal: Terminal) -> String {
    let cells = |rates: &Rates| {
        let counted = |rate: f64| match top.counts_bytes {
            true => scaled(rate),
            false => "?".to_owned(),
        };
        [
            rates.connections.to_string(),
            format!("{:.0}", rates.connections_per_second),
            counted(rates.packets_per_second),
            counted(rates.bytes_per_second),
        ]
    };
    let table = |names: &[&str]| Table::new(&[names, &NUMBERS].concat());
    let mut services = table(&["SERVICE"]);
    for rate in top.services.iter().take(LISTED) {
        let name = [rate.service.clone()];
        services.row(name.into_iter().chain(cells(&rate.rates)));
    }
    let mut endpoints = table(&["ENDPOINT", "PORT", "POD ON NODE"]);
    let rates = top.services.iter().flat_map(|rate| &rate.endpoints);
    for rate in rates.clone().take(LISTED) {
        let names = [
            rate.address.clone(),
            port_name(&rate.port_name, &rate.protocol),
            pod_on_node(&rate.pod, &rate.node).unwrap_or_else(|| "?".to_owned()),
        ];
        endpoints.row(names.into_iter().chain(cells(&rate.rates)));
    }
    let mut out = terminal.cleared(true);
    out += &services.text(0, terminal.width);
    out += &more(top.services.len());
    if is_named {
        out += &endpoints.text(2, terminal.width);
        out += &more(rates.count());
    }
    if !top.counts_bytes {
        const REASON: &str = "bytes and packets are not counted: set net.netfilter.nf_conntrack_acct=1 (new connections count)";
        out += &lines(REASON, terminal.width);
    }
    out
}

/// `shop/web-1 on node-a`, as far as known.
fn pod_on_node(pod: &Option<String>, node: &Option<String>) -> Option<String> {
    match (pod, node) {
        (Some(pod), Some(node)) => Some(format!("{pod} on {node}")),
        (pod, node) => pod.clone().or_else(|| node.clone()),
    }
}

/// What does not fit on a screen.
fn more(all: usize) -> String {
    match all.saturating_sub(LISTED) {
        0 => String::new(),
        more => format!("and {more} more\n"),
    }
}

/// `950`, `12.3k`, `4.56M`
fn scaled(number: f64) -> String {
    match number {
        _ if number < 1e3 => format!("{number:.0}"),
        _ if number < 1e6 => format!("{:.1}k", number / 1e3),
        _ if number < 1e9 => format!("{:.2}M", number / 1e6),
        _ => format!("{:.2}G", number / 1e9),
    }
}

/// Flows that were not printed before. Names of pods are behind all else where a terminal has no room for them.
pub(in crate::operator) fn flows(
    all: &Flows,
    new: &[Flow],
    is_first: bool,
    terminal: Terminal,
) -> String {
    let mut table = Table::new(&["PROTO", "FROM", "TO", "SERVICE", "ENDPOINT", "BYTES"]);
    for flow in new {
        let from = pod_on_node(&flow.from_pod, &flow.from_node);
        let to = pod_on_node(&flow.endpoint_pod, &flow.endpoint_node);
        let answered = if flow.answered { "" } else { " unanswered" };
        let mut last = format!("{}{answered}", flow.bytes);
        let mut ends = [flow.from.clone(), flow.endpoint.clone()];
        for (end, (way, place)) in ends.iter_mut().zip([("from", from), ("to", to)]) {
            match place {
                Some(place) if terminal.is_wide() => *end += &format!(" ({place})"),
                Some(place) => last += &format!("; {way} {place}"),
                None => {}
            }
        }
        let [from, endpoint] = ends;
        table.row([
            flow.protocol.clone(),
            from,
            flow.to.clone(),
            flow.service.clone(),
            endpoint,
            last,
        ]);
    }
    let mut out = table.text(0, terminal.width);
    if !is_first {
        // The heading is above.
        out = out
            .split_once('\n')
            .map_or_else(String::new, |(_, rows)| rows.to_owned());
    } else if table.is_empty() {
        out = "no flows through Services\n".to_owned();
    }
    let listed = all.flows.len();
    if is_first && all.count > listed {
        out += &format!(
            "{listed} of {} flows: name a Service with --service\n",
            all.count
        );
    }
    out
}
