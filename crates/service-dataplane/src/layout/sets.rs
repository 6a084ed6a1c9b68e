//! The sets and maps of the table: names, declarations, comments.

use nft::{DataField, Field, Name, Set, SetKind};

use super::Pick;

/// The sets and maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Frontend . slot : endpoint. Of frontends with more endpoints than have a set of their own, the first one only.
    Backends(Pick),
    /// Frontends with exactly this many endpoints.
    Sized(Pick, u32),
    /// Frontends with more endpoints.
    Large(Pick),
    /// All endpoints of frontends with exactly this many, more than have a set of their own. On demand.
    LargeBackends(Pick, u32),
    /// Frontends without endpoints.
    NoEndpoints,
    /// Node ports without endpoints.
    NodePortsNoEndpoints,
    /// Cluster IP frontends without endpoints on this node, under policy Local.
    NoLocalEndpoints,
    /// Frontends on external addresses with external policy Local.
    LocalPolicy,
    /// Node ports with external policy Local.
    LocalPolicyNodePorts,
    /// Every cluster IP.
    ClusterIps,
    /// Every external and load balancer address.
    ExternalIps,
    /// Ranges that cluster IPs are taken from.
    ServiceCidrs,
    /// Addresses of this node that serve node ports.
    NodeAddresses,
    /// Sources that are local pods.
    LocalSources,
    /// Frontends on external addresses whose clients are masqueraded.
    MasqueradeFrontends,
    /// Node ports whose clients are masqueraded.
    MasqueradeNodePorts,
    /// Local endpoint . local endpoint.
    Hairpin,
    /// Frontends that not everyone may use.
    Guarded,
    /// Frontend . range of allowed clients.
    AllowedSources,
    /// Frontends with session affinity : group.
    Sticky,
    /// Node ports with session affinity : group.
    StickyNodePorts,
    /// Groups : the chain that reads the map of their Service.
    AffinityReaders,
    /// Groups : the chain that writes it.
    AffinityWriters,
    /// Client . protocol . group : endpoint. The affinity entries of one Service, written by rules. On demand.
    Affinity(u64),
    /// Frontends whose new connections are counted.
    Counted,
    /// Node ports whose new connections are counted.
    CountedNodePorts,
}

impl Pick {
    /// Set of frontends with exactly `count` backends, or the map of larger ones.
    pub const fn sized(self, count: u32) -> SetId {
        match count <= self.exact_counts() {
            true => SetId::Sized(self, count),
            false => SetId::Large(self),
        }
    }

    /// Map of backends of frontends that have `count` of them.
    pub const fn backends(self, count: u32) -> SetId {
        match count <= self.exact_counts() {
            true => SetId::Backends(self),
            false => SetId::LargeBackends(self, count),
        }
    }
}

/// Names that end in 1 to 16.
macro_rules! numbered {
    ($prefix:literal) => {
        numbered!($prefix, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16)
    };
    ($prefix:literal, $($n:literal)*) => {
        [$(concat!($prefix, $n)),*]
    };
}

impl SetId {
    /// Every set that is always in the table.
    pub fn all() -> impl Iterator<Item = SetId> {
        let of_pick = |pick: Pick| {
            let sized = (1..=pick.exact_counts()).map(move |count| SetId::Sized(pick, count));
            sized.chain([SetId::Backends(pick), SetId::Large(pick)])
        };
        Pick::ALL.into_iter().flat_map(of_pick).chain([
            SetId::NoEndpoints,
            SetId::NodePortsNoEndpoints,
            SetId::NoLocalEndpoints,
            SetId::LocalPolicy,
            SetId::LocalPolicyNodePorts,
            SetId::ClusterIps,
            SetId::ExternalIps,
            SetId::ServiceCidrs,
            SetId::NodeAddresses,
            SetId::LocalSources,
            SetId::MasqueradeFrontends,
            SetId::MasqueradeNodePorts,
            SetId::Hairpin,
            SetId::Guarded,
            SetId::AllowedSources,
            SetId::Sticky,
            SetId::StickyNodePorts,
            SetId::AffinityReaders,
            SetId::AffinityWriters,
        ])
    }

    /// Name in the table.
    pub fn name(self) -> Name {
        Name::Borrowed(match self {
            SetId::Sized(pick, count) => return sized_name(pick, count),
            SetId::LargeBackends(pick, count) => {
                return format!("{}_{count}", SetId::Backends(pick).name()).into();
            }
            SetId::Affinity(map) => return format!("affinity_{map:016x}").into(),
            SetId::Backends(Pick::Frontend) => "backends",
            SetId::Backends(Pick::NodePort) => "nodeport_backends",
            SetId::Backends(Pick::LocalFrontend) => "local_backends",
            SetId::Backends(Pick::LocalNodePort) => "local_nodeport_backends",
            SetId::Large(Pick::Frontend) => "frontends_large",
            SetId::Large(Pick::NodePort) => "nodeports_large",
            SetId::Large(Pick::LocalFrontend) => "local_frontends_large",
            SetId::Large(Pick::LocalNodePort) => "local_nodeports_large",
            SetId::NoEndpoints => "no_endpoints",
            SetId::NodePortsNoEndpoints => "nodeports_no_endpoints",
            SetId::NoLocalEndpoints => "no_local_endpoints",
            SetId::LocalPolicy => "local_policy",
            SetId::LocalPolicyNodePorts => "local_policy_nodeports",
            SetId::ClusterIps => "cluster_ips",
            SetId::ExternalIps => "external_ips",
            SetId::ServiceCidrs => "service_cidrs",
            SetId::NodeAddresses => "node_addresses",
            SetId::LocalSources => "local_sources",
            SetId::MasqueradeFrontends => "masquerade_frontends",
            SetId::MasqueradeNodePorts => "masquerade_nodeports",
            SetId::Hairpin => "hairpin",
            SetId::Guarded => "guarded",
            SetId::AllowedSources => "allowed_sources",
            SetId::Sticky => "sticky",
            SetId::StickyNodePorts => "sticky_nodeports",
            SetId::AffinityReaders => "affinity_readers",
            SetId::AffinityWriters => "affinity_writers",
            SetId::Counted => "counted",
            SetId::CountedNodePorts => "counted_nodeports",
        })
    }

    /// How the set is declared.
    pub fn declaration(self) -> Set {
        let ranges = [
            SetId::LocalSources,
            SetId::ServiceCidrs,
            SetId::AllowedSources,
        ];
        Set {
            name: self.name(),
            key: self.key(),
            kind: self.kind(),
            interval: ranges.contains(&self),
            comment: self.comment().into(),
        }
    }

    fn key(self) -> Vec<Field> {
        let with = |mut key: Vec<Field>, last| {
            key.push(last);
            key
        };
        match self {
            SetId::Backends(pick) | SetId::LargeBackends(pick, _) => {
                with(pick.fields(), Field::Slot)
            }
            SetId::Sized(pick, _) | SetId::Large(pick) => pick.fields(),
            SetId::NoEndpoints
            | SetId::NoLocalEndpoints
            | SetId::LocalPolicy
            | SetId::MasqueradeFrontends
            | SetId::Guarded
            | SetId::Sticky
            | SetId::Counted => Pick::Frontend.fields(),
            SetId::NodePortsNoEndpoints
            | SetId::LocalPolicyNodePorts
            | SetId::MasqueradeNodePorts
            | SetId::StickyNodePorts
            | SetId::CountedNodePorts => Pick::NodePort.fields(),
            SetId::ClusterIps
            | SetId::ExternalIps
            | SetId::ServiceCidrs
            | SetId::NodeAddresses
            | SetId::LocalSources => vec![Field::Address],
            SetId::Hairpin => vec![Field::Address, Field::Address],
            SetId::AllowedSources => with(Pick::Frontend.fields(), Field::Address),
            SetId::AffinityReaders | SetId::AffinityWriters => vec![Field::Group],
            SetId::Affinity(_) => vec![Field::Address, Field::Protocol, Field::Group],
        }
    }

    fn kind(self) -> SetKind {
        let endpoint = vec![DataField::Address, DataField::Port];
        match self {
            SetId::Backends(_) | SetId::LargeBackends(..) => SetKind::Map(endpoint),
            SetId::Large(_) | SetId::AffinityReaders | SetId::AffinityWriters => {
                SetKind::VerdictMap
            }
            SetId::Sticky | SetId::StickyNodePorts => SetKind::Map(vec![DataField::Group]),
            SetId::Affinity(_) => SetKind::Dynamic(endpoint),
            SetId::Counted | SetId::CountedNodePorts => SetKind::Counters,
            _ => SetKind::Set,
        }
    }

    /// What `nft list` shows beside the set.
    const fn comment(self) -> &'static str {
        match self {
            SetId::Backends(pick) | SetId::LargeBackends(pick, _) => pick.backends_comment(),
            SetId::Sized(..) => "Those with as many endpoints as the name says",
            SetId::Large(_) => "Those with more endpoints than that",
            SetId::NoEndpoints => "Frontends without endpoints: refused",
            SetId::NodePortsNoEndpoints => "Node ports without endpoints: refused",
            SetId::NoLocalEndpoints => "Internal policy Local without endpoints here: dropped",
            SetId::LocalPolicy => "External policy Local: outsiders get endpoints on this node",
            SetId::LocalPolicyNodePorts => "The same for node ports",
            SetId::ClusterIps => "Cluster IPs: any other port of them is refused",
            SetId::ExternalIps => "External and load balancer addresses",
            SetId::ServiceCidrs => "Ranges in which addresses other than cluster IPs are dropped",
            SetId::NodeAddresses => "Addresses of this node that serve node ports",
            SetId::LocalSources => "Sources that are local pods",
            SetId::MasqueradeFrontends => "External frontends whose clients are masqueraded",
            SetId::MasqueradeNodePorts => "Node ports whose clients are masqueraded",
            SetId::Hairpin => "Endpoints on this node, which may reach themselves",
            SetId::Guarded => "Frontends that not everyone may use",
            SetId::AllowedSources => "Frontend . clients that may use it",
            SetId::Sticky => "Frontends whose clients keep their endpoint : group",
            SetId::StickyNodePorts => "Node ports whose clients do : group",
            SetId::AffinityReaders => "Groups : where to find the entries of their Service",
            SetId::AffinityWriters => "Groups : where to write them",
            SetId::Affinity(_) => {
                "Client . protocol . group : endpoint that it keeps, of one Service"
            }
            SetId::Counted => "Frontends whose new connections are counted",
            SetId::CountedNodePorts => "Node ports whose new connections are counted",
        }
    }
}

/// Without allocation: these names are written with every change.
fn sized_name(pick: Pick, count: u32) -> Name {
    const FRONTENDS: [&str; 16] = numbered!("frontends_");
    const NODE_PORTS: [&str; 16] = numbered!("nodeports_");
    const LOCAL_FRONTENDS: [&str; 16] = numbered!("local_frontends_");
    const LOCAL_NODE_PORTS: [&str; 16] = numbered!("local_nodeports_");
    let names = match pick {
        Pick::Frontend => &FRONTENDS,
        Pick::NodePort => &NODE_PORTS,
        Pick::LocalFrontend => &LOCAL_FRONTENDS,
        Pick::LocalNodePort => &LOCAL_NODE_PORTS,
    };
    let index = count
        .checked_sub(1)
        .filter(|_| count <= pick.exact_counts());
    let known = index.and_then(|index| names.get(index as usize).copied());
    known.map_or_else(|| SetId::Large(pick).name(), Name::Borrowed)
}
