//! Clusters of network namespaces on one machine, for tests, benches and the demo.
//!
//! A lab has nodes on an underlay, pods on nodes, and clients outside. Real processes run in it, echo servers answer with
//! their name and the client's address, and a probe returns the outcome of a connection attempt:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use lab::{Lab, Outcome, Protocol};
//!
//! let lab = Lab::new()?;
//! let (a, b) = (lab.node("node-a")?, lab.node("node-b")?);
//! let (client, web) = (a.pod("client")?, b.pod("web")?);
//! web.serve(Protocol::Tcp, 8080)?;
//!
//! let outcome = client.connect(Protocol::Tcp, (web.ipv4(), 8080))?;
//! assert_eq!(outcome.server(), Some("web:8080"));
//! assert_eq!(client.connect(Protocol::Tcp, (web.ipv6(), 81))?, Outcome::Refused);
//! # Ok(())
//! # }
//! ```
//!
//! Needs root (or `unshare -rn`), iproute2, util-linux, and for rules nftables; the attribute [`macro@scenario`] skips a
//! test where they are missing. Nothing is written outside the namespaces, and the kernel removes them
//! with everything inside when the [`Lab`] is dropped or the process ends, however it ends.
//!
//! A real Kubernetes control plane ([`ControlPlane`]) and nodes that take part in it ([`Kubelet`]) make a lab a cluster:
//! scheduler and controllers above, packets below. They need the programs that `cargo xtask control-plane` builds
//! ([`Capability::ControlPlane`]).
//!
//! # Address plan
//!
//! The IPv6 address has the digits of the IPv4 address' last number(s), so both read alike.
//!
//! | what | IPv4 | IPv6 |
//! |---|---|---|
//! | underlay | 192.168.77.0/24 | fd00:77::/64 |
//! | its gateway, to nowhere: it answers "unreachable" | 192.168.77.1 | fd00:77::1 |
//! | node n, from 0 | 192.168.77.(10+n) | fd00:77::(10+n) |
//! | client n, from 0 | 192.168.77.(200+n) | fd00:77::(200+n) |
//! | all pods ([`CLUSTER_CIDR_V4`], [`CLUSTER_CIDR_V6`]) | 10.244.0.0/16 | fd00:244::/32 |
//! | pods of node n | 10.244.n.0/24 | fd00:244:n::/64 |
//! | their gateway, on the node | 10.244.n.1 | fd00:244:n::1 |
//! | pod p of node n, from 0 | 10.244.n.(2+p) | fd00:244:n::(2+p) |
//! | Services ([`SERVICE_CIDR_V4`], [`SERVICE_CIDR_V6`]) | 10.96.0.0/16 | fd00:96::/112 |
//!
//! Only the default route leads to the Service ranges, as on real nodes: the gateway answers a packet that no rule
//! translates with an ICMP error, which is [`Outcome::Unreachable`].

// These items are not a library's API.
#![allow(missing_docs)]

// The attribute names this crate by its name, also in unit tests.
#[cfg(test)]
extern crate self as lab;

use std::sync::{Mutex, MutexGuard, PoisonError};

mod address;
mod capability;
mod command;
mod control_plane;
mod echo;
pub mod fake_api;
mod host;
mod kubelet;
mod manifests;
mod namespace;
mod nic;
mod probe;
mod process;
mod socket;
mod three_nodes;
mod topology;
mod traffic;
mod wait;

pub use address::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, MAX_CLIENTS, MAX_NODES, MAX_PODS, SERVICE_CIDR_V4,
    SERVICE_CIDR_V6,
};
pub use capability::{Capability, capabilities, require};
pub use control_plane::{
    API_SERVER_PORT, AuditEvent, ControlPlane, KUBE_PROXY_USER, PORTOLAN_OVERLAY_RBAC,
    PORTOLAN_RBAC, PORTOLAN_USER, Right, helm, program, programs,
};
pub use host::{HEALTH_PORT, Host};
pub use kubelet::{Kubelet, READY_ANNOTATION};
pub use manifests::{Manifests, TcpService, node_object};
pub use namespace::Namespace;
pub use nic::BadNic;
pub use probe::{DEFAULT_PATIENCE, Outcome, Probe, Tally};
pub use process::Daemon;
pub use scenario::scenario;
pub use socket::Protocol;
pub use three_nodes::{Streams, ThreeNodes};
pub use topology::{Client, Lab, LabBuilder, Loss, LossyPath, Node, Pod, PodLinks, Unplugged};
pub use traffic::{ConnectionStream, Held, HeldReport, StreamReport};
pub use wait::{wait_for, wait_until};

/// Locks, also after a panic of another thread: a lab must still close then.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
