//! Decides when to commit: the first change at once, then in batches.
//!
//! A pure function of instants. A single change does not wait. Under load, the batching interval follows the duration of
//! a commit, so that many changes share one transaction and the loop has time to read events.

use std::time::{Duration, Instant};

/// Shortest batching interval.
const SHORTEST: Duration = Duration::from_millis(5);
/// Longest batching interval.
const LONGEST: Duration = Duration::from_millis(20);
/// First pause after a failure.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Pause while another process owns the tables.
const STANDBY: Duration = Duration::from_millis(200);
/// Longest pause after consecutive failures.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// The earliest time of the next commit.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    not_before: Option<Instant>,
    failures: u32,
}

impl Pace {
    /// When the next commit may start; `None` means at once.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        self.not_before.filter(|at| *at > now)
    }

    /// Sets the batching interval after a successful commit that took `elapsed`.
    pub(crate) fn committed(&mut self, now: Instant, elapsed: Duration) {
        self.failures = 0;
        self.not_before = Some(now + elapsed.clamp(SHORTEST, LONGEST));
    }

    /// Sets the pause while another process owns the tables. The pause does not grow: finding out whether that process has
    /// ended costs one message to the kernel.
    pub(crate) fn standing_by(&mut self, now: Instant) {
        self.failures = 0;
        self.not_before = Some(now + STANDBY);
    }

    /// Sets the pause after a failed commit, twice as long each time.
    pub(crate) fn failed(&mut self, now: Instant) {
        let pause = FIRST_RETRY
            .saturating_mul(1 << self.failures.min(10))
            .min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lone_change_waits_for_nothing() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(now), None);
        pace.committed(now, Duration::from_micros(50));
        assert_eq!(pace.due(now + Duration::from_secs(1)), None);
    }

    #[test]
    fn changes_right_after_a_commit_wait_for_5_to_20_ms() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.committed(now, Duration::from_micros(50));
        assert_eq!(pace.due(now), Some(now + Duration::from_millis(5)));
        pace.committed(now, Duration::from_secs(1));
        assert_eq!(pace.due(now), Some(now + Duration::from_millis(20)));
    }

    #[test]
    fn failures_are_retried_within_100_ms_and_never_later_than_5_s() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.failed(now);
        assert!(
            pace.due(now)
                .is_some_and(|at| at <= now + Duration::from_millis(100))
        );
        for _ in 0..50 {
            pace.failed(now);
        }
        assert_eq!(pace.due(now), Some(now + Duration::from_secs(5)));
        pace.committed(now, Duration::ZERO);
        assert_eq!(pace.due(now), Some(now + Duration::from_millis(5)));
    }
}
