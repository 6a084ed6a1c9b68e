//! `portolan trace --live`: what the kernel does with a real packet, beside what the daemon says.
//!
//! The command traces (`nft::trace`), not the daemon: it needs CAP_NET_ADMIN, and its table is gone with it.
//!
//! Invariant: packets are marked for the trace and are otherwise left as they are.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use netfilter::Conntrack;
use nft::Protocol;
use nft::trace::{Decider, Decision, Packets, Step, Tracer};
use service_model::printable;

use super::documents::{Live, LiveStep, Trace, TraceVerdict};

/// A packet is through when its trace is silent for this long.
const SILENCE: Duration = Duration::from_millis(300);
/// Time for a packet that is sent from here.
const CONNECTING: Duration = Duration::from_secs(3);
/// Steps that are printed.
const STEPS: usize = 200;

/// Waits for a packet as in the trace, and says what the rules did with it. A node's own packet is sent from here.
///
/// # Errors
/// The kernel cannot trace (before Linux 5.12, or without CAP_NET_ADMIN), or the answer of the daemon cannot be read.
pub(super) fn observe(trace: &Trace, is_own: bool, timeout: Duration) -> Result<Live> {
    let to: SocketAddr = trace.to.parse().context("the destination")?;
    let from: IpAddr = trace.from.parse().context("the source")?;
    let protocol = match trace.protocol.as_str() {
        "TCP" => Protocol::Tcp,
        "UDP" => Protocol::Udp,
        _ => bail!("--live traces TCP and UDP only"),
    };
    let packets = Packets {
        source: from,
        destination: to.ip(),
        protocol,
        port: to.port(),
    };
    let mut conntrack = Conntrack::open().context("cannot read conntrack")?;
    let before = flows(&mut conntrack, from, to)?;
    let mut tracer =
        Tracer::start(&[packets]).context("cannot trace packets (Linux 5.12, CAP_NET_ADMIN)")?;
    let sender = is_own.then(|| send(protocol, to));
    let steps = steps_of_one(&mut tracer, timeout)?;
    drop(tracer);
    let after = flows(&mut conntrack, from, to)?;
    if let Some(sender) = sender {
        let _ = sender.join();
    }
    let mut new = after.difference(&before).map(|(_, endpoint)| *endpoint);
    // Several new connections: which one was traced is unknown.
    let endpoint = new.next().filter(|first| new.all(|other| other == *first));
    Ok(describe(trace, &steps, endpoint, timeout))
}

/// The client and the endpoint of each connection from one address to another that is translated.
fn flows(
    conntrack: &mut Conntrack,
    from: IpAddr,
    to: SocketAddr,
) -> Result<BTreeSet<(SocketAddr, SocketAddr)>> {
    let mut found = BTreeSet::new();
    conntrack
        .list_translated(|flow, _| {
            if flow.source.ip() == from && flow.destination == to {
                found.insert((flow.source, flow.answers_from));
            }
        })
        .context("cannot read conntrack")?;
    Ok(found)
}

/// Sends a packet as the node does: a connection that is closed again, or an empty datagram.
fn send(protocol: Protocol, to: SocketAddr) -> JoinHandle<()> {
    std::thread::spawn(move || {
        // What becomes of it is in the trace.
        if protocol == Protocol::Tcp {
            let _ = TcpStream::connect_timeout(&to, CONNECTING);
            return;
        }
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let _ = UdpSocket::bind(any).and_then(|socket| socket.send_to(b"", to));
    })
}

/// The steps of the first packet.
fn steps_of_one(tracer: &mut Tracer, timeout: Duration) -> Result<Vec<Step>> {
    let mut steps: Vec<Step> = Vec::new();
    let mut end = Instant::now() + timeout;
    while let Some(step) = tracer.wait(end.saturating_duration_since(Instant::now()))? {
        if steps
            .first()
            .is_some_and(|first| first.packet != step.packet)
        {
            continue;
        }
        end = Instant::now() + SILENCE;
        steps.push(step);
        if steps.len() == STEPS {
            break;
        }
    }
    Ok(steps)
}

fn describe(
    trace: &Trace,
    steps: &[Step],
    endpoint: Option<SocketAddr>,
    timeout: Duration,
) -> Live {
    let listed = steps.iter().map(|step| LiveStep {
        table: format!("{} {}", step.family, printable(&step.table, 253)),
        chain: printable(&step.chain, 253),
        rule: match step.decider {
            Decider::Rule(handle) => Some(handle),
            Decider::Policy | Decider::Return => None,
        },
        decision: match (step.decider, step.decision) {
            (Decider::Policy, Decision::Accept) => "accepted by policy",
            (Decider::Policy, Decision::Drop) => "dropped by policy",
            (Decider::Return, _) => "end of the chain",
            (_, Decision::Accept) => "accepted",
            (_, Decision::Drop) => "dropped",
            (_, Decision::Queue) => "queued for a program",
            (_, Decision::Continue) => "goes on",
        }
        .to_owned(),
    });
    let listed: Vec<LiveStep> = listed.collect();
    let dropped = steps
        .iter()
        .position(|step| step.decision == Decision::Drop);
    let dropped = dropped.and_then(|at| listed.get(at));
    let endpoint = endpoint.map(|endpoint| endpoint.to_string());
    let is_eligible = |endpoint: &String| {
        let mut eligible = trace.endpoints.iter().filter(|one| one.eligible);
        eligible.any(|one| one.address == *endpoint)
    };
    let agrees = match (steps.is_empty(), dropped, &endpoint) {
        (true, _, _) => None,
        (_, Some(_), _) => Some(matches!(
            trace.verdict,
            TraceVerdict::Refused | TraceVerdict::Dropped
        )),
        (_, None, Some(endpoint)) => Some(is_eligible(endpoint)),
        // A packet of an earlier connection, or one that is not translated.
        (_, None, None) => (trace.verdict == TraceVerdict::Untouched).then_some(true),
    };
    let text = match (dropped, &endpoint) {
        _ if steps.is_empty() => format!("no packet of the client came in {} s", timeout.as_secs()),
        (Some(by), _) => {
            let rule = by.rule.map(|rule| format!(", rule {rule}"));
            let rule = rule.unwrap_or_default();
            format!(
                "dropped or rejected in table {}, chain {}{rule}",
                by.table, by.chain
            )
        }
        (None, Some(endpoint)) => format!("sent to {endpoint}"),
        (None, None) => "passed the rules; not translated, or of an earlier connection".to_owned(),
    };
    let text = match agrees {
        Some(false) => format!("{text}, which is not what the daemon says"),
        _ => text,
    };
    let is_dropped = dropped.is_some();
    Live {
        steps: listed,
        is_dropped,
        endpoint,
        agrees,
        text,
    }
}
