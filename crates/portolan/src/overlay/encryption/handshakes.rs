//! How long ago a handshake with each peer completed, whatever happens to the clock of the node.
//!
//! The kernel says when, by the clock of the node. A change of that value is a new handshake, and its age is counted from
//! then on by a monotonic clock.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use wireguard::{Observed, PublicKey, SESSION};

use super::announced::{Announced, Plane};

/// Added to the lifetime of a session: rounds observe now and then only.
const SLACK: Duration = Duration::from_secs(5);

/// The latest handshakes.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    /// The kernel's time of it, and when it was.
    seen: BTreeMap<(Plane, PublicKey), (Duration, Instant)>,
    /// The sessions as of the last record, and the peers that anything has come from.
    live: BTreeSet<(Plane, PublicKey)>,
    heard: BTreeSet<(Plane, PublicKey)>,
    /// The clock was set back: a handshake is later than now.
    pub(super) clock_was_set_back: bool,
}

impl Handshakes {
    /// Records what was observed at this time; `clock` is the node's clock, since 1970. Returns whether a session began or
    /// ended, or the first packet of a peer came.
    pub(super) fn record(&mut self, observed: &Observed, now: Instant, clock: Duration) -> bool {
        let (mut seen, mut heard) = (BTreeMap::new(), BTreeSet::new());
        self.clock_was_set_back = false;
        for plane in Plane::ALL {
            let Some(device) = observed.devices.get(plane.device()) else {
                continue;
            };
            for (key, peer) in &device.peers {
                let place = (plane, *key);
                if peer.received > 0 {
                    heard.insert(place);
                }
                let Some(at) = peer.last_handshake else {
                    continue;
                };
                let known = self.seen.get(&place).filter(|(known, _)| *known == at);
                self.clock_was_set_back |= at > clock + SLACK;
                let age = clock.saturating_sub(at);
                let first = now.checked_sub(age).unwrap_or(now);
                seen.insert(place, known.copied().unwrap_or((at, first)));
            }
        }
        self.seen = seen;
        let places = self.seen.keys();
        let live = places.filter(|(plane, key)| self.is_live(*plane, *key, now));
        let live: BTreeSet<(Plane, PublicKey)> = live.copied().collect();
        let changed = live != self.live || heard != self.heard;
        (self.live, self.heard) = (live, heard);
        changed
    }

    /// The age of the latest handshake.
    pub(super) fn age(&self, plane: Plane, key: PublicKey, now: Instant) -> Option<Duration> {
        let (_, at) = self.seen.get(&(plane, key))?;
        Some(now.saturating_duration_since(*at))
    }

    /// Whether there is a session.
    pub(super) fn is_live(&self, plane: Plane, key: PublicKey, now: Instant) -> bool {
        let age = self.age(plane, key, now);
        age.is_some_and(|age| age < SESSION + SLACK)
    }

    /// Whether there is a session with a peer that announces these keys.
    pub(super) fn is_live_with(&self, plane: Plane, peer: &Announced, now: Instant) -> bool {
        let key = peer.key(plane);
        key.is_some_and(|(key, _)| self.is_live(plane, key, now))
    }
}

#[cfg(test)]
mod tests {
    use wireguard::{ObservedDevice, ObservedPeer};

    use super::*;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn observed(at: u64) -> Observed {
        let peer = ObservedPeer {
            last_handshake: Some(Duration::from_secs(at)),
            ..ObservedPeer::default()
        };
        let device = ObservedDevice {
            peers: [(KEY, peer)].into(),
            ..ObservedDevice::default()
        };
        Observed {
            devices: [(Plane::First.device().to_owned(), device)].into(),
            ..Observed::default()
        }
    }

    #[test]
    fn a_session_ends_after_its_time_and_not_by_the_clock() {
        let (mut handshakes, start) = (Handshakes::default(), Instant::now());
        let live = |handshakes: &Handshakes, now| handshakes.is_live(Plane::First, KEY, now);
        let seconds = Duration::from_secs;
        assert!(handshakes.record(&observed(1_000_000), start, seconds(1_000_010)));
        assert!(live(&handshakes, start));
        // An hour forward, an hour back: the same handshake.
        let soon = start + seconds(1);
        assert!(!handshakes.record(&observed(1_000_000), soon, seconds(1_003_610)));
        assert!(live(&handshakes, start + seconds(1)) && !handshakes.clock_was_set_back);
        handshakes.record(&observed(1_000_000), start + seconds(2), seconds(996_400));
        assert!(live(&handshakes, start + seconds(2)) && handshakes.clock_was_set_back);
        let late = start + seconds(190);
        assert!(handshakes.record(&observed(1_000_000), late, seconds(1_000_200)));
        assert!(!live(&handshakes, late));
        handshakes.record(&Observed::default(), late, seconds(1_000_200));
        assert_eq!(handshakes.age(Plane::First, KEY, late), None);
    }
}
