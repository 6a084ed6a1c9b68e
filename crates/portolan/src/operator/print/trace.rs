//! A trace, and the result of a verification.

use super::table::{Table, labeled, lines};
use super::{Terminal, count};
use crate::operator::documents::{Live, Trace, TraceVerdict, Verification};

/// The trace step by step.
pub(in crate::operator) fn trace(trace: &Trace, terminal: Terminal) -> String {
    let Trace {
        node,
        from,
        to,
        protocol,
        ..
    } = trace;
    let width = terminal.width;
    let mut out = labeled(
        "Packet",
        &format!("{protocol} from {from} to {to}, on {node}"),
        width,
    );
    for step in &trace.steps {
        let mut label = step.name.clone();
        if let Some(first) = label.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        out += &labeled(&label, &step.text, width);
    }
    let mut table = Table::new(&["ENDPOINT", "POD ON NODE", "SEES SOURCE", "WAY, OR WHY NOT"]);
    for endpoint in &trace.endpoints {
        let source = endpoint.source.as_deref().unwrap_or("?");
        let (source, way) = match (endpoint.eligible, &endpoint.masquerade) {
            (false, _) => ("-".to_owned(), endpoint.reason.clone()),
            (true, None) => (source.to_owned(), endpoint.way.clone()),
            (true, Some(reason)) => {
                let way = endpoint.way.as_deref().unwrap_or_default();
                (
                    source.to_owned(),
                    Some(format!("{way}; masqueraded: {reason}")),
                )
            }
        };
        let node = endpoint.node.clone().unwrap_or_else(|| "?".to_owned());
        table.row([
            endpoint.address.clone(),
            match &endpoint.pod {
                Some(pod) => format!("{pod} on {node}"),
                None => node,
            },
            source,
            way.unwrap_or_default(),
        ]);
    }
    if !table.is_empty() {
        out += &table.text(2, width);
    }
    let is_good = matches!(
        trace.verdict,
        TraceVerdict::Balanced | TraceVerdict::Untouched
    );
    let verdict = labeled("Verdict", &trace.text, width);
    out += &terminal.marked(verdict.trim_end(), is_good);
    out.push('\n');
    out
}

/// What the kernel did with a packet.
pub(in crate::operator) fn live(live: &Live, terminal: Terminal) -> String {
    let width = terminal.width;
    let mut table = Table::new(&["TABLE", "CHAIN", "RULE", "DECISION"]);
    for step in &live.steps {
        let rule = step
            .rule
            .map_or_else(|| "-".to_owned(), |rule| rule.to_string());
        table.row([
            step.table.clone(),
            step.chain.clone(),
            rule,
            step.decision.clone(),
        ]);
    }
    let mut out = String::new();
    if !table.is_empty() {
        out += &table.text(2, width);
    }
    let is_good = !live.steps.is_empty() && !live.is_dropped && live.agrees != Some(false);
    let text = labeled("Kernel", &live.text, width);
    out += &terminal.marked(text.trim_end(), is_good);
    out.push('\n');
    out
}

/// The differences, and what was compared.
pub(in crate::operator) fn verification(found: &Verification, terminal: Terminal) -> String {
    let width = terminal.width;
    let mut out = String::new();
    for compared in &found.compared {
        out += &labeled("Compared", compared, width);
    }
    if found.difference_count == 0 {
        let text = terminal.marked("the kernel has what this node should have", true);
        return out + &format!("{:<12}{text}\n", "Verdict");
    }
    out += "Steps that would repair the tables\n";
    for difference in &found.differences {
        out += &lines(&format!("  {difference}"), width);
    }
    let more = found
        .difference_count
        .saturating_sub(found.differences.len());
    if more > 0 {
        out += &format!("  and {more} more\n");
    }
    let differences = count(found.difference_count, "difference", "differences");
    let text = terminal.marked(&differences, false);
    out + &format!("{:<12}{text}\n", "Verdict")
}
