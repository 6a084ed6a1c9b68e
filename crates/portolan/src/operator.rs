//! Answers what the daemon does and why, for commands on its node and in its pod.
//!
//! A thread of its own serves HTTP/1 with JSON documents ([`documents`]) at the socket `@portolan` of the network namespace
//! ([`overlay_probe::local_socket`]). It owns a catalog of the objects, built from notices of the control loop, and plans by the
//! same pure functions: a request costs the control loop nothing. Nothing here changes the node; the log level can be changed.
//!
//! Invariant: answers are read-only views; the daemon serves the same with or without this part's clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use object_source::api::ApiClient;
use tokio::sync::watch;

use crate::parts::Parts;
use crate::published::Published;

mod catalog;
mod checks;
mod client;
mod commands;
mod doctor;
pub mod documents;
mod encryption;
mod flows;
mod knowledge;
mod live;
mod notices;
mod print;
mod questions;
pub mod reference;
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
    log_level as run_log_level, services as run_services, status as run_status, trace as run_trace,
    verify as run_verify,
};
pub use doctor::doctor as run_doctor;
pub(crate) use notices::Follower;
pub(crate) use questions::{Asked, Questions, questions};
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

/// What answers are made of, beside the catalog.
#[derive(Clone)]
pub(crate) struct Sources {
    /// Name of this node.
    pub(crate) node: Arc<str>,
    /// What other parts publish.
    pub(crate) published: Published,
    /// Where objects come from.
    pub(crate) origin: Origin,
    /// Whether the probes of the overlay run.
    pub(crate) has_probes: bool,
    /// Listeners of the daemon.
    pub(crate) listeners: Vec<Bound>,
}

/// Starts the part, which answers commands and the questions of other parts. The follower that is returned has to be an observer of the control loop.
pub(crate) fn start(parts: &Parts, sources: Sources, asked: Asked) -> Result<Follower> {
    let (follower, notices) = notices::notices();
    let cancel = parts.cancel();
    parts.runtime("operator", move || async move {
        let serving = server::run(sources, notices, asked);
        cancel.run_until_cancelled(serving).await;
        Ok(())
    })?;
    Ok(follower)
}
