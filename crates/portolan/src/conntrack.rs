//! Deletes stale conntrack and affinity entries after a commit, on a thread of its own.
//!
//! The control loop hands over the checks that a commit needs ([`FlowCheck`]s and an [`AffinityCheck`]) and goes on.
//! Checks that arrive meanwhile are batched ([`orders`], [`pace`]); a check that failed is retried. [`service_dataplane`]
//! decides what is stale, [`netfilter::Conntrack`] finds and deletes conntrack entries. Only the control loop writes the tables, so stale affinity
//! entries go back to it ([`Forget`]), in pieces that delay no commit. Conntrack entries are checked after that: a flow
//! that ended earlier could come back by its affinity entry.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netfilter::{Conntrack, Flow};
use nft::{Backend, CommitError, Element, Family, Kernel, Protocol};
use service_dataplane::conntrack::{FlowCheck, FlowChecks};
use service_dataplane::{AffinityCheck, SyncOutcome, affinity, layout};
use service_model::Suspects;
use tokio::sync::mpsc;

use crate::metrics::Metrics;
use crate::observer::{Commit, Observer};
use crate::parts::Parts;

mod challenge;
mod orders;
mod pace;

use orders::Orders;
use pace::{Check, Pace};

/// Checks of commits are urgent for this long after a node has become a suspect: clients of that node send SYNs without a reply,
/// and the next SYN must reach another endpoint. Services that flap or are committed in steps are committed by then.
const HURRY: Duration = Duration::from_secs(10);
/// Pause after a failure; a SYN is retransmitted after a second.
const RETRY: Duration = Duration::from_millis(500);
/// Upper bound of the pause after a check of affinity entries.
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
    /// A node has become a suspect shortly before.
    hurried: bool,
}

impl Order {
    /// Whether it cannot wait for checks that are planned already.
    fn is_urgent(&self) -> bool {
        self.hurried || !self.affinity.is_empty() || !self.flows.iter().all(FlowCheck::is_patient)
    }
}

/// Affinity entries of removed endpoints, to be [deleted](service_dataplane::Dataplane::forget).
#[derive(Debug)]
pub struct Forget {
    /// The family of the table.
    pub family: Family,
    /// The Service's map in the table.
    pub map: u64,
    /// The entries, as read.
    pub entries: Vec<Element>,
    /// Dropped when the entries are deleted.
    _done: Sender<()>,
}

/// Hands checks to the conntrack thread, which ends when this is dropped.
#[derive(Debug)]
pub struct Cleaner {
    orders: Arc<Orders>,
    suspects: Suspects,
    /// Until when orders are hurried.
    hurried_until: Option<Instant>,
}

impl Cleaner {
    fn new(orders: Arc<Orders>) -> Cleaner {
        Cleaner {
            orders,
            suspects: Suspects::default(),
            hurried_until: None,
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        self.orders.close();
    }
}

/// Starts the thread, in the network namespace of the caller. The receiver gets the affinity entries to delete.
///
/// Errors: without CAP_NET_ADMIN.
pub fn start(
    parts: &Parts,
    metrics: Arc<Metrics>,
) -> Result<(Cleaner, mpsc::UnboundedReceiver<Forget>)> {
    let conntrack = Conntrack::open().context("cannot open the conntrack socket")?;
    let table =
        Kernel::open_to_read(layout::TABLE.into()).context("cannot open an nftables socket")?;
    let (forget, to_forget) = mpsc::unbounded_channel();
    let orders = Arc::new(Orders::default());
    let received = orders.clone();
    let worker = Worker {
        conntrack,
        table,
        forget,
        metrics,
        affinity: AffinityCheck::default(),
        flows: FlowChecks::default(),
        hurried: false,
        affinity_at: Instant::now(),
        prompt: Pace::default(),
        patient: Pace::default(),
        retry_at: None,
    };
    parts.thread("conntrack", move || {
        worker.work(&received);
        Ok(())
    })?;
    Ok((Cleaner::new(orders), to_forget))
}

impl Observer for Cleaner {
    /// Called before the commit that skips endpoints of the suspects.
    fn suspects(&mut self, suspects: &Suspects) {
        if !suspects.are_among(&self.suspects) {
            self.hurried_until = Some(Instant::now() + HURRY);
        }
        self.suspects = suspects.clone();
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        let SyncOutcome {
            affinity, flows, ..
        } = commit.outcome;
        if affinity.is_empty() && flows.is_empty() {
            return;
        }
        self.orders.add(Order {
            affinity: affinity.clone(),
            flows: flows.clone(),
            node_addresses: commit.facts.node_addresses.as_slice().into(),
            hurried: self.hurried_until.is_some_and(|at| Instant::now() < at),
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
    /// An order of these checks was hurried.
    hurried: bool,
    /// Earliest time of the next affinity check: the pause is as long as the last check.
    affinity_at: Instant,
    /// Paces checks of conntrack entries that should not wait.
    prompt: Pace,
    /// Paces checks of unanswered TCP connections alone, so that these do not delay others.
    patient: Pace,
    /// After a failure.
    retry_at: Option<Instant>,
}

impl Worker {
    fn work(mut self, orders: &Orders) {
        while let Some(arrived) = orders.wait(self.due()) {
            for order in arrived {
                self.affinity.add(order.affinity);
                self.flows.add(order.flows, order.node_addresses);
                self.hurried |= order.hurried;
            }
            if self.due().is_some_and(|at| at <= Instant::now()) {
                self.check();
            }
        }
    }

    /// When the next check is due. Affinity entries come first: their clients are sent to removed endpoints meanwhile.
    fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let at = if !self.affinity.is_empty() {
            self.affinity_at
        } else if self.flows.is_empty() {
            return None;
        } else if self.is_patient() {
            self.patient.due(now)
        } else {
            self.prompt.due(now)
        };
        Some(self.retry_at.map_or(at, |retry| retry.max(at)))
    }

    fn is_patient(&self) -> bool {
        !self.hurried && self.flows.is_patient()
    }

    fn check(&mut self) {
        let result = match self.affinity.is_empty() {
            false => self.check_affinity(),
            true => self.check_flows(),
        };
        self.retry_at = None;
        if let Err(error) = result {
            tracing::warn!(%error, retry_seconds = RETRY.as_secs_f64(), "cannot check affinity and conntrack entries; retrying");
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    /// Has the affinity entries of removed endpoints deleted, and waits until they are.
    fn check_affinity(&mut self) -> Result<(), CommitError> {
        let start = Instant::now();
        let (done, all_done) = channel();
        let mut entries = 0;
        for (family, map) in self.affinity.maps() {
            let all = self.table.dynamic_elements(family, &affinity::map(map))?;
            let stale = self.affinity.stale(family, map, all);
            entries += stale.len();
            for piece in stale.chunks(PIECE) {
                // The receiver is gone only when the daemon is ending.
                let _ = self.forget.send(Forget {
                    family,
                    map,
                    entries: piece.to_vec(),
                    _done: done.clone(),
                });
            }
        }
        drop(done);
        let _ = all_done.recv_timeout(FORGET_LIMIT);
        let elapsed = start.elapsed();
        let elapsed_seconds = elapsed.as_secs_f64();
        tracing::debug!(entries, elapsed_seconds, "checked affinity entries");
        self.affinity = AffinityCheck::default();
        self.affinity_at = Instant::now() + elapsed.min(LONGEST_PAUSE);
        Ok(())
    }

    /// Deletes the conntrack entries that the checks condemn.
    fn check_flows(&mut self) -> Result<(), CommitError> {
        let start = Instant::now();
        let before = self.conntrack.walks();
        let deleted = self.delete_stale();
        let walks = self.conntrack.walks() - before;
        self.metrics.conntrack_walked(walks);
        let deleted = deleted?;
        let (frontends, end) = (self.flows.len(), Instant::now());
        let elapsed_seconds = (end - start).as_secs_f64();
        tracing::debug!(
            frontends,
            deleted,
            elapsed_seconds,
            "checked conntrack entries"
        );
        // Both kinds of checks are done, and either kind of look takes its time.
        if self.is_patient() {
            let check = match deleted == 0 && walks > 0 {
                true => Check::FoundNothing,
                false => Check::Other,
            };
            self.patient.looked(start, end, check);
        } else {
            self.patient.looked(start, end, Check::Other);
            self.prompt.looked(start, end, Check::Other);
        }
        self.flows = FlowChecks::default();
        self.hurried = false;
        Ok(())
    }

    fn delete_stale(&mut self) -> Result<usize, CommitError> {
        let mut all = 0;
        for filter in self.flows.filters() {
            let start = Instant::now();
            let (flows, mut established) = (&self.flows, Vec::new());
            let is_stale = |flow: &Flow| flows.is_stale(flow);
            let deleted = self.conntrack.delete_noting(&filter, is_stale, |flow| {
                if flow.protocol == Protocol::Tcp && flow.answered {
                    established.push((flow.source, flow.destination));
                }
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

#[cfg(test)]
mod tests {
    use service_dataplane::Claim;
    use service_model::{Family, FrontendAddress, Node, NodeConfig, NodeFacts};

    use super::*;

    fn suspects(nodes: &[&str]) -> Suspects {
        Suspects::new(nodes.iter().map(|node| Arc::from(*node)))
    }

    /// Whether the thread that waits for `until` sees a check of unanswered TCP connections before.
    fn wakes(cleaner: &mut Cleaner, until: Instant) -> bool {
        let outcome = SyncOutcome {
            flows: vec![FlowCheck {
                claim: Claim {
                    address: FrontendAddress::NodePort(Family::Ip),
                    protocol: Protocol::Tcp,
                    port: 30080,
                },
                serving: None,
                allowed_sources: None,
                reset: false,
            }],
            ..SyncOutcome::default()
        };
        let node = Node::unknown("node-a");
        let facts = NodeFacts::resolve(&NodeConfig::named("node-a"), &node, &[], &[]);
        // The thread has a look planned.
        let _ = cleaner.orders.wait(Some(Instant::now()));
        cleaner.committed(&Commit {
            outcome: &outcome,
            facts: &facts,
            pending: false,
            elapsed: Duration::ZERO,
            full: false,
            triggers: &[],
        });
        let orders = cleaner.orders.wait(Some(until)).unwrap();
        assert_eq!(orders.len(), 1);
        Instant::now() < until
    }

    #[test]
    fn checks_after_a_new_suspect_wait_for_no_planned_look() {
        let soon = || Instant::now() + Duration::from_millis(20);
        let late = || Instant::now() + Duration::from_secs(10);
        let mut cleaner = Cleaner::new(Arc::default());
        assert!(!wakes(&mut cleaner, soon()));
        cleaner.suspects(&suspects(&["node-b"]));
        // Also those of Services that are committed later.
        assert!(wakes(&mut cleaner, late()));
        assert!(wakes(&mut cleaner, late()));
        cleaner.hurried_until = Some(Instant::now());
        assert!(!wakes(&mut cleaner, soon()));
        cleaner.suspects(&suspects(&["node-b", "node-c"]));
        assert!(wakes(&mut cleaner, late()));
        // A node that answers again is no reason to hurry.
        cleaner.hurried_until = None;
        cleaner.suspects(&suspects(&["node-c"]));
        assert!(!wakes(&mut cleaner, soon()));
    }
}
