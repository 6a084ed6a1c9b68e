//! The overlay's loop: the one owner of the tunnel devices, their routes, neighbors and FDB entries.
//!
//! Every event, every foreign change in the kernel and every audit leads to the same round ([`round`]). The loop has a
//! thread of its own, since it blocks on the kernel. The tunnel stays in place when the loop ends.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use object_source::api::ApiClient;
use service_model::ObjectEvent;
use tokio::runtime::Handle;
use tokio::sync::{Notify, mpsc, watch};
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{
    Concern, Config, Kernel, KernelError, Monitor, Names, Plan, Preferences, RuleOptions,
};

mod address_change;
mod cache;
mod condition;
pub mod encryption;
mod files;
mod flannel;
mod plugins;
pub mod probes;
mod problem_log;
mod publish;
mod publisher;
mod reconciler;
mod round;
mod table;

use crate::events::Recorder;
use crate::features::links::{self, Found, LinkFeature};
use crate::metrics::Metrics;
use crate::parts::Parts;
use encryption::{Encryption, EncryptionConfig, EncryptionStatus};
use publish::Publication;
use publisher::NodePublisher;
use reconciler::Reconciler;
use round::Overlay;
use table::OverlayTable;

/// Batching interval of foreign changes.
const SETTLE: Duration = Duration::from_millis(3);

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
    /// Set the owner flag of the table, so that a foreign flush does not remove it.
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
    /// Encryption between nodes.
    pub encryption: EncryptionConfig,
}

/// State of the overlay after a round, for health endpoints and probes.
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
    /// The state of the encryption.
    pub encryption: Arc<EncryptionStatus>,
}

impl OverlayStatus {
    /// What keeps pods from being reached, as far as this node knows: `/readyz` and `portolan doctor` say the same.
    pub fn faults(&self) -> Vec<String> {
        let problems = self
            .plan
            .problems
            .iter()
            .filter(|problem| problem.cuts_off());
        let problems = problems.map(ToString::to_string);
        let mut faults: Vec<String> = self.trouble.iter().cloned().chain(problems).collect();
        faults.extend(self.encryption.faults());
        if !self.ready && faults.is_empty() {
            faults.push("the Nodes are not listed yet".to_owned());
        }
        faults
    }
}

/// The latest [`OverlayStatus`], shared with readers.
pub type SharedOverlayStatus = Arc<ArcSwap<OverlayStatus>>;

/// Where the loop reports.
pub(crate) struct OverlayReports {
    /// Receives the state after each round.
    pub(crate) status: SharedOverlayStatus,
    /// Counts peers, problems and repairs.
    pub(crate) metrics: Arc<Metrics>,
    /// Creates Events of this Node.
    pub(crate) recorder: Recorder,
    /// Receives the names of Nodes that claim the same.
    pub(crate) contenders: watch::Sender<BTreeSet<Arc<str>>>,
}

/// Starts the loop, its monitors, the removal of flannel's leftovers and, with a client, the task that writes to the API
/// server. All end when canceled; the tunnel stays.
pub(crate) fn start(
    parts: &Parts,
    mut config: OverlayConfig,
    client: Option<ApiClient>,
    nodes: NodeEvents,
    reports: OverlayReports,
) -> Result<()> {
    if let missing @ (Found::No(_) | Found::Untried(_)) = links::nexthop_objects() {
        let instead = LinkFeature::NexthopObjects.instead();
        tracing::info!(?missing, instead, "nexthop objects are not available");
        config.config.nexthops_above = usize::MAX;
    }
    if let (Some(_), Some(folder)) = (&config.cni_conf, &config.cni_bin_dir) {
        plugins::check(folder);
    }
    let config = Arc::new(config);
    let (publication, wanted) = watch::channel(Publication::default());
    let (runtime, cancel) = (Handle::current(), parts.cancel());
    if let Some(client) = client {
        let own = config.own.to_string();
        let publish = publish::run(client, own, config.set_condition, wanted);
        parts.task("overlay-publisher", &runtime, publish);
    }
    let (masquerading, families) = watch::channel(Vec::new());
    let leftovers = flannel::run(families, cancel.clone());
    parts.task("flannel-leftovers", &runtime, leftovers);
    let kernel = Kernel::open().context("cannot open an rtnetlink socket")?;
    let devices = Arc::new(ArcSwap::from_pointee(Concern::default()));
    let foreign = listen(parts, &kernel, devices.clone())?;
    let (table, table_changed) = OverlayTable::open(parts, &config)?;
    let encryption = Encryption::open(config.clone(), Instant::now())?;
    let reconciler = Reconciler::new(config.clone(), kernel, devices, reports.metrics.clone());
    let overlay = Overlay::new(
        config.clone(),
        (reconciler, encryption),
        table,
        NodePublisher::new(config, publication),
        masquerading,
        reports,
    );
    let work = move || run(overlay, nodes, foreign, table_changed, cancel);
    parts.runtime("overlay", work)?;
    Ok(())
}

async fn run(
    mut overlay: Overlay,
    mut nodes: NodeEvents,
    foreign: Arc<Notify>,
    table_changed: Arc<Notify>,
    cancel: CancellationToken,
) -> Result<()> {
    let mut due = true;
    loop {
        if due {
            overlay.round(Instant::now());
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
                while let Ok(event) = nodes.try_recv() {
                    due |= overlay.on_event(event);
                }
                if due {
                    overlay.reconciler.skip_observation();
                }
            }
            () = foreign.notified() => {
                tokio::time::sleep(SETTLE).await;
                overlay.foreign_change = true;
                overlay.reconciler.observe_next();
            }
            () = table_changed.notified() => overlay.table.invalidate(),
            () = tokio::time::sleep_until(wake.into()) => due = overlay.is_due(Instant::now()),
        }
    }
    Ok(())
}

/// The devices whose changes matter at present.
type Devices = Arc<ArcSwap<Concern>>;

/// Notifies of foreign changes in the caller's network namespace.
fn listen(parts: &Parts, kernel: &Kernel, devices: Devices) -> Result<Arc<Notify>> {
    let mut monitor = Monitor::open(kernel.port())
        .context("cannot subscribe to changes of links, addresses and routes")?;
    let foreign = Arc::new(Notify::new());
    let notify = foreign.clone();
    let wait = move |limit| {
        let changed = monitor.wait(limit, || devices.load_full())?;
        Ok::<_, KernelError>(changed.then_some(()))
    };
    let notify = move |_| {
        notify.notify_one();
        true
    };
    parts.monitor("rt-monitor", wait, notify)?;
    Ok(foreign)
}
