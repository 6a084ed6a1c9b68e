//! What all fleets have in common.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::ops::Add;
use std::time::SystemTime;

use anyhow::{Context, Result};
use lab::Host;

use super::cluster::Cluster;
use crate::Samples;

/// Collections that a node watches: Services, EndpointSlices, its Node, ServiceCIDRs.
pub(super) const KINDS: usize = 4;
/// The interface of a node in the lab.
const UPLINK: &str = "eth0:";
/// State of an established connection in `/proc/net/tcp` (include/net/tcp_states.h).
const ESTABLISHED: &str = "01";

/// Nodes with one service proxy, which are clients of one API server.
pub trait Fleet {
    /// The proxy and its release.
    fn name(&self) -> String;
    /// Number of nodes.
    fn nodes(&self) -> u32;
    /// The user that the API server knows the proxies by.
    fn user(&self) -> &'static str;
    /// Starts the proxies of all nodes, as fast as it can.
    fn start(&mut self) -> Result<()>;
    /// Whether every node has all its watches.
    fn is_watching(&self, cluster: &Cluster) -> Result<bool>;
    /// Bytes and connections of all nodes together.
    fn traffic(&self) -> Result<Traffic>;
    /// Number of pairs of a node and a Service whose last change (by the number of the Service) the node does not have.
    fn missing(&self, expected: &BTreeMap<u32, u32>) -> Result<usize>;
    /// When each node came back after `since`.
    fn returns(&self, since: SystemTime, cluster: &Cluster) -> Result<Vec<Return>>;
    /// Number of whole lists that nodes delivered to their proxies since the start; `None` if unknown.
    fn whole_lists(&self) -> Option<usize>;
    /// Times from the request that changes an EndpointSlice until a node has the change; `None` if unknown.
    fn deliveries(&self) -> Option<Samples>;
}

/// The return of one node after an outage.
#[derive(Clone, Copy, Debug, Default)]
pub struct Return {
    /// The first answer to it, with whatever status.
    pub first: Option<SystemTime>,
    /// When the last of its watches was opened. With Portolan, also its lists are complete then.
    pub watching: Option<SystemTime>,
}

/// What has passed the interfaces of nodes since they exist.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traffic {
    /// Bytes from the API server.
    pub received: u64,
    /// Bytes to the API server.
    pub sent: u64,
    /// Connections to the API server that are established now.
    pub connections: u64,
}

impl Traffic {
    /// Of one host of the lab.
    pub(super) fn of(host: &Host, server: SocketAddr) -> Result<Traffic> {
        // Not /proc/net, which is the network of the process's first thread.
        let read = |file: &'static str| {
            host.run(move || fs::read_to_string(format!("/proc/thread-self/net/{file}")))?
                .with_context(|| format!("read {file}"))
        };
        let (interfaces, connections) = (read("dev")?, read("tcp")?);
        let uplink = interfaces
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(UPLINK))
            .context("no uplink")?;
        let counters: Vec<u64> = uplink
            .split_whitespace()
            .filter_map(|counter| counter.parse().ok())
            .collect();
        let port = format!(":{:04X}", server.port());
        let is_to_server = |line: &&str| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            matches!(fields[..], [_, _, remote, state, ..] if remote.ends_with(&port) && state == ESTABLISHED)
        };
        // Field 0 of each half is bytes (Linux, net/core/net-procfs.c).
        Ok(Traffic {
            received: counters.first().copied().context("no counter")?,
            sent: counters.get(8).copied().context("no counter")?,
            connections: connections.lines().filter(is_to_server).count() as u64,
        })
    }

    /// What has come to it since `before`. Connections are those of now.
    #[must_use]
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            received: self.received - before.received,
            sent: self.sent - before.sent,
            connections: self.connections,
        }
    }
}

impl Add for Traffic {
    type Output = Traffic;

    fn add(self, other: Traffic) -> Traffic {
        Traffic {
            received: self.received + other.received,
            sent: self.sent + other.sent,
            connections: self.connections + other.connections,
        }
    }
}
