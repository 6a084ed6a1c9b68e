//! Ends what the rules would no longer do: tracked flows to endpoints that are gone, and what is remembered of clients
//! that had them. Off the way of commits, on a thread of its own.
//!
//! The control loop hands over what a commit calls for ([`FlowCheck`]s and an [`AffinityCheck`]) and goes on. Checks that
//! come while others are made gather; one that failed is made again. What is stale is [`service_dataplane`]'s to say, how
//! flows are found and deleted [`nft::Conntrack`]'s. The table is the control loop's alone, so what is stale of affinity
//! goes back to it ([`Forget`]), in pieces that hold no commit up. Flows are looked at after that: one that ended sooner
//! could come back by what was remembered.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nft::{Backend, CommitError, Conntrack, Element, Family, Kernel, KernelConfig, Protocol};
use service_dataplane::conntrack::{FlowCheck, FlowChecks};
use service_dataplane::{AffinityCheck, affinity, layout};
use tokio::sync::mpsc::UnboundedSender;

use crate::metrics::Metrics;

mod challenge;

/// After a failure; a SYN is retransmitted after a second.
const RETRY: Duration = Duration::from_millis(500);
/// After a look at flows, so many times what it took goes by before the next, and changes meanwhile share that one: the
/// kernel walks all buckets of its table however few flows it finds (4 ms for 262,144), which must not add up.
const REST: u32 = 19;
/// The shortest and the longest of these pauses; kube-proxy looks once in its minimum sync period, 1 s.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Clients in one piece: as many elements as a commit writes in 2 ms.
const PIECE: usize = 512;
/// The control loop has this long to forget; then flows are looked at all the same.
const FORGET_LIMIT: Duration = Duration::from_secs(5);

/// What a commit calls for.
#[derive(Debug)]
struct Order {
    affinity: AffinityCheck,
    flows: Vec<FlowCheck>,
    /// The addresses that serve node ports since then, sorted.
    node_addresses: Arc<[IpAddr]>,
}

/// Clients whose endpoint is gone, to be [forgotten](service_dataplane::Dataplane::forget).
#[derive(Debug)]
pub struct Forget {
    /// Whose table.
    pub family: Family,
    /// What was read of it.
    pub learned: Vec<Element>,
    /// Tells, by being dropped, that it is done.
    _done: Sender<()>,
}

/// Where checks are handed over. The thread ends with it, as soon as the look under way is over.
#[derive(Debug)]
pub struct Cleaner {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Cleaner {
    /// Starts the thread, in the network namespace of the caller, who has to do what comes by `forget`.
    ///
    /// Errors: without CAP_NET_ADMIN.
    pub fn start(metrics: Arc<Metrics>, forget: UnboundedSender<Forget>) -> Result<Cleaner> {
        let conntrack = Conntrack::open().context("cannot open the conntrack socket")?;
        let table = Kernel::open(KernelConfig {
            table: layout::TABLE.into(),
            owner: false,
        })
        .context("cannot open an nftables socket")?;
        let (orders, receiver) = channel();
        let worker = Worker {
            conntrack,
            table,
            forget,
            metrics,
            affinity: AffinityCheck::default(),
            flows: FlowChecks::default(),
            clients_at: Instant::now(),
            flows_at: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("conntrack".into())
            .spawn(move || worker.work(&receiver))
            .context("cannot start the conntrack thread")?;
        Ok(Cleaner {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Has clients and flows looked for. Never waits.
    pub fn check(&self, affinity: AffinityCheck, flows: Vec<FlowCheck>, node_addresses: &[IpAddr]) {
        if affinity.is_empty() && flows.is_empty() {
            return;
        }
        if let Some(orders) = &self.orders {
            // The receiver lives as long as this.
            let _ = orders.send(Order {
                affinity,
                flows,
                node_addresses: node_addresses.into(),
            });
        }
    }
}

impl Drop for Cleaner {
    fn drop(&mut self) {
        drop(self.orders.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    conntrack: Conntrack,
    /// For reading only.
    table: Kernel,
    forget: UnboundedSender<Forget>,
    metrics: Arc<Metrics>,
    affinity: AffinityCheck,
    flows: FlowChecks,
    /// Not before; a look at clients rests as long as it took.
    clients_at: Instant,
    /// Not before, see [`REST`].
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
                Ok(order) => self.take(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(order) = orders.try_recv() {
                self.take(order);
            }
            if self.due().is_some_and(|at| at <= Instant::now()) {
                self.look();
            }
        }
    }

    fn take(&mut self, order: Order) {
        self.affinity.add(order.affinity);
        self.flows.add(order.flows, order.node_addresses);
    }

    /// When to look next: for clients first, since until they are forgotten they are sent to endpoints that are gone.
    fn due(&self) -> Option<Instant> {
        if !self.affinity.is_empty() {
            Some(self.clients_at)
        } else if !self.flows.is_empty() {
            Some(self.flows_at)
        } else {
            None
        }
    }

    fn look(&mut self) {
        let start = Instant::now();
        let result = match self.affinity.is_empty() {
            false => self.look_for_clients().map(|clients| {
                let elapsed = start.elapsed();
                let elapsed_seconds = elapsed.as_secs_f64();
                tracing::debug!(
                    entries = clients,
                    elapsed_seconds,
                    "checked affinity entries"
                );
                self.affinity = AffinityCheck::default();
                self.clients_at = Instant::now() + elapsed.min(LONGEST_PAUSE);
            }),
            true => self.look_for_flows().map(|deleted| {
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
            self.clients_at = Instant::now() + RETRY;
            self.flows_at = self.clients_at;
        }
    }

    /// Has clients forgotten whose endpoint is gone, and waits until they are.
    fn look_for_clients(&mut self) -> Result<usize, CommitError> {
        let (done, all_done) = channel();
        let mut clients = 0;
        for family in self.affinity.families() {
            let learned = self.table.learned(family, &affinity::map())?;
            let stale = self.affinity.stale(family, learned);
            clients += stale.len();
            for piece in stale.chunks(PIECE) {
                // Where nobody receives, everything ends.
                let _ = self.forget.send(Forget {
                    family,
                    learned: piece.to_vec(),
                    _done: done.clone(),
                });
            }
        }
        drop(done);
        let _ = all_done.recv_timeout(FORGET_LIMIT);
        Ok(clients)
    }

    /// Deletes what the checks condemn.
    fn look_for_flows(&mut self) -> Result<usize, CommitError> {
        let mut all = 0;
        for filter in self.flows.filters() {
            let start = Instant::now();
            let (flows, mut established) = (&self.flows, Vec::new());
            let deleted = self.conntrack.delete(&filter, |flow| {
                let goes = flows.condemn(flow);
                if goes && flow.protocol == Protocol::Tcp && flow.answered {
                    established.push((flow.source, flow.destination));
                }
                goes
            });
            // Some may be gone though not all went, and are not found again.
            reset(&established);
            let deleted = deleted?;
            self.metrics
                .flows_checked(filter.family, deleted, start.elapsed());
            all += deleted;
        }
        Ok(all)
    }
}

/// Has clients of connections reset that are tracked no more. Those that send anything are reset without it.
fn reset(connections: &[(SocketAddr, SocketAddr)]) {
    for (client, frontend) in connections {
        if let Err(error) = challenge::challenge(*client, *frontend) {
            tracing::debug!(%client, %frontend, %error, "cannot challenge the client; its next packet resets the connection");
        }
    }
}

/// The pause after a look that took so long.
fn rest(elapsed: Duration) -> Duration {
    elapsed.saturating_mul(REST).clamp(PAUSE, LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_takes_a_twentieth_of_the_time_at_most_and_never_waits_longer_than_kube_proxy() {
        for micros in [1, 100, 4_000, 50_000] {
            let look = Duration::from_micros(micros);
            assert!(look * 20 <= look + rest(look), "{look:?}");
        }
        assert_eq!(rest(Duration::from_secs(3)), Duration::from_secs(1));
    }
}
