//! Checks on their way from the control loop to the conntrack thread.
//!
//! Invariant: the thread is woken only for a check that cannot wait for the look that is planned already. Under sustained
//! churn that spares a wake-up for each commit.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Order;

/// A queue that does not wake its reader for each order.
#[derive(Debug, Default)]
pub(super) struct Orders {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: Vec<Order>,
    /// The reader wakes up by itself.
    is_planned: bool,
    /// There is an order that the reader has to see at once.
    is_urgent: bool,
    is_closed: bool,
}

impl Orders {
    /// Adds an order, unless the order only replaces pending checks and none is pending. Wakes the reader if the order is urgent
    /// or nothing is planned.
    pub(super) fn add(&self, order: Order) {
        let mut waiting = self.lock();
        if !order.is_needed() && !waiting.is_planned && waiting.orders.is_empty() {
            return;
        }
        waiting.is_urgent |= order.is_urgent() || !waiting.is_planned;
        waiting.orders.push(order);
        if waiting.is_urgent {
            self.changed.notify_one();
        }
    }

    /// Has [`Orders::wait`] return `None`.
    pub(super) fn close(&self) {
        self.lock().is_closed = true;
        self.changed.notify_one();
    }

    /// The orders that arrive until the instant, or until one arrives that cannot wait for it. Without an instant, waits
    /// for the next order. `None` when closed.
    pub(super) fn wait(&self, until: Option<Instant>) -> Option<Vec<Order>> {
        let mut waiting = self.lock();
        waiting.is_planned = until.is_some();
        // Orders came while nothing was planned.
        waiting.is_urgent |= !waiting.is_planned && !waiting.orders.is_empty();
        loop {
            if waiting.is_closed {
                return None;
            }
            let left = until.map(|at| at.saturating_duration_since(Instant::now()));
            if waiting.is_urgent || left.is_some_and(|left| left.is_zero()) {
                waiting.is_urgent = false;
                waiting.is_planned = true;
                return Some(std::mem::take(&mut waiting.orders));
            }
            waiting = match left {
                None => self.changed.wait(waiting),
                Some(left) => self
                    .changed
                    .wait_timeout(waiting, left)
                    .map(|(waiting, _)| waiting)
                    .map_err(|error| PoisonError::new(error.into_inner().0)),
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Calls `visit` with the waiting orders from this position on, and leaves them in the queue. Returns their number.
    pub(super) fn peek(&self, from: usize, visit: impl FnMut(&Order)) -> usize {
        let waiting = self.lock();
        waiting.orders.iter().skip(from).for_each(visit);
        waiting.orders.len()
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
