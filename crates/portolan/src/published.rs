//! What the parts of the daemon publish for readers: the health and metrics ports, and the commands of operators.
//!
//! Each value has one writer, which replaces it as a whole; a reader never waits for the writer.

use std::sync::Arc;

use arc_swap::ArcSwap;
use overlay_probe::SharedProbeStatus;

use crate::configz::Configz;
use crate::failover::SharedFailoverStatus;
use crate::metrics::Metrics;
use crate::overlay::SharedOverlayStatus;
use crate::silent::SilentPeers;
use crate::status::SharedStatus;
use crate::takeover::alarm::SharedAlarm;

/// The kernel features that are missing, one line each with the fallback.
pub(crate) type SharedFallbacks = Arc<ArcSwap<Vec<String>>>;

/// Everything that parts publish.
#[derive(Clone)]
pub struct Published {
    /// State of the control loop; `None` without a service proxy.
    pub status: Option<Arc<SharedStatus>>,
    /// The configuration that counts.
    pub configz: Arc<Configz>,
    /// Recorded by all parts.
    pub metrics: Arc<Metrics>,
    /// State of the overlay, if there is one.
    pub overlay: Option<SharedOverlayStatus>,
    /// Findings of the overlay's probes.
    pub probes: SharedProbeStatus,
    /// What the take-over from kube-proxy could not do.
    pub alarm: SharedAlarm,
    /// Nodes that do not answer.
    pub failover: SharedFailoverStatus,
    /// Peers that answer nothing to the overlay's probes, for failover to look.
    pub silent: SilentPeers,
    /// Missing kernel features.
    pub(crate) fallbacks: SharedFallbacks,
}

impl Published {
    /// What is published without service proxy and overlay, so far empty.
    pub fn new(configz: Configz, metrics: Metrics) -> Self {
        Published {
            status: None,
            configz: Arc::new(configz),
            metrics: Arc::new(metrics),
            overlay: None,
            probes: SharedProbeStatus::default(),
            alarm: SharedAlarm::default(),
            failover: SharedFailoverStatus::default(),
            silent: SilentPeers::default(),
            fallbacks: SharedFallbacks::default(),
        }
    }
}
