//! What a Service needs on this node, in no firewall's terms.

use std::net::IpAddr;
use std::sync::Arc;

use crate::objects::{AddressFamily, ObjectName, Protocol};

/// What one Service needs on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceIntent {
    /// The Service.
    pub service: ObjectName,
    /// When it was created; settles conflicts between Services (the older wins, then the lesser name).
    pub created: Option<i64>,
    /// Its frontends, sorted by place, protocol and port; no two alike.
    pub frontends: Vec<Frontend>,
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
    /// What happens to a new connection.
    pub disposition: Disposition,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
}

/// Where a frontend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// A cluster IP; other ports of it are refused.
    ClusterIp(IpAddr),
    /// Every address of this node that serves node ports, of this family.
    NodePort(AddressFamily),
}

impl Place {
    /// The family the frontend and its backends are of.
    pub const fn family(self) -> AddressFamily {
        match self {
            Place::ClusterIp(address) => AddressFamily::of(address),
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
}
