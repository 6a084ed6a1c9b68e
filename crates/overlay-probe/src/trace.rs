//! Traces for the rule that drops tunneled packets, on this node and at the request of a peer.
//!
//! A trace covers VXLAN packets between the two nodes and probes inside the tunnel, in both directions. Peers can start
//! only one trace at a time, with a pause before the next.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use net_types::Protocol;
use tokio::task::JoinSet;

use super::directory::{LocalVtep, Target};
use super::firewall::{Suspect, who_drops};
use super::{Shared, result_of};

/// Duration of a trace.
pub(super) const DURATION: Duration = Duration::from_millis(1500);
/// Pause before the same peer can start another trace.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a result is kept.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Traces that peers have requested.
#[derive(Debug, Default)]
pub(super) struct Traces {
    running: JoinSet<()>,
    /// When the trace for a peer (by address) ended, and the rule that it found.
    found: BTreeMap<IpAddr, (Instant, String)>,
}

impl Traces {
    fn is_running(&mut self) -> bool {
        while let Some(end) = self.running.try_join_next() {
            result_of(end);
        }
        !self.running.is_empty()
    }
}

/// The packets between this node and a peer to trace.
fn suspects(end: &LocalVtep, peer: &Target, port: u16) -> Vec<Suspect> {
    let between = |a, b, protocol, port| {
        [(a, b), (b, a)].map(|(source, destination)| Suspect {
            source,
            destination,
            protocol,
            port,
        })
    };
    let outer = between(end.host, peer.host, Protocol::Udp, end.port);
    let inner = between(end.tunnel, peer.tunnel, Protocol::Udp, port);
    [outer, inner].concat()
}

/// Traces for [`DURATION`] while packets are being sent. Returns the dropping rule.
pub(super) async fn trace(end: &LocalVtep, peer: &Target, port: u16) -> Option<String> {
    let suspects = suspects(end, peer, port);
    let traced = tokio::task::spawn_blocking(move || who_drops(&suspects, DURATION));
    match result_of(traced.await)? {
        Ok(blocker) => blocker.map(|blocker| blocker.to_string()),
        Err(error) => {
            tracing::debug!(error = format!("{error:#}"), "cannot trace packets");
            None
        }
    }
}

/// Starts a trace for a peer whose packets get lost.
pub(super) fn begin_for(shared: &Arc<Shared>, peer: &Target) {
    let Some(end) = shared.directory().local(peer.family).cloned() else {
        return;
    };
    let mut traces = shared.traces();
    let found = traces.found.get(&peer.host);
    let has_just_ended = found.is_some_and(|(at, _)| at.elapsed() < PAUSE);
    if has_just_ended || traces.is_running() {
        return;
    }
    let (shared, peer) = (shared.clone(), peer.clone());
    traces.running.spawn(async move {
        let found = trace(&end, &peer, shared.config.port).await;
        let mut traces = shared.traces();
        traces.found.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        let found = found.unwrap_or_default();
        traces.found.insert(peer.host, (Instant::now(), found));
    });
}

/// The rule found for this peer; empty if none.
pub(super) fn found_for(shared: &Shared, peer: &Target) -> String {
    let mut traces = shared.traces();
    traces.is_running();
    let found = traces.found.get(&peer.host);
    let fresh = found.filter(|(at, _)| at.elapsed() < REMEMBERED);
    fresh.map(|(_, text)| text.clone()).unwrap_or_default()
}
