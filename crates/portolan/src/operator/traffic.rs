//! Connections of Services now, from conntrack: one walk of the kernel's table for a request.
//!
//! An entry outlives the last packet of its connection by at least 10 s (`nf_conntrack_tcp_timeout_close`; 120 s after an
//! orderly end, 30 s for UDP). So whoever walks the table every second or two misses no bytes, without events of the
//! kernel and without their cost ([`Census::measure`]).

use std::collections::{BTreeMap, HashMap};
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
/// A measurement that is not asked for this long begins anew.
const FORGOTTEN: Duration = Duration::from_secs(10);
/// Connections that are measured, about 20 bytes each.
const MEASURED: usize = 1_000_000;

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

/// What was added since a measurement began.
#[derive(Debug)]
struct Measurement {
    /// Packets and bytes of each connection at the last walk, by a hash of the connection.
    last: HashMap<u64, (u64, u64)>,
    hasher: RandomState,
    sums: HashMap<(Protocol, SocketAddr), Traffic>,
    at: Instant,
}

/// Connections by frontend, and by frontend and endpoint.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_claim: HashMap<Claim, Traffic>,
    by_endpoint: BTreeMap<(Claim, SocketAddr), Traffic>,
    measured: HashMap<Claim, Traffic>,
}

impl Census {
    /// All translated connections.
    pub(super) fn list(&mut self) -> Result<Vec<Tracked>> {
        let mut all = Vec::new();
        self.walk(|tracked| all.push(tracked))?;
        Ok(all)
    }

    fn walk(&mut self, mut visit: impl FnMut(Tracked)) -> Result<()> {
        let conntrack = match &mut self.conntrack {
            Some(conntrack) => conntrack,
            none => none.insert(Conntrack::open().context("cannot open conntrack")?),
        };
        for family in Family::ALL {
            conntrack.list(family, |flow, volume| {
                if flow.is_translated() {
                    visit(Tracked {
                        protocol: flow.protocol,
                        source: flow.source,
                        destination: flow.destination,
                        endpoint: flow.answers_from,
                        answered: flow.answered,
                        packets: volume.packets,
                        bytes: volume.bytes,
                    });
                }
            })?;
        }
        Ok(())
    }

    /// Counts translated connections. With `measure`, also what was added since the measurement began, which the first
    /// request does.
    pub(super) fn take(&mut self, facts: &NodeFacts, measure: bool) -> Result<Connections> {
        let now = Instant::now();
        let earlier = self.measurement.take();
        let is_known = |earlier: &Measurement| now - earlier.at < FORGOTTEN;
        let mut measurement = match (measure, earlier.filter(is_known)) {
            (false, earlier) => earlier,
            (true, Some(earlier)) => Some(earlier),
            (true, None) => Some(Measurement::new(now)),
        };
        let mut next = HashMap::new();
        let mut found: HashMap<(Protocol, SocketAddr, SocketAddr), Traffic> = HashMap::new();
        self.walk(|tracked| {
            let key = (tracked.protocol, tracked.destination, tracked.endpoint);
            let traffic = Traffic {
                connections: 1,
                packets: tracked.packets,
                bytes: tracked.bytes,
            };
            add(found.entry(key).or_default(), &traffic);
            if let (true, Some(measurement)) = (measure, &mut measurement) {
                measurement.add(&tracked, &mut next);
            }
        })?;
        if let (true, Some(measurement)) = (measure, &mut measurement) {
            (measurement.last, measurement.at) = (next, now);
        }
        let mut connections = Connections::default();
        for ((protocol, destination, endpoint), traffic) in found {
            for claim in claims(protocol, destination, facts) {
                add(connections.by_claim.entry(claim).or_default(), &traffic);
                let of_endpoint = connections.by_endpoint.entry((claim, endpoint));
                add(of_endpoint.or_default(), &traffic);
            }
        }
        let sums = measurement.iter().flat_map(|measurement| &measurement.sums);
        for ((protocol, destination), traffic) in sums {
            for claim in claims(*protocol, *destination, facts) {
                add(connections.measured.entry(claim).or_default(), traffic);
            }
        }
        self.measurement = measurement;
        Ok(connections)
    }
}

impl Measurement {
    fn new(now: Instant) -> Measurement {
        Measurement {
            last: HashMap::new(),
            hasher: RandomState::new(),
            sums: HashMap::new(),
            at: now,
        }
    }

    /// Adds what a connection has had since the last walk. A number that is smaller than before is another connection's.
    fn add(&mut self, tracked: &Tracked, next: &mut HashMap<u64, (u64, u64)>) {
        if next.len() == MEASURED {
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
        let before = self.last.get(&key).filter(|before| before.1 <= bytes);
        let (known_packets, known_bytes) = before.copied().unwrap_or_default();
        let sum = self.sums.entry((protocol, destination)).or_default();
        add(
            sum,
            &Traffic {
                connections: u64::from(before.is_none()),
                packets: packets.saturating_sub(known_packets),
                bytes: bytes.saturating_sub(known_bytes),
            },
        );
        next.insert(key, (packets, bytes));
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

    #[test]
    fn bytes_of_ended_and_reused_connections_count_once() {
        let mut measurement = Measurement::new(Instant::now());
        for walk in [
            vec![tracked(1, 1_000)],
            vec![tracked(1, 1_500), tracked(2, 200)],
            // The first has ended; the second's port has been used again.
            vec![tracked(2, 100)],
            vec![tracked(2, 300)],
        ] {
            let mut next = HashMap::new();
            for one in &walk {
                measurement.add(one, &mut next);
            }
            measurement.last = next;
        }
        let sum = measurement.sums.values().next().copied().unwrap();
        assert_eq!((sum.connections, sum.bytes), (3, 2_000));
    }
}
