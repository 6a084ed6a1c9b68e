//! Reports a verdict about a peer only after several rounds agree.

use crate::verdict::PeerVerdict;

/// Bad rounds in a row before a verdict is reported: a node that restarts must not raise an alarm.
pub(crate) const ROUNDS_TO_REPORT: u32 = 3;
/// Healthy rounds in a row before a reported verdict is withdrawn.
const ROUNDS_TO_CLEAR: u32 = 2;

/// Follows the verdicts about one peer in one family.
#[derive(Clone, Debug, Default)]
pub(crate) struct VerdictDebouncer {
    bad: u32,
    good: u32,
    reported: Option<PeerVerdict>,
}

impl VerdictDebouncer {
    /// The verdict in force; `None` while the peer counts as healthy.
    pub(crate) fn reported(&self) -> Option<&PeerVerdict> {
        self.reported.as_ref()
    }

    /// Whether the last round failed or a reported verdict is still in force.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.bad > 0 || self.reported.is_some()
    }

    /// Records the verdict of a round. Returns whether the verdict in force has changed.
    pub(crate) fn observe(&mut self, verdict: PeerVerdict) -> bool {
        if verdict.is_healthy() {
            self.bad = 0;
            self.good += 1;
            return self.good >= ROUNDS_TO_CLEAR && self.reported.take().is_some();
        }
        self.good = 0;
        self.bad += 1;
        let reported = self.reported.as_ref();
        if self.bad < ROUNDS_TO_REPORT || reported.is_some_and(|old| verdict.resembles(old)) {
            return false;
        }
        self.reported = Some(verdict);
        true
    }
}
