//! The composition root of `portolan run`: starts the parts and connects them.
//!
//! The control loop has a thread of its own, since a commit blocks. The source runs on that thread too, so that no thread
//! has to be woken between the socket of the API server and the socket of the kernel: under churn, wake-ups cost more than
//! the commits. The HTTP ports have a thread of their own, since probes must be answered meanwhile. Everything else runs on
//! the caller's runtime. When one part ends, all end ([`crate::parts`]). Rules stay in place: a node without its daemon
//! keeps forwarding.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result};
use futures::future::{BoxFuture, FutureExt};
use kube_proxy_config::Effective;
use object_source::api::{self, ApiClient, ApiServer, RequestOutcome, ServerSource};
use object_source::manifests::{self, ManifestsConfig};
use object_source::{Events, SourceEvent};
use overlay_probe::ProbeConfig;
use service_model::{NodeConfig, ObjectKind, Suspects};
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::{self, Configuration, Live, LiveNodeConfig};
use crate::configz::Configz;
use crate::control::{self, Control, ControlReports, Inputs, ObjectLog};
use crate::counters::Counters;
use crate::events::{Recorder, ServiceEvents};
use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::operator::{self, Origin};
use crate::overlay::probes::{self, ProbeReports};
use crate::overlay::{self, NodeEvents, OverlayConfig, SharedOverlayStatus};
use crate::parts::{Parts, parts};
use crate::published::Published;
use crate::status::SharedStatus;
use crate::takeover::alarm::Alarm;
use crate::{
    conntrack, failover, health_checks, http, last_sync, localhost, log, memory, node_addresses,
    service_traffic, sysctl, tables,
};

/// Capacity of the channel from the sources to the control loop.
const EVENTS: usize = 1024;

/// Runs until SIGTERM or SIGINT (then ends within two seconds), or until a part fails.
pub async fn run(configuration: &Configuration) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let cancel = CancellationToken::new();
    let _stop = cancel.clone().drop_guard();
    let (parts, ends) = parts(cancel.clone());
    start(configuration, &parts).await?;
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

/// Starts everything. Fails when the configuration cannot work, before anything of the node is changed. What may get
/// better by itself (a port that is taken, a server that is away) is retried instead.
async fn start(configuration: &Configuration, parts: &Parts) -> Result<()> {
    let effective = configuration.effective();
    let counters = Arc::new(Counters::default());
    let traffic = service_traffic::Exposed::default();
    let published = publish(configuration, &counters, &traffic);
    let server = connect(effective, published.metrics.clone()).await?;
    // A connection of the reader would stay on this runtime, and the source would use it from another.
    let asker = server.as_ref().map(|server| &server.writer);
    let mut node = config::node(effective, config::node_name(effective, asker).await?);
    node.api_server = server.as_ref().and_then(|server| server.address);
    let overlay = config::overlay(effective, node.node_name.clone())?;
    log::configuration(effective, &node);
    memory::set_oom_score_adj(effective.oom_score_adj);
    let writer = server.as_ref().map(|server| server.writer.clone());
    let recorder = Recorder::start(parts, writer.clone(), node.node_name.clone()).starting();
    let (questions, asked) = operator::questions();
    let http = start_http(effective, parts, &published, &recorder, questions)?;
    let overlay_config = effective.overlay.as_ref();
    let sources = operator::Sources {
        node: node.node_name.clone(),
        published: published.clone(),
        origin: origin(effective, server.as_ref()),
        has_probes: overlay_config.is_some_and(|overlay| overlay.probe_port.is_some()),
        listeners: vec![("health", http.health), ("metrics", http.metrics)],
    };
    let operator = operator::start(parts, sources, asked)?;
    let (sender, events) = mpsc::channel(EVENTS);
    let (contenders, contended) = watch::channel(BTreeSet::new());
    let (control_thread, run_on_it) = start_control_thread(parts)?;
    let sender = match overlay.zip(published.overlay.clone()) {
        None => sender,
        Some(overlay) => {
            let probes = overlay_config.and_then(probe_config(&node));
            let (sender, nodes) = branch(parts, &control_thread, sender);
            let shared = (&published, &recorder, contenders);
            start_overlay(overlay, probes, parts, writer, shared, nodes)?;
            sender
        }
    };
    let client = server.map(|server| server.reader);
    let about_nodes = (&*node.node_name, contended);
    start_source(
        effective,
        (parts, &control_thread),
        client,
        about_nodes,
        sender,
    );
    let (node, live) = watch::channel(node);
    let live_config = Live {
        node,
        configz: published.configz.clone(),
    };
    config::follow(parts, configuration, live_config)?;
    match published.status.clone() {
        Some(status) => {
            let services = Services {
                published,
                status,
                counters,
                traffic,
                recorder,
                http: http.runtime,
                operator,
            };
            let control = start_services(effective, parts, live, events, services).await?;
            run_on(run_on_it, control);
        }
        None => {
            let followed = follow_source(events, published.metrics, operator);
            run_on(run_on_it, followed);
        }
    }
    Ok(())
}

/// What parts publish, so far empty. Metrics have the counters and the traffic as they are when metrics are read.
fn publish(
    configuration: &Configuration,
    counters: &Arc<Counters>,
    traffic: &service_traffic::Exposed,
) -> Published {
    let effective = configuration.effective();
    let mut metrics = Metrics::new();
    metrics.collect(Box::new(counters.clone()));
    metrics.collect(Box::new(traffic.clone()));
    let configz = Configz::new(configuration.resolved().documents());
    Published {
        status: effective.service_proxy.then(Arc::default),
        overlay: effective.overlay.as_ref().map(|_| Arc::default()),
        ..Published::new(configz, metrics)
    }
}

/// What the control thread runs until it ends, beside its tasks.
type MainFuture = BoxFuture<'static, Result<()>>;

/// Starts the thread of the source and the control loop, for tasks at once, and for the control loop when it is sent.
fn start_control_thread(parts: &Parts) -> Result<(Handle, oneshot::Sender<MainFuture>)> {
    let (sender, main) = oneshot::channel::<MainFuture>();
    let handle = parts.runtime("control", || async move {
        match main.await {
            Ok(main) => main.await,
            // The start has failed, and says why.
            Err(_) => Ok(()),
        }
    })?;
    Ok((handle, sender))
}

fn run_on(
    thread: oneshot::Sender<MainFuture>,
    main: impl Future<Output = Result<()>> + Send + 'static,
) {
    // The thread ends early only when the daemon does.
    let _ = thread.send(main.boxed());
}

/// What the service proxy shares with other parts.
struct Services {
    published: Published,
    status: Arc<SharedStatus>,
    counters: Arc<Counters>,
    traffic: service_traffic::Exposed,
    recorder: Recorder,
    /// The runtime that serves ports.
    http: Handle,
    operator: operator::Follower,
}

/// Starts what serves Services: tables and what follows commits. Returns the control loop, which is still to be run.
async fn start_services(
    effective: &Effective,
    parts: &Parts,
    config: LiveNodeConfig,
    events: Events,
    services: Services,
) -> Result<impl Future<Output = Result<()>> + Send + use<>> {
    let Services {
        published,
        status,
        counters,
        traffic,
        recorder,
        http,
        operator,
    } = services;
    let addresses = node_addresses::follow(parts).await?;
    let without = config::features(effective)?;
    let tables = tables::open(parts, effective.table_owner, &without)?;
    published.fallbacks.store(Arc::new(tables.fallbacks));
    let adopted = tables.are_adopted.then(last_sync::adopted);
    let missing_sysctls = sysctl::apply(&effective.conntrack);
    let (cleaner, forget) = conntrack::start(parts, published.metrics.clone())?;
    let (first_sync, synced) = oneshot::channel();
    let alarm = Alarm {
        shared: published.alarm.clone(),
        metrics: published.metrics.clone(),
        recorder: recorder.clone(),
    };
    let service_events = ServiceEvents::new(recorder.clone());
    let own = config.borrow().node_name.clone();
    let (directory, suspects) = start_failover(effective, parts, own, &published, &recorder)?;
    let reports = health_checks::HealthReports {
        status: status.clone(),
        metrics: published.metrics.clone(),
        recorder,
    };
    let health_checks = health_checks::start(parts, &http, config.clone(), reports);
    let mut observers: Vec<Box<dyn Observer>> = vec![
        Box::new(published.metrics.clone()),
        Box::new(published.metrics.no_local_endpoints()),
        Box::new(counters),
        Box::new(service_events),
        Box::new(health_checks),
        Box::new(cleaner),
        Box::new(FirstSync(Some(first_sync))),
        Box::new(localhost::start(parts, &Handle::current(), config.clone())),
        Box::new(operator),
    ];
    observers.extend(directory);
    if effective.service_traffic {
        observers.push(Box::new(service_traffic::start(parts, &traffic)?));
    }
    let reports = ControlReports {
        status,
        metrics: published.metrics,
    };
    last_sync::start(parts, reports.status.clone());
    let node = config.borrow().clone();
    let control = Control::new(node, tables.kernel, reports, observers, adopted);
    let inputs = Inputs {
        config,
        events,
        addresses,
        foreign: tables.foreign,
        forget,
        suspects,
    };
    let (effective, has_missing) = (effective.clone(), missing_sysctls > 0);
    let after = after_first_sync(effective, has_missing, alarm, synced, parts.cancel());
    parts.task("take-over", &Handle::current(), after);
    let (guard, cancel) = (tables.guard, parts.cancel());
    Ok(async move {
        // The guard's table goes with its socket.
        let _guard = guard;
        control::run(control, inputs, cancel).await
    })
}

/// What has to follow the control loop, and the suspects that the loop has to apply.
type Measured = (Option<Box<dyn Observer>>, watch::Receiver<Suspects>);

/// Starts failover, if it is on.
fn start_failover(
    effective: &Effective,
    parts: &Parts,
    own: Arc<str>,
    published: &Published,
    recorder: &Recorder,
) -> Result<Measured> {
    if !effective.failover {
        return Ok((None, watch::channel(Suspects::default()).1));
    }
    let overlay = effective.overlay.as_ref();
    let probe_port = overlay.and_then(|overlay| overlay.probe_port);
    let config = failover::Config {
        own,
        overlay: published.overlay.clone().zip(probe_port),
        silent: published.silent.clone(),
        endpoints_of_all: effective.failover_endpoints,
    };
    let reports = failover::FailoverReports {
        status: published.failover.clone(),
        metrics: published.metrics.clone(),
        recorder: recorder.clone(),
    };
    let (directory, suspects) = failover::start(parts, config, reports)?;
    Ok((Some(directory), suspects))
}

/// Receives events without a service proxy, so that the source never waits for a reader: logs outages and problems, and passes on
/// what metrics and commands need. Objects that only a service proxy needs are skipped, with their problems.
async fn follow_source(
    mut events: Events,
    mut metrics: Arc<Metrics>,
    mut operator: operator::Follower,
) -> Result<()> {
    let mut objects = ObjectLog::default();
    while let Some(event) = events.recv().await {
        match &event {
            SourceEvent::Service(_)
            | SourceEvent::EndpointSlice(_)
            | SourceEvent::ServiceCidr(_) => continue,
            SourceEvent::Problem(problem) => {
                let invalid = problem.invalid();
                if invalid.is_some_and(|invalid| invalid.kind != ObjectKind::Node) {
                    continue;
                }
                metrics.problem(problem);
            }
            SourceEvent::Connection {
                kind,
                state: Err(outage),
            } => tracing::warn!(%kind, "{outage}, existing tunnels keep working"),
            _ => {}
        }
        objects.event(&event);
        metrics.event(&event);
        operator.event(&event);
    }
    Ok(())
}

/// Where objects come from, as commands name it.
fn origin(effective: &Effective, server: Option<&ApiServer>) -> Origin {
    match server {
        Some(server) => Origin::ApiServer(server.reader.clone()),
        None => Origin::Directory(effective.api_server.manifests.clone().unwrap_or_default()),
    }
}

/// The API server that is configured, or `None` for a directory of manifests.
async fn connect(effective: &Effective, metrics: Arc<Metrics>) -> Result<Option<ApiServer>> {
    let from = &effective.api_server;
    if from.manifests.is_some() {
        return Ok(None);
    }
    let source = ServerSource {
        kubeconfig: from.kubeconfig.clone(),
        master: from.master.clone(),
        from: from.api_server_from.clone(),
    };
    let observer = Arc::new(move |outcome: &RequestOutcome<'_>| metrics.requested(outcome));
    api::connect(&source, observer).await.map(Some)
}

fn start_http(
    effective: &Effective,
    parts: &Parts,
    published: &Published,
    recorder: &Recorder,
    questions: operator::Questions,
) -> Result<http::Ports> {
    let sources = http::Sources {
        published: published.clone(),
        recorder: recorder.clone(),
        questions: effective.page.then_some(questions),
        debug_flags: effective.profiling,
    };
    let listeners = &effective.listeners;
    let addresses = http::Addresses {
        health: listeners.healthz,
        metrics: listeners.metrics,
        hard_fail: listeners.hard_fail,
    };
    http::start(parts, addresses, sources)
}

/// Makes the configuration of the probes on this node, if they are on.
fn probe_config(
    node: &NodeConfig,
) -> impl FnOnce(&kube_proxy_config::Overlay) -> Option<ProbeConfig> {
    move |overlay| {
        Some(ProbeConfig {
            own: node.node_name.clone(),
            port: overlay.probe_port?,
            interval: overlay.probe_interval,
        })
    }
}

/// Starts the overlay and its probes.
fn start_overlay(
    (config, status): (OverlayConfig, SharedOverlayStatus),
    probe_config: Option<ProbeConfig>,
    parts: &Parts,
    writer: Option<ApiClient>,
    (published, recorder, contenders): (&Published, &Recorder, watch::Sender<BTreeSet<Arc<str>>>),
    nodes: NodeEvents,
) -> Result<()> {
    let reports = overlay::OverlayReports {
        status: status.clone(),
        metrics: published.metrics.clone(),
        recorder: recorder.clone(),
        contenders,
    };
    overlay::start(parts, config, writer, nodes, reports)?;
    if let Some(config) = probe_config {
        let reports = ProbeReports {
            status: published.probes.clone(),
            metrics: published.metrics.clone(),
            recorder: recorder.clone(),
            silent: published.silent.clone(),
        };
        probes::start(parts, config, status, reports)?;
    }
    Ok(())
}

fn start_source(
    effective: &Effective,
    (parts, thread): (&Parts, &Handle),
    client: Option<ApiClient>,
    (node_name, contended): (&str, watch::Receiver<BTreeSet<Arc<str>>>),
    events: mpsc::Sender<SourceEvent>,
) {
    let cancel = parts.cancel();
    let (from, services) = (&effective.api_server, &effective.services);
    let proxy_name = services.service_proxy_name.as_deref().map(Arc::from);
    match client {
        Some(client) => {
            let node_name = node_name.to_owned();
            let config = api::ApiConfig {
                all_nodes: effective.overlay.is_some(),
                services: effective.service_proxy,
                proxy_name,
                contended: Some(contended),
                ..api::ApiConfig::default()
            };
            parts.task("source", thread, async move {
                api::run(client, node_name, config, events, cancel).await;
                Ok(())
            });
        }
        None => {
            let (first, last) = from.node_port_range;
            let config = ManifestsConfig {
                dir: from.manifests.clone().unwrap_or_default(),
                node_ports: first..=last,
                proxy_name,
            };
            parts.task("source", thread, manifests::run(config, events, cancel));
        }
    }
}

/// Passes all events to `events`, and those of Nodes to the overlay as well. The reader of `events` needs the Nodes of peers too: no
/// external IP may be an address of a peer, and a problem of a peer's Node ends with the next version of the Node.
fn branch(
    parts: &Parts,
    thread: &Handle,
    events: mpsc::Sender<SourceEvent>,
) -> (mpsc::Sender<SourceEvent>, NodeEvents) {
    let (sender, mut all) = mpsc::channel(EVENTS);
    let (to_overlay, nodes) = mpsc::channel(EVENTS);
    parts.task("node-events", thread, async move {
        while let Some(event) = all.recv().await {
            if let SourceEvent::Node(event) = &event {
                to_overlay.send(event.clone()).await?;
            }
            events.send(event).await?;
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
    effective: Effective,
    sysctls_are_missing: bool,
    alarm: Alarm,
    synced: oneshot::Receiver<()>,
    cancel: CancellationToken,
) -> Result<()> {
    if synced.await.is_err() {
        // The control loop has ended, and says why.
        return Ok(());
    }
    if sysctls_are_missing {
        sysctl::apply(&effective.conntrack);
    }
    if effective.take_over_kube_proxy {
        crate::takeover::run(alarm, cancel.clone()).await?;
    }
    cancel.cancelled().await;
    Ok(())
}
