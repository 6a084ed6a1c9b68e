//! The overlay's loop: the one owner of the tunnel devices, their routes, neighbors and FDB entries.
//!
//! Every event, every foreign change in the kernel and every audit leads to the same turn ([`turn`]). The loop has a
//! thread of its own, since it blocks on the kernel. The tunnel stays in place when the loop ends.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use object_source::api::ApiClient;
use service_model::ObjectEvent;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{Concern, Config, Kernel, Monitor, Names, Plan, Preferences, RuleOptions};

mod cache;
mod condition;
mod files;
mod flannel;
mod plugins;
pub mod probes;
mod problem_log;
mod publish;
mod publisher;
mod reconciler;
mod table;
mod turn;

use crate::features::links::{self, Found, LinkFeature};
use crate::metrics::Metrics;
use publish::Publication;
use publisher::NodePublisher;
use reconciler::Reconciler;
use table::OverlayTable;
use turn::Overlay;

/// Batching interval of foreign changes.
const SETTLE: Duration = Duration::from_millis(3);
/// Longest wait of the listener between two checks for cancellation.
const LISTEN: Duration = Duration::from_millis(500);

/// Events of all Nodes.
pub type NodeEvents = mpsc::Receiver<ObjectEvent<service_model::Node>>;

/// Configuration of the loop.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// The overlay of the cluster.
    pub config: Config,
    /// The operator's choice of the interface.
    pub preferences: Preferences,
    /// Names of annotations.
    pub names: Names,
    /// This node.
    pub own: Arc<str>,
    /// Derive the VTEPs of peers without annotations from their names and addresses (manifest folders).
    pub infer: bool,
    /// What the nftables table does; its masquerading is written to subnet.env as `FLANNEL_IPMASQ`.
    pub rules: RuleOptions,
    /// Set the owner flag of the table, so that a foreign flush passes over it.
    pub own_tables: bool,
    /// Set the condition `NetworkUnavailable`.
    pub set_condition: bool,
    /// File to write networks and MTU to for the CNI plugin; empty for none.
    pub subnet_file: PathBuf,
    /// File to write a CNI configuration to.
    pub cni_conf: Option<PathBuf>,
    /// Where the plugins are that the CNI configuration needs; `None`: do not look.
    pub cni_bin_dir: Option<PathBuf>,
    /// File that keeps the peers for a restart; empty for none.
    pub cache: PathBuf,
}

/// State of the overlay after a turn, for health endpoints and probes.
#[derive(Clone, Debug, Default)]
pub struct OverlayStatus {
    /// Whether the kernel has been as planned at least once, by a complete list of Nodes.
    pub ready: bool,
    /// The plan in force.
    pub plan: Arc<Plan>,
    /// Nodes kept as peers although the latest list, which lost too many, lacks them.
    pub held: Vec<Arc<str>>,
    /// Why the kernel is not as planned.
    pub trouble: Option<String>,
    /// Steps that repaired foreign changes so far.
    pub repairs: u64,
}

/// The latest [`OverlayStatus`], shared with readers.
pub type SharedOverlayStatus = Arc<ArcSwap<OverlayStatus>>;

/// Where the loop reports.
struct Reports {
    status: SharedOverlayStatus,
    metrics: Arc<Metrics>,
}

/// Starts the loop on a thread of its own and, with a client, the task that writes to the API server. Both end when
/// canceled; the tunnel stays.
pub fn start(
    mut config: OverlayConfig,
    client: Option<ApiClient>,
    nodes: NodeEvents,
    status: SharedOverlayStatus,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> Result<oneshot::Receiver<Result<()>>> {
    if let missing @ (Found::No(_) | Found::Untried(_)) = links::nexthop_objects() {
        let instead = LinkFeature::NexthopObjects.instead();
        tracing::info!(?missing, instead, "nexthop objects are not available");
        config.config.nexthops_above = usize::MAX;
    }
    if let (Some(_), Some(folder)) = (&config.cni_conf, &config.cni_bin_dir) {
        plugins::check(folder);
    }
    let (publication, wanted) = watch::channel(Publication::default());
    let reports = Reports { status, metrics };
    if let Some(client) = client {
        let own = config.own.to_string();
        tokio::spawn(publish::run(
            client,
            own,
            config.set_condition,
            wanted,
            cancel.clone(),
        ));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the runtime of the overlay")?;
    let (sender, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("overlay".into())
        .spawn(move || {
            let _ = sender.send(runtime.block_on(run(config, nodes, publication, reports, cancel)));
        })
        .context("starting the thread of the overlay")?;
    Ok(ended)
}

async fn run(
    config: OverlayConfig,
    mut nodes: NodeEvents,
    publication: watch::Sender<Publication>,
    reports: Reports,
    cancel: CancellationToken,
) -> Result<()> {
    let kernel = Kernel::open().context("opening an rtnetlink socket")?;
    let devices = Arc::new(ArcSwap::from_pointee(Concern::default()));
    let foreign = listen(&kernel, devices.clone(), cancel.clone())?;
    let table_changed = Arc::new(Notify::new());
    let table = OverlayTable::open(&config, table_changed.clone(), cancel.clone())?;
    let (masquerading, families) = watch::channel(Vec::new());
    tokio::spawn(flannel::run(families, cancel.clone()));
    let config = Arc::new(config);
    let mut overlay = Overlay::new(
        config.clone(),
        Reconciler::new(config.clone(), kernel, devices, reports.metrics.clone()),
        table,
        NodePublisher::new(config, publication),
        masquerading,
        reports,
    );
    let mut due = true;
    loop {
        if due {
            overlay.turn(Instant::now());
        }
        due = true;
        let wake = overlay.due(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            event = nodes.recv() => {
                let Some(event) = event else { break };
                // A kubelet updates its Node every few minutes, mostly without a change that matters here.
                due = overlay.on_event(event);
                overlay.reconciler.skip_observation();
                while let Ok(event) = nodes.try_recv() {
                    due |= overlay.on_event(event);
                }
            }
            () = foreign.notified() => {
                tokio::time::sleep(SETTLE).await;
                overlay.foreign_change = true;
            }
            () = table_changed.notified() => overlay.table.invalidate(),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
    Ok(())
}

/// The devices whose changes matter at present.
type Devices = Arc<ArcSwap<Concern>>;

/// Listens on a thread of its own, in the same network namespace.
fn listen(kernel: &Kernel, devices: Devices, cancel: CancellationToken) -> Result<Arc<Notify>> {
    let mut monitor =
        Monitor::open(kernel.port()).context("listening for changes of links and routes")?;
    let foreign = Arc::new(Notify::new());
    let notify = foreign.clone();
    let work = move || {
        while !cancel.is_cancelled() {
            match monitor.wait(LISTEN, || devices.load_full()) {
                Ok(false) => {}
                Ok(true) => notify.notify_one(),
                Err(error) => {
                    tracing::warn!(%error, "cannot read notifications of links and routes; comparing twice a second instead");
                    notify.notify_one();
                    std::thread::sleep(LISTEN);
                }
            }
        }
    };
    std::thread::Builder::new()
        .name("rt-monitor".into())
        .spawn(work)
        .context("starting the listener")?;
    Ok(foreign)
}
