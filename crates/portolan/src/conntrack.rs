//! Deletes stale conntrack and affinity entries after a commit, on a thread of its own.
//!
//! The control loop hands over the checks that a commit needs ([`FlowCheck`]s and an [`AffinityCheck`]) and goes on.
//! Checks that arrive meanwhile are batched ([`orders`], [`pace`]); a check that failed is retried. [`service_dataplane`]
//! decides what is stale, [`netfilter::Conntrack`] finds and deletes conntrack entries. Only the control loop writes the tables, so stale affinity
//! entries go back to it ([`Forget`]), in pieces that delay no commit. Conntrack entries are checked after that: a flow
//! that ended earlier could come back by its affinity entry.
//!
//! Invariant: the flows of a commit are checked only after the commit's affinity entries, but do not wait until no further
//! affinity check arrives ([`Dues`]).

use std::cell::RefCell;
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
    /// Whether something may be stale since the commit.
    fn is_needed(&self) -> bool {
        !self.affinity.is_empty() || self.flows.iter().any(|check| !check.only_if_pending)
    }

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
        let mut order = Order {
            affinity: affinity.clone(),
            flows: flows.clone(),
            node_addresses: commit.facts.node_addresses.as_slice().into(),
            hurried: false,
        };
        let hurries = self.hurried_until.is_some_and(|at| Instant::now() < at);
        order.hurried = hurries && order.is_needed();
        self.orders.add(order);
    }
}

/// From when on the pending checks may be made; `None` where none is pending.
#[derive(Clone, Copy, Debug)]
struct Dues {
    affinity: Option<Instant>,
    flows: Option<Instant>,
}

/// Which pending checks are made, in this order.
#[derive(Clone, Copy, Debug)]
struct Turn {
    affinity: bool,
    flows: bool,
}

impl Dues {
    /// When the next check is due: that of affinity entries, which flows have to wait for.
    fn next(self) -> Option<Instant> {
        self.affinity.or(self.flows)
    }

    /// The checks to make now. Flows wait for the affinity entries that are pending, and for no further ones.
    fn turn(self, now: Instant) -> Turn {
        let is_due = |at: Instant| at <= now;
        Turn {
            affinity: self.affinity.is_some_and(is_due),
            flows: self.affinity.is_none_or(is_due) && self.flows.is_some_and(is_due),
        }
    }
}

/// Judges entries during a look: by the checks that the look began with, as later orders have replaced them.
struct Judge<'a> {
    flows: &'a FlowChecks,
    orders: &'a Orders,
    /// Number of waiting orders that [`Judge::newest`] includes.
    seen: usize,
    /// The checks and those of later orders, if there are any.
    newest: Option<FlowChecks>,
}

impl<'a> Judge<'a> {
    fn new(flows: &'a FlowChecks, orders: &'a Orders) -> Judge<'a> {
        Judge {
            flows,
            orders,
            seen: 0,
            newest: None,
        }
    }

    /// Whether the entry is stale by the checks, and still after the commits that were made meanwhile: a client may be connected
    /// to an endpoint that was added since. What only later checks condemn is left to the next look.
    fn is_stale(&mut self, flow: &Flow) -> bool {
        let (flows, newest) = (self.flows, &mut self.newest);
        if !flows.is_stale(flow) {
            return false;
        }
        self.seen = self.orders.peek(self.seen, |order| {
            let newest = newest.get_or_insert_with(|| flows.clone());
            newest.add(order.flows.clone(), order.node_addresses.clone());
        });
        newest.as_ref().is_none_or(|newest| newest.is_stale(flow))
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
        while let Some(arrived) = orders.wait(self.due(Instant::now())) {
            for order in arrived {
                self.affinity.add(order.affinity);
                self.flows.add(order.flows, order.node_addresses);
                self.hurried |= order.hurried;
            }
            let now = Instant::now();
            if self.due(now).is_some_and(|at| at <= now) {
                self.check(self.dues(now).turn(now), orders);
            }
        }
    }

    /// When the next check is due.
    fn due(&self, now: Instant) -> Option<Instant> {
        let at = self.dues(now).next()?;
        Some(self.retry_at.map_or(at, |retry| retry.max(at)))
    }

    fn dues(&self, now: Instant) -> Dues {
        let pace = match self.is_patient() {
            true => &self.patient,
            false => &self.prompt,
        };
        Dues {
            affinity: (!self.affinity.is_empty()).then_some(self.affinity_at),
            flows: (!self.flows.is_empty()).then(|| pace.due(now)),
        }
    }

    fn is_patient(&self) -> bool {
        !self.hurried && self.flows.is_patient()
    }

    fn check(&mut self, turn: Turn, orders: &Orders) {
        let result = self.try_check(turn, orders);
        self.retry_at = None;
        if let Err(error) = result {
            tracing::warn!(%error, retry_seconds = RETRY.as_secs_f64(), "cannot check affinity and conntrack entries; retrying");
            self.retry_at = Some(Instant::now() + RETRY);
        }
    }

    fn try_check(&mut self, turn: Turn, orders: &Orders) -> Result<(), CommitError> {
        if turn.affinity {
            self.check_affinity()?;
        }
        if turn.flows {
            self.check_flows(orders)?;
        }
        Ok(())
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
    fn check_flows(&mut self, orders: &Orders) -> Result<(), CommitError> {
        let start = Instant::now();
        let before = self.conntrack.walks();
        let deleted = self.delete_stale(orders);
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

    fn delete_stale(&mut self, orders: &Orders) -> Result<usize, CommitError> {
        let judge = RefCell::new(Judge::new(&self.flows, orders));
        let mut all = 0;
        for filter in self.flows.filters() {
            let start = Instant::now();
            let mut established = Vec::new();
            let is_stale = |flow: &Flow| judge.borrow_mut().is_stale(flow);
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
    use service_model::{FrontendAddress, Node, NodeConfig, NodeFacts};

    use super::*;

    fn suspects(nodes: &[&str]) -> Suspects {
        Suspects::new(nodes.iter().map(|node| Arc::from(*node)))
    }

    const VIP: [u8; 4] = [10, 96, 0, 1];

    /// A check of TCP connections to port 80 of `VIP`, which these hosts serve.
    fn check(serving: &[u8], reset: bool, only_if_pending: bool) -> FlowCheck {
        let backend = |host: &u8| service_model::Backend {
            address: [10, 244, 0, *host].into(),
            port: 8080,
            local: false,
        };
        FlowCheck {
            claim: Claim {
                address: FrontendAddress::ClusterIp(VIP.into()),
                protocol: Protocol::Tcp,
                port: 80,
            },
            serving: Some(serving.iter().map(backend).collect()),
            allowed_sources: None,
            reset,
            only_if_pending,
        }
    }

    fn commit(cleaner: &mut Cleaner, check: FlowCheck) {
        let outcome = SyncOutcome {
            flows: vec![check],
            ..SyncOutcome::default()
        };
        let node = Node::unknown("node-a");
        let facts = NodeFacts::resolve(&NodeConfig::named("node-a"), &node, &[], &[]);
        cleaner.committed(&Commit {
            outcome: &outcome,
            facts: &facts,
            pending: false,
            elapsed: Duration::ZERO,
            full: false,
            triggers: &[],
        });
    }

    /// Whether the thread that waits for `until` sees a check of unanswered TCP connections before.
    fn wakes(cleaner: &mut Cleaner, until: Instant) -> bool {
        // The thread has a look planned.
        let _ = cleaner.orders.wait(Some(Instant::now()));
        commit(cleaner, check(&[], false, false));
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

    #[test]
    fn a_commit_that_leaves_nothing_stale_wakes_nobody() {
        let mut cleaner = Cleaner::new(Arc::default());
        let orders = cleaner.orders.clone();
        cleaner.suspects(&suspects(&["node-b"]));
        // Nothing is pending.
        commit(&mut cleaner, check(&[1, 2], true, true));
        assert_eq!(orders.peek(0, |_| {}), 0);
        let _ = orders.wait(Some(Instant::now()));
        commit(&mut cleaner, check(&[1, 2], true, true));
        let planned = Instant::now() + Duration::from_millis(20);
        let arrived = orders.wait(Some(planned)).unwrap();
        assert!(Instant::now() >= planned);
        assert!(arrived.len() == 1 && !arrived[0].hurried);
    }

    #[test]
    fn endpoints_added_during_a_look_keep_their_connections() {
        let connected = |host: u8| Flow {
            protocol: Protocol::Tcp,
            source: ([10, 244, 0, 99], 40000).into(),
            destination: (VIP, 80).into(),
            answers_from: ([10, 244, 0, host], 8080).into(),
            answered: true,
        };
        let mut cleaner = Cleaner::new(Arc::default());
        let orders = cleaner.orders.clone();
        let _ = orders.wait(Some(Instant::now()));
        let mut flows = FlowChecks::default();
        flows.add(vec![check(&[1], true, false)], [].into());
        let mut judge = Judge::new(&flows, &orders);
        assert!(judge.is_stale(&connected(2)));
        commit(&mut cleaner, check(&[1, 2], false, true));
        assert!(!judge.is_stale(&connected(2)));
        assert!(judge.is_stale(&connected(3)));
        // The commit's affinity entries have not been checked yet.
        commit(&mut cleaner, check(&[2], true, false));
        assert!(!judge.is_stale(&connected(1)));
        let left = orders.wait(Some(Instant::now())).unwrap();
        assert_eq!(left.len(), 2, "orders for the next look");
    }

    #[test]
    fn sustained_affinity_checks_delay_no_check_of_flows() {
        let now = Instant::now();
        let turn = |affinity, flows| {
            let dues = Dues { affinity, flows };
            let turn = dues.turn(now);
            (turn.affinity, turn.flows, dues.next())
        };
        let (due, later) = (Some(now), Some(now + Duration::from_secs(1)));
        assert_eq!(turn(due, due), (true, true, due));
        assert_eq!(turn(due, later), (true, false, due));
        // Flows do not come before affinity entries.
        assert_eq!(turn(later, due), (false, false, later));
        assert_eq!(turn(due, None), (true, false, due));
        assert_eq!(turn(None, due), (false, true, due));
        assert_eq!(turn(None, later), (false, false, later));
        assert_eq!(turn(None, None), (false, false, None));
    }
}
