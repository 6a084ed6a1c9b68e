//! The health and metrics ports: HTTP/1.1, read-only, on a thread of their own.
//!
//! Answers come from published values ([`Status`](crate::status::Status), [`Metrics`]), so a probe is answered while
//! the control loop is busy or stuck, and no client can slow the proxy down. A port that cannot be bound is tried
//! again; proxying never depends on it. The ports that Services have for load balancers' questions
//! ([`crate::health_checks`]) are served beside them.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use http::StatusCode;
use overlay_probe::SharedProbeStatus;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::{self, Metrics};
use crate::overlay::SharedOverlayStatus;
use crate::status::SharedStatus;

mod answers;
mod listener;

pub(crate) use answers::health_check;
pub(crate) use listener::{Answer, accept};

/// Between two attempts to bind, at first and at most.
const BIND_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

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

/// The values that answers are made of.
#[derive(Clone)]
pub struct Sources {
    /// Published by the control loop.
    pub status: Arc<SharedStatus>,
    /// Recorded by everyone.
    pub metrics: Arc<Metrics>,
    /// How the overlay is, where there is one.
    pub overlay: Option<SharedOverlayStatus>,
    /// Findings of the overlay's probes.
    pub probes: SharedProbeStatus,
}

/// The running ports. They end when the token given to [`start`] is cancelled.
#[derive(Debug)]
pub struct Ports {
    /// Where the health port is bound, once it is; `None` for good when it is switched off.
    pub health: watch::Receiver<Option<SocketAddr>>,
    /// Where the metrics port is bound, likewise.
    pub metrics: watch::Receiver<Option<SocketAddr>>,
    /// Where more ports may be served.
    pub runtime: Handle,
    thread: std::thread::JoinHandle<()>,
}

impl Ports {
    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            warn!("the HTTP thread panicked");
        }
    }
}

/// Starts the ports on a thread of their own; `None` switches one off.
pub fn start(
    health: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    sources: Sources,
    cancel: CancellationToken,
) -> anyhow::Result<Ports> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the runtime of the health and metrics ports")?;
    let (health_bound, health_address) = watch::channel(None);
    let (metrics_bound, metrics_address) = watch::channel(None);
    let handle = runtime.handle().clone();
    let thread = std::thread::Builder::new()
        .name("http".into())
        .spawn(move || {
            runtime.block_on(async {
                let health =
                    health.map(|address| serve(Port::Health, address, &sources, health_bound));
                let metrics =
                    metrics.map(|address| serve(Port::Metrics, address, &sources, metrics_bound));
                let both = async {
                    tokio::join!(
                        futures::future::OptionFuture::from(health),
                        futures::future::OptionFuture::from(metrics)
                    )
                };
                tokio::select! {
                    () = cancel.cancelled() => {}
                    _ = async { both.await; std::future::pending::<()>().await } => {}
                }
            });
            // Connections that are open end with the runtime.
            runtime.shutdown_background();
        })
        .context("starting the thread of the health and metrics ports")?;
    Ok(Ports {
        health: health_address,
        metrics: metrics_address,
        runtime: handle,
        thread,
    })
}

/// Binds, with patience, and serves for ever.
async fn serve(
    port: Port,
    address: SocketAddr,
    sources: &Sources,
    bound: watch::Sender<Option<SocketAddr>>,
) {
    let listener = bind(port, address).await;
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

async fn bind(port: Port, address: SocketAddr) -> TcpListener {
    let mut wait = BIND_RETRY.0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                warn!(%port, %address, %error, retry_seconds = wait.as_secs(), "cannot bind; retrying");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BIND_RETRY.1);
            }
        }
    }
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
