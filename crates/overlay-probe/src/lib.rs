//! Measures the overlay: which packets reach other nodes, and why the others do not.
//!
//! Each node probes a few peers in every round, over the host path and through the tunnel ([`measure`]), answers the
//! probes of its peers ([`responder`]), and reports a failure when several rounds agree ([`rounds`]): in the log, as
//! metrics, as an Event of the Node, and to `portolan doctor` on this node ([`doctor`]). A [`Measurement`] leads to a
//! [`PeerVerdict`]; both are values. Packets are carried whether or not this crate runs.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::VecDeque;
use std::net::IpAddr;
use std::panic::resume_unwind;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;
use vxlan_overlay::TABLE;

mod bridge;
mod counters;
mod debouncer;
mod describe;
mod directory;
pub mod doctor;
mod environment;
mod finding;
mod firewall;
mod forwarding;
pub mod local_socket;
mod measure;
mod measurement;
mod offload;
mod ping;
mod pod_packet;
mod remedy;
mod request;
mod responder;
mod rounds;
mod trace;
mod verdict;
mod wire;

pub use environment::{Environment, LegacyIptables, Observer, ProbeEvent, RoundSummary};
pub use finding::{Finding, ProbeStatus, SharedProbeStatus};
pub use firewall::forward_chains;
pub use forwarding::Forwarding;
pub use measurement::{Measurement, PacketOutcome, Paths, Sizes};
pub use verdict::{Leg, PeerVerdict};

use directory::{Directory, Target};

/// Nonces of received probes to remember.
const REMEMBERED: usize = 4096;

/// How to probe.
#[derive(Clone, Debug)]
pub struct ProbeConfig {
    /// Name of this node.
    pub own: Arc<str>,
    /// UDP and TCP port of the responders, the same on all nodes.
    pub port: u16,
    /// Time between two rounds.
    pub interval: Duration,
}

/// Probes until canceled. A panic in any task of the probes is a panic of this future.
pub async fn run(config: ProbeConfig, environment: Environment, cancel: CancellationToken) {
    let shared = Arc::new(Shared::new(config, environment));
    tokio::join!(
        responder::run(shared.clone(), cancel.clone()),
        doctor::serve(shared.clone(), cancel.clone()),
        rounds::run(shared.clone(), cancel.clone()),
    );
}

/// The result of a task, or `None` if it was aborted. A panic of the task continues here.
fn result_of<T>(end: Result<T, JoinError>) -> Option<T> {
    let error = match end {
        Ok(result) => return Some(result),
        Err(error) => error,
    };
    let panic = error.try_into_panic().ok()?;
    resume_unwind(panic)
}

/// State shared by rounds, responder and doctor.
struct Shared {
    config: ProbeConfig,
    environment: Environment,
    /// The directory, made from the plan that it holds.
    directory: Mutex<Arc<Directory>>,
    /// Nonces received through the tunnel, with the address of the sending device.
    received: Mutex<VecDeque<(IpAddr, u64)>>,
    kernel: Mutex<Option<nft::Kernel>>,
    traces: Mutex<trace::Traces>,
}

impl Shared {
    fn new(config: ProbeConfig, environment: Environment) -> Self {
        Shared {
            config,
            environment,
            directory: Mutex::default(),
            received: Mutex::default(),
            kernel: Mutex::default(),
            traces: Mutex::default(),
        }
    }

    /// The directory of the plan in force.
    fn directory(&self) -> Arc<Directory> {
        let plan = (self.environment.plan)();
        let mut directory = lock(&self.directory);
        if !directory.is_of(&plan) {
            *directory = Arc::new(Directory::of(&plan));
        }
        directory.clone()
    }

    /// Remembers that a probe of this peer arrived through the tunnel.
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

    /// Counts the VXLAN packets received from this peer; `None` where nothing counts them.
    fn counted(&self, peer: &Target) -> Option<u64> {
        let mut kernel = lock(&self.kernel);
        if kernel.is_none() {
            *kernel = nft::Kernel::open_to_read(TABLE.into()).ok();
        }
        let open = kernel.as_mut()?;
        let mut all = None;
        for (set, key) in &peer.arrivals {
            match open.counter(peer.family, set, key) {
                Ok(Some(packets)) => *all.get_or_insert(0) += packets,
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "cannot read VXLAN packet counters");
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

/// Ignores poisoning: no code path leaves a value behind these locks half-written.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
