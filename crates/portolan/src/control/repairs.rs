//! When to compare the tables with what they should hold, after somebody else changed them.
//!
//! At once the first times; when it goes on (another daemon that fights ours), at most once a second.

use std::time::{Duration, Instant};

/// So many repairs within [`WINDOW`] are made at once.
const AT_ONCE: usize = 5;
/// How long a repair counts.
const WINDOW: Duration = Duration::from_secs(60);
/// Pause between repairs in a fight.
const PAUSE: Duration = Duration::from_secs(1);

/// Paces repairs.
#[derive(Debug, Default)]
pub(crate) struct Repairs {
    requested: bool,
    /// The last [`AT_ONCE`] starts, oldest first.
    recent: Vec<Instant>,
}

impl Repairs {
    /// Somebody changed our tables, or may have.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// When to compare; `None` when there is no reason to.
    pub(crate) fn due(&self, now: Instant) -> Option<Instant> {
        let fight = self.recent.len() >= AT_ONCE
            && self
                .recent
                .first()
                .is_some_and(|oldest| now - *oldest < WINDOW);
        let at = self
            .recent
            .last()
            .filter(|_| fight)
            .map_or(now, |last| *last + PAUSE);
        self.requested.then_some(at.max(now))
    }

    /// A comparison starts now.
    pub(crate) fn started(&mut self, now: Instant) {
        self.requested = false;
        if self.recent.len() >= AT_ONCE {
            self.recent.remove(0);
        }
        self.recent.push(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repairs_are_made_at_once_until_they_become_a_fight() {
        let start = Instant::now();
        let mut repairs = Repairs::default();
        assert_eq!(repairs.due(start), None);
        for _ in 0..AT_ONCE {
            repairs.request();
            assert_eq!(repairs.due(start), Some(start));
            repairs.started(start);
        }
        repairs.request();
        assert_eq!(repairs.due(start), Some(start + PAUSE));
        assert_eq!(repairs.due(start + 2 * WINDOW), Some(start + 2 * WINDOW));
    }
}
