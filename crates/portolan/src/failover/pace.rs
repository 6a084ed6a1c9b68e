//! Decides when to read conntrack in search of unanswered attempts: so seldom that it costs at most a four-hundredth of a
//! processor, apart from what may be saved. There is one pace for readings of the whole table, and one for samples, which are smaller and so more frequent.
//!
//! A virtual scheduling algorithm (GCRA, ITU-T I.371): what was saved for a while pays for a reading that takes long once, for
//! example since another thread had the processor's caches. A pure function of instants.

use std::time::{Duration, Instant};

/// Pauses as a multiple of the processor time that readings take.
const REST: u32 = 400;
/// Shortest pause between readings of the whole table.
pub(super) const WHOLE: Duration = Duration::from_millis(250);
/// Shortest pause between samples.
pub(super) const SAMPLE: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(30);
/// The pauses that may be saved: 10 ms of processor time.
const SAVED: Duration = Duration::from_secs(4);

/// Paces readings.
#[derive(Debug)]
pub(super) struct Pace {
    shortest: Duration,
    last: Instant,
    /// When all readings so far will have had their pauses.
    paid: Instant,
}

impl Pace {
    /// The first reading is due after the shortest pause. Nothing is saved yet: the time of a start counts as well.
    pub(super) fn new(shortest: Duration, now: Instant) -> Self {
        Pace {
            shortest,
            last: now,
            paid: now + SAVED,
        }
    }

    /// When the next reading is due.
    pub(super) fn due(&self) -> Instant {
        let pause = self.paid.saturating_duration_since(self.last + SAVED);
        self.last + pause.clamp(self.shortest, LONGEST)
    }

    /// Whether readings follow each other as soon as they may.
    pub(super) fn is_shortest(&self) -> bool {
        self.due() <= self.last + self.shortest
    }

    /// Notes a reading that began at this instant, and its processor time.
    pub(super) fn read(&mut self, start: Instant, cost: Duration) {
        self.last = start;
        self.paid = self.paid.max(start);
        self.add(cost);
    }

    /// Adds to the processor time of the last reading.
    pub(super) fn add(&mut self, cost: Duration) {
        let paid = self.paid + cost.saturating_mul(REST).min(LONGEST + SAVED);
        self.paid = paid.min(self.last + LONGEST + SAVED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_take_a_four_hundredth_of_a_processor_at_most() {
        for micros in [1, 200, 1_250, 4_000, 70_000] {
            let (start, cost) = (Instant::now(), Duration::from_micros(micros));
            let mut pace = Pace::new(SAMPLE, start);
            let (mut now, mut spent) = (start, Duration::ZERO);
            let time = Duration::from_secs(6_000);
            while now < start + time {
                now = pace.due();
                pace.read(now, cost / 2);
                pace.add(cost / 2);
                spent += cost;
            }
            let share = spent.as_secs_f64() / time.as_secs_f64();
            assert!(share <= 0.0026, "{micros}: {share}");
            assert!(pace.due() - now >= SAMPLE);
        }
    }

    #[test]
    fn the_first_seconds_of_a_process_take_no_more() {
        for micros in [100, 1_250, 4_000] {
            let (start, cost) = (Instant::now(), Duration::from_micros(micros));
            let mut pace = Pace::new(SAMPLE, start);
            for _ in 0..5 {
                let now = pace.due();
                pace.read(now, cost);
            }
            let paid_for = pace.due() - start;
            assert!(
                cost * 5 <= paid_for / REST + cost / 10,
                "{micros}: {paid_for:?}"
            );
        }
    }

    #[test]
    fn an_expensive_reading_delays_the_next_for_a_bounded_time() {
        let start = Instant::now();
        let mut pace = Pace::new(WHOLE, start);
        pace.read(start, Duration::from_secs(1));
        assert_eq!(pace.due(), start + LONGEST);
        assert!(!pace.is_shortest());
        pace.read(pace.due(), Duration::ZERO);
        assert!(pace.is_shortest());
    }

    #[test]
    fn what_was_saved_pays_for_one_long_reading() {
        let start = Instant::now() + SAVED;
        let mut pace = Pace::new(SAMPLE, start - SAVED);
        pace.read(start, SAVED / REST);
        assert!(pace.is_shortest());
        // Nothing is left.
        pace.read(pace.due(), Duration::from_millis(4));
        let pause = pace.due() - (start + SAMPLE);
        assert_eq!(pause, Duration::from_millis(1_500));
        // It is there again after so long a time of short readings.
        let (mut now, later) = (pace.due(), start + 3 * SAVED);
        while now < later {
            pace.read(now, Duration::from_micros(50));
            now = pace.due();
        }
        pace.read(now, SAVED / REST);
        assert!(pace.is_shortest());
    }
}
