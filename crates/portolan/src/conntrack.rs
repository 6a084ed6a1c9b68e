//! Ends tracked flows that the rules would no longer make: off the way of commits, on a thread of its own.
//!
//! The control loop hands over what a commit calls for ([`FlowCheck`]s) and goes on. Checks that come while others are
//! made gather; one that failed is made again. What is stale is [`service_dataplane::conntrack`]'s to say, how entries
//! are found and deleted [`nft::Conntrack`]'s.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nft::{CommitError, Conntrack, Family};
use service_dataplane::conntrack::{FlowCheck, FlowChecks};
use service_model::AddressFamily;

use crate::metrics::Metrics;

/// After a failure; a SYN is retransmitted after a second.
const RETRY: Duration = Duration::from_millis(500);
/// After a look, so many times what it took goes by before the next, and changes meanwhile share that one: the kernel
/// walks all buckets of its table however few flows it finds (4 ms for 262,144), which must not add up under churn.
const REST: u32 = 19;
/// The shortest and the longest of these pauses; kube-proxy looks once in its minimum sync period, 1 s.
const PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a commit calls for, and the addresses that serve node ports since then (sorted).
type Order = (Vec<FlowCheck>, Arc<[IpAddr]>);

/// Where checks are handed over. The thread ends with it, as soon as the look under way is over.
#[derive(Debug)]
pub struct Cleaner {
    orders: Option<Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Cleaner {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// Errors: without CAP_NET_ADMIN.
    pub fn start(metrics: Arc<Metrics>) -> Result<Cleaner> {
        let conntrack = Conntrack::open().context("could not open the conntrack socket")?;
        let (orders, receiver) = channel();
        let thread = std::thread::Builder::new()
            .name("conntrack".into())
            .spawn(move || work(conntrack, &receiver, &metrics))
            .context("could not start the conntrack thread")?;
        Ok(Cleaner {
            orders: Some(orders),
            thread: Some(thread),
        })
    }

    /// Has flows looked for. Never waits.
    pub fn check(&self, checks: Vec<FlowCheck>, node_addresses: &[IpAddr]) {
        if checks.is_empty() {
            return;
        }
        if let Some(orders) = &self.orders {
            // The receiver lives as long as this.
            let _ = orders.send((checks, node_addresses.into()));
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

fn work(mut conntrack: Conntrack, orders: &Receiver<Order>, metrics: &Metrics) {
    let mut checks = FlowChecks::default();
    let mut retry = None;
    loop {
        let order = match retry {
            None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(pause) => orders.recv_timeout(pause),
        };
        match order {
            Ok((new, node_addresses)) => checks.add(new, node_addresses),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Ok((new, node_addresses)) = orders.try_recv() {
            checks.add(new, node_addresses);
        }
        let start = Instant::now();
        match look(&mut conntrack, &checks, metrics) {
            Ok(deleted) => {
                let elapsed = start.elapsed();
                tracing::debug!(
                    frontends = checks.len(),
                    deleted,
                    ?elapsed,
                    "tracked flows checked"
                );
                checks = FlowChecks::default();
                retry = None;
                std::thread::sleep(rest(elapsed));
            }
            Err(error) => {
                tracing::warn!(%error, "tracked flows not checked: trying again");
                retry = Some(RETRY);
            }
        }
    }
}

/// The pause after a look that took so long.
fn rest(elapsed: Duration) -> Duration {
    elapsed.saturating_mul(REST).clamp(PAUSE, LONGEST_PAUSE)
}

/// Deletes what the checks condemn.
fn look(
    conntrack: &mut Conntrack,
    checks: &FlowChecks,
    metrics: &Metrics,
) -> Result<usize, CommitError> {
    let mut all = 0;
    for filter in checks.filters() {
        let start = Instant::now();
        let deleted = conntrack.delete(&filter, |flow| checks.condemn(flow))?;
        let family = match filter.family {
            Family::Ip => AddressFamily::V4,
            Family::Ip6 => AddressFamily::V6,
        };
        metrics.flows_checked(family, deleted, start.elapsed());
        all += deleted;
    }
    Ok(all)
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
