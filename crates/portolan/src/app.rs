//! The composition root of `portolan run`: starts the parts and connects them.
//!
//! The control loop has a thread of its own, since a commit blocks; so have the HTTP ports, since probes must be
//! answered meanwhile. Sources and everything else run on the caller's runtime. When one part ends, all end
//! ([`crate::parts`]). Rules stay in place: a node without its daemon keeps forwarding.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use object_source::SourceEvent;
use object_source::api::{self, ApiClient, ApiServer};
use object_source::manifests::{self, ManifestsConfig};
use overlay_probe::{ProbeConfig, SharedProbeStatus};
use service_model::{NodeConfig, ObjectEvent};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cli::RunArgs;
use crate::control::{self, Control, Inputs, Reports};
use crate::counters::Counters;
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::overlay::args::OverlayKind;
use crate::overlay::probes::{self, ProbeReports};
use crate::overlay::{self, NodeEvents, OverlayConfig, SharedOverlayStatus};
use crate::parts::{Parts, parts};
use crate::status::SharedStatus;
use crate::{conntrack, health_checks, http, localhost, log, memory, node_addresses, tables};

/// Capacity of the channel from the sources to the control loop.
const EVENTS: usize = 1024;

/// Runs until SIGTERM or SIGINT (then ends within two seconds), or until a part fails.
pub async fn run(args: &RunArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let cancel = CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    let (parts, ends) = parts(cancel.clone());
    start(args, &parts).await?;
    drop(parts);
    let mut ended = std::pin::pin!(ends.wait());
    let signal = tokio::select! {
        end = &mut ended => return end,
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal, "stopping; rules stay in place");
    cancel.cancel();
    ended.await
}

/// What parts publish for others.
#[derive(Clone)]
struct Published {
    status: Arc<SharedStatus>,
    metrics: Arc<Metrics>,
    counters: Arc<Counters>,
    overlay: SharedOverlayStatus,
    probes: SharedProbeStatus,
}

impl Published {
    fn new() -> Self {
        let counters = Arc::new(Counters::default());
        let mut metrics = Metrics::new();
        metrics.collect(Box::new(counters.clone()));
        Published {
            status: Arc::default(),
            metrics: Arc::new(metrics),
            counters,
            overlay: SharedOverlayStatus::default(),
            probes: SharedProbeStatus::default(),
        }
    }
}

/// Starts everything. Fails when the configuration cannot work, before anything of the node is changed. What may get
/// better by itself (a port that is taken, a server that is away) is retried instead.
async fn start(args: &RunArgs, parts: &Parts) -> Result<()> {
    let mut node = args.node.config()?;
    log::configuration(args, &node);
    memory::set_oom_score_adj(args.oom_score_adj);
    let published = Published::new();
    let server = connect(args).await?;
    node.api_server = server.as_ref().and_then(|server| server.address);
    let writer = server.as_ref().map(|server| server.writer.clone());
    let recorder = Recorder::start(writer.clone(), node.node_name.clone(), parts.cancel());
    let http = start_http(args, parts, &published)?;
    let addresses = node_addresses::follow(parts).await?;
    let (sender, events) = mpsc::channel(EVENTS);
    let sender = match args.overlay.overlay {
        OverlayKind::None => sender,
        OverlayKind::Vxlan => {
            start_overlay(args, parts, &node, writer, &published, &recorder, sender)?
        }
    };
    let client = server.map(|server| server.reader);
    start_source(args, parts, client, &node.node_name, sender);
    let tables = tables::open(parts, !args.no_table_owner, &args.without_features)?;
    let missing_sysctls = args.conntrack.apply();
    let (cleaner, forget) = conntrack::start(parts, published.metrics.clone())?;
    let (first_sync, synced) = oneshot::channel();
    let reports = health_checks::Reports {
        status: published.status.clone(),
        metrics: published.metrics.clone(),
        recorder,
    };
    let mut observers: Vec<Box<dyn Observer>> = vec![
        Box::new(published.metrics.clone()),
        Box::new(published.counters.clone()),
        Box::new(health_checks::start(parts, &http, node.clone(), reports)),
        Box::new(cleaner),
        Box::new(FirstSync(Some(first_sync))),
    ];
    if localhost::is_wanted(&node) {
        observers.push(Box::new(localhost::start(parts, &Handle::current())));
    }
    let inputs = Inputs {
        events,
        addresses,
        foreign: tables.foreign,
        forget,
    };
    let reports = Reports {
        status: published.status,
        metrics: published.metrics,
    };
    let control = Control::new(node, tables.kernel, reports, observers);
    let (guard, cancel) = (tables.guard, parts.cancel());
    parts.runtime("control", move || async move {
        // The guard's table goes with its socket.
        let _guard = guard;
        control::run(control, inputs, cancel).await
    })?;
    let after = after_first_sync(args.clone(), missing_sysctls > 0, synced, parts.cancel());
    tokio::spawn(after);
    Ok(())
}

/// The API server that the flags name, or `None` for a directory of manifests, which is there.
async fn connect(args: &RunArgs) -> Result<Option<ApiServer>> {
    if let Some(dir) = &args.manifests {
        std::fs::read_dir(dir)
            .with_context(|| format!("cannot read the directory of --manifests {dir:?}"))?;
        return Ok(None);
    }
    api::connect(args.kubeconfig.as_deref()).await.map(Some)
}

fn start_http(args: &RunArgs, parts: &Parts, published: &Published) -> Result<Handle> {
    let has_overlay = args.overlay.overlay == OverlayKind::Vxlan;
    let sources = http::Sources {
        status: published.status.clone(),
        metrics: published.metrics.clone(),
        overlay: has_overlay.then(|| published.overlay.clone()),
        probes: published.probes.clone(),
    };
    let (health, metrics): (Option<SocketAddr>, Option<SocketAddr>) =
        (args.healthz_bind_address.0, args.metrics_bind_address.0);
    Ok(http::start(parts, health, metrics, sources)?.runtime)
}

/// Starts the overlay and its probes. Events have to go to the sender that is returned.
fn start_overlay(
    args: &RunArgs,
    parts: &Parts,
    node: &NodeConfig,
    writer: Option<ApiClient>,
    published: &Published,
    recorder: &Recorder,
    sender: mpsc::Sender<SourceEvent>,
) -> Result<mpsc::Sender<SourceEvent>> {
    let (cluster, own) = (&args.node.cluster_cidr.0, node.node_name.clone());
    let infer = args.manifests.is_some();
    let mut config = OverlayConfig::new(&args.overlay, cluster, own.clone(), infer)?;
    config.own_tables = !args.no_table_owner;
    let (sender, nodes) = branch(parts, sender, own.clone());
    let (status, metrics) = (published.overlay.clone(), published.metrics.clone());
    let ended = overlay::start(config, writer, nodes, status, metrics, parts.cancel())?;
    parts.task("overlay", &Handle::current(), async {
        ended.await.context("panicked").flatten()
    });
    if args.overlay.overlay_probe_port != 0 {
        let config = ProbeConfig {
            own,
            port: args.overlay.overlay_probe_port,
            interval: args.overlay.overlay_probe_interval,
        };
        let reports = ProbeReports {
            status: published.probes.clone(),
            metrics: published.metrics.clone(),
            recorder: recorder.clone(),
        };
        probes::start(config, published.overlay.clone(), reports, parts.cancel())?;
    }
    Ok(sender)
}

fn start_source(
    args: &RunArgs,
    parts: &Parts,
    client: Option<ApiClient>,
    node_name: &str,
    events: mpsc::Sender<SourceEvent>,
) {
    let (runtime, cancel) = (Handle::current(), parts.cancel());
    match (client, &args.manifests) {
        (Some(client), _) => {
            let node_name = node_name.to_owned();
            let config = api::ApiConfig {
                all_nodes: args.overlay.overlay == OverlayKind::Vxlan,
                proxy_name: args.node.service_proxy_name.clone(),
                ..api::ApiConfig::default()
            };
            parts.task("source", &runtime, async move {
                api::run(client, node_name, config, events, cancel).await;
                Ok(())
            });
        }
        (None, dir) => {
            let config = ManifestsConfig {
                dir: dir.clone().unwrap_or_default(),
                node_ports: args.node.node_port_range.0.clone(),
                proxy_name: args.node.service_proxy_name.clone(),
            };
            parts.task("source", &runtime, manifests::run(config, events, cancel));
        }
    }
}

/// Passes the events of all Nodes to the overlay. All other events, and those of this node's own Node, go to `events`.
fn branch(
    parts: &Parts,
    events: mpsc::Sender<SourceEvent>,
    own: Arc<str>,
) -> (mpsc::Sender<SourceEvent>, NodeEvents) {
    let (sender, mut all) = mpsc::channel(EVENTS);
    let (to_overlay, nodes) = mpsc::channel(EVENTS);
    parts.task("node-events", &Handle::current(), async move {
        while let Some(event) = all.recv().await {
            let mut is_for_control = true;
            if let SourceEvent::Node(event) = &event {
                is_for_control = match event {
                    ObjectEvent::Apply(node) => node.name.name == own,
                    ObjectEvent::Delete(name) => name.name == own,
                    ObjectEvent::Reset { .. } => true,
                };
                to_overlay.send(event.clone()).await?;
            }
            if is_for_control {
                events.send(event).await?;
            }
        }
        Ok(())
    });
    (sender, nodes)
}

/// Fires after the first successful commit.
struct FirstSync(Option<oneshot::Sender<()>>);

impl Observer for FirstSync {
    fn committed(&mut self, _commit: &Commit<'_>) {
        // The receiver is gone if the daemon is ending.
        let _ = self.0.take().map(|sender| sender.send(()));
    }
}

/// Does what has to wait for the first sync: sysctls of a kernel module that the rules load, and the take-over.
async fn after_first_sync(
    args: RunArgs,
    sysctls_are_missing: bool,
    synced: oneshot::Receiver<()>,
    cancel: CancellationToken,
) {
    if synced.await.is_err() {
        return;
    }
    if sysctls_are_missing {
        args.conntrack.apply();
    }
    if args.takes_over_kube_proxy() {
        crate::takeover::run(cancel).await;
    }
}
