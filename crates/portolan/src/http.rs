//! The health and metrics ports: HTTP/1.1, read-only, on a thread of their own.
//!
//! Responses are made of published values ([`Status`](crate::status::Status), [`Metrics`]), so probes are answered while
//! the control loop is busy or stuck, and no client can slow the proxy down. A port that cannot be bound is retried;
//! proxying never depends on it. Health checks of Services ([`crate::health_checks`]) run on the same thread.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures::future::OptionFuture;
use http::StatusCode;
use overlay_probe::SharedProbeStatus;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bind::bind;
use crate::metrics::{self, Metrics};
use crate::overlay::SharedOverlayStatus;
use crate::parts::Parts;
use crate::status::SharedStatus;

mod answers;
mod listener;

pub(crate) use answers::health_check;
pub(crate) use listener::{Answer, accept};

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/metrics`, `/proxyMode`, `/healthz`
    Metrics,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Port::Health => "health",
            Port::Metrics => "metrics",
        })
    }
}

/// The values that responses are made of.
#[derive(Clone)]
pub struct Sources {
    /// Published by the control loop.
    pub status: Arc<SharedStatus>,
    /// Recorded by all parts.
    pub metrics: Arc<Metrics>,
    /// State of the overlay, if there is one.
    pub overlay: Option<SharedOverlayStatus>,
    /// Findings of the overlay's probes.
    pub probes: SharedProbeStatus,
}

/// The running ports.
#[derive(Debug)]
pub struct Ports {
    /// Address of the health port once it is bound; `None` for good when it is disabled.
    pub health: watch::Receiver<Option<SocketAddr>>,
    /// Address of the metrics port, likewise.
    pub metrics: watch::Receiver<Option<SocketAddr>>,
    /// The runtime that serves the ports, and may serve more.
    pub runtime: Handle,
}

/// Starts the ports on a thread of their own; `None` disables one.
pub fn start(
    parts: &Parts,
    health: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    sources: Sources,
) -> anyhow::Result<Ports> {
    let (health_bound, health_address) = watch::channel(None);
    let (metrics_bound, metrics_address) = watch::channel(None);
    let cancel = parts.cancel();
    let runtime = parts.runtime("http", move || async move {
        let health = health.map(|address| serve(Port::Health, address, &sources, health_bound));
        let metrics = metrics.map(|address| serve(Port::Metrics, address, &sources, metrics_bound));
        let serving = async {
            tokio::join!(OptionFuture::from(health), OptionFuture::from(metrics));
            std::future::pending::<()>().await;
        };
        cancel.run_until_cancelled(serving).await;
        Ok(())
    })?;
    Ok(Ports {
        health: health_address,
        metrics: metrics_address,
        runtime,
    })
}

/// Binds the port, retrying, and serves forever.
async fn serve(
    port: Port,
    address: SocketAddr,
    sources: &Sources,
    bound: watch::Sender<Option<SocketAddr>>,
) {
    let report = |error: &std::io::Error| {
        warn!(%port, %address, %error, "cannot bind; retrying every second");
    };
    let listener = bind(|| TcpListener::bind(address), report).await;
    match listener.local_addr() {
        Ok(address) => {
            info!(%port, %address, "listening");
            bound.send_replace(Some(address));
        }
        Err(error) => warn!(%port, %address, %error, "cannot read the bound address"),
    }
    let sources = sources.clone();
    accept(listener, Arc::new(move |path| answer(port, path, &sources))).await;
}

fn answer(port: Port, path: &str, sources: &Sources) -> Answer {
    let status = sources.status.load();
    match (port, path) {
        (Port::Health, "/healthz") => {
            let answer = answers::healthz(&status, Instant::now(), SystemTime::now());
            sources.metrics.healthz_answered(answer.code.as_u16());
            answer
        }
        (Port::Health, "/livez") => {
            let answer = answers::livez(&status, Instant::now(), SystemTime::now());
            sources.metrics.livez_answered(answer.code.as_u16());
            answer
        }
        (Port::Health, "/readyz") => {
            let overlay = sources.overlay.as_ref().map(|overlay| overlay.load());
            answers::readyz(&status, overlay.as_deref(), &sources.probes.load())
        }
        (Port::Metrics, "/metrics") => Answer {
            content_type: metrics::CONTENT_TYPE,
            ..Answer::text(StatusCode::OK, sources.metrics.encode())
        },
        (Port::Metrics, "/proxyMode") => Answer::text(StatusCode::OK, "nftables"),
        (Port::Metrics, "/healthz") => Answer::text(StatusCode::OK, "ok"),
        _ => Answer::text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

#[cfg(test)]
mod tests;
