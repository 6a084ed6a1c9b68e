//! What a Service needs on this node, in no firewall's terms.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::objects::{Family, ObjectName, Protocol};

/// What one Service needs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceIntent {
    /// The Service.
    pub service: ObjectName,
    /// When it was created; settles conflicts between Services (the older wins, then the lesser name).
    pub created: Option<i64>,
    /// Its frontends, sorted by place, protocol and port; no two alike.
    pub frontends: Vec<Frontend>,
    /// TCP connections to an endpoint that goes away are reset.
    pub reset_removed: bool,
    /// Load balancers ask on a port of this node whether it has endpoints.
    pub health_check: Option<HealthCheck>,
}

/// What load balancers are to be told of a Service under external policy Local (row 18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of this node that they ask.
    pub port: u16,
    /// Ready endpoints on this node, for each family that the Service has a cluster IP of. An address counts once,
    /// whatever its ports; terminating endpoints do not count, though they may still serve.
    pub local_endpoints: BTreeMap<Family, usize>,
}

/// One address and port that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Where.
    pub place: Place,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at that place.
    pub port: u16,
    /// What happens to a new connection, from whomever unless `outside` says otherwise.
    pub disposition: Disposition,
    /// External traffic policy Local: what happens instead to connections that come neither from a local pod
    /// nor from this node itself. Never [`Disposition::Refuse`].
    pub outside: Option<Disposition>,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
    /// Load balancer addresses with source ranges: everyone else is dropped. Sorted, disjoint; `None` is
    /// everyone.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// A client keeps its endpoint.
    pub affinity: Option<Affinity>,
    /// New connections are counted.
    pub counted: bool,
    /// Endpoints whose tracked flows go on: all that are ready or serve, wherever they are and whatever the policy
    /// (row 63). Sorted by address and port. Shared between frontends of one Service port.
    pub serving: Arc<[Backend]>,
}

/// Session affinity by client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// Until the client has made no new connection for so many seconds.
    pub seconds: u32,
    /// Frontends of a Service port that have the same share what is remembered (row 42). A hash of the port's
    /// name, neither 0 nor `u32::MAX`: with it the memory outlives this process. Two Services may meet in one.
    pub group: u32,
}

/// Where a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A cluster IP; other ports of it are refused.
    ClusterIp(IpAddr),
    /// An external or load balancer address; other ports of it are nobody's business here. Yields to every
    /// cluster IP.
    External(IpAddr),
    /// Every address of this node that serves node ports, of this family.
    NodePort(Family),
}

impl Place {
    /// The one address it is, if it is one.
    pub const fn address(self) -> Option<IpAddr> {
        match self {
            Place::ClusterIp(address) | Place::External(address) => Some(address),
            Place::NodePort(_) => None,
        }
    }

    /// The family the frontend and its backends are of.
    pub const fn family(self) -> Family {
        match self {
            Place::ClusterIp(address) | Place::External(address) => Family::of(address),
            Place::NodePort(family) => family,
        }
    }
}

/// What happens to a new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Goes to one of these, evenly. Sorted by address and port, no two alike, never empty.
    /// Shared between frontends of one Service port.
    Balance(Arc<[Backend]>),
    /// Refused: there is no endpoint anywhere.
    Refuse,
    /// Dropped: there are endpoints, but none on this node, and the policy is Local.
    Drop,
}

/// One endpoint of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Address.
    pub address: IpAddr,
    /// Port.
    pub port: u16,
    /// On this node: a connection from itself to itself must be masqueraded (hairpin).
    pub local: bool,
}

/// Whose source address is replaced by the node's (section 1.6 of the kube-proxy reference). Hairpins are
/// masqueraded besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Sources that are not local pods, where a detector is configured; everyone with masquerade-all (rows 46, 47).
    OffCluster,
    /// Everyone (row 48).
    Always,
    /// Connections of this node itself (row 49).
    OwnNode,
}
