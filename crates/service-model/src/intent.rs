//! What a Service needs on this node, in no firewall's terms.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
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
    /// Its frontends, sorted by address, protocol and port; no two alike.
    pub frontends: Vec<Frontend>,
    /// External addresses that a load balancer gave to the Service (`status.loadBalancer`): its claim to them comes
    /// before those of Services that merely list them in `spec.externalIPs`, which any tenant can. Sorted.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Node ports whose traffic from this node itself is treated as that to a frontend on a cluster IP, and that frontend:
    /// a relay connects there, so that rules select the endpoint.
    pub relays: BTreeMap<(Family, Protocol, u16), SocketAddr>,
    /// TCP connections to an endpoint that goes away are reset.
    pub reset_removed: bool,
    /// The health check node port and its answer.
    pub health_check: Option<HealthCheck>,
}

impl ServiceIntent {
    /// The cluster IPs that have frontends.
    pub fn cluster_ips(&self) -> Vec<IpAddr> {
        let addresses = self.frontends.iter().map(|frontend| frontend.address);
        let mut cluster_ips: Vec<IpAddr> = addresses
            .filter_map(|address| match address {
                FrontendAddress::ClusterIp(at) => Some(at),
                FrontendAddress::External(_) | FrontendAddress::NodePort(_) => None,
            })
            .collect();
        // Frontends are sorted by address.
        cluster_ips.dedup();
        cluster_ips
    }

    /// Whether the intent can be of the Service that was created at `created` and has these cluster IPs. Otherwise it is of an
    /// earlier Service of the same name, or of an address that the Service had.
    pub fn is_of(&self, created: Option<i64>, cluster_ips: &[IpAddr]) -> bool {
        let is_known = |at: &IpAddr| cluster_ips.contains(at);
        self.created == created && self.cluster_ips().iter().all(is_known)
    }
}

/// The answer to load balancers' health checks of a Service under external policy Local (row 18).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port of this node that load balancers query.
    pub port: u16,
    /// Ready endpoints on this node, for each family that the Service has a cluster IP of. An address counts once,
    /// whatever its ports; terminating endpoints do not count, though they may still serve.
    pub local_endpoints: BTreeMap<Family, usize>,
}

/// One address and port that clients connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// The address or addresses.
    pub address: FrontendAddress,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at that address.
    pub port: u16,
    /// Port of the Service that the frontend is of: another one where `port` is a node port.
    pub service_port: u16,
    /// What happens to a new connection: from every client, or if `outside` is set, from those that are not outside.
    pub disposition: Disposition,
    /// External traffic policy Local: what happens instead to connections that come neither from a local pod
    /// nor from this node itself. Never [`Disposition::Refuse`].
    pub outside: Option<Disposition>,
    /// Whose source address is replaced.
    pub masquerade: Masquerade,
    /// Load balancer addresses with source ranges: everyone else is dropped. Sorted, disjoint; `None` is
    /// everyone.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// Session affinity.
    pub affinity: Option<Affinity>,
    /// New connections are counted.
    pub counted: bool,
    /// Endpoints whose conntrack entries are kept: all that are ready or serve, on any node and under any policy
    /// (row 63). Sorted by address and port. Shared between frontends of one Service port.
    pub serving: Arc<[Backend]>,
}

impl Frontend {
    /// How many elements of sets and maps the frontend needs at most, whatever the firewall. Not counted are those that say
    /// which endpoints are on this node: all frontends of a port share them.
    pub fn elements(&self) -> usize {
        /// For the frontend itself.
        const OWN: usize = 10;
        /// Each change of a range copies all ranges: 31 ms for 16,362 on Linux 6.18 (nft_set_pipapo). So that others do not
        /// wait for longer than with other elements, a Service has at most a quarter of that.
        const RANGE: usize = 64;
        let listed = |disposition: &Disposition| match disposition {
            Disposition::Balance(backends) => backends.len(),
            Disposition::Refuse | Disposition::Drop => 0,
        };
        let outside = self.outside.as_ref().map_or(0, listed);
        let ranges = self.allowed_sources.as_ref().map_or(0, |all| all.len());
        OWN + listed(&self.disposition) + outside + RANGE * ranges
    }
}

/// Session affinity by client address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Affinity {
    /// Seconds without a new connection after which the entry ends.
    pub seconds: u32,
    /// Frontends of a Service port with the same group share their affinity entries (row 42). A hash of the Service's UID and the port's
    /// number, neither 0 nor `u32::MAX`, so that entries outlive this process. Two Services may collide in one group.
    pub group: u32,
    /// The map of the affinity entries of all groups of the Service, which bounds their number. A hash of the Service's name.
    /// Two Services may share a map.
    pub map: u64,
}

/// The address or addresses of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    /// A cluster IP; other ports of it are refused.
    ClusterIp(IpAddr),
    /// An external or load balancer address; its other ports are left alone. Yields to every cluster IP.
    External(IpAddr),
    /// Every address of this node that serves node ports, of this family.
    NodePort(Family),
}

impl FrontendAddress {
    /// The IP address; `None` for node ports.
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            FrontendAddress::ClusterIp(address) | FrontendAddress::External(address) => {
                Some(address)
            }
            FrontendAddress::NodePort(_) => None,
        }
    }

    /// The family the frontend and its backends are of.
    pub const fn family(self) -> Family {
        match self {
            FrontendAddress::ClusterIp(address) | FrontendAddress::External(address) => {
                Family::of(address)
            }
            FrontendAddress::NodePort(family) => family,
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

/// Whose source address is replaced by the node's. Hairpin connections are masqueraded as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Sources that are not local pods, where a detector is configured; everyone with masquerade-all (rows 46, 47).
    OffCluster,
    /// Everyone (row 48).
    Always,
    /// Connections of this node itself (row 49).
    OwnNode,
}
