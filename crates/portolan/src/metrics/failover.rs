//! Metrics of failover: suspects, and what finding them costs.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::gauge;

/// Counts suspicions, probes and readings of conntrack.
#[derive(Debug, Default)]
pub struct FailoverMetrics {
    suspects: Gauge,
    endpoints: Gauge,
    suspicions: Counter,
    probed: Counter,
    readings: Counter,
    reading_seconds: Counter<f64, AtomicU64>,
}

impl FailoverMetrics {
    pub(super) fn register(&self, r: &mut Registry) {
        r.register(
            "failover_suspects",
            "Nodes whose endpoints get no new connections because no probe is answered",
            self.suspects.clone(),
        );
        r.register(
            "failover_suspect_endpoints",
            "Endpoints that get no new connections because they answer no probe while their nodes do",
            self.endpoints.clone(),
        );
        r.register(
            "failover_suspicions",
            "Nodes and endpoints that stopped answering, counted each time",
            self.suspicions.clone(),
        );
        r.register(
            "failover_probes",
            "Examinations of nodes and endpoints by a few TCP connections",
            self.probed.clone(),
        );
        r.register(
            "failover_conntrack_readings",
            "Readings of conntrack in search of unanswered connections",
            self.readings.clone(),
        );
        r.register(
            "failover_conntrack_reading_seconds",
            "Time spent reading conntrack in search of unanswered connections, in seconds",
            self.reading_seconds.clone(),
        );
    }

    /// Counts a new suspect.
    pub(crate) fn suspected(&self) {
        self.suspicions.inc();
    }

    /// Sets the numbers of suspects.
    pub(crate) fn set_suspects(&self, nodes: usize, endpoints: usize) {
        self.suspects.set(gauge(nodes));
        self.endpoints.set(gauge(endpoints));
    }

    /// Counts an examination of a node.
    pub(crate) fn probed(&self) {
        self.probed.inc();
    }

    /// Counts a reading of conntrack.
    pub(crate) fn read(&self) {
        self.readings.inc();
    }

    /// Adds time spent on readings.
    pub(crate) fn spent(&self, elapsed: Duration) {
        self.reading_seconds.inc_by(elapsed.as_secs_f64());
    }
}
