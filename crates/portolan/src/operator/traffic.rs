//! Connections of Services now, from conntrack: one walk of the kernel's table for a request.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use anyhow::{Context, Result};
use netfilter::Conntrack;
use service_dataplane::Claim;
use service_model::{Family, FrontendAddress, NodeFacts, Protocol};

use super::documents::Traffic;

/// Whether the kernel counts bytes and packets of connections, in the network namespace of the reader.
const ACCOUNTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";

/// The socket to conntrack, opened for the first request.
#[derive(Debug, Default)]
pub(super) struct Census {
    conntrack: Option<Conntrack>,
}

/// Connections by frontend, and by frontend and endpoint.
#[derive(Debug, Default)]
pub(super) struct Connections {
    by_claim: HashMap<Claim, Traffic>,
    by_endpoint: BTreeMap<(Claim, SocketAddr), Traffic>,
}

impl Census {
    /// Counts translated connections.
    pub(super) fn take(&mut self, facts: &NodeFacts) -> Result<Connections> {
        let conntrack = match &mut self.conntrack {
            Some(conntrack) => conntrack,
            none => none.insert(Conntrack::open().context("cannot open conntrack")?),
        };
        let mut found: HashMap<(Protocol, SocketAddr, SocketAddr), Traffic> = HashMap::new();
        for family in Family::ALL {
            conntrack.list(family, |flow, volume| {
                if flow.is_translated() {
                    let key = (flow.protocol, flow.destination, flow.answers_from);
                    let traffic = found.entry(key).or_default();
                    add(
                        traffic,
                        &Traffic {
                            connections: 1,
                            packets: volume.packets,
                            bytes: volume.bytes,
                        },
                    );
                }
            })?;
        }
        let mut connections = Connections::default();
        for ((protocol, destination, endpoint), traffic) in found {
            for claim in claims(protocol, destination, facts) {
                add(connections.by_claim.entry(claim).or_default(), &traffic);
                let of_endpoint = connections.by_endpoint.entry((claim, endpoint));
                add(of_endpoint.or_default(), &traffic);
            }
        }
        Ok(connections)
    }
}

/// The claims that a destination may be of.
fn claims(protocol: Protocol, to: SocketAddr, facts: &NodeFacts) -> impl Iterator<Item = Claim> {
    let is_node = facts.node_addresses.contains(&to.ip());
    let node_port = is_node.then(|| FrontendAddress::NodePort(Family::of(to.ip())));
    let addresses = [
        FrontendAddress::ClusterIp(to.ip()),
        FrontendAddress::External(to.ip()),
    ];
    addresses
        .into_iter()
        .chain(node_port)
        .map(move |address| Claim {
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
}

/// Whether the kernel counts bytes and packets.
pub(super) fn counts_bytes() -> bool {
    std::fs::read_to_string(ACCOUNTING).is_ok_and(|text| text.trim() == "1")
}
