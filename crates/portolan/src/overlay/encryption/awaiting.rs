//! Awaits handshakes: when the devices are read again, and whether what they show leads to a round.
//!
//! No notification reports a handshake, and the kernel lists a device with all of its peers or not at all. Invariant: reading
//! takes no more than a twentieth of the time, whatever the number of peers, and gets rarer while nothing comes.

use std::time::{Duration, Instant};

use super::{Encryption, FAREWELL, Keys, clock};

/// The least pause between two readings.
const LEAST: Duration = Duration::from_millis(200);
/// The longest pause while handshakes are awaited.
const LONGEST: Duration = Duration::from_secs(5);
/// The pause while keys are rotated.
const ROTATING: Duration = Duration::from_secs(1);
/// A pause is at least as long as this share of the time since the last change.
const SLOWER: u32 = 8;
/// A pause is at least so many times as long as the work before it.
const IDLE: u32 = 19;

/// The pause after work that took `cost`, when handshakes have been awaited for `waited`.
fn pause(waited: Duration, cost: Duration, rotates: bool) -> Duration {
    let longest = if rotates { ROTATING } else { LONGEST };
    let pause = (waited / SLOWER).clamp(LEAST, longest);
    pause.max(cost * IDLE)
}

impl Encryption {
    /// When [`Encryption::look`] is due although nothing else happens.
    pub(in crate::overlay) fn due(&self) -> Option<Instant> {
        let rotates = self.keys.as_ref().is_some_and(Keys::is_busy);
        let waited = self.looked.saturating_duration_since(self.changed);
        match (self.awaits, rotates) {
            (true, _) => Some(self.looked + pause(waited, self.cost, rotates)),
            (false, true) => Some(self.looked + pause(ROTATING * SLOWER, self.cost, true)),
            (false, false) => self.silent_since.map(|since| since + FAREWELL),
        }
    }

    /// Reads the sessions, if those are all that is awaited. Returns whether a round is due: a session began or ended, or
    /// time alone leads to the next step.
    pub(in crate::overlay) fn look(&mut self, now: Instant) -> bool {
        let rotates = self.keys.as_ref().is_some_and(Keys::is_busy);
        if rotates || !self.awaits {
            return true;
        }
        // A round names what fails.
        let read = self.kernel.read_again(&mut self.observed);
        let changed = read.is_err() || self.handshakes.record(&self.observed, now, clock());
        self.worked(now);
        changed || self.unchosen
    }

    /// Records that a round or a reading that began at `started` is over.
    pub(in crate::overlay) fn worked(&mut self, started: Instant) {
        self.looked = Instant::now();
        self.cost = self.looked.saturating_duration_since(started);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Readings within `until` after a change, and the time that they take, if nothing comes.
    fn readings(cost: Duration, until: Duration) -> (u32, Duration) {
        let (mut at, mut count) = (Duration::ZERO, 0);
        while at < until {
            at += pause(at, cost, false) + cost;
            count += 1;
        }
        (count, cost * count)
    }

    #[test]
    fn awaiting_costs_a_bounded_share_for_any_number_of_peers() {
        for millis in [0, 1, 30, 300, 3000] {
            let (cost, until) = (Duration::from_millis(millis), Duration::from_secs(600));
            let (count, spent) = readings(cost, until);
            assert!(spent <= until / IDLE, "{millis} ms: {spent:?}");
            assert!(count <= 160, "{millis} ms: {count} readings");
        }
    }

    #[test]
    fn a_session_of_a_small_cluster_is_seen_soon() {
        let (count, _) = readings(Duration::from_millis(2), Duration::from_secs(2));
        assert!(count >= 8, "{count} readings");
    }
}
