//! The health and metrics ports: HTTP/1.1, read-only but for `/debug/flags/v`, on a thread of their own.
//!
//! Responses are made of published values ([`Published`]), so probes are answered while
//! the control loop is busy or stuck, and no client can slow the proxy down. A port that cannot be bound is retried;
//! proxying never depends on it. Health checks of Services ([`crate::health_checks`]) run on the same thread.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use futures::future::OptionFuture;
use http::{HeaderMap, Method, StatusCode};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::bind::{bind, listen};
use crate::events::{Recorder, Severity, Subject};
use crate::metrics::Format;
use crate::operator::Questions;
use crate::parts::Parts;
use crate::published::Published;

mod answers;
mod debug_flags;
mod listener;
mod page;

/// How long a daemon that ends waits for its last Event.
const EVENT_LIMIT: Duration = Duration::from_secs(2);

pub(crate) use answers::health_check;
pub(crate) use listener::{Answer, Asked, Reply, accept};
use listener::{Answering, Change};

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/metrics`, `/metrics/slis`, `/proxyMode`, `/healthz`, `/configz`, `/flagz`, `/statusz`, `/debug/flags/v`, and the page at `/`
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

impl Port {
    /// Reason and action of the Event about a port that cannot be bound: kube-proxy's words.
    fn failure(self) -> (&'static str, &'static str) {
        match self {
            Port::Health => ("FailedToStartProxierHealthcheck", "StartKubeProxy"),
            Port::Metrics => ("FailedToStartMetricServer", "StartKubeProxy"),
        }
    }
}

/// What responses are made of, and where failures go.
#[derive(Clone)]
pub struct Sources {
    /// The values that responses are made of.
    pub published: Published,
    /// Creates an Event for a port that cannot be bound.
    pub recorder: Recorder,
    /// Asks for the documents of the page; `None` without the page.
    pub(crate) questions: Option<Questions>,
    /// `/debug/flags/v` changes the log (`--profiling`).
    pub(crate) debug_flags: bool,
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

/// Where the ports listen.
#[derive(Clone, Copy, Debug, Default)]
pub struct Addresses {
    /// Of the health port; `None` disables it.
    pub health: Option<SocketAddr>,
    /// Of the metrics port; `None` disables it.
    pub metrics: Option<SocketAddr>,
    /// End the daemon when an address cannot be bound (`--bind-address-hard-fail`), instead of retrying.
    pub hard_fail: bool,
}

/// Starts the ports on a thread of their own.
pub fn start(parts: &Parts, addresses: Addresses, sources: Sources) -> anyhow::Result<Ports> {
    let (health_bound, health_address) = watch::channel(None);
    let (metrics_bound, metrics_address) = watch::channel(None);
    let cancel = parts.cancel();
    let runtime = parts.runtime("http", move || async move {
        let Addresses {
            health,
            metrics,
            hard_fail,
        } = addresses;
        let health = health.map(|at| serve(Port::Health, at, hard_fail, &sources, health_bound));
        let metrics =
            metrics.map(|at| serve(Port::Metrics, at, hard_fail, &sources, metrics_bound));
        let serving = async {
            tokio::try_join!(
                served(OptionFuture::from(health)),
                served(OptionFuture::from(metrics))
            )?;
            std::future::pending::<anyhow::Result<()>>().await
        };
        cancel.run_until_cancelled(serving).await.unwrap_or(Ok(()))
    })?;
    Ok(Ports {
        health: health_address,
        metrics: metrics_address,
        runtime,
    })
}

/// A port that may be disabled.
async fn served<F: Future<Output = anyhow::Result<()>>>(
    port: OptionFuture<F>,
) -> anyhow::Result<()> {
    port.await.unwrap_or(Ok(()))
}

/// Binds the port, retrying unless that is a hard failure, and serves forever.
async fn serve(
    port: Port,
    address: SocketAddr,
    hard_fail: bool,
    sources: &Sources,
    bound: watch::Sender<Option<SocketAddr>>,
) -> anyhow::Result<()> {
    let listener = match listen(address) {
        Ok(listener) => listener,
        Err(error) => {
            let next = match hard_fail {
                true => "exiting (--bind-address-hard-fail)",
                false => "retrying every second",
            };
            warn!(%port, %address, %error, "cannot bind; {next}");
            let note = format!("cannot bind the {port} port {address}: {error}");
            let recorded =
                sources
                    .recorder
                    .record(Subject::Node, Severity::Warning, port.failure(), &note);
            if hard_fail {
                // The daemon ends with this part; the Event should not be lost with it.
                let _ = tokio::time::timeout(EVENT_LIMIT, recorded).await;
                return Err(error).with_context(|| {
                    format!("cannot bind the {port} port {address} (--bind-address-hard-fail)")
                });
            }
            bind(|| std::future::ready(listen(address)), |_| {}).await
        }
    };
    match listener.local_addr() {
        Ok(address) => {
            info!(%port, %address, "listening");
            bound.send_replace(Some(address));
        }
        Err(error) => warn!(%port, %address, %error, "cannot read the bound address"),
    }
    accept(
        listener,
        Arc::new(Answers {
            port,
            sources: sources.clone(),
        }),
    )
    .await;
    Ok(())
}

/// The answers of a port.
struct Answers {
    port: Port,
    sources: Sources,
}

impl Answers {
    fn has_debug_flags(&self) -> bool {
        self.port == Port::Metrics && self.sources.debug_flags
    }
}

impl Answering for Answers {
    fn read(&self, asked: Asked<'_>) -> Reply {
        if let (Port::Metrics, Some(questions)) = (self.port, &self.sources.questions)
            && let Some(reply) = page::reply(&asked, questions)
        {
            return reply;
        }
        if self.has_debug_flags()
            && let Some(answer) = debug_flags::read(&asked)
        {
            return answer.into();
        }
        answer(self.port, asked.path, asked.headers, &self.sources).into()
    }

    fn change(&self, method: &Method, asked: Asked<'_>) -> Option<Change> {
        let is_there = self.has_debug_flags();
        is_there.then(|| debug_flags::change(method, &asked))?
    }
}

fn answer(port: Port, path: &str, headers: &HeaderMap, sources: &Sources) -> Answer {
    let published = &sources.published;
    let status = published.status.as_ref().map(|status| status.load());
    match (port, path) {
        (Port::Health, "/healthz") => {
            let answer = answers::healthz(status.as_deref(), Instant::now(), SystemTime::now());
            published.metrics.healthz_answered(answer.code.as_u16());
            answer
        }
        (Port::Health, "/livez") => {
            let answer = answers::livez(status.as_deref(), Instant::now(), SystemTime::now());
            published.metrics.livez_answered(answer.code.as_u16());
            answer
        }
        (Port::Health, "/readyz") => {
            let overlay = published.overlay.as_ref().map(|overlay| overlay.load());
            let alarm = published.alarm.load_full();
            let alarm = alarm.as_ref().map(|alarm| alarm.as_str());
            answers::readyz(
                status.as_deref(),
                overlay.as_deref(),
                alarm,
                &published.failover.load(),
                &published.probes.load(),
            )
        }
        (Port::Metrics, "/metrics") => {
            let format = Format::requested(headers);
            exposition(format, published.metrics.encode(format))
        }
        (Port::Metrics, "/metrics/slis") => {
            let format = Format::requested(headers);
            exposition(format, published.metrics.encode_slis(format))
        }
        (Port::Metrics, "/configz") => Answer::json(StatusCode::OK, &published.configz.document()),
        (Port::Metrics, "/flagz") => Answer::text(StatusCode::OK, published.configz.flagz()),
        (Port::Metrics, "/statusz") => {
            let changing = sources.debug_flags.then_some(debug_flags::FLAG);
            Answer::text(
                StatusCode::OK,
                published.configz.statusz(changing.as_slice()),
            )
        }
        (Port::Metrics, "/proxyMode") => Answer::text(StatusCode::OK, "nftables"),
        (Port::Metrics, "/healthz") => {
            published.metrics.pinged();
            Answer::text(StatusCode::OK, "ok")
        }
        _ => Answer::text(StatusCode::NOT_FOUND, "not found\n"),
    }
}

fn exposition(format: Format, text: String) -> Answer {
    Answer {
        content_type: format.content_type(),
        ..Answer::text(StatusCode::OK, text)
    }
}

#[cfg(test)]
mod tests;
