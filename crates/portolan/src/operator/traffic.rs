//! Connections of Services now, from conntrack: one walk of the kernel's table for a request.
//!
//! An entry outlives the last packet of its connection by at least 10 s (`nf_conntrack_tcp_timeout_close`; 120 s after an
//! orderly end, 30 s for UDP). So whoever walks the table every second or two misses no bytes, without events of the
//! kernel and without their cost ([`Census::take`]). One case is lost: a client that uses the port of a reset connection again, to
//! the same frontend, replaces the entry. Only events would show the earlier entry's last bytes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netfilter::Conntrack;
use service_dataplane::Claim;
use service_model::{Family, FrontendAddress, NodeFacts, Protocol};

use super::documents::Traffic;

/// Whether the kernel counts bytes and packets of connections, in the network namespace of the reader.
const ACCOUNTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";
/// A measurement that is not asked for this long goes on from what is there then.
const PAUSED: Duration = Duration::from_secs(60);
/// Connections that are measured, about 20 bytes each.
const MEASURED: usize = 1_000_000;
/// Destinations of which sums are kept, about 100 bytes each. Connections of pods to the outside are translated too, so only
/// part of the destinations are frontends.
const DESTINATIONS: usize = 50_000;

/// The socket to conntrack, opened for the first request.
#[derive(Debug, Default)]
pub(super) struct Census {
    conntrack: Option<Conntrack>,
    measurement: Option<Measurement>,
}

/// A translated connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tracked {
    pub(super) protocol: Protocol,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) endpoint: SocketAddr,
    pub(super) answered: bool,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// What was added since a measurement began. Invariant: a sum never falls, whatever happens between two walks, until it is
/// forgotten as a whole.
#[derive(Debug, Default)]
struct Measurement {
    /// Packets and bytes of each connection at the last walk, by a hash of the connection.
    last: HashMap<u64, (u64, u64)>,
    /// The same of the walk under way.
    next: HashMap<u64, (u64, u64)>,
    hasher: RandomState,
    /// By destination, with the last walk that had a connection. Idle ones are forgotten beyond [`DESTINATIONS`].
    sums: HashMap<(Protocol, SocketAddr), (Traffic, Instant)>,
    /// The same by destination and endpoint. An endpoint is forgotten with all of its destinations, after [`PAUSED`] without a
    /// connection to any of them: its sum over the frontends of a Service must not fall.
    endpoints: HashMap<(Protocol, SocketAddr, SocketAddr), (Traffic, Instant)>,
    /// Begin of the last complete walk; `None` until there is one.
    at: Option<Instant>,
    /// The walk under way only notes what is there.
    is_first: bool,
}

/// Connections by frontend, and by frontend and endpoint.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_claim: HashMap<Claim, Traffic>,
    by_endpoint: BTreeMap<(Claim, SocketAddr), Traffic>,
    measured: HashMap<Claim, Traffic>,
    measured_endpoints: HashMap<(Claim, SocketAddr), Traffic>,
}

impl Census {
    /// All translated connections.
    pub(super) fn list(&mut self) -> Result<Vec<Tracked>> {
        let mut all = Vec::new();
        self.walk(|tracked| all.push(tracked))?;
        Ok(all)
    }

    /// Visits all translated connections. Returns whether none can be missing.
    fn walk(&mut self, mut visit: impl FnMut(Tracked)) -> Result<bool> {
        let conntrack = match &mut self.conntrack {
            Some(conntrack) => conntrack,
            none => none.insert(Conntrack::open().context("cannot open conntrack")?),
        };
        let is_whole = conntrack.list_translated(|flow, volume| {
            visit(Tracked {
                protocol: flow.protocol,
                source: flow.source,
                destination: flow.destination,
                endpoint: flow.answers_from,
                answered: flow.answered,
                packets: volume.packets,
                bytes: volume.bytes,
            });
        })?;
        Ok(is_whole)
    }

    /// Counts translated connections. With `measure`, also what was added since the measurement began, which the first
    /// request does. After an error the measurement goes on with the next request.
    pub(super) fn take(&mut self, facts: &NodeFacts, measure: bool) -> Result<Connections> {
        let now = Instant::now();
        let mut measurement = self.measurement.take();
        if measure {
            measurement.get_or_insert_default().begin(now);
        }
        let mut found: HashMap<(Protocol, SocketAddr, SocketAddr), Traffic> = HashMap::new();
        let walked = self.walk(|tracked| {
            let key = (tracked.protocol, tracked.destination, tracked.endpoint);
            let traffic = Traffic {
                connections: 1,
                packets: tracked.packets,
                bytes: tracked.bytes,
            };
            add(found.entry(key).or_default(), &traffic);
            if let (true, Some(measurement)) = (measure, &mut measurement) {
                measurement.add(&tracked, now);
            }
        });
        if let (true, Some(measurement)) = (measure, &mut measurement) {
            measurement.end(now, matches!(walked, Ok(true)));
        }
        self.measurement = measurement;
        walked?;
        let mut connections = Connections::default();
        for ((protocol, destination, endpoint), traffic) in found {
            for claim in claims(protocol, destination, facts) {
                add(connections.by_claim.entry(claim).or_default(), &traffic);
                let of_endpoint = connections.by_endpoint.entry((claim, endpoint));
                add(of_endpoint.or_default(), &traffic);
            }
        }
        if let Some(measurement) = &self.measurement {
            connections.add_measured(measurement, facts);
        }
        Ok(connections)
    }
}

impl Measurement {
    /// Begins a walk.
    fn begin(&mut self, now: Instant) {
        let is_known = |at: &Instant| now - *at < PAUSED;
        self.is_first = !self.at.as_ref().is_some_and(is_known);
        if self.is_first {
            self.last.clear();
        }
        self.next.clear();
    }

    /// Adds what a connection has had since the last walk. A number that is smaller than before is another connection's.
    fn add(&mut self, tracked: &Tracked, now: Instant) {
        if self.next.len() == MEASURED {
            return;
        }
        let Tracked {
            protocol,
            source,
            destination,
            endpoint,
            packets,
            bytes,
            ..
        } = *tracked;
        let key = self
            .hasher
            .hash_one((protocol, source, destination, endpoint));
        // The kernel lists an entry twice where it has to begin a bucket of its table again.
        let before = self.next.get(&key).or_else(|| self.last.get(&key));
        let before = before.filter(|before| before.1 <= bytes);
        let (known_packets, known_bytes) = match before {
            Some(before) => *before,
            None if self.is_first => (packets, bytes),
            None => (0, 0),
        };
        let added = Traffic {
            connections: u64::from(before.is_none() && !self.is_first),
            packets: packets.saturating_sub(known_packets),
            bytes: bytes.saturating_sub(known_bytes),
        };
        let new = (Traffic::default(), now);
        let of_destination = self.sums.entry((protocol, destination)).or_insert(new);
        let of_endpoint = self.endpoints.entry((protocol, destination, endpoint));
        for (sum, seen) in [of_destination, of_endpoint.or_insert(new)] {
            add(sum, &added);
            *seen = now;
        }
        self.next.insert(key, (packets, bytes));
    }

    /// Ends a walk. What a walk that is not whole has not seen may be there still.
    fn end(&mut self, now: Instant, is_whole: bool) {
        if is_whole {
            self.last = std::mem::take(&mut self.next);
        } else {
            self.last.extend(self.next.drain());
            if self.is_first {
                return;
            }
        }
        self.forget(now);
        self.at = Some(now);
    }

    /// Forgets idle endpoints, and idle destinations where there are too many.
    fn forget(&mut self, now: Instant) {
        let is_recent = |seen: Instant| now - seen < PAUSED;
        let in_use = self
            .endpoints
            .iter()
            .filter(|(_, (_, seen))| is_recent(*seen));
        let in_use: HashSet<(Protocol, SocketAddr)> = in_use
            .map(|((protocol, _, endpoint), _)| (*protocol, *endpoint))
            .collect();
        self.endpoints
            .retain(|(protocol, _, endpoint), _| in_use.contains(&(*protocol, *endpoint)));
        if self.sums.len() > DESTINATIONS {
            self.sums.retain(|_, (_, seen)| is_recent(*seen));
        }
    }
}

/// The claims that a destination may be of.
pub(super) fn claims(
    protocol: Protocol,
    to: SocketAddr,
    facts: &NodeFacts,
) -> impl Iterator<Item = Claim> + use<> {
    let is_node = facts.node_addresses.contains(&to.ip());
    let node_port = is_node.then(|| FrontendAddress::NodePort(Family::of(to.ip())));
    let addresses = [
        FrontendAddress::ClusterIp(to.ip()),
        FrontendAddress::External(to.ip()),
    ];
    let addresses = addresses.into_iter().chain(node_port);
    addresses.map(move |address| Claim {
        address,
        protocol,
        port: to.port(),
    })
}

/// Adds one number of connections to another.
pub(super) fn add(to: &mut Traffic, more: &Traffic) {
    to.connections += more.connections;
    to.packets += more.packets;
    to.bytes += more.bytes;
}

impl Connections {
    fn add_measured(&mut self, measurement: &Measurement, facts: &NodeFacts) {
        for ((protocol, destination), (traffic, _)) in &measurement.sums {
            for claim in claims(*protocol, *destination, facts) {
                add(self.measured.entry(claim).or_default(), traffic);
            }
        }
        for ((protocol, destination, endpoint), (traffic, _)) in &measurement.endpoints {
            for claim in claims(*protocol, *destination, facts) {
                let of_endpoint = self.measured_endpoints.entry((claim, *endpoint));
                add(of_endpoint.or_default(), traffic);
            }
        }
    }

    /// Those to a frontend.
    pub(super) fn to(&self, claim: &Claim) -> Traffic {
        self.by_claim.get(claim).copied().unwrap_or_default()
    }

    /// Those to an endpoint through a frontend.
    pub(super) fn through(&self, claim: &Claim, endpoint: SocketAddr) -> Traffic {
        let found = self.by_endpoint.get(&(*claim, endpoint));
        found.copied().unwrap_or_default()
    }

    /// What was added to a frontend since the measurement began.
    pub(super) fn measured(&self, claim: &Claim) -> Traffic {
        self.measured.get(claim).copied().unwrap_or_default()
    }

    /// What was added to an endpoint through a frontend since the measurement began, or since its last minute without a connection.
    pub(super) fn measured_through(&self, claim: &Claim, endpoint: SocketAddr) -> Traffic {
        let found = self.measured_endpoints.get(&(*claim, endpoint));
        found.copied().unwrap_or_default()
    }
}

/// Whether the kernel counts bytes and packets.
pub(super) fn counts_bytes() -> bool {
    std::fs::read_to_string(ACCOUNTING).is_ok_and(|text| text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tracked(port: u16, bytes: u64) -> Tracked {
        Tracked {
            protocol: Protocol::Tcp,
            source: SocketAddr::from(([10, 0, 0, 1], port)),
            destination: SocketAddr::from(([10, 96, 0, 1], 80)),
            endpoint: SocketAddr::from(([10, 244, 0, 1], 8080)),
            answered: true,
            packets: bytes / 100,
            bytes,
        }
    }

    /// Walks over these connections, and returns the sum.
    fn walk(
        measurement: &mut Measurement,
        at: Instant,
        connections: &[Tracked],
        is_whole: bool,
    ) -> Traffic {
        measurement.begin(at);
        for one in connections {
            measurement.add(one, at);
        }
        measurement.end(at, is_whole);
        measurement.sums.values().next().unwrap().0
    }

    #[test]
    fn bytes_of_ended_and_reused_connections_count_once() {
        let mut measurement = Measurement::default();
        let now = Instant::now();
        for connections in [
            vec![tracked(1, 1_000)],
            vec![tracked(1, 1_500), tracked(2, 200)],
            // The first has ended; the second's port has been used again.
            vec![tracked(2, 100)],
        ] {
            walk(&mut measurement, now, &connections, true);
        }
        let sum = walk(&mut measurement, now, &[tracked(2, 300)], true);
        assert_eq!((sum.connections, sum.bytes), (2, 1_000));
    }

    #[test]
    fn an_entry_that_is_listed_twice_counts_once() {
        let mut measurement = Measurement::default();
        let now = Instant::now();
        walk(&mut measurement, now, &[tracked(1, 100)], true);
        let twice = [
            tracked(1, 500),
            tracked(1, 600),
            tracked(2, 50),
            tracked(2, 50),
        ];
        let sum = walk(&mut measurement, now, &twice, true);
        assert_eq!((sum.connections, sum.bytes), (1, 550));
    }

    #[test]
    fn an_entry_that_a_broken_walk_missed_counts_once() {
        let mut measurement = Measurement::default();
        let now = Instant::now();
        walk(
            &mut measurement,
            now,
            &[tracked(1, 100), tracked(2, 100)],
            true,
        );
        walk(&mut measurement, now, &[tracked(2, 300)], false);
        let sum = walk(
            &mut measurement,
            now,
            &[tracked(1, 700), tracked(2, 300)],
            true,
        );
        assert_eq!((sum.connections, sum.bytes), (0, 800));
    }

    #[test]
    fn sums_never_fall_after_a_pause() {
        let mut measurement = Measurement::default();
        let begin = Instant::now();
        walk(&mut measurement, begin, &[tracked(1, 100)], true);
        walk(
            &mut measurement,
            begin,
            &[tracked(1, 400), tracked(2, 50)],
            true,
        );
        // A short pause: nothing of what is still there is lost.
        let soon = begin + PAUSED / 2;
        let sum = walk(&mut measurement, soon, &[tracked(1, 1_400)], true);
        assert_eq!((sum.connections, sum.bytes), (1, 1_350));
        // A long one: the time in between is unknown, and what is there is no news.
        let later = soon + PAUSED * 2;
        let sum = walk(&mut measurement, later, &[tracked(3, 9_000)], true);
        assert_eq!((sum.connections, sum.bytes), (1, 1_350));
        let sum = walk(&mut measurement, later, &[tracked(3, 9_100)], true);
        assert_eq!((sum.connections, sum.bytes), (1, 1_450));
    }

    /// A connection to the same endpoint by another frontend.
    fn elsewhere(port: u16, bytes: u64) -> Tracked {
        Tracked {
            destination: SocketAddr::from(([203, 0, 113, 1], 80)),
            ..tracked(port, bytes)
        }
    }

    #[test]
    fn an_endpoint_keeps_idle_frontends_while_one_is_in_use() {
        let mut measurement = Measurement::default();
        let begin = Instant::now();
        let both = [tracked(1, 100), elsewhere(2, 100)];
        walk(&mut measurement, begin, &both, true);
        let both = [tracked(1, 1_100), elsewhere(2, 600)];
        walk(&mut measurement, begin, &both, true);
        let measured = |measurement: &Measurement| -> u64 {
            let sums = measurement.endpoints.values();
            sums.map(|(traffic, _)| traffic.bytes).sum()
        };
        assert_eq!(measured(&measurement), 1_500);
        // Connections by one frontend only, for longer than an endpoint is kept without any.
        let mut now = begin;
        for bytes in [700, 800, 900] {
            now += PAUSED / 2;
            walk(&mut measurement, now, &[elsewhere(2, bytes)], true);
            assert_eq!(measured(&measurement), 900 + bytes);
        }
        walk(&mut measurement, now + PAUSED / 2, &[], true);
        assert_eq!(measured(&measurement), 1_800);
        walk(&mut measurement, now + PAUSED, &[], true);
        assert_eq!(measured(&measurement), 0);
    }

    #[test]
    fn sums_of_idle_destinations_are_bounded() {
        let mut measurement = Measurement::default();
        let begin = Instant::now();
        let address = |n: usize| std::net::Ipv4Addr::from_bits(u32::try_from(n).unwrap());
        let outside = |n: usize| Tracked {
            destination: SocketAddr::from((address(n), 443)),
            ..tracked(1, 100)
        };
        let most: Vec<Tracked> = (1..=DESTINATIONS).map(outside).collect();
        walk(&mut measurement, begin, &most, true);
        let later = begin + PAUSED;
        walk(&mut measurement, later, &[], true);
        assert_eq!(measurement.sums.len(), DESTINATIONS);
        walk(&mut measurement, later, &[tracked(1, 100)], true);
        assert_eq!(measurement.sums.len(), 1);
    }
}
