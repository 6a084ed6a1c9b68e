//! The overlay's loop: the one owner of the tunnel devices and of what hangs on them.
//!
//! Nodes in, steps out: every event, every foreign change in the kernel and every audit leads to the same turn, which
//! observes, plans, and carries out the difference until there is none. It runs on a thread of its own, since the
//! kernel is asked and waited for; nothing it does when it ends can make the tunnel go away.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use arc_swap::ArcSwap;
use kube::Client;
use service_model::ObjectEvent;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{
    Config, Deletions, Facts, HOLD, Kernel, Monitor, Names, Node, Observed, Operation, Peers, Plan,
    Preferences, Problem, Refused, RuleOptions, Tunnel, Watched, difference, plan, stale, tables,
};

pub mod args;
mod cache;
mod files;
mod publish;
mod table;

use crate::metrics::Metrics;
use args::OverlayArgs;
use publish::Publication;
use table::OverlayTable;
pub use table::uninstall;

/// Passes of one turn: a device is made in the first, filled in the second, and seen to be right in the third.
const PASSES: usize = 5;
/// Changes that come together are looked at together.
const SETTLE: Duration = Duration::from_millis(3);
/// How often everything is compared without having been told to.
const AUDIT: Duration = Duration::from_secs(30);
/// After a turn that did not reach its end: at first; twice as long each time, 32 s at most.
const RETRY: Duration = Duration::from_millis(500);
const MAX_DOUBLINGS: u32 = 6;
/// How long the listener goes without looking whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(500);
/// At most this often is the list of peers written down.
const REMEMBER: Duration = Duration::from_secs(5);
/// Stale entries found at the start are believed up to this number, whatever share of all they are.
const ALWAYS_BELIEVED: usize = 2;

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
    pub plan: Plan,
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
    config: OverlayConfig,
    client: Option<Client>,
    nodes: NodeEvents,
    status: SharedOverlayStatus,
    metrics: Arc<Metrics>,
    cancel: CancellationToken,
) -> Result<oneshot::Receiver<Result<()>>> {
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
    let devices = Arc::new(ArcSwap::from_pointee(None));
    let foreign = listen(&kernel, devices.clone(), cancel.clone())?;
    let table_changed = Arc::new(Notify::new());
    let table = OverlayTable::open(config.own_tables, table_changed.clone(), cancel.clone())?;
    let mut overlay = Overlay::new(config, kernel, table, publication, reports, devices);
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

/// Numbers of the devices whose changes matter; `None`: any.
type Devices = Arc<ArcSwap<Option<BTreeSet<u32>>>>;

/// Listens on a thread of its own, in the same network namespace.
fn listen(kernel: &Kernel, devices: Devices, cancel: CancellationToken) -> Result<Arc<Notify>> {
    let mut monitor =
        Monitor::open(kernel.port()).context("listening for changes of links and routes")?;
    let foreign = Arc::new(Notify::new());
    let notify = foreign.clone();
    let work = move || {
        while !cancel.is_cancelled() {
            let concerns = |index| {
                devices
                    .load()
                    .as_ref()
                    .as_ref()
                    .is_none_or(|known| known.contains(&index))
            };
            match monitor.wait(LISTEN, concerns) {
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

/// The state of the loop, free of waiting.
struct Overlay {
    config: OverlayConfig,
    kernel: Kernel,
    table: OverlayTable,
    watched: Watched,
    peers: Peers,
    publication: watch::Sender<Publication>,
    reports: Reports,
    devices: Devices,
    /// Since when deletions are held for fear that the list is too short.
    held_since: Option<Instant>,
    /// What an earlier process or daemon left behind has been cleaned up.
    cleaned: bool,
    /// Others have changed something.
    heard: bool,
    /// Look at the kernel in the next turn; if not, it is believed to be as it was left.
    look: bool,
    /// How it was left, where that is known for sure.
    left: Option<Observed>,
    /// The kernel has been as planned at least once.
    ready: bool,
    retry_at: Option<Instant>,
    /// Turns in a row that did not reach their end.
    failures: u32,
    remember_at: Option<Instant>,
    audited: Instant,
    repairs: u64,
    told: BTreeSet<String>,
}

impl Overlay {
    fn new(
        config: OverlayConfig,
        kernel: Kernel,
        table: OverlayTable,
        publication: watch::Sender<Publication>,
        reports: Reports,
        devices: Devices,
    ) -> Self {
        let watched = Watched {
            devices: nft::Family::ALL.map(|family| config.config.device_name(family)),
            can_reach: config.preferences.can_reach,
        };
        Overlay {
            peers: Peers::new(config.names.clone(), config.config.vni),
            config,
            kernel,
            table,
            watched,
            publication,
            reports,
            devices,
            held_since: None,
            cleaned: false,
            heard: false,
            look: true,
            left: None,
            ready: false,
            retry_at: None,
            failures: 0,
            remember_at: None,
            audited: Instant::now(),
            repairs: 0,
            told: BTreeSet::new(),
        }
    }

    /// Starts from the peers of an earlier run. They are no complete list: nothing is deleted for them.
    fn recall(&mut self) {
        if self.config.cache.as_os_str().is_empty() {
            return;
        }
        match cache::read(&self.config.cache) {
            Ok(nodes) => {
                for node in nodes {
                    self.peers.apply(node);
                }
            }
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "remembered peers are of no use"
            ),
        }
    }

    /// Whether anything has changed.
    fn take(&mut self, event: ObjectEvent<service_model::Node>) -> bool {
        let now = Instant::now();
        let changed = match event {
            ObjectEvent::Apply(node) => self.peers.apply(known(node)),
            ObjectEvent::Delete(name) => self.peers.delete(&name.name),
            ObjectEvent::Reset { objects, invalid } => {
                let kept = invalid
                    .iter()
                    .filter_map(|name| self.peers.get(&name.name).cloned());
                let kept: Vec<Node> = kept.collect();
                let nodes = objects.into_iter().map(known).chain(kept).collect();
                self.peers.reset(nodes, &self.config.own, now);
                true
            }
        };
        if changed {
            self.remember_at.get_or_insert(now + REMEMBER);
        }
        changed
    }

    /// When to turn at the latest.
    fn wake(&self, now: Instant) -> Instant {
        let audit = self.audited + AUDIT;
        [self.retry_at, self.remember_at]
            .into_iter()
            .flatten()
            .fold(audit, Instant::min)
            .max(now)
    }

    /// Makes the kernel as planned, and tells how it went.
    fn turn(&mut self, now: Instant) {
        self.peers.expire(now);
        if self.remember_at.is_some_and(|at| at <= now) {
            self.remember_at = None;
            self.remember();
        }
        let repairing = std::mem::take(&mut self.heard) && self.ready;
        self.audited = now;
        let result = self.settle(now, repairing);
        self.retry_at = None;
        let (plan, mut trouble) = match result {
            Ok((plan, trouble)) => (plan, trouble),
            Err(error) => (
                self.reports.status.load().plan.clone(),
                Some(format!("{error:#}")),
            ),
        };
        if let Err(error) = self.sync_table(&plan) {
            trouble.get_or_insert(format!("{error:#}"));
        }
        if trouble.is_some() {
            self.retry_at = Some(now + RETRY * 2_u32.pow(self.failures.min(MAX_DOUBLINGS)));
            self.failures = self.failures.saturating_add(1);
        } else {
            self.failures = 0;
        }
        let complete =
            trouble.is_none() && self.peers.is_listed() && plan.tunnels.iter().any(Option::is_some);
        // An interface that is away for a moment must not change what new pods get.
        if complete
            && !plan
                .problems
                .iter()
                .any(|problem| matches!(problem, Problem::NoExternal(_)))
        {
            self.write_files(&plan);
        }
        if complete && !self.ready {
            tracing::info!(
                peers = plan.peers.iter().map(|p| p.len()).max(),
                "pods of other nodes can be reached"
            );
        }
        self.ready |= complete;
        self.tell(&plan, trouble.as_deref());
        self.publish(&plan);
        let peers = plan
            .peers
            .iter()
            .map(|peers| peers.len())
            .max()
            .unwrap_or_default();
        let (problems, held) = (plan.problems.len(), self.peers.held().count());
        self.reports
            .metrics
            .set_overlay(peers, problems, held, complete);
        self.reports.status.store(Arc::new(OverlayStatus {
            ready: self.ready,
            plan,
            held: self.peers.held().cloned().collect(),
            trouble,
            repairs: self.repairs,
        }));
    }

    /// Observes, plans and carries out until nothing is left to do.
    fn settle(&mut self, now: Instant, repairing: bool) -> Result<(Plan, Option<String>)> {
        let mut refused = Vec::new();
        let look = std::mem::replace(&mut self.look, true);
        let mut known = self.left.take().filter(|_| !look);
        let believes = known.is_some();
        for _ in 0..PASSES {
            let observed = match known.take() {
                Some(observed) => observed,
                None => self.kernel.observe(&self.watched)?,
            };
            let plan = self.plan(&observed);
            self.watch(&observed, &plan);
            let (steps, trouble) = self.steps(&plan, &observed, now);
            if steps.is_empty() {
                self.left = self.cleaned.then_some(observed);
                return Ok((plan, trouble.or_else(|| refused.first().map(describe))));
            }
            let started = Instant::now();
            refused = self.kernel.apply(&steps)?;
            let repairs = if repairing { steps.len() } else { 0 };
            self.repairs += repairs as u64;
            self.reports
                .metrics
                .overlay_changed(repairs, started.elapsed());
            tracing::info!(
                steps = steps.len(),
                refused = refused.len(),
                repairing,
                peers = plan.peers.iter().map(|p| p.len()).max(),
                elapsed = ?started.elapsed(),
                "changed the overlay"
            );
            tracing::debug!(?steps, "carried out");
            if refused.is_empty() && self.cleaned && trouble.is_none() {
                self.left = observed.after(&plan.tunnels);
                if self.left.is_some() && believes {
                    return Ok((plan, None));
                }
            }
        }
        let reason = refused
            .first()
            .map_or_else(|| "the kernel's state keeps changing".to_owned(), describe);
        let observed = self.kernel.observe(&self.watched)?;
        Ok((self.plan(&observed), Some(reason)))
    }

    /// The table follows the plan once the list of peers is complete: a filter that does not know all would drop
    /// what is right.
    fn sync_table(&mut self, plan: &Plan) -> Result<()> {
        if !self.peers.is_listed() {
            return Ok(());
        }
        let wanted = tables(&self.config.config, self.config.rules, plan);
        let steps = self
            .table
            .sync(&wanted)
            .context("writing the overlay's nftables table")?;
        if steps > 0 {
            tracing::info!(steps, "changed the overlay's table");
            if self.config.rules.masquerade {
                self.table
                    .remove_flannels()
                    .context("removing flannel's tables")?;
            }
        }
        Ok(())
    }

    fn plan(&self, observed: &Observed) -> Plan {
        let [v4, v6] = &observed.tunnels;
        let facts = Facts {
            config: &self.config.config,
            preferences: &self.config.preferences,
            names: &self.config.names,
            own: &self.config.own,
            infer: self.config.infer,
            found: [v4, v6].map(|tunnel| tunnel.device.as_ref().map(|device| device.mac)),
            surroundings: &observed.surroundings,
        };
        plan(facts, self.peers.nodes())
    }

    /// The steps of both families, and what cannot be done.
    fn steps(
        &mut self,
        plan: &Plan,
        observed: &Observed,
        now: Instant,
    ) -> (Vec<Operation>, Option<String>) {
        let (mut steps, mut trouble) = (Vec::new(), None);
        let deletions = self.deletions(plan, observed, now);
        for (wanted, found) in plan.tunnels.iter().zip(&observed.tunnels) {
            let Some(wanted) = wanted else { continue };
            match difference(wanted, found, deletions) {
                Ok(more) => steps.extend(more),
                Err(mismatch) => trouble = Some(format!("{}: {mismatch}", wanted.device.name)),
            }
        }
        if deletions == Deletions::Allowed && steps.is_empty() {
            self.cleaned = true;
        }
        (steps, trouble)
    }

    /// Nothing is deleted before the list of nodes is complete. What is found at the start and is not of any node
    /// goes then, unless it is most of what there is: then the list is doubted for a while.
    fn deletions(&mut self, plan: &Plan, observed: &Observed, now: Instant) -> Deletions {
        if !self.peers.is_listed() {
            return Deletions::Held;
        }
        if self.cleaned {
            return Deletions::Allowed;
        }
        let implausible = |(wanted, found): (&Option<Tunnel>, &vxlan_overlay::ObservedTunnel)| {
            wanted.as_ref().is_some_and(|wanted| {
                let (stale, all) = stale(wanted, found);
                stale > ALWAYS_BELIEVED.max(all / 2)
            })
        };
        if !plan.tunnels.iter().zip(&observed.tunnels).any(implausible) {
            return Deletions::Allowed;
        }
        let since = *self.held_since.get_or_insert(now);
        match now.saturating_duration_since(since) < HOLD {
            true => Deletions::Held,
            false => Deletions::Allowed,
        }
    }

    /// Which devices' changes matter: ours and those they stand on. While there is no way, any.
    fn watch(&self, observed: &Observed, plan: &Plan) {
        let known = plan
            .tunnels
            .iter()
            .flatten()
            .map(|tunnel| tunnel.device.parent);
        let ours = observed
            .tunnels
            .iter()
            .filter_map(|tunnel| tunnel.device.as_ref())
            .map(|device| device.index);
        let all: BTreeSet<u32> = known.chain(ours).collect();
        let wanted = plan.tunnels.iter().flatten().count();
        let there = observed
            .tunnels
            .iter()
            .filter(|tunnel| tunnel.device.is_some())
            .count();
        let any = wanted == 0
            || there < wanted
            || plan
                .problems
                .iter()
                .any(|p| matches!(p, Problem::NoExternal(_)));
        self.devices.store(Arc::new((!any).then_some(all)));
    }

    /// Each trouble once, and again when it has been away.
    fn tell(&mut self, plan: &Plan, trouble: Option<&str>) {
        let known = plan.problems.iter().filter(|_| self.peers.is_listed());
        let mut now: BTreeSet<String> = known.map(ToString::to_string).collect();
        now.extend(trouble.map(str::to_owned));
        now.extend(self.peers.held().map(|name| {
            format!("node {name} is missing from a list that lost too many: served on")
        }));
        for problem in now.difference(&self.told) {
            tracing::warn!("overlay: {problem}");
        }
        for solved in self.told.difference(&now) {
            tracing::info!("overlay: no more: {solved}");
        }
        self.told = now;
    }

    /// What the Node should say and does not.
    fn publish(&self, plan: &Plan) {
        let Some(own) = self.peers.get(&self.config.own) else {
            return;
        };
        let ends = plan.tunnels.each_ref().map(|tunnel| {
            tunnel.as_ref().map(|tunnel| vxlan_overlay::Vtep {
                mac: tunnel.device.mac,
                public_ip: tunnel.published,
            })
        });
        if ends.iter().all(Option::is_none) {
            return;
        }
        let mut annotations = self.config.names.write(self.config.config.vni, &ends);
        annotations.retain(|name, value| own.annotations.get(name) != Some(value));
        let wish = Publication {
            annotations,
            ready: self.ready,
        };
        self.publication.send_if_modified(|old| {
            let changed = *old != wish;
            *old = wish;
            changed
        });
    }

    fn write_files(&self, plan: &Plan) {
        let write = |path: &std::path::Path, text: Option<String>| {
            let Some(text) = text.filter(|_| !path.as_os_str().is_empty()) else {
                return;
            };
            match files::replace(path, &text) {
                Ok(true) => tracing::info!(?path, "written"),
                Ok(false) => {}
                Err(error) => tracing::warn!(?path, %error, "could not be written"),
            }
        };
        write(
            &self.config.subnet_file,
            files::subnet_env(&self.config.config, plan, self.config.rules.masquerade),
        );
        if let Some(path) = &self.config.cni_conf {
            write(path, files::cni_conf(&self.config.config, plan));
        }
    }

    fn remember(&self) {
        if self.config.cache.as_os_str().is_empty() || !self.peers.is_listed() {
            return;
        }
        let written = cache::text(self.peers.nodes())
            .and_then(|text| files::replace(&self.config.cache, &text).context("writing"));
        if let Err(error) = written {
            tracing::warn!(
                error = format!("{error:#}"),
                "peers could not be remembered"
            );
        }
    }
}

/// A Node as the overlay sees it.
fn known(node: service_model::Node) -> Node {
    Node {
        name: node.name.name,
        pod_cidrs: node.pod_cidrs,
        addresses: node.addresses,
        annotations: node.annotations,
    }
}

fn describe(refused: &Refused) -> String {
    format!(
        "the kernel refused {:?}: {}",
        refused.operation, refused.errno
    )
}
