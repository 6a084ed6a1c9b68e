//! How long ago a handshake with each peer completed, whatever happens to the clock of the node, and where its packets come from.
//!
//! The kernel says when, by the clock of the node. A change of that value is a new handshake, and its age is counted from
//! then on by a monotonic clock. The kernel's endpoint of a peer is the source of its last packet, or what this node set
//! after that. Invariant: of endpoints, only a source of packets counts, but for those that the first observation finds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use wireguard::{Observed, ObservedPeer, PeerChange, PublicKey, SESSION, Step};

use super::announced::{Announced, Plane};

/// Added to the lifetime of a session: rounds observe now and then only.
const SLACK: Duration = Duration::from_secs(5);

/// The latest handshake with a peer.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// The kernel's time of it, since 1970, and when it was.
    clock: Duration,
    at: Instant,
    /// Bytes received from the peer so far.
    received: u64,
    /// Source of its packets, if known.
    source: Option<IpAddr>,
}

/// The latest handshakes.
#[derive(Debug, Default)]
pub(super) struct Handshakes {
    seen: BTreeMap<(Plane, PublicKey), Seen>,
    /// The sessions as of the last record with the source of each, and the peers that anything has come from.
    live: BTreeMap<(Plane, PublicKey), Option<IpAddr>>,
    heard: BTreeSet<(Plane, PublicKey)>,
    /// Peers whose endpoint this node has set since the last record.
    set: BTreeSet<PublicKey>,
    /// The clock was set back: a handshake is later than now.
    pub(super) clock_was_set_back: bool,
}

impl Handshakes {
    /// Notes which endpoints these steps set, given the last observation. To be called before the steps are applied.
    ///
    /// The endpoint of a peer that the steps add is not noted: the kernel sets it again from every authenticated packet, before the
    /// handshake counts as complete (`wg_receive_handshake_packet` and `wg_packet_consume_data_done` in
    /// `drivers/net/wireguard/receive.c`). So once a handshake with that peer is observed, the endpoint is the source of a packet.
    pub(super) fn note_set(&mut self, steps: &[Step], observed: &Observed) {
        let mut removed = BTreeSet::new();
        for step in steps {
            let Step::ChangePeers(index, changes) = step else {
                continue;
            };
            let devices = Plane::ALL
                .into_iter()
                .filter_map(|plane| Some((plane, observed.devices.get(plane.device())?)));
            let mut found = devices.filter(|(_, device)| device.index == *index);
            let Some((plane, device)) = found.next() else {
                continue;
            };
            for change in changes {
                match change {
                    // The kernel forgets the peer and its counters.
                    PeerChange::Remove(key) => {
                        self.seen.remove(&(plane, *key));
                        removed.insert((plane, *key));
                    }
                    PeerChange::Put(key, _) => {
                        let is_new = removed.contains(&(plane, *key));
                        if !is_new && device.peers.contains_key(key) {
                            self.set.insert(*key);
                        }
                    }
                }
            }
        }
    }

    /// Records what was observed at this time; `clock` is the node's clock, since 1970. Returns whether a session began,
    /// ended or has another source, or the first packet of a peer came.
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
                let Some(handshake) = peer.last_handshake else {
                    continue;
                };
                self.clock_was_set_back |= handshake > clock + SLACK;
                let age = clock.saturating_sub(handshake);
                let known = self.seen.get(&place);
                let same = known.filter(|known| known.clock == handshake);
                let latest = Seen {
                    clock: handshake,
                    at: same.map_or_else(|| now.checked_sub(age).unwrap_or(now), |same| same.at),
                    received: peer.received,
                    source: source(known, peer, self.set.contains(key)),
                };
                seen.insert(place, latest);
            }
        }
        self.set.clear();
        self.seen = seen;
        let sessions = self.seen.iter();
        let live: BTreeMap<(Plane, PublicKey), Option<IpAddr>> = sessions
            .filter(|((plane, key), _)| self.is_live(*plane, *key, now))
            .map(|(place, seen)| (*place, seen.source))
            .collect();
        let changed = live != self.live || heard != self.heard;
        (self.live, self.heard) = (live, heard);
        changed
    }

    /// The age of the latest handshake.
    pub(super) fn age(&self, plane: Plane, key: PublicKey, now: Instant) -> Option<Duration> {
        let seen = self.seen.get(&(plane, key))?;
        Some(now.saturating_duration_since(seen.at))
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

    /// Whether there is a session with a peer that announces these keys, whose packets come from this address.
    pub(super) fn is_live_from(&self, address: IpAddr, peer: &Announced, now: Instant) -> bool {
        let mut keys = peer.keys.iter();
        keys.any(|(plane, key, _)| {
            let seen = self.seen.get(&(*plane, *key));
            seen.is_some_and(|seen| seen.source == Some(address)) && self.is_live(*plane, *key, now)
        })
    }
}

/// Where the packets of a peer come from, given what was `known` of it. The endpoint says nothing if nothing has come since,
/// nor if this node may have set it after the last packet.
fn source(known: Option<&Seen>, peer: &ObservedPeer, was_set: bool) -> Option<IpAddr> {
    let is_silent = known.is_some_and(|known| known.received == peer.received);
    if is_silent || was_set {
        return known?.source;
    }
    Some(peer.endpoint?.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use wireguard::{ObservedDevice, Peer};

    use super::*;

    const KEY: PublicKey = PublicKey([7; 32]);

    fn observed(at: u64) -> Observed {
        let peer = ObservedPeer {
            last_handshake: Some(Duration::from_secs(at)),
            ..ObservedPeer::default()
        };
        let device = ObservedDevice {
            index: 1,
            peers: [(KEY, peer)].into(),
            ..ObservedDevice::default()
        };
        Observed {
            devices: [(Plane::First.device().to_owned(), device)].into(),
            ..Observed::default()
        }
    }

    const CLOCK: Duration = Duration::from_secs(1_000_010);

    /// A handshake ten seconds ago, with this endpoint and so many bytes received.
    fn session(endpoint: &str, received: u64) -> Observed {
        let mut observed = observed(1_000_000);
        let device = observed.devices.get_mut(Plane::First.device()).unwrap();
        let found = device.peers.get_mut(&KEY).unwrap();
        (found.endpoint, found.received) = (Some(endpoint.parse().unwrap()), received);
        observed
    }

    fn put(endpoint: &str) -> Step {
        let peer = Peer {
            endpoint: endpoint.parse().unwrap(),
            addresses: BTreeSet::new(),
        };
        Step::ChangePeers(1, vec![PeerChange::Put(KEY, peer)])
    }

    fn is_live_from(handshakes: &Handshakes, address: &str, now: Instant) -> bool {
        let peer = Announced {
            keys: vec![(Plane::First, KEY, 51820)],
            rotating: false,
        };
        handshakes.is_live_from(address.parse().unwrap(), &peer, now)
    }

    #[test]
    fn an_endpoint_that_this_node_set_is_no_source_of_packets() {
        let (mut handshakes, now) = (Handshakes::default(), Instant::now());
        let (own, other) = ("192.0.2.8:51820", "192.0.2.7:51820");
        let mapped = "[::ffff:192.0.2.7]:51820";
        // Whether the endpoint was set before, what it is then, the bytes so far, and which address the packets have.
        for (sets, endpoint, received, source) in [
            (false, own, 100, "192.0.2.8"),
            (true, other, 100, "192.0.2.8"),
            (false, other, 100, "192.0.2.8"),
            (true, other, 200, "192.0.2.8"),
            (false, other, 300, "192.0.2.7"),
            (false, own, 400, "192.0.2.8"),
            (false, mapped, 500, "192.0.2.7"),
        ] {
            if sets {
                handshakes.note_set(&[put(other)], &observed(1_000_000));
            }
            handshakes.record(&session(endpoint, received), now, CLOCK);
            for address in ["192.0.2.7", "192.0.2.8"] {
                let is_live = is_live_from(&handshakes, address, now);
                assert_eq!(is_live, address == source, "{received} {endpoint}");
            }
        }
        let late = now + Duration::from_secs(190);
        assert!(!is_live_from(&handshakes, "192.0.2.7", late));
    }

    #[test]
    fn the_first_handshake_with_an_added_peer_shows_its_source() {
        let now = Instant::now();
        let (own, other) = ("192.0.2.8:51820", "192.0.2.7:51820");
        let (mut without, mut silent) = (session(own, 0), session(own, 0));
        let device = without.devices.get_mut(Plane::First.device()).unwrap();
        device.peers.clear();
        let device = silent.devices.get_mut(Plane::First.device()).unwrap();
        device.peers.get_mut(&KEY).unwrap().last_handshake = None;
        let remove = Step::ChangePeers(1, vec![PeerChange::Remove(KEY)]);
        // What the last observation finds, the steps then, and whether the endpoint of a handshake before the next one counts.
        // The new peer has received as many bytes as the removed one.
        for (before, steps, counts) in [
            (&without, vec![put(other)], true),
            (&session(own, 100), vec![remove, put(other)], true),
            (&silent, vec![put(other)], false),
            (&session(own, 100), vec![put(other)], false),
        ] {
            let mut handshakes = Handshakes::default();
            handshakes.record(before, now, CLOCK);
            handshakes.note_set(&steps, before);
            for _ in 0..2 {
                handshakes.record(&session(other, 100), now, CLOCK);
                let is_live = is_live_from(&handshakes, "192.0.2.7", now);
                assert_eq!(is_live, counts, "{steps:?}");
            }
            handshakes.record(&session(other, 200), now, CLOCK);
            assert!(is_live_from(&handshakes, "192.0.2.7", now));
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
