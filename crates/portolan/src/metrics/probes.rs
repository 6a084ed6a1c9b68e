//! What the probes of the overlay count. Series of single peers are there for failing ones only.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use vxlan_overlay::{Measurement, Outcome};

use super::gauge;
use crate::probe::Finding;

/// Metrics of the probes.
#[derive(Debug)]
pub struct ProbeMetrics {
    rounds: Counter,
    probes: Family<ProbeLabel, Counter>,
    round_trip: Histogram,
    reachable: Gauge,
    unreachable: Gauge,
    troubles: Family<TroubleLabel, Gauge>,
    alarms: Counter,
    offload_off: Gauge<u64, AtomicU64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProbeLabel {
    path: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TroubleLabel {
    node: String,
    ip_family: &'static str,
    verdict: &'static str,
}

impl Default for ProbeMetrics {
    fn default() -> Self {
        ProbeMetrics {
            rounds: Counter::default(),
            probes: Family::default(),
            round_trip: Histogram::new(exponential_buckets(0.000_032, 2.0, 16)),
            reachable: Gauge::default(),
            unreachable: Gauge::default(),
            troubles: Family::default(),
            alarms: Counter::default(),
            offload_off: Gauge::default(),
        }
    }
}

impl ProbeMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "overlay_probe_rounds",
            "Rounds of probes",
            self.rounds.clone(),
        );
        r.register(
            "overlay_probes",
            "Probes by path and what became of them",
            self.probes.clone(),
        );
        r.register(
            "overlay_round_trip_seconds",
            "From a small datagram through the tunnel to its answer",
            self.round_trip.clone(),
        );
        r.register(
            "overlay_peers_reachable",
            "Peers about which no probe has found anything wrong",
            self.reachable.clone(),
        );
        r.register(
            "overlay_peers_unreachable",
            "Peers that packets do not reach, or not all",
            self.unreachable.clone(),
        );
        r.register(
            "overlay_peer_trouble",
            "1 for each peer that packets do not reach, or not all",
            self.troubles.clone(),
        );
        r.register(
            "overlay_alarms",
            "Times that something was found wrong with the way to a peer, or something else than before",
            self.alarms.clone(),
        );
        r.register(
            "overlay_checksum_offload_off",
            "Tunnels whose checksum offload was switched off since it corrupted packets",
            self.offload_off.clone(),
        );
    }

    /// One pair of nodes was measured.
    pub fn measured(&self, measured: &Measurement) {
        let Measurement { host, tunnel, .. } = measured;
        for (path, outcome) in [
            ("host_udp", host.udp),
            ("host_tcp", host.tcp),
            ("host_ping", host.ping),
            ("tunnel_udp", tunnel.udp),
            ("tunnel_tcp", tunnel.tcp),
            ("tunnel_ping", tunnel.ping),
        ] {
            let result = match outcome {
                Outcome::Untried => continue,
                Outcome::Answered => "answered",
                Outcome::Refused => "refused",
                Outcome::Silent => "silent",
                Outcome::Unsent => "unsent",
            };
            self.probes
                .get_or_create(&ProbeLabel { path, result })
                .inc();
        }
        if let Some(us) = measured.round_trip {
            self.round_trip.observe(f64::from(us) / 1e6);
        }
    }

    /// Something was found wrong that was not before.
    pub fn alarm(&self) {
        self.alarms.inc();
    }

    /// A round is over: peers, failing ones among them, what is wrong with these, and remedies in force.
    pub fn round(&self, peers: usize, failing: usize, findings: &[Finding], remedies: usize) {
        self.rounds.inc();
        self.reachable.set(gauge(peers.saturating_sub(failing)));
        self.unreachable.set(gauge(failing));
        self.offload_off.set(remedies as u64);
        self.troubles.clear();
        for finding in findings {
            let label = TroubleLabel {
                node: finding.node.to_string(),
                ip_family: finding.family.api_name(),
                verdict: finding.kind,
            };
            self.troubles.get_or_create(&label).set(1);
        }
    }
}
