//! The table: a constant number of sets, chains and rules, whatever the size of the cluster.
//!
//! Owns names, declarations, comments and rules. Which elements a Service has is [`crate::render`]'s.
//!
//! Four laws of the kernel shape it (nf_tables_api.c; measured on Linux 6.18): each element message walks every
//! set of the table; each commit walks every chain of the namespace; adding a verdict element re-validates its
//! whole map; and a rule that looks up a map walks all of that map when it is added, once for each chain
//! (`nf_tables_bind_set`: 34 ms at 100,000 elements). So the number of sets and chains is constant, bulk goes into
//! data maps and plain sets, and no rule is ever bound to a big map that has its elements. The one exception is
//! each *number* of backends above [`EXACT_COUNTS`] that is in use: it has a map and a `pick` chain of its own,
//! reached by a verdict map whose size is the number of such frontends.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use nft::{
    Bytes, Chain, DataField, Element, Family, Field, Hook, Name, Operand, Protocol, Rule, Set,
    SetKind, Statement, Table, TableContents, Verdict,
};
use service_model::NodeFacts;

/// Name of our table in both families.
pub const TABLE: &str = "portolan";

/// Backend counts that have a plain set of their own. A set missed costs a new connection about 0.05 us
/// (measured); a larger count costs a verdict element instead.
pub const EXACT_COUNTS: u32 = 16;

/// The sets and maps of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetId {
    /// Cluster IP . protocol . port . slot : endpoint. Of frontends with more than [`EXACT_COUNTS`] backends, the
    /// first one only.
    Backends,
    /// Protocol . port . slot : endpoint. Likewise.
    NodePortBackends,
    /// Cluster IP frontends with exactly this many backends.
    Frontends(u32),
    /// Cluster IP frontends with more backends.
    FrontendsLarge,
    /// Cluster IP frontends without endpoints.
    NoEndpoints,
    /// Node ports with exactly this many backends.
    NodePorts(u32),
    /// Node ports with more backends.
    NodePortsLarge,
    /// Node ports without endpoints.
    NodePortsNoEndpoints,
    /// Every cluster IP.
    ClusterIps,
    /// Addresses of this node that serve node ports.
    NodeAddresses,
    /// Sources that are local pods.
    LocalSources,
    /// Node ports whose clients are masqueraded.
    MasqueradeNodePorts,
    /// Local endpoint . local endpoint.
    Hairpin,
    /// All backends of cluster IP frontends with exactly this many, more than [`EXACT_COUNTS`].
    LargeBackends(u32),
    /// The same for node ports.
    LargeNodePortBackends(u32),
}

/// Where a chain of backends is picked from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pick {
    /// For frontends on cluster IPs.
    Frontend,
    /// For node ports.
    NodePort,
}

impl Pick {
    const ALL: [Pick; 2] = [Pick::Frontend, Pick::NodePort];

    /// The chain that picks one of `count` backends.
    pub fn chain_name(self, count: u32) -> Name {
        match self {
            Pick::Frontend => format!("pick_{count}").into(),
            Pick::NodePort => format!("pick_nodeport_{count}").into(),
        }
    }

    /// Set of frontends with exactly `count` backends, or the map of larger ones.
    pub const fn sized(self, count: u32) -> SetId {
        match (self, count <= EXACT_COUNTS) {
            (Pick::Frontend, true) => SetId::Frontends(count),
            (Pick::Frontend, false) => SetId::FrontendsLarge,
            (Pick::NodePort, true) => SetId::NodePorts(count),
            (Pick::NodePort, false) => SetId::NodePortsLarge,
        }
    }

    /// Map of backends of frontends that have `count` of them.
    pub const fn backends(self, count: u32) -> SetId {
        match (self, count <= EXACT_COUNTS) {
            (Pick::Frontend, true) => SetId::Backends,
            (Pick::Frontend, false) => SetId::LargeBackends(count),
            (Pick::NodePort, true) => SetId::NodePortBackends,
            (Pick::NodePort, false) => SetId::LargeNodePortBackends(count),
        }
    }

    /// Set of frontends without endpoints.
    pub const fn no_endpoints(self) -> SetId {
        match self {
            Pick::Frontend => SetId::NoEndpoints,
            Pick::NodePort => SetId::NodePortsNoEndpoints,
        }
    }

    fn key(self) -> Vec<Operand> {
        let port = [Operand::Protocol, Operand::DestinationPort];
        match self {
            Pick::Frontend => [Operand::DestinationAddress]
                .into_iter()
                .chain(port)
                .collect(),
            Pick::NodePort => port.to_vec(),
        }
    }

    /// The chain that picks one of `count` backends. Its second rule catches a packet that meets a commit
    /// half way: rules are read under one generation, but each look-up reads the generation anew, so a
    /// packet may see the old count and the new elements. The first backend of every frontend is in the map that
    /// the chain for one looks up.
    pub fn chain(self, count: u32) -> Chain {
        let comment = match self {
            Pick::Frontend => "One of as many endpoints as the name says, by a hash of the flow",
            Pick::NodePort => "The same for node ports",
        };
        let mut key = self.key();
        key.push(Operand::SymHash { modulus: count });
        let mut rules: Vec<Rule> = vec![
            vec![Statement::DnatMap {
                key,
                map: self.backends(count).name(),
            }]
            .into(),
        ];
        if count > 1 {
            rules.push(vec![Statement::Verdict(Verdict::Goto(self.chain_name(1)))].into());
        }
        Chain {
            name: self.chain_name(count),
            hook: None,
            comment: comment.into(),
            rules,
        }
    }

    /// From the sized sets to a backend; what is left over is for the caller's `last` rules.
    fn dispatch(self, name: &'static str, comment: &'static str, last: Vec<Rule>) -> Chain {
        let in_set = |set: SetId, then: Statement| -> Rule {
            vec![
                Statement::InSet {
                    key: self.key(),
                    set: set.name(),
                    negate: false,
                },
                then,
            ]
            .into()
        };
        let mut rules: Vec<Rule> = (1..=EXACT_COUNTS)
            .map(|n| {
                in_set(
                    self.sized(n),
                    Statement::Verdict(Verdict::Goto(self.chain_name(n))),
                )
            })
            .collect();
        rules.push(
            vec![Statement::VerdictMap {
                key: self.key(),
                map: self.sized(EXACT_COUNTS + 1).name(),
            }]
            .into(),
        );
        rules.push(in_set(self.no_endpoints(), goto("refuse")));
        // A packet that meets a commit half way may have missed every set.
        rules.push(vec![Statement::Verdict(Verdict::Jump(self.chain_name(1)))].into());
        rules.extend(last);
        Chain {
            name: name.into(),
            hook: None,
            comment: comment.into(),
            rules,
        }
    }
}

impl SetId {
    /// Every set that is always in the table, in the order of its listing.
    pub fn all() -> impl Iterator<Item = SetId> {
        let sized = |of: fn(u32) -> SetId| (1..=EXACT_COUNTS).map(of);
        [SetId::Backends, SetId::NodePortBackends]
            .into_iter()
            .chain(sized(SetId::Frontends))
            .chain([SetId::FrontendsLarge, SetId::NoEndpoints])
            .chain(sized(SetId::NodePorts))
            .chain([
                SetId::NodePortsLarge,
                SetId::NodePortsNoEndpoints,
                SetId::ClusterIps,
                SetId::NodeAddresses,
                SetId::LocalSources,
                SetId::MasqueradeNodePorts,
                SetId::Hairpin,
            ])
    }

    /// Name in the table.
    pub fn name(self) -> Name {
        const FRONTENDS: [&str; EXACT_COUNTS as usize] = [
            "frontends_1",
            "frontends_2",
            "frontends_3",
            "frontends_4",
            "frontends_5",
            "frontends_6",
            "frontends_7",
            "frontends_8",
            "frontends_9",
            "frontends_10",
            "frontends_11",
            "frontends_12",
            "frontends_13",
            "frontends_14",
            "frontends_15",
            "frontends_16",
        ];
        const NODEPORTS: [&str; EXACT_COUNTS as usize] = [
            "nodeports_1",
            "nodeports_2",
            "nodeports_3",
            "nodeports_4",
            "nodeports_5",
            "nodeports_6",
            "nodeports_7",
            "nodeports_8",
            "nodeports_9",
            "nodeports_10",
            "nodeports_11",
            "nodeports_12",
            "nodeports_13",
            "nodeports_14",
            "nodeports_15",
            "nodeports_16",
        ];
        let sized = |names: &[&'static str], count: u32, large: &'static str| {
            count
                .checked_sub(1)
                .and_then(|i| names.get(i as usize))
                .copied()
                .unwrap_or(large)
        };
        Name::Borrowed(match self {
            SetId::LargeBackends(count) => return format!("backends_{count}").into(),
            SetId::LargeNodePortBackends(count) => {
                return format!("nodeport_backends_{count}").into();
            }
            SetId::Backends => "backends",
            SetId::NodePortBackends => "nodeport_backends",
            SetId::Frontends(count) => sized(&FRONTENDS, count, "frontends_large"),
            SetId::FrontendsLarge => "frontends_large",
            SetId::NoEndpoints => "no_endpoints",
            SetId::NodePorts(count) => sized(&NODEPORTS, count, "nodeports_large"),
            SetId::NodePortsLarge => "nodeports_large",
            SetId::NodePortsNoEndpoints => "nodeports_no_endpoints",
            SetId::ClusterIps => "cluster_ips",
            SetId::NodeAddresses => "node_addresses",
            SetId::LocalSources => "local_sources",
            SetId::MasqueradeNodePorts => "masquerade_nodeports",
            SetId::Hairpin => "hairpin",
        })
    }

    /// Declaration.
    pub fn declaration(self) -> Set {
        use Field::{Address, Port, Protocol, Slot};
        let endpoint = || SetKind::Map(vec![DataField::Address, DataField::Port]);
        let (key, kind, comment) = match self {
            SetId::LargeBackends(_) => (
                vec![Address, Protocol, Port, Slot],
                endpoint(),
                "The same for frontends with as many endpoints as the name says",
            ),
            SetId::LargeNodePortBackends(_) => (
                vec![Protocol, Port, Slot],
                endpoint(),
                "The same for node ports with as many endpoints as the name says",
            ),
            SetId::Backends => (
                vec![Address, Protocol, Port, Slot],
                endpoint(),
                "Where a connection goes: cluster IP . protocol . port . slot : endpoint",
            ),
            SetId::NodePortBackends => (
                vec![Protocol, Port, Slot],
                endpoint(),
                "Where a connection to a node port goes: protocol . port . slot : endpoint",
            ),
            SetId::Frontends(_) => (
                vec![Address, Protocol, Port],
                SetKind::Set,
                "Frontends with as many endpoints as the name says",
            ),
            SetId::FrontendsLarge => (
                vec![Address, Protocol, Port],
                SetKind::VerdictMap,
                "Frontends with more endpoints than that",
            ),
            SetId::NoEndpoints => (
                vec![Address, Protocol, Port],
                SetKind::Set,
                "Frontends without endpoints: refused",
            ),
            SetId::NodePorts(_) => (
                vec![Protocol, Port],
                SetKind::Set,
                "Node ports with as many endpoints as the name says",
            ),
            SetId::NodePortsLarge => (
                vec![Protocol, Port],
                SetKind::VerdictMap,
                "Node ports with more endpoints than that",
            ),
            SetId::NodePortsNoEndpoints => (
                vec![Protocol, Port],
                SetKind::Set,
                "Node ports without endpoints: refused",
            ),
            SetId::ClusterIps => (
                vec![Address],
                SetKind::Set,
                "Cluster IPs: any other port of them is refused",
            ),
            SetId::NodeAddresses => (
                vec![Address],
                SetKind::Set,
                "Addresses of this node that serve node ports",
            ),
            SetId::LocalSources => (vec![Address], SetKind::Set, "Sources that are local pods"),
            SetId::MasqueradeNodePorts => (
                vec![Protocol, Port],
                SetKind::Set,
                "Node ports whose clients are masqueraded",
            ),
            SetId::Hairpin => (
                vec![Address, Address],
                SetKind::Set,
                "Endpoints on this node, which may reach themselves",
            ),
        };
        let interval = self == SetId::LocalSources;
        Set {
            name: self.name(),
            key,
            kind,
            interval,
            comment: comment.into(),
        }
    }
}

/// The table of `family` without what Services need: sets, chains, rules, and the elements that `facts` give.
pub fn base(family: Family, facts: &NodeFacts) -> TableContents {
    let comment =
        "Portolan: the Services of this node. Kept by its daemon, which repairs foreign changes";
    let mut elements = BTreeMap::new();
    let node_addresses: Vec<Element> = facts
        .node_addresses
        .iter()
        .filter(|address| Family::of(**address) == family)
        .map(|address| Element::member(Bytes::new().address(*address)))
        .collect();
    let local_sources = local_sources(family, facts);
    let mut chains: Vec<Chain> = Pick::ALL
        .into_iter()
        .flat_map(|pick| (1..=EXACT_COUNTS).map(move |count| pick.chain(count)))
        .collect();
    chains.extend(dispatch_chains());
    chains.push(masquerading(facts, !local_sources.is_empty()));
    chains.extend(hooked_chains());
    for (set, members) in [
        (SetId::NodeAddresses, node_addresses),
        (SetId::LocalSources, local_sources),
    ] {
        if !members.is_empty() {
            elements.insert(set.name(), members);
        }
    }
    TableContents {
        table: Table {
            family,
            name: TABLE.into(),
            comment: comment.into(),
        },
        sets: SetId::all()
            .map(|set| (set.name(), set.declaration()))
            .collect(),
        chains: chains
            .into_iter()
            .map(|chain| (chain.name.clone(), chain))
            .collect(),
        elements,
    }
}

/// Ranges of local pods, sorted and disjoint.
fn local_sources(family: Family, facts: &NodeFacts) -> Vec<Element> {
    let ranges: Vec<IpNet> = facts
        .local_sources
        .iter()
        .filter(|net| Family::of(net.network()) == family)
        .copied()
        .collect();
    IpNet::aggregate(&ranges)
        .into_iter()
        .map(|net| {
            let last: IpAddr = net.broadcast();
            Element::range(
                Bytes::new().address(net.network()),
                Bytes::new().address(last),
            )
        })
        .collect()
}

fn goto(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

fn dispatch_chains() -> [Chain; 4] {
    let goto_for = |set: SetId, chain: &'static str| -> Rule {
        vec![
            Statement::InSet {
                key: vec![Operand::DestinationAddress],
                set: set.name(),
                negate: false,
            },
            goto(chain),
        ]
        .into()
    };
    [
        Chain {
            name: "services".into(),
            hook: None,
            comment: "Every new connection".into(),
            rules: vec![
                goto_for(SetId::ClusterIps, "cluster"),
                goto_for(SetId::NodeAddresses, "nodeports"),
            ],
        },
        Chain {
            name: "refuse".into(),
            hook: None,
            comment: "Frontends without endpoints, and unknown ports of cluster IPs".into(),
            rules: vec![
                vec![Statement::RejectTcpReset].into(),
                vec![Statement::Reject].into(),
            ],
        },
        Pick::Frontend.dispatch(
            "cluster",
            "New connections to cluster IPs",
            vec![vec![goto("refuse")].into()],
        ),
        Pick::NodePort.dispatch(
            "nodeports",
            "New connections to addresses of this node",
            Vec::new(),
        ),
    ]
}

/// Whose source address is replaced: decided from the connection's original destination, so that neither
/// the packet's mark nor the connection's is touched.
fn masquerading(facts: &NodeFacts, detects_local: bool) -> Chain {
    let to = |set: SetId| Statement::InSet {
        key: vec![Operand::OriginalDestinationAddress],
        set: set.name(),
        negate: false,
    };
    let mut rules: Vec<Rule> = vec![
        vec![
            Statement::InSet {
                key: vec![Operand::SourceAddress, Operand::DestinationAddress],
                set: SetId::Hairpin.name(),
                negate: false,
            },
            Statement::Masquerade,
        ]
        .into(),
    ];
    if facts.masquerade_all {
        rules.push(vec![to(SetId::ClusterIps), Statement::Masquerade].into());
    } else if detects_local {
        let not_local = Statement::InSet {
            key: vec![Operand::SourceAddress],
            set: SetId::LocalSources.name(),
            negate: true,
        };
        rules.push(vec![to(SetId::ClusterIps), not_local, Statement::Masquerade].into());
    }
    // A rule for each protocol: nft can only print `ct original proto-dst` beside one.
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let to_port = Statement::InSet {
            key: vec![Operand::Protocol, Operand::OriginalDestinationPort],
            set: SetId::MasqueradeNodePorts.name(),
            negate: false,
        };
        rules.push(
            vec![
                Statement::ProtocolIs(protocol),
                to(SetId::NodeAddresses),
                to_port,
                Statement::Masquerade,
            ]
            .into(),
        );
    }
    Chain {
        name: "masquerading".into(),
        hook: None,
        comment: "Connections that a frontend sent elsewhere".into(),
        rules,
    }
}

fn hooked_chains() -> [Chain; 3] {
    let services =
        || -> Vec<Rule> { vec![vec![Statement::Verdict(Verdict::Jump("services".into()))].into()] };
    [
        Chain {
            name: "prerouting".into(),
            hook: Some(Hook::NatPrerouting),
            comment: "From pods and from outside".into(),
            rules: services(),
        },
        Chain {
            name: "output".into(),
            hook: Some(Hook::NatOutput),
            comment: "From this node itself".into(),
            rules: services(),
        },
        Chain {
            name: "postrouting".into(),
            hook: Some(Hook::NatPostrouting),
            comment: "Source addresses".into(),
            rules: vec![
                vec![
                    Statement::ConnectionIsDnat,
                    Statement::Verdict(Verdict::Jump("masquerading".into())),
                ]
                .into(),
            ],
        },
    ]
}
