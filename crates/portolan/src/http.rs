//! The health and metrics ports: HTTP/1.1, read-only, on a thread of their own.
//!
//! Answers come from published values ([`Status`](crate::status::Status), [`Metrics`]), so a probe is answered while the control loop is
//! busy or stuck, and no client can slow the proxy down: headers have a time-out, connections a limit and an
//! end. A port that cannot be bound is tried again; proxying never depends on it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::overlay::SharedOverlayStatus;
use crate::probe::SharedProbeStatus;
use crate::status::SharedStatus;

mod answers;

use answers::Answer;

/// A client has this long for its request line and headers, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection lives this long, whatever it does: a reader that never reads cannot hold it for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);
/// Connections at one time, on each port. More wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 64;
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

/// The values that answers are made of.
#[derive(Clone)]
pub struct Sources {
    /// Published by the control loop.
    pub status: Arc<SharedStatus>,
    /// Recorded by everyone.
    pub metrics: Arc<Metrics>,
    /// How the overlay is, where there is one.
    pub overlay: Option<SharedOverlayStatus>,
    /// What the probes of the overlay have found.
    pub probes: SharedProbeStatus,
}

/// The running ports. They end when the token given to [`start`] is cancelled.
#[derive(Debug)]
pub struct Ports {
    /// Where the health port is bound, once it is; `None` for good when it is switched off.
    pub health: watch::Receiver<Option<SocketAddr>>,
    /// Where the metrics port is bound, likewise.
    pub metrics: watch::Receiver<Option<SocketAddr>>,
    thread: std::thread::JoinHandle<()>,
}

impl Ports {
    /// Waits for the thread to end.
    pub fn join(self) {
        if self.thread.join().is_err() {
            warn!("the thread of the health and metrics ports panicked");
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
        thread,
    })
}

/// Binds, with patience, and accepts for ever.
async fn serve(
    port: Port,
    address: SocketAddr,
    sources: &Sources,
    bound: watch::Sender<Option<SocketAddr>>,
) {
    let listener = bind(port, address).await;
    match listener.local_addr() {
        Ok(address) => {
            info!(?port, %address, "listening");
            bound.send_replace(Some(address));
        }
        Err(error) => warn!(?port, %address, %error, "cannot tell where the port is bound"),
    }
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let sources = sources.clone();
                tokio::spawn(async move {
                    connection(port, stream, sources).await;
                    drop(slot);
                });
            }
            // Out of file descriptors, most likely: give others time to close some.
            Err(error) => {
                debug!(?port, %error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn bind(port: Port, address: SocketAddr) -> TcpListener {
    let mut wait = BIND_RETRY.0;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => {
                warn!(?port, %address, %error, retry = ?wait, "cannot bind");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(BIND_RETRY.1);
            }
        }
    }
}

async fn connection(port: Port, stream: TcpStream, sources: Sources) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let response = respond(port, request.method(), request.uri().path(), &sources);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(?port, %error, "connection ended early"),
        Err(_) => debug!(?port, "connection ended for its age"),
    }
}

fn respond(port: Port, method: &Method, path: &str, sources: &Sources) -> Response<Full<Bytes>> {
    let answer = if method != Method::GET && method != Method::HEAD {
        Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n")
    } else {
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
            (Port::Health, "/readyz") => answers::readyz(
                &status,
                sources
                    .overlay
                    .as_ref()
                    .map(|overlay| overlay.load())
                    .as_deref(),
                &sources.probes.load(),
            ),
            (Port::Metrics, "/metrics") => Answer::metrics(sources.metrics.encode()),
            (Port::Metrics, "/proxyMode") => Answer::text(StatusCode::OK, "nftables"),
            (Port::Metrics, "/healthz") => Answer::text(StatusCode::OK, "ok"),
            _ => Answer::text(StatusCode::NOT_FOUND, "not found\n"),
        }
    };
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.code;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        header::HeaderValue::from_static(answer.content_type),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        header::HeaderValue::from_static("nosniff"),
    );
    if answer.code == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, header::HeaderValue::from_static("GET, HEAD"));
    }
    response
}

#[cfg(test)]
mod tests;
