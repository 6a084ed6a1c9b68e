//! Decides when to repair the tables after foreign changes.
//!
//! A repair starts at once, even after a hundred changes in a row, because a foreign flush interrupts every new
//! connection. If the changes continue (another daemon writes the same tables), repairs take at most a fifth of a CPU core, or
//! there is a pause of a second between two, where each takes longer.

use std::time::{Duration, Instant};

/// Repairs may take this fraction of the time: one in `SHARE`.
const SHARE: u32 = 5;
/// Time that repairs may take beyond their share.
const BURST: Duration = Duration::from_secs(2);
/// Longest pause between two repairs.
const LONGEST: Duration = Duration::from_secs(1);

/// When the next repair is due.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    requested: bool,
    /// Time that repairs had taken beyond their share, and at which instant.
    spent: Option<(Duration, Instant)>,
    /// End of the pause after the last repair.
    not_before: Option<Instant>,
}

impl Repairs {
    /// Requests a repair.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// When the next repair is due; `None` when none is requested.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let due = self.not_before.map_or(now, |at| at.max(now));
        self.requested.then_some(due)
    }

    /// Records the start of a repair, which covers all changes before the start.
    pub(crate) fn started(&mut self) {
        self.requested = false;
    }

    /// Records the end of a repair that took `elapsed`.
    pub(crate) fn ended(&mut self, now: Instant, elapsed: Duration) {
        let spent = self.spent(now) + elapsed;
        let over = spent.saturating_sub(BURST);
        self.spent = Some((spent, now));
        self.not_before = Some(now + over.saturating_mul(SHARE).min(LONGEST));
    }

    fn spent(&self, now: Instant) -> Duration {
        self.spent.map_or(Duration::ZERO, |(spent, at)| {
            spent.saturating_sub(now.saturating_duration_since(at) / SHARE)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPAIR: Duration = Duration::from_millis(20);

    #[test]
    fn a_hundred_repairs_in_a_row_are_made_at_once() {
        let mut now = Instant::now();
        let mut repairs = Repairs::default();
        assert_eq!(repairs.due(now), None);
        for _ in 0..100 {
            repairs.request();
            assert_eq!(repairs.due(now), Some(now));
            repairs.started();
            assert_eq!(repairs.due(now), None);
            now += REPAIR;
            repairs.ended(now, REPAIR);
        }
    }

    #[test]
    fn a_long_repair_is_never_more_than_a_second_away() {
        const LONG: Duration = Duration::from_millis(800);
        let mut now = Instant::now();
        let mut repairs = Repairs::default();
        for _ in 0..20 {
            repairs.started();
            now += LONG;
            repairs.ended(now, LONG);
        }
        repairs.request();
        // The loop asks at each turn.
        let mut waited = Duration::ZERO;
        while repairs.due(now).is_some_and(|due| due > now) {
            now += REPAIR;
            waited += REPAIR;
        }
        assert!(waited > LONGEST / 2 && waited <= LONGEST, "{waited:?}");
    }

    #[test]
    fn repairs_that_never_end_take_a_fifth_of_the_time() {
        let start = Instant::now();
        let mut now = start;
        let mut repairs = Repairs::default();
        let mut made = 0u32;
        while now < start + Duration::from_secs(600) {
            repairs.request();
            let due = repairs.due(now).expect("a repair was requested");
            assert!(due <= now + LONGEST);
            now = due + REPAIR;
            repairs.started();
            repairs.ended(now, REPAIR);
            made += 1;
        }
        let share = (made * REPAIR).as_secs_f64() / (now - start).as_secs_f64();
        assert!((0.18..0.22).contains(&share), "{share}");
    }
}
