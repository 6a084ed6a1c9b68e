//! Follows the configuration file: a change of it, or SIGHUP, applies what can be applied to the running daemon.
//!
//! A file that cannot be used is reported, and the earlier configuration stays in force. A ConfigMap volume is followed
//! as well: kubelet renames its link `..data`, in the directory of the file.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use kube_proxy_config::Resolved;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use service_model::NodeConfig;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, watch};

use super::Configuration;
use crate::configz::Configz;
use crate::parts::Parts;
use crate::{log, memory, sysctl};

/// Time for a writer to finish after its first change.
const SETTLE: Duration = Duration::from_millis(100);

/// Fields that a running daemon takes over; all others need a restart.
const LIVE: &[&str] = &[
    "allowedExternalIPs",
    "clusterCIDR",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpBeLiberal",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.udpStreamTimeout",
    "conntrack.udpTimeout",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "detectLocalMode",
    "featureGates",
    "iptables.localhostNodePorts",
    "iptables.masqueradeAll",
    "logLevel",
    "logging.verbosity",
    "mode",
    "nftables.masqueradeAll",
    "nodePortAddresses",
    "oomScoreAdj",
];

/// What a change of the file reaches.
pub struct Live {
    /// Passes the configuration of Services on.
    pub node: watch::Sender<NodeConfig>,
    /// Shows the configuration.
    pub configz: Arc<Configz>,
}

/// Starts following the file, and SIGHUP.
pub fn follow(parts: &Parts, configuration: &Configuration, live: Live) -> Result<()> {
    let mut hangup = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
    let watch = Watch::of(configuration.line.config_file().as_deref());
    let mut follower = Follower {
        start: configuration.resolved.clone(),
        last: configuration.clone(),
        live,
    };
    parts.task("configuration", &Handle::current(), async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => tracing::info!("SIGHUP: reading the configuration again"),
                () = watch.changed() => tokio::time::sleep(SETTLE).await,
            }
            follower.read_again();
        }
    });
    Ok(())
}

/// Notifications about the directory of the file.
struct Watch {
    _watcher: Option<RecommendedWatcher>,
    arrived: Arc<Notify>,
}

impl Watch {
    fn of(file: Option<&Path>) -> Watch {
        let arrived = Arc::new(Notify::new());
        let notify = arrived.clone();
        let watcher = file.and_then(|file| {
            let watching = notify::recommended_watcher(move |_| notify.notify_one());
            let watching = watching.and_then(|mut watcher| {
                watcher.watch(&directory(file), RecursiveMode::NonRecursive)?;
                Ok(watcher)
            });
            watching
                .inspect_err(|error| {
                    tracing::warn!(%error, ?file, "cannot watch the configuration file; send SIGHUP after a change");
                })
                .ok()
        });
        Watch {
            _watcher: watcher,
            arrived,
        }
    }

    async fn changed(&self) {
        self.arrived.notified().await;
    }
}

fn directory(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

struct Follower {
    /// The configuration of the start, by which runs what needs a restart.
    start: Resolved,
    last: Configuration,
    live: Live,
}

impl Follower {
    fn read_again(&mut self) {
        match super::resolve(&self.last.line) {
            Ok(resolved) => self.apply(resolved),
            Err(error) => {
                for problem in format!("{error:#}").lines() {
                    tracing::error!("configuration: {problem}");
                }
                tracing::error!("the configuration cannot be used; the earlier one stays in force");
            }
        }
    }

    fn apply(&mut self, new: Resolved) {
        let last = std::mem::replace(&mut self.last.resolved, new);
        let new = &self.last.resolved;
        let changes = last.changes(new);
        if changes.is_empty() {
            return;
        }
        let (live, other): (Vec<&str>, Vec<&str>) =
            changes.into_iter().partition(|field| LIVE.contains(field));
        let mut restart = self.start.changes(new);
        restart.retain(|field| !LIVE.contains(field) && !other.is_empty());
        let has_overlay = self.start.effective.overlay.is_some();
        if has_overlay && live.contains(&"clusterCIDR") {
            restart.push("clusterCIDR (of the overlay)");
        }
        self.take_over(&last);
        self.last.log();
        let documents = self.last.resolved.documents();
        self.live.configz.apply(&documents, LIVE);
        if !live.is_empty() {
            tracing::info!(fields = live.join(" "), "applied the changed configuration");
        }
        if !restart.is_empty() {
            tracing::warn!(
                fields = restart.join(" "),
                "these changes of the configuration need a restart"
            );
        }
    }

    /// Applies what differs from the last configuration.
    fn take_over(&self, last: &Resolved) {
        let (old, new) = (&last.effective, &self.last.resolved.effective);
        self.live.node.send_if_modified(|node| {
            let next = NodeConfig {
                api_server: node.api_server,
                ..super::node(new, node.node_name.clone())
            };
            let differs = *node != next;
            *node = next;
            differs
        });
        if old.logging.filter != new.logging.filter
            && let Err(error) = log::set_filter(&new.logging.filter)
        {
            tracing::warn!(%error, "cannot change the log level");
        }
        if old.conntrack != new.conntrack && new.service_proxy {
            sysctl::apply(&new.conntrack);
        }
        if old.oom_score_adj != new.oom_score_adj {
            memory::set_oom_score_adj(new.oom_score_adj);
        }
    }
}
