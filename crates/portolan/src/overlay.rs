//! The overlay's loop: the one owner of the tunnel devices and of what hangs on them.
//!
//! Nodes in, steps out: every event, every foreign change in the kernel and every audit leads to the same turn, which
//! observes, plans, and carries out the difference until there is none. It runs on a thread of its own, since the
//! kernel is asked and waited for; nothing it does when it ends can make the tunnel go away.

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

pub mod args;
mod cache;
mod condition;
mod files;
mod flannel;
pub mod probes;
mod publish;
mod table;
mod turn;

use crate::features::links::{self, Found, LinkFeature};
use crate::metrics::Metrics;
use args::OverlayArgs;
use publish::Publication;
use table::OverlayTable;
use turn::Overlay;

/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(3);
/// How long the listener goes without looking whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(500);

/// What is told to the loop about Nodes.
pub type NodeEvents = mpsc::Receiver<ObjectEvent<service_model::Node>>;

/// What the loop needs to know besides the nodes.
#[derive(Clone, Debug)]
pub struct OverlayConfig {
    /// The overlay of the cluster.
    pub config: Config,
    /// The operator's word about the interface.
    pub preferences: Preferences,
    /// Names of annotations.
    pub names: Names,
    /// This node.
    pub own: Arc<str>,
    /// Peers without annotations are worked out from their names and addresses (folders of manifests).
    pub infer: bool,
    /// What the nftables table is for; its masquerading is told as `FLANNEL_IPMASQ`.
    pub rules: RuleOptions,
    /// Own the table, so that nobody else's flush can take it away.
    pub own_tables: bool,
    /// Set the condition `NetworkUnavailable`.
    pub set_condition: bool,
    subnet_file: PathBuf,
    cni_conf: Option<PathBuf>,
    cache: PathBuf,
}

impl OverlayConfig {
    /// What the flags mean for the node `own`.
    pub fn new(
        args: &OverlayArgs,
        cluster: &[ipnet::IpNet],
        own: Arc<str>,
        infer: bool,
    ) -> Result<Self> {
        let given = args.meaningless.given();
        if !given.is_empty() {
            tracing::info!(
                flags = given.join(" "),
                "these flags of flannel's mean nothing here"
            );
        }
        Ok(OverlayConfig {
            config: args.config(cluster).context("configuring the overlay")?,
            preferences: args.preferences(),
            names: args.names()?,
            own,
            infer,
            rules: args.rules(),
            own_tables: true,
            set_condition: args.set_node_network_unavailable,
            subnet_file: args.subnet_file.clone(),
            cni_conf: args.cni_conf.clone(),
            cache: if infer {
                PathBuf::new()
            } else {
                args.overlay_cache.clone()
            },
        })
    }
}

/// State of the overlay at one moment, for probes and metrics.
#[derive(Clone, Debug, Default)]
pub struct OverlayStatus {
    /// Everything planned is in the kernel, from a complete list.
    pub ready: bool,
    /// The plan in force.
    pub plan: Arc<Plan>,
    /// Names of nodes that a list left out implausibly, and that are served on.
    pub held: Vec<Arc<str>>,
    /// What keeps the kernel from being as planned.
    pub trouble: Option<String>,
    /// Steps carried out so far to undo what others did.
    pub repairs: u64,
}

/// Published whole by the loop.
pub type SharedOverlayStatus = Arc<ArcSwap<OverlayStatus>>;

/// Where the loop tells others how it goes.
struct Reports {
    status: SharedOverlayStatus,
    metrics: Arc<Metrics>,
}

/// Starts the loop on a thread of its own, and with a client the task that publishes. Ends when cancelled; the tunnel
/// stays.
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
        tracing::info!(?missing, instead, "no nexthop objects");
        config.config.nexthops_above = usize::MAX;
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
    let (masquerading, stand) = watch::channel(Vec::new());
    tokio::spawn(flannel::run(stand, cancel.clone()));
    let mut overlay = Overlay::new(
        config,
        kernel,
        table,
        publication,
        masquerading,
        reports,
        devices,
    );
    overlay.recall();
    let mut due = true;
    loop {
        if due {
            overlay.turn(Instant::now());
        }
        due = true;
        let wake = overlay.wake(Instant::now());
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            event = nodes.recv() => {
                let Some(event) = event else { break };
                // A kubelet writes its Node every few minutes: nothing that matters here.
                due = overlay.take(event);
                overlay.look = false;
                while let Ok(event) = nodes.try_recv() {
                    due |= overlay.take(event);
                }
            }
            () = foreign.notified() => {
                tokio::time::sleep(SETTLE).await;
                overlay.heard = true;
            }
            () = table_changed.notified() => overlay.table.doubt(),
            () = tokio::time::sleep_until(wake.into()) => {}
        }
    }
    Ok(())
}

/// Whose changes matter at present.
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
                    tracing::warn!(%error, "changes of links and routes unreadable: comparing twice a second instead");
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
