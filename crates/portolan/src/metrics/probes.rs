//! Metrics of the overlay's probes. Only failing peers have series of their own.

use std::sync::atomic::AtomicU64;

use overlay_probe::{Measurement, PacketOutcome, RoundSummary};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::gauge;

/// Counts probes, rounds and failing peers.
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
            "Completed probe rounds",
            self.rounds.clone(),
        );
        r.register(
            "overlay_probes",
            "Probes by path and result",
            self.probes.clone(),
        );
        r.register(
            "overlay_round_trip_seconds",
            "Round-trip time of a small UDP datagram through the tunnel in seconds",
            self.round_trip.clone(),
        );
        r.register(
            "overlay_peers_reachable",
            "Peers without a finding",
            self.reachable.clone(),
        );
        r.register(
            "overlay_peers_unreachable",
            "Peers with a finding: no packets or not all packets get through",
            self.unreachable.clone(),
        );
        r.register(
            "overlay_peer_trouble",
            "1 for each peer with a finding, by verdict",
            self.troubles.clone(),
        );
        r.register(
            "overlay_alarms",
            "Findings that were new or changed",
            self.alarms.clone(),
        );
        r.register(
            "overlay_checksum_offload_off",
            "Tunnel devices whose checksum offload was switched off because it corrupted packets",
            self.offload_off.clone(),
        );
    }

    /// Counts the probes of one measurement.
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
                PacketOutcome::Untried => continue,
                PacketOutcome::Answered => "answered",
                PacketOutcome::Refused => "refused",
                PacketOutcome::Silent => "silent",
                PacketOutcome::Unsent => "unsent",
            };
            self.probes
                .get_or_create(&ProbeLabel { path, result })
                .inc();
        }
        if let Some(us) = measured.round_trip {
            self.round_trip.observe(f64::from(us) / 1e6);
        }
    }

    /// Counts a finding that is new or has changed.
    pub fn alarm(&self) {
        self.alarms.inc();
    }

    /// Records the state after a round.
    pub fn round(&self, round: &RoundSummary<'_>) {
        self.rounds.inc();
        let reachable = round.peers.saturating_sub(round.failing);
        self.reachable.set(gauge(reachable));
        self.unreachable.set(gauge(round.failing));
        self.offload_off.set(round.remedies as u64);
        self.troubles.clear();
        for finding in round.findings {
            let label = TroubleLabel {
                node: finding.node.to_string(),
                ip_family: finding.family.api_name(),
                verdict: finding.kind,
            };
            self.troubles.get_or_create(&label).set(1);
        }
    }
}
