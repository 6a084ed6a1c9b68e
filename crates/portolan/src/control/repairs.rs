//! When to compare the tables with what they should hold, after somebody else changed them.
//!
//! At once, as long as repairs take a small part of the time: a foreign flush is a cut for every new connection, and
//! twenty of them in a row are no reason to wait. When it goes on (another daemon that fights ours), each repair is
//! followed by a pause that grows with what repairs cost.

use std::time::{Duration, Instant};

/// Pause after a repair, as a multiple of what it took: repairs take at most a fifth of a processor.
const REST: u32 = 4;
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// Paces repairs.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    requested: bool,
    not_before: Option<Instant>,
}

impl Repairs {
    /// Somebody changed our tables, or may have.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// When to compare; `None` when there is no reason to.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let at = self.not_before.unwrap_or(now);
        self.requested.then_some(at.max(now))
    }

    /// A comparison begins, of what was there before it.
    pub(crate) fn started(&mut self) {
        self.requested = false;
    }

    /// It has ended.
    pub(crate) fn ended(&mut self, now: Instant, elapsed: Duration) {
        self.not_before = Some(now + elapsed.saturating_mul(REST).min(LONGEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_made_at_once_and_take_a_fifth_of_the_time_at_most() {
        let mut now = Instant::now();
        let mut repairs = Repairs::default();
        assert_eq!(repairs.due(now), None);
        for _ in 0..100 {
            repairs.request();
            assert_eq!(repairs.due(now), Some(now));
            repairs.started();
            assert_eq!(repairs.due(now), None);
            now += Duration::from_millis(10);
            repairs.ended(now, Duration::from_millis(10));
            // Heard while it went on: not before the pause is over.
            repairs.request();
            assert_eq!(repairs.due(now), Some(now + Duration::from_millis(40)));
            now += Duration::from_millis(40);
        }
    }

    #[test]
    fn no_repair_waits_longer_than_a_second() {
        let now = Instant::now();
        let mut repairs = Repairs::default();
        repairs.ended(now, Duration::from_secs(60));
        repairs.request();
        assert_eq!(repairs.due(now), Some(now + LONGEST));
    }
}
