//! Decides when to look at conntrack: at once after a change that comes alone, once a second while changes go on, and more
//! seldom while walks of the table find nothing that could not wait.
//!
//! A pure function of instants. The kernel walks all buckets of its table however few entries match (4 ms for 262,144),
//! which must not add up: changes that come meanwhile share the next look.

use std::time::{Duration, Instant};

/// Pause after a look, as a multiple of its duration.
const REST: u32 = 19;
/// Bounds of the pause after a look; kube-proxy checks once in its minimum sync period, 1 s.
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// Upper bound of the pause after walks that found nothing of what may wait. A client repeats its SYN after 1, 3, 7 and 15 s.
/// Checks after a node has become a suspect do not wait that long (`HURRY` of the parent module).
const FUTILE: Duration = Duration::from_secs(4);
/// After this long without a look that was due, a change counts as one that comes alone.
const QUIET: Duration = Duration::from_secs(1);

/// Paces looks.
#[derive(Debug, Default)]
pub(super) struct Pace {
    last: Option<Instant>,
    pause: Duration,
}

/// The result of a look, as far as it decides when the next one is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    /// The kernel walked its table for what may wait, and nothing was stale.
    FoundNothing,
    /// The look deleted entries, needed no walk, or was for what cannot wait.
    Other,
}

impl Pace {
    /// When the next look may start.
    pub(super) fn due(&self, now: Instant) -> Instant {
        self.last.map_or(now, |last| last + self.pause)
    }

    /// Notes a look. The pause doubles while each look soon follows the one before.
    pub(super) fn looked(&mut self, start: Instant, end: Instant, check: Check) {
        let earliest_lone = |last| last + self.pause.max(LONGEST) + QUIET;
        let is_lone = self.last.is_none_or(|last| start >= earliest_lone(last));
        let longest = match check {
            Check::FoundNothing => FUTILE,
            Check::Other => LONGEST,
        };
        let next = match is_lone {
            true => SHORTEST,
            false => self.pause.saturating_mul(2),
        };
        let rest = (end - start).saturating_mul(REST);
        self.pause = next.max(rest).min(longest);
        self.last = Some(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instants of the looks in this time, if there is something to look for at all times and each takes so long.
    fn looks(time: Duration, each: Duration, check: Check) -> Vec<Duration> {
        let start = Instant::now();
        let (mut pace, mut now, mut looks) = (Pace::default(), start, Vec::new());
        while now < start + time {
            looks.push(now - start);
            pace.looked(now, now + each, check);
            now = pace.due(now + each);
        }
        looks
    }

    #[test]
    fn sustained_changes_lead_to_one_look_a_second() {
        let looks = looks(
            Duration::from_secs(60),
            Duration::from_millis(4),
            Check::Other,
        );
        assert!((60..70).contains(&looks.len()), "{}", looks.len());
        let in_the_last_10_s = looks.iter().filter(|at| at.as_secs() >= 50).count();
        assert!(in_the_last_10_s <= 10, "{in_the_last_10_s}");
    }

    #[test]
    fn walks_that_find_nothing_become_seldom_until_one_does() {
        let each = Duration::from_millis(4);
        let looks = looks(Duration::from_secs(60), each, Check::FoundNothing);
        assert!((18..24).contains(&looks.len()), "{}", looks.len());
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..20 {
            pace.looked(now, now + each, Check::FoundNothing);
            now = pace.due(now + each);
        }
        pace.looked(now, now + each, Check::Other);
        assert_eq!(pace.due(now), now + each + LONGEST);
    }

    #[test]
    fn a_change_that_comes_alone_waits_for_nothing() {
        let start = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.due(start), start);
        let mut now = start;
        for _ in 0..20 {
            pace.looked(now, now + Duration::from_millis(4), Check::FoundNothing);
            // A second change soon after the first waits for milliseconds.
            assert!(pace.due(now) <= now + Duration::from_millis(90));
            now += Duration::from_secs(3);
            assert!(pace.due(now) <= now);
        }
    }

    #[test]
    fn looks_take_a_twentieth_of_the_time_at_most() {
        for micros in [1, 100, 4_000, 50_000] {
            let each = Duration::from_micros(micros);
            let now = Instant::now();
            let mut pace = Pace::default();
            pace.looked(now, now + each, Check::Other);
            assert!(each * 20 <= pace.due(now) - now, "{each:?}");
        }
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.looked(now, now + Duration::from_secs(3), Check::Other);
        assert_eq!(pace.due(now), now + Duration::from_secs(4));
    }
}
