//! The operator's room: answers what the daemon does and why, for commands on its node and in its pod.
//!
//! A thread of its own serves HTTP/1 with JSON documents ([`documents`]) at the socket `@portolan` of the network namespace
//! ([`overlay_probe::local_socket`]). It owns a catalog of the objects, built from notices of the control loop, and plans by the
//! same pure functions: a request costs the control loop nothing. Nothing here changes the node.
//!
//! Invariant: answers are read-only views; the daemon serves the same with or without this part's clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use arc_swap::ArcSwap;
use object_source::api::ApiClient;
use overlay_probe::SharedProbeStatus;
use tokio::sync::watch;

use crate::configz::Configz;
use crate::metrics::Metrics;
use crate::overlay::SharedOverlayStatus;
use crate::parts::Parts;
use crate::status::SharedStatus;
use crate::takeover::alarm::SharedAlarm;

mod catalog;
mod client;
mod commands;
pub mod documents;
mod flows;
mod notices;
mod print;
pub mod reference;
mod room;
mod routes;
mod server;
mod services;
mod status;
mod support;
mod trace;
mod traffic;
mod verify;
mod watching;

pub use commands::{
    services as run_services, status as run_status, trace as run_trace, verify as run_verify,
};
pub(crate) use notices::Follower;
pub use support::support as run_support;
pub use watching::flows as run_flows;

/// Where objects come from.
#[derive(Clone)]
pub(crate) enum Origin {
    /// A directory of manifests.
    Directory(PathBuf),
    /// API servers.
    ApiServer(ApiClient),
}

/// The name of a listener, and where it is bound.
pub(crate) type Bound = (&'static str, watch::Receiver<Option<SocketAddr>>);

/// The kernel features that are missing, one line each with the fallback.
pub(crate) type SharedFallbacks = Arc<ArcSwap<Vec<String>>>;

/// What other parts publish.
#[derive(Clone)]
pub(crate) struct Sources {
    /// Name of this node.
    pub(crate) node: Arc<str>,
    /// Published by the control loop; `None` without a service proxy.
    pub(crate) status: Option<Arc<SharedStatus>>,
    /// The configuration that counts.
    pub(crate) configz: Arc<Configz>,
    /// Recorded by all parts.
    pub(crate) metrics: Arc<Metrics>,
    /// State of the overlay, if there is one.
    pub(crate) overlay: Option<SharedOverlayStatus>,
    /// Findings of the overlay's probes.
    pub(crate) probes: SharedProbeStatus,
    /// What the take-over from kube-proxy could not do.
    pub(crate) alarm: SharedAlarm,
    /// Where objects come from.
    pub(crate) origin: Origin,
    /// Missing kernel features.
    pub(crate) fallbacks: SharedFallbacks,
    /// Listeners of the daemon.
    pub(crate) listeners: Vec<Bound>,
}

/// Starts the room. The control loop has to be given the follower.
pub(crate) fn start(parts: &Parts, sources: Sources) -> Result<Follower> {
    let (follower, notices) = notices::notices();
    let cancel = parts.cancel();
    parts.runtime("operator", move || async move {
        let serving = server::run(sources, notices);
        cancel.run_until_cancelled(serving).await;
        Ok(())
    })?;
    Ok(follower)
}
