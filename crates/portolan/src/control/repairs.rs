//! When to compare the tables with what they should hold, after somebody else changed them.
//!
//! At once: a foreign flush is a cut for every new connection, and a hundred of them in a row are no reason to wait. When
//! it goes on (another daemon that fights ours), repairs take a fifth of a processor and no more.

use std::time::{Duration, Instant};

/// Repairs may take one part in so many of the time.
const SHARE: u32 = 5;
/// Time that repairs may take at once, beyond their share.
const BURST: Duration = Duration::from_secs(2);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(1);

/// Paces repairs.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    requested: bool,
    /// Time that repairs have taken beyond their share, and when that was.
    spent: Option<(Duration, Instant)>,
}

impl Repairs {
    /// Somebody changed our tables, or may have.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// When to compare; `None` when there is no reason to.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let over = self.spent(now).saturating_sub(BURST);
        self.requested
            .then(|| now + over.saturating_mul(SHARE).min(LONGEST))
    }

    /// A comparison begins, of what was there before it.
    pub(crate) fn started(&mut self) {
        self.requested = false;
    }

    /// It has ended.
    pub(crate) fn ended(&mut self, now: Instant, elapsed: Duration) {
        self.spent = Some((self.spent(now) + elapsed, now));
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
    fn a_fight_takes_a_fifth_of_the_time_and_no_pause_is_longer_than_a_second() {
        let start = Instant::now();
        let mut now = start;
        let mut repairs = Repairs::default();
        let mut made = 0u32;
        while now < start + Duration::from_secs(600) {
            repairs.request();
            let due = repairs.due(now).expect("it was asked for");
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
