//! The composition root of `portolan run`: starts the parts, connects them, and ends them.
//!
//! The control loop has a thread of its own, since a commit blocks; so have the HTTP ports, since probes must be
//! answered meanwhile. Sources and everything else run on the caller's runtime. When one part ends, all end. Rules
//! stay in place: a node without its daemon keeps forwarding.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use arc_swap::ArcSwap;
use overlay_probe::{ProbeConfig, SharedProbeStatus};
use service_model::ObjectEvent;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use crate::cli::{LogArgs, LogFormat, RunArgs};
use crate::control::{self, ControlConfig, Reports};
use crate::counters::Counters;
use crate::events::Recorder;
use crate::health_checks;
use crate::http::{self, Ports};
use crate::memory;
use crate::metrics::Metrics;
use crate::node_addresses;
use crate::overlay::args::OverlayKind;
use crate::overlay::probes::{self, ProbeReports};
use crate::overlay::{self, NodeEvents, OverlayConfig, SharedOverlayStatus};
use crate::status::SharedStatus;
use crate::takeover;
use object_source::api::ApiClient;
use object_source::manifests::{self, ManifestsConfig};
use object_source::{Events, SourceEvent, api};

/// Capacity of the channel from the sources to the control loop.
const EVENTS: usize = 1024;
/// Time for all parts to end after a signal.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// Runs until SIGTERM or SIGINT (then ends within two seconds), or until a part fails.
pub async fn run(args: &RunArgs) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let app = App::start(args).await?;
    let cancel = app.cancel.clone();
    let mut ended = std::pin::pin!(app.ended());
    tokio::select! {
        result = &mut ended => return result,
        _ = terminate.recv() => info!(signal = "SIGTERM", "stopping; rules stay in place"),
        _ = interrupt.recv() => info!(signal = "SIGINT", "stopping; rules stay in place"),
    }
    cancel.cancel();
    match tokio::time::timeout(STOP_LIMIT, ended).await {
        Ok(result) => result,
        Err(_) => {
            warn!(timeout_seconds = STOP_LIMIT.as_secs(), "shutdown timed out");
            Ok(())
        }
    }
}

/// Sets up the log. Has no effect when there is one already.
pub fn start_log(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log_level).context("invalid log level")?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let _ = match args.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    Ok(())
}

/// The running parts.
pub struct App {
    /// Ends the parts when cancelled.
    pub cancel: CancellationToken,
    /// What probes are told.
    pub status: Arc<SharedStatus>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How the overlay is, if there is one.
    pub overlay_status: SharedOverlayStatus,
    ports: Ports,
    source: JoinHandle<anyhow::Result<()>>,
    overlay: Option<oneshot::Receiver<anyhow::Result<()>>>,
    control: oneshot::Receiver<anyhow::Result<()>>,
}

impl App {
    /// Starts everything. Fails when the configuration cannot work; what may get better by itself (a port that
    /// is taken, a server that is away) is tried again instead.
    pub async fn start(args: &RunArgs) -> anyhow::Result<App> {
        let mut node = args.node.config()?;
        log_config(args, &node);
        memory::set_oom_score_adj(args.oom_score_adj);
        let cancel = CancellationToken::new();
        // A part that fails to start takes down those before it.
        let started = cancel.clone().drop_guard();
        let status = Arc::new(ArcSwap::default());
        let counters = Arc::new(Counters::default());
        let mut metrics = Metrics::new();
        metrics.collect(Box::new(counters.clone()));
        let metrics = Arc::new(metrics);
        let reports = Reports {
            status: status.clone(),
            metrics: metrics.clone(),
        };
        let overlay_status = SharedOverlayStatus::default();
        let probe_status = SharedProbeStatus::default();
        let has_overlay = args.overlay.overlay == OverlayKind::Vxlan;
        let ports = http::start(
            args.healthz_bind_address.0,
            args.metrics_bind_address.0,
            http::Sources {
                status: status.clone(),
                metrics: metrics.clone(),
                overlay: has_overlay.then(|| overlay_status.clone()),
                probes: probe_status.clone(),
            },
            cancel.clone(),
        )?;
        let addresses = node_addresses::follow(cancel.clone()).await?;
        let (sender, events) = mpsc::channel(EVENTS);
        let (client, writer) = match args.manifests {
            Some(_) => (None, None),
            None => {
                let server = api::connect(args.kubeconfig.as_deref()).await?;
                node.api_server = server.address;
                (Some(server.reader), Some(server.writer))
            }
        };
        let (sender, overlay) = match args.overlay.overlay {
            OverlayKind::None => (sender, None),
            OverlayKind::Vxlan => {
                let (cluster, own) = (&args.node.cluster_cidr.0, node.node_name.clone());
                let mut config = OverlayConfig::new(&args.overlay, cluster, own, client.is_none())?;
                config.own_tables = !args.no_table_owner;
                let (sender, nodes) = branch(sender, node.node_name.clone());
                let status = overlay_status.clone();
                let ended = overlay::start(
                    config,
                    writer.clone(),
                    nodes,
                    status,
                    metrics.clone(),
                    cancel.clone(),
                )?;
                (sender, Some(ended))
            }
        };
        let recorder = Recorder::start(writer, node.node_name.clone(), cancel.clone());
        let health_checks = health_checks::start(
            &ports.runtime,
            node.clone(),
            health_checks::Reports {
                status: status.clone(),
                metrics: metrics.clone(),
                recorder: recorder.clone(),
            },
            cancel.clone(),
        );
        if has_overlay && args.overlay.overlay_probe_port != 0 {
            let config = ProbeConfig {
                own: node.node_name.clone(),
                port: args.overlay.overlay_probe_port,
                interval: args.overlay.overlay_probe_interval,
            };
            let reports = ProbeReports {
                status: probe_status,
                metrics: metrics.clone(),
                recorder,
            };
            probes::start(config, overlay_status.clone(), reports, cancel.clone())?;
        }
        let source = start_source(args, client, &node.node_name, sender, cancel.clone());
        let (in_step, rules_stand) = oneshot::channel();
        let config = ControlConfig {
            node,
            own_tables: !args.no_table_owner,
            without: args.without_features.clone(),
            relays: tokio::runtime::Handle::current(),
            health_checks,
            counters,
            in_step,
        };
        let missing_settings = args.conntrack.apply();
        let control = start_control(config, events, addresses, reports, cancel.clone())?;
        tokio::spawn(after_first_commit(
            args.clone(),
            missing_settings > 0,
            rules_stand,
            cancel.clone(),
        ));
        let cancel = started.disarm();
        Ok(App {
            cancel,
            status,
            metrics,
            overlay_status,
            ports,
            source,
            overlay,
            control,
        })
    }

    /// Where `/healthz` is, once it is bound.
    pub fn health_address(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.ports.health.clone()
    }

    /// Where `/metrics` is, once it is bound.
    pub fn metrics_address(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.ports.metrics.clone()
    }

    /// Waits until a part ends, ends the others, and tells why.
    pub async fn ended(mut self) -> anyhow::Result<()> {
        let source = async {
            (&mut self.source)
                .await
                .context("the source panicked")
                .flatten()
        };
        let control = async {
            (&mut self.control)
                .await
                .context("the control loop panicked")
                .flatten()
        };
        let overlay = async {
            match &mut self.overlay {
                Some(overlay) => overlay.await.context("the overlay panicked").flatten(),
                None => std::future::pending().await,
            }
        };
        let (mut source, mut control) = (std::pin::pin!(source), std::pin::pin!(control));
        let result = tokio::select! {
            ended = overlay, if !self.cancel.is_cancelled() => {
                let asked = self.cancel.is_cancelled();
                self.cancel.cancel();
                let _ = source.await;
                let control = control.await;
                match ended {
                    Ok(()) if asked => control,
                    Ok(()) => control.and(Err(anyhow!("the overlay ended"))),
                    Err(error) => Err(error),
                }
            }
            ended = &mut control => {
                self.cancel.cancel();
                // The source has nothing to say when it ends because nobody listens.
                let _ = source.await;
                ended
            }
            ended = &mut source => {
                let asked = self.cancel.is_cancelled();
                self.cancel.cancel();
                let control = control.await;
                match ended {
                    Ok(()) if asked => control,
                    Ok(()) => control.and(Err(anyhow!("the source ended"))),
                    Err(error) => Err(error),
                }
            }
        };
        let ports = self.ports;
        // Its runtime ends at once: it was cancelled.
        let _ = tokio::task::spawn_blocking(move || ports.join()).await;
        result
    }
}

fn start_source(
    args: &RunArgs,
    client: Option<ApiClient>,
    node_name: &str,
    events: mpsc::Sender<SourceEvent>,
    cancel: CancellationToken,
) -> JoinHandle<anyhow::Result<()>> {
    match (client, &args.manifests) {
        (Some(client), _) => {
            let node_name = node_name.to_owned();
            let config = api::ApiConfig {
                all_nodes: args.overlay.overlay == OverlayKind::Vxlan,
                proxy_name: args.node.service_proxy_name.clone(),
                ..api::ApiConfig::default()
            };
            tokio::spawn(async move {
                api::run(client, node_name, config, events, cancel).await;
                Ok(())
            })
        }
        (None, dir) => {
            let config = ManifestsConfig {
                dir: dir.clone().unwrap_or_default(),
                node_ports: args.node.node_port_range.0.clone(),
                proxy_name: args.node.service_proxy_name.clone(),
            };
            tokio::spawn(manifests::run(config, events, cancel))
        }
    }
}

/// Lets the overlay hear of every Node, and the control loop of all else and of its own Node.
fn branch(
    events: mpsc::Sender<SourceEvent>,
    own: Arc<str>,
) -> (mpsc::Sender<SourceEvent>, NodeEvents) {
    let (sender, mut all) = mpsc::channel(EVENTS);
    let (to_overlay, nodes) = mpsc::channel(EVENTS);
    tokio::spawn(async move {
        while let Some(event) = all.recv().await {
            let mut theirs = true;
            if let SourceEvent::Node(event) = &event {
                theirs = match event {
                    ObjectEvent::Apply(node) => node.name.name == own,
                    ObjectEvent::Delete(name) => name.name == own,
                    ObjectEvent::Reset { .. } => true,
                };
                if to_overlay.send(event.clone()).await.is_err() {
                    return;
                }
            }
            if theirs && events.send(event).await.is_err() {
                return;
            }
        }
    });
    (sender, nodes)
}

/// What waits until the rules stand: settings of a kernel module that they load, and kube-proxy's end.
async fn after_first_commit(
    args: RunArgs,
    settings_are_missing: bool,
    rules_stand: oneshot::Receiver<()>,
    cancel: CancellationToken,
) {
    if rules_stand.await.is_err() {
        return;
    }
    if settings_are_missing {
        args.conntrack.apply();
    }
    if args.takes_over_kube_proxy() {
        takeover::run(cancel).await;
    }
}

/// On a thread of its own. A panic drops the sender, which the receiver sees.
fn start_control(
    config: ControlConfig,
    events: Events,
    addresses: watch::Receiver<Vec<std::net::IpAddr>>,
    reports: Reports,
    cancel: CancellationToken,
) -> anyhow::Result<oneshot::Receiver<anyhow::Result<()>>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the runtime of the control loop")?;
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let result = runtime.block_on(control::run(config, events, addresses, reports, cancel));
            let _ = sender.send(result);
        })
        .context("starting the thread of the control loop")?;
    Ok(ended)
}

/// Logs the effective configuration in one line.
fn log_config(args: &RunArgs, node: &service_model::NodeConfig) {
    let source = match (&args.manifests, &args.kubeconfig) {
        (Some(dir), _) => format!("manifests {}", dir.display()),
        (None, Some(file)) => format!("kubeconfig {}", file.display()),
        (None, None) => "service account".to_owned(),
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %node.node_name,
        source,
        detect_local = %args.node.detect_local_mode,
        cluster_cidr = %args.node.cluster_cidr,
        nodeport_addresses = %args.node.nodeport_addresses,
        masquerade_all = node.masquerade_all,
        allowed_external_ips = args.node.allowed_external_ips.as_ref().map(tracing::field::display),
        service_proxy_name = args.node.service_proxy_name.as_deref(),
        own_tables = !args.no_table_owner,
        take_over_kube_proxy = args.takes_over_kube_proxy(),
        healthz = %args.healthz_bind_address,
        metrics = %args.metrics_bind_address,
        "starting"
    );
}
