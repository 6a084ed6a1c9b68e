//! Measures the overlay: what gets to other nodes and what does not, and why.
//!
//! Each node asks a few peers at a time, over the host path and through the tunnel ([`measure`]), answers theirs
//! ([`responder`]), and says what is wrong when several rounds agree ([`rounds`]): in the log, as metrics, as an event
//! of the Node, and to whoever asks on this node ([`doctor`]). What the answers mean is decided in
//! [`vxlan_overlay::Verdict`]. Nothing here is needed for packets to be carried: what fails is said and left.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use nft::{Bytes, KernelConfig};
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{ARRIVED, TABLE};

mod ask;
mod counters;
mod directory;
pub mod doctor;
pub mod firewall;
mod measure;
pub mod offload;
mod ping;
mod remedy;
mod responder;
mod rounds;
mod trace;
mod wire;

use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::overlay::{OverlayStatus, SharedOverlayStatus};
use directory::{Directory, Target};

/// Probes that are remembered to have arrived.
const REMEMBERED: usize = 4096;

/// How to probe.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// This node.
    pub own: Arc<str>,
    /// UDP and TCP port of the answerers, the same on all nodes.
    pub port: u16,
    /// Between two rounds.
    pub interval: Duration,
}

/// What is wrong with the way to a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The peer.
    pub node: Arc<str>,
    /// Its family.
    pub family: nft::Family,
    /// One word.
    pub kind: &'static str,
    /// In words.
    pub text: String,
}

/// What the probes have found so far.
#[derive(Clone, Debug, Default)]
pub struct ProbeStatus {
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What was done about it on this node.
    pub remedies: Vec<String>,
    /// What of this node's rules keeps pods from each other though nodes reach each other.
    pub notes: Vec<String>,
}

/// Published whole by the rounds.
pub type SharedProbeStatus = Arc<ArcSwap<ProbeStatus>>;

/// Where the probes tell others how it goes.
pub struct Reports {
    /// What was found.
    pub status: SharedProbeStatus,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells the cluster.
    pub recorder: Recorder,
}

/// Starts probing on a thread of its own, until cancelled.
pub fn start(
    config: ProbeConfig,
    overlay: SharedOverlayStatus,
    reports: Reports,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("making the runtime of the probes")?;
    let shared = Arc::new(Shared::new(config, overlay));
    let work = async move || {
        tokio::join!(
            responder::run(shared.clone(), cancel.clone()),
            doctor::serve(shared.clone(), reports.status.clone(), cancel.clone()),
            rounds::run(shared.clone(), reports, cancel.clone()),
        );
    };
    std::thread::Builder::new()
        .name("probe".into())
        .spawn(move || {
            runtime.block_on(work());
            // A look at the ruleset that goes on is not waited for.
            runtime.shutdown_background();
        })
        .context("starting the thread of the probes")?;
    Ok(())
}

/// What those who ask and those who answer both need.
struct Shared {
    config: ProbeConfig,
    overlay: SharedOverlayStatus,
    /// Made from that status.
    directory: Mutex<(Option<Arc<OverlayStatus>>, Arc<Directory>)>,
    /// Nonces that arrived through the tunnel, and from which device's address.
    received: Mutex<VecDeque<(IpAddr, u64)>>,
    kernel: Mutex<Option<nft::Kernel>>,
    traces: Mutex<trace::Traces>,
}

impl Shared {
    fn new(config: ProbeConfig, overlay: SharedOverlayStatus) -> Self {
        Shared {
            config,
            overlay,
            directory: Mutex::default(),
            received: Mutex::default(),
            kernel: Mutex::default(),
            traces: Mutex::default(),
        }
    }

    /// Who is where, by the plan in force.
    fn directory(&self) -> Arc<Directory> {
        let status = self.overlay.load_full();
        let mut known = lock(&self.directory);
        let (of, directory) = &mut *known;
        let same = of
            .as_ref()
            .is_some_and(|of| Arc::ptr_eq(of, &status) || of.plan == status.plan);
        if !same {
            *directory = Arc::new(Directory::of(&status.plan));
        }
        *of = Some(status);
        directory.clone()
    }

    /// A probe of this peer has arrived through the tunnel.
    fn remember(&self, tunnel: IpAddr, nonce: u64) {
        let mut received = lock(&self.received);
        if received.len() >= REMEMBERED {
            received.pop_front();
        }
        received.push_back((tunnel, nonce));
    }

    fn has_received(&self, tunnel: IpAddr, nonce: u64) -> bool {
        lock(&self.received).contains(&(tunnel, nonce))
    }

    /// VXLAN packets that arrived from this peer; `None` if nobody counts them.
    fn counted(&self, peer: &Target) -> Option<u64> {
        let mut kernel = lock(&self.kernel);
        if kernel.is_none() {
            let config = KernelConfig {
                table: TABLE.into(),
                owner: false,
            };
            *kernel = nft::Kernel::open(config).ok();
        }
        let open = kernel.as_mut()?;
        let mut all = None;
        for address in &peer.hosts {
            let key = Bytes::new().address(*address);
            match open.packets_counted(peer.family, &ARRIVED.into(), &key) {
                Ok(Some(packets)) => *all.get_or_insert(0) += packets,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "VXLAN packets cannot be counted");
                    *kernel = None;
                    return None;
                }
            }
        }
        all
    }

    fn traces(&self) -> MutexGuard<'_, trace::Traces> {
        lock(&self.traces)
    }
}

/// Values behind these locks are whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
