//! Deletes stale conntrack and affinity entries after a commit, on a thread of its own.
//!
//! The control loop hands over the checks that a commit needs ([`FlowCheck`]s and an [`AffinityCheck`]) and goes on.
//! Checks that arrive meanwhile are batched; a check that failed is retried. [`service_dataplane`] decides what is stale,
//! [`netfilter::Conntrack`] finds and deletes conntrack entries. Only the control loop writes the tables, so stale affinity
//! entries go back to it ([`Forget`]), in pieces that delay no commit. Conntrack entries are checked after that: a flow
//! that ended earlier could come back by its affinity entry.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netfilter::Conntrack;
use nft::{Backend, CommitError, Element, Family, Kernel, KernelConfig, Protocol};
use service_dataplane::conntrack::{FlowCheck, FlowChecks};
use service_dataplane::{AffinityCheck, SyncOutcome, affinity, layout};
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::parts::Parts;

mod challenge;

/// Pause after a failure; a SYN is retransmitted after a second.
const RETRY: Duration = Duration::from_millis(500);
/// Pause after a check of conntrack entries, as a multiple of its duration. Changes meanwhile share the next check: the
/// kernel walks all buckets of its table however few entries match (4 ms for 262,144), which must not add up.
const REST: u32 = 19;
/// Bounds of these pauses; kube-proxy checks once in its minimum sync period, 1 s.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Affinity entries in one piece: as many elements as a commit writes in 2 ms.
const PIECE: usize = 512;
/// Time for the control loop to delete affinity entries; then conntrack entries are checked anyway.
const FORGET_LIMIT: Duration = Duration::from_secs(5);

/// The checks that a commit needs.
#[derive(Debug)]
struct Order {
    affinity: AffinityCheck,
    flows: Vec<FlowCheck>,
    /// The addresses that serve node ports since that commit, sorted.
    node_addresses: Arc<[IpAddr]>,
}

/// Affinity entries of removed endpoints, to be [deleted](service_dataplane::Dataplane::forget).
#[derive(Debug)]
pub struct Forget {
    /// The family of the table.
    pub family: Family,
    /// The entries, as read.
    pub learned: Vec<Element>,
    /// Dropped when the entries are deleted.
    _done: Sender<()>,
}

/// Hands checks to the conntrack thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Cleaner {
    orders: Sender<Order>,
}

/// Starts the thread, in the network namespace of the caller. The receiver gets the affinity entries to delete.
///
/// Errors: without CAP_NET_ADMIN.
pub fn start(
    parts: &Parts,
    metrics: Arc<Metrics>,
) -> Result<(Cleaner, mpsc::UnboundedReceiver<Forget>)> {
    let conntrack = Conntrack::open().context("cannot open the conntrack socket")?;
    let table = Kernel::open(KernelConfig {
        table: layout::TABLE.into(),
        owner: false,
    })
    .context("cannot open an nftables socket")?;
    let (forget, to_forget) = mpsc::unbounded_channel();
    let (orders, receiver) = channel();
    let worker = Worker {
        conntrack,
        table,
        forget,
        metrics,
        affinity: AffinityCheck::default(),
        flows: FlowChecks::default(),
        affinity_at: Instant::now(),
        flows_at: Instant::now(),
    };
    parts.thread("conntrack", move || {
        worker.work(&receiver);
        Ok(())
    })?;
    Ok((Cleaner { orders }, to_forget))
}

impl Observer for Cleaner {
    fn committed(&mut self, commit: &Commit<'_>) {
        let SyncOutcome {
            affinity, flows, ..
        } = commit.outcome;
        if affinity.is_empty() && flows.is_empty() {
            return;
        }
        // The receiver is gone only when the daemon is ending.
        let _ = self.orders.send(Order {
            affinity: affinity.clone(),
            flows: flows.clone(),
            node_addresses: commit.facts.node_addresses.as_slice().into(),
        });
    }
}

struct Worker {
    conntrack: Conntrack,
    /// For reading only.
    table: Kernel,
    forget: mpsc::UnboundedSender<Forget>,
    metrics: Arc<Metrics>,
    affinity: AffinityCheck,
    flows: FlowChecks,
    /// Earliest time of the next affinity check: the pause is as long as the last check.
    affinity_at: Instant,
    /// Earliest time of the next conntrack check, see [`REST`].
    flows_at: Instant,
}

impl Worker {
    fn work(mut self, orders: &Receiver<Order>) {
        loop {
            let order = match self.due() {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(order) => self.add(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(order) = orders.try_recv() {
                self.add(order);
            }
            if self.due().is_some_and(|at| at <= Instant::now()) {
                self.check();
            }
        }
    }

    fn add(&mut self, order: Order) {
        self.affinity.add(order.affinity);
        self.flows.add(order.flows, order.node_addresses);
    }

    /// When the next check is due. Affinity entries come first: their clients are sent to removed endpoints meanwhile.
    fn due(&self) -> Option<Instant> {
        if !self.affinity.is_empty() {
            Some(self.affinity_at)
        } else if !self.flows.is_empty() {
            Some(self.flows_at)
        } else {
            None
        }
    }

    fn check(&mut self) {
        let start = Instant::now();
        let result = match self.affinity.is_empty() {
            false => self.check_affinity().map(|entries| {
                let elapsed = start.elapsed();
                let elapsed_seconds = elapsed.as_secs_f64();
                tracing::debug!(entries, elapsed_seconds, "checked affinity entries");
                self.affinity = AffinityCheck::default();
                self.affinity_at = Instant::now() + elapsed.min(LONGEST_PAUSE);
            }),
            true => self.check_flows().map(|deleted| {
                let (frontends, elapsed) = (self.flows.len(), start.elapsed());
                let elapsed_seconds = elapsed.as_secs_f64();
                tracing::debug!(
                    frontends,
                    deleted,
                    elapsed_seconds,
                    "checked conntrack entries"
                );
                self.flows = FlowChecks::default();
                self.flows_at = Instant::now() + rest(elapsed);
            }),
        };
        if let Err(error) = result {
            tracing::warn!(%error, retry_seconds = RETRY.as_secs_f64(), "cannot check affinity and conntrack entries; retrying");
            self.affinity_at = Instant::now() + RETRY;
            self.flows_at = self.affinity_at;
        }
    }

    /// Has the affinity entries of removed endpoints deleted, and waits until they are.
    fn check_affinity(&mut self) -> Result<usize, CommitError> {
        let (done, all_done) = channel();
        let mut entries = 0;
        for family in self.affinity.families() {
            let learned = self.table.dynamic_elements(family, &affinity::map())?;
            let stale = self.affinity.stale(family, learned);
            entries += stale.len();
            for piece in stale.chunks(PIECE) {
                // The receiver is gone only when the daemon is ending.
                let _ = self.forget.send(Forget {
                    family,
                    learned: piece.to_vec(),
                    _done: done.clone(),
                });
            }
        }
        drop(done);
        let _ = all_done.recv_timeout(FORGET_LIMIT);
        Ok(entries)
    }

    /// Deletes the conntrack entries that the checks condemn.
    fn check_flows(&mut self) -> Result<usize, CommitError> {
        let mut all = 0;
        for filter in self.flows.filters() {
            let start = Instant::now();
            let (flows, mut established) = (&self.flows, Vec::new());
            let deleted = self.conntrack.delete(&filter, |flow| {
                let goes = flows.is_stale(flow);
                if goes && flow.protocol == Protocol::Tcp && flow.answered {
                    established.push((flow.source, flow.destination));
                }
                goes
            });
            // After a failure, the entries that were deleted are not found again.
            reset(&established);
            let deleted = deleted?;
            self.metrics
                .conntrack_checked(filter.family, deleted, start.elapsed());
            all += deleted;
        }
        Ok(all)
    }
}

/// Provokes a packet from the clients of deleted entries, so that they get a RST. Clients that send anyway do not need it.
fn reset(connections: &[(SocketAddr, SocketAddr)]) {
    for (client, frontend) in connections {
        if let Err(error) = challenge::challenge(*client, *frontend) {
            tracing::debug!(%client, %frontend, %error, "cannot challenge the client; its next packet resets the connection");
        }
    }
}

/// The pause after a check of this duration.
fn rest(elapsed: Duration) -> Duration {
    elapsed.saturating_mul(REST).clamp(PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_take_a_twentieth_of_the_time_at_most() {
        for micros in [1, 100, 4_000, 50_000] {
            let look = Duration::from_micros(micros);
            assert!(look * 20 <= look + rest(look), "{look:?}");
        }
        assert_eq!(rest(Duration::from_secs(3)), Duration::from_secs(1));
    }
}
