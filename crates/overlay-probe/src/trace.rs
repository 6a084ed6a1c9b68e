//! Looking for the rule that drops tunnelled packets, on this node and on request of a peer.
//!
//! What is looked for is always the same: VXLAN packets between the two nodes, and probes inside the tunnel, either
//! way. One look at a time, and not again at once, whoever asks.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use net_types::Protocol;

use super::Shared;
use super::directory::{LocalVtep, Target};
use super::firewall::{Suspect, who_drops};

/// A look takes so long.
pub(super) const LOOK: Duration = Duration::from_millis(1500);
/// Before the same peer can make this node look again.
const REST: Duration = Duration::from_secs(1);
/// So long is remembered what was found.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Looks that peers have asked for.
#[derive(Debug, Default)]
pub(super) struct Traces {
    running: bool,
    /// When a look for a peer, by its address, ended, and what it found.
    found: BTreeMap<IpAddr, (Instant, String)>,
}

/// Packets between this node and a peer that may be dropped.
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

/// Looks while packets are being sent, for [`LOOK`].
pub(super) async fn look(end: &LocalVtep, peer: &Target, port: u16) -> Option<String> {
    let suspects = suspects(end, peer, port);
    let looked = tokio::task::spawn_blocking(move || who_drops(&suspects, LOOK)).await;
    match looked {
        Ok(Ok(blocker)) => blocker.map(|blocker| blocker.to_string()),
        Ok(Err(error)) => {
            tracing::debug!(error = format!("{error:#}"), "packets cannot be traced");
            None
        }
        Err(_) => None,
    }
}

/// A peer says that its packets get lost.
pub(super) fn begin_for(shared: &Arc<Shared>, peer: &Target) {
    let Some(end) = shared.directory().local(peer.family).cloned() else {
        return;
    };
    {
        let mut traces = shared.traces();
        let found = &traces.found;
        if traces.running
            || found
                .get(&peer.host)
                .is_some_and(|(at, _)| at.elapsed() < REST)
        {
            return;
        }
        traces.running = true;
    }
    let (shared, peer) = (shared.clone(), peer.clone());
    tokio::spawn(async move {
        let found = look(&end, &peer, shared.config.port).await;
        let mut traces = shared.traces();
        traces.running = false;
        traces.found.retain(|_, (at, _)| at.elapsed() < REMEMBERED);
        let found = found.unwrap_or_default();
        traces.found.insert(peer.host, (Instant::now(), found));
    });
}

/// What was found for this peer; empty: nothing.
pub(super) fn found_for(shared: &Shared, peer: &Target) -> String {
    let traces = shared.traces();
    let found = traces.found.get(&peer.host);
    let fresh = found.filter(|(at, _)| at.elapsed() < REMEMBERED);
    fresh.map(|(_, text)| text.clone()).unwrap_or_default()
}
