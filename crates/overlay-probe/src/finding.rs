//! What the probes have found, published as a whole after every round.

use std::sync::Arc;

use arc_swap::ArcSwap;
use net_types::Family;

/// A failure between this node and one peer that several rounds agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Name of the peer.
    pub node: Arc<str>,
    /// The address family that fails.
    pub family: Family,
    /// The verdict in one word, for labels.
    pub kind: &'static str,
    /// The verdict in a sentence.
    pub text: String,
}

/// State of the probes after a round.
#[derive(Clone, Debug, Default)]
pub struct ProbeStatus {
    /// Peers that fail.
    pub findings: Vec<Finding>,
    /// Settings of this node because of which it forwards no packets of pods.
    pub faults: Vec<String>,
    /// Changes that this node made to its own devices because of a finding.
    pub remedies: Vec<String>,
    /// Chains of this node that drop forwarded pod packets by default.
    pub notes: Vec<String>,
}

/// The latest [`ProbeStatus`], shared with readers.
pub type SharedProbeStatus = Arc<ArcSwap<ProbeStatus>>;
