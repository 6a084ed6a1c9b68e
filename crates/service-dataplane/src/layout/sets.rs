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
    /// Frontends on external addresses that keep outsiders to endpoints on this node.
    LocalPolicy,
    /// Node ports that do.
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
    /// Frontend . range of clients that may.
    AllowedSources,
    /// Frontends whose clients keep their endpoint : group.
    Sticky,
    /// Node ports likewise.
    StickyNodePorts,
    /// Groups whose clients keep their endpoint for so many seconds. On demand.
    StickyFor(u32),
    /// Client . protocol . group : endpoint, as rules have learned it.
    Affinity,
    /// Frontends whose new connections are counted.
    Counted,
    /// Node ports likewise.
    CountedNodePorts,
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
            SetId::Affinity,
        ])
    }

    /// Name in the table.
    pub fn name(self) -> Name {
        Name::Borrowed(match self {
            SetId::Sized(pick, count) => return sized_name(pick, count),
            SetId::LargeBackends(pick, count) => {
                return format!("{}_{count}", SetId::Backends(pick).name()).into();
            }
            SetId::StickyFor(seconds) => return format!("sticky_{seconds}").into(),
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
            SetId::Affinity => "affinity",
            SetId::Counted => "counted",
            SetId::CountedNodePorts => "counted_nodeports",
        })
    }

    /// Declaration.
    pub fn declaration(self) -> Set {
        use Field::{Address, Group, Port, Protocol, Slot};
        let frontend = || vec![Address, Protocol, Port];
        let node_port = || vec![Protocol, Port];
        let endpoint = || vec![DataField::Address, DataField::Port];
        let group = || SetKind::Map(vec![DataField::Group]);
        let set = SetKind::Set;
        let (key, kind, comment) = match self {
            SetId::Backends(pick) | SetId::LargeBackends(pick, _) => {
                let mut key = pick.fields();
                key.push(Slot);
                (key, SetKind::Map(endpoint()), pick.backends_comment())
            }
            SetId::Sized(pick, _) => (
                pick.fields(),
                set,
                "Those with as many endpoints as the name says",
            ),
            SetId::Large(pick) => (
                pick.fields(),
                SetKind::VerdictMap,
                "Those with more endpoints than that",
            ),
            SetId::NoEndpoints => (frontend(), set, "Frontends without endpoints: refused"),
            SetId::NodePortsNoEndpoints => {
                (node_port(), set, "Node ports without endpoints: refused")
            }
            SetId::NoLocalEndpoints => (
                frontend(),
                set,
                "Internal policy Local without endpoints here: dropped",
            ),
            SetId::LocalPolicy => (
                frontend(),
                set,
                "External policy Local: outsiders get endpoints on this node",
            ),
            SetId::LocalPolicyNodePorts => (node_port(), set, "The same for node ports"),
            SetId::ClusterIps => (
                vec![Address],
                set,
                "Cluster IPs: any other port of them is refused",
            ),
            SetId::ExternalIps => (vec![Address], set, "External and load balancer addresses"),
            SetId::ServiceCidrs => (
                vec![Address],
                set,
                "What is no cluster IP in these ranges is dropped",
            ),
            SetId::NodeAddresses => (
                vec![Address],
                set,
                "Addresses of this node that serve node ports",
            ),
            SetId::LocalSources => (vec![Address], set, "Sources that are local pods"),
            SetId::MasqueradeFrontends => (
                frontend(),
                set,
                "External frontends whose clients are masqueraded",
            ),
            SetId::MasqueradeNodePorts => {
                (node_port(), set, "Node ports whose clients are masqueraded")
            }
            SetId::Hairpin => (
                vec![Address, Address],
                set,
                "Endpoints on this node, which may reach themselves",
            ),
            SetId::Guarded => (frontend(), set, "Frontends that not everyone may use"),
            SetId::AllowedSources => {
                let mut key = frontend();
                key.push(Address);
                (key, set, "Frontend . clients that may use it")
            }
            SetId::Sticky => (
                frontend(),
                group(),
                "Frontends whose clients keep their endpoint : group",
            ),
            SetId::StickyNodePorts => (node_port(), group(), "Node ports whose clients do : group"),
            SetId::StickyFor(_) => (
                vec![Group],
                set,
                "Groups that do for as many seconds as the name says",
            ),
            SetId::Affinity => {
                let key = vec![Address, Protocol, Group];
                (
                    key,
                    SetKind::Learned(endpoint()),
                    "Client . protocol . group : endpoint that it keeps",
                )
            }
            SetId::Counted => (
                frontend(),
                SetKind::Counters,
                "Frontends whose new connections are counted",
            ),
            SetId::CountedNodePorts => (
                node_port(),
                SetKind::Counters,
                "Node ports whose new connections are counted",
            ),
        };
        let ranges = [
            SetId::LocalSources,
            SetId::ServiceCidrs,
            SetId::AllowedSources,
        ];
        Set {
            name: self.name(),
            key,
            kind,
            interval: ranges.contains(&self),
            comment: comment.into(),
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
