//! What the probes need from the process that runs them: the plan in force, legacy iptables, and where to report.

use std::sync::Arc;

use vxlan_overlay::Plan;

use crate::finding::{Finding, SharedProbeStatus};
use crate::measurement::Measurement;

/// Handed in by the daemon at start.
pub struct Environment {
    /// Returns the plan of the overlay that is in force.
    pub plan: Box<dyn Fn() -> Arc<Plan> + Send + Sync>,
    /// Returns what the daemon knows to be wrong with this node's overlay: what the plan leaves out, and what the kernel
    /// refuses. Pods cannot be reached because of each.
    pub faults: Box<dyn Fn() -> Vec<String> + Send + Sync>,
    /// Reads legacy iptables.
    pub legacy: LegacyIptables,
    /// Receives measurements, round summaries and events.
    pub observer: Box<dyn Observer>,
    /// Where the state after each round is published.
    pub status: SharedProbeStatus,
}

/// Reads legacy iptables, whose rules nftables can neither list nor trace.
#[derive(Clone, Copy, Debug)]
pub struct LegacyIptables {
    /// Lists the legacy tables of this network namespace, each with its program.
    pub tables: fn() -> Vec<String>,
    /// Lists the programs whose FORWARD chain drops by default.
    pub dropping_forwarders: fn() -> Vec<&'static str>,
}

/// Receives what the probes see, for metrics and Events.
pub trait Observer: Send + Sync {
    /// One peer was measured in one family.
    fn measured(&self, measured: &Measurement);

    /// A peer answered nothing in a round, neither to its own address nor through the tunnel.
    fn silent(&self, node: &Arc<str>);

    /// A finding is new or has changed.
    fn alarm(&self);

    /// A round has ended.
    fn round(&self, round: &RoundSummary<'_>);

    /// The cluster should see an Event of this Node.
    fn event(&self, event: ProbeEvent<'_>);
}

/// Counts after a round.
#[derive(Clone, Copy, Debug)]
pub struct RoundSummary<'a> {
    /// Peers of the overlay.
    pub peers: usize,
    /// Peers with a finding.
    pub failing: usize,
    /// The findings, at most as many as should become metric series.
    pub findings: &'a [Finding],
    /// Remedies in force on this node.
    pub remedies: usize,
}

/// An Event of this Node.
#[derive(Clone, Copy, Debug)]
pub struct ProbeEvent<'a> {
    /// Whether its type is `Warning`; else `Normal`.
    pub is_warning: bool,
    /// The machine-readable reason, in CamelCase.
    pub reason: &'static str,
    /// The sentence for people.
    pub note: &'a str,
}
