//! The chains that lead a new connection to its frontend, and those that decide about its source address.
//!
//! Each chain's comment says which packets reach it; together they read as the path of a packet.

use nft::{Chain, Hook, Name, Operand, Protocol, Rule, Statement, Verdict};
use service_model::{LocalInterface, NodeFacts};

use super::statements::{goto, in_set, jump};
use super::{Pick, SetId};

/// nft can only print `ct original proto-dst` beside a protocol, so some come three times.
const PROTOCOLS: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];

/// Of the connection's original destination.
fn sent_to(set: SetId) -> Statement {
    in_set(vec![Operand::OriginalDestinationAddress], set)
}

fn original_frontend() -> Vec<Operand> {
    vec![
        Operand::OriginalDestinationAddress,
        Operand::Protocol,
        Operand::OriginalDestinationPort,
    ]
}

fn original_node_port() -> Vec<Operand> {
    vec![Operand::Protocol, Operand::OriginalDestinationPort]
}

fn chain(name: &'static str, comment: &'static str, rules: Vec<Vec<Statement>>) -> Chain {
    Chain {
        name: name.into(),
        hook: None,
        comment: comment.into(),
        rules: rules.into_iter().map(Rule::from).collect(),
    }
}

/// Matches packets that are not from a local pod; `None` where no detector is configured.
fn not_local(facts: &NodeFacts, detects_by_source: bool) -> Option<Statement> {
    let by_interface = |interface: &LocalInterface| {
        let (name, prefix) = match interface {
            LocalInterface::Named(name) => (name, false),
            LocalInterface::Prefix(name) => (name, true),
        };
        Statement::InputInterface {
            name: name.to_string().into(),
            prefix,
            negate: true,
        }
    };
    let by_source = || Statement::InSet {
        key: vec![Operand::SourceAddress],
        set: SetId::LocalSources.name(),
        negate: true,
    };
    let interface = facts.local_interface.as_ref().map(by_interface);
    interface.or_else(|| detects_by_source.then(by_source))
}

/// All chains but those that pick, and those that depend on dynamic parts.
pub(super) fn chains(
    facts: &NodeFacts,
    detects_by_source: bool,
    guards_ranges: bool,
) -> Vec<Chain> {
    let not_local = not_local(facts, detects_by_source);
    let mut chains = paths(not_local.as_ref());
    chains.extend(dispatch());
    chains.extend(masquerading(facts, not_local));
    chains.extend(hooked(guards_ranges));
    chains
}

/// Drops packets to a guarded frontend whose source is not allowed.
fn guard() -> Vec<Statement> {
    let mut client = Pick::Frontend.key();
    client.push(Operand::SourceAddress);
    vec![
        in_set(Pick::Frontend.key(), SetId::Guarded),
        Statement::InSet {
            key: client,
            set: SetId::AllowedSources.name(),
            negate: true,
        },
        Statement::Verdict(Verdict::Drop),
    ]
}

/// The rules that send new connections to cluster IPs, external addresses and this node their ways.
fn by_destination(external: &'static str, node_ports: &'static str) -> Vec<Vec<Statement>> {
    let to = |set| in_set(vec![Operand::DestinationAddress], set);
    vec![
        vec![to(SetId::ClusterIps), goto("cluster")],
        vec![to(SetId::ExternalIps), jump(external)],
        vec![to(SetId::NodeAddresses), jump(node_ports)],
    ]
}

/// From the hooks to the dispatch chains.
fn paths(not_local: Option<&Statement>) -> Vec<Chain> {
    let outsiders = |pick: Pick, set: SetId, to: &'static str| {
        let mut rule: Vec<Statement> = vec![in_set(pick.key(), set)];
        rule.extend(not_local.cloned());
        rule.push(goto(to));
        rule
    };
    let is_local = Statement::LocalAddress {
        of: nft::Side::Destination,
        negate: false,
    };
    vec![
        chain(
            "arriving",
            "New connections from pods and from outside",
            by_destination("arriving_external", "arriving_nodeports"),
        ),
        chain(
            "arriving_external",
            "To external addresses",
            vec![
                guard(),
                outsiders(Pick::Frontend, SetId::LocalPolicy, "local_frontends"),
                vec![goto("frontends")],
            ],
        ),
        chain(
            "arriving_nodeports",
            "To addresses of this node",
            vec![
                outsiders(
                    Pick::NodePort,
                    SetId::LocalPolicyNodePorts,
                    "local_nodeports",
                ),
                vec![goto("nodeports")],
            ],
        ),
        chain(
            "departing",
            "New connections of this node itself",
            by_destination("departing_external", "nodeports"),
        ),
        chain(
            "departing_external",
            "To external addresses",
            vec![guard(), vec![goto("frontends")]],
        ),
        chain(
            "unallocated",
            "To addresses that could be cluster IPs and are none",
            vec![
                vec![is_local, Statement::Verdict(Verdict::Return)],
                vec![Statement::Verdict(Verdict::Drop)],
            ],
        ),
    ]
}

fn dispatch() -> Vec<Chain> {
    let no_endpoint_here = in_set(Pick::Frontend.key(), SetId::NoLocalEndpoints);
    let by_group = |set: SetId| Statement::VerdictMap {
        key: vec![Operand::Group],
        map: set.name(),
    };
    let drop = || -> Vec<Rule> { vec![vec![Statement::Verdict(Verdict::Drop)].into()] };
    vec![
        chain(
            "cluster",
            "New connections to cluster IPs",
            vec![
                vec![jump("frontends")],
                vec![no_endpoint_here, Statement::Verdict(Verdict::Drop)],
                vec![goto("refuse")],
            ],
        ),
        chain(
            "refuse",
            "Frontends without endpoints, and unknown ports of cluster IPs",
            vec![vec![Statement::RejectTcpReset], vec![Statement::Reject]],
        ),
        chain(
            "sticky",
            "The endpoint that the client keeps, if it has one: by the map of its Service",
            vec![vec![by_group(SetId::AffinityReaders)]],
        ),
        chain(
            "remember",
            "Those whose client keeps its endpoint: into the map of its Service",
            vec![
                vec![by_group(SetId::AffinityWriters)],
                vec![Statement::ClearPriority],
            ],
        ),
        Pick::Frontend.dispatch("frontends", "By number of endpoints", Vec::new()),
        Pick::NodePort.dispatch("nodeports", "Node ports by number of endpoints", Vec::new()),
        Pick::LocalFrontend.dispatch(
            "local_frontends",
            "Outsiders under policy Local: endpoints on this node or nothing",
            drop(),
        ),
        Pick::LocalNodePort.dispatch(
            "local_nodeports",
            "Outsiders at node ports under policy Local",
            drop(),
        ),
    ]
}

/// Whose source address is replaced: decided from the connection's original destination, so that neither
/// the packet's mark nor the connection's is touched.
fn masquerading(facts: &NodeFacts, not_local: Option<Statement>) -> [Chain; 2] {
    let endpoint_to_itself = vec![Operand::SourceAddress, Operand::DestinationAddress];
    let mut rules = vec![vec![
        in_set(endpoint_to_itself, SetId::Hairpin),
        Statement::Masquerade,
    ]];
    if facts.masquerade_all {
        rules.push(vec![sent_to(SetId::ClusterIps), Statement::Masquerade]);
    } else if let Some(not_local) = not_local {
        rules.push(vec![
            sent_to(SetId::ClusterIps),
            not_local,
            Statement::Masquerade,
        ]);
    }
    let frontends_and_node_ports = |frontends: SetId, node_ports: SetId| {
        let frontends = PROTOCOLS.map(|protocol| {
            vec![
                Statement::ProtocolIs(protocol),
                in_set(original_frontend(), frontends),
                Statement::Masquerade,
            ]
        });
        let node_ports = PROTOCOLS.map(|protocol| {
            vec![
                Statement::ProtocolIs(protocol),
                sent_to(SetId::NodeAddresses),
                in_set(original_node_port(), node_ports),
                Statement::Masquerade,
            ]
        });
        frontends.into_iter().chain(node_ports)
    };
    let of_everyone =
        frontends_and_node_ports(SetId::MasqueradeFrontends, SetId::MasqueradeNodePorts);
    rules.extend(of_everyone);
    let from_this_node = Statement::LocalAddress {
        of: nft::Side::Source,
        negate: false,
    };
    rules.push(vec![from_this_node, goto("masquerading_own")]);
    let own = frontends_and_node_ports(SetId::LocalPolicy, SetId::LocalPolicyNodePorts);
    [
        chain(
            "masquerading",
            "Connections that a frontend sent elsewhere",
            rules,
        ),
        chain(
            "masquerading_own",
            "Those of this node itself, under external policy Local",
            own.collect(),
        ),
    ]
}

fn affinity_key() -> Vec<Operand> {
    vec![Operand::SourceAddress, Operand::Protocol, Operand::Group]
}

/// Name of [`affinity_reader`].
pub(super) fn affinity_reader_name(map: u64) -> Name {
    format!("keep_{map:016x}").into()
}

/// The chain that looks up the affinity entries of one Service.
pub(super) fn affinity_reader(map: u64) -> Chain {
    let kept = Statement::DnatMap {
        key: affinity_key(),
        map: SetId::Affinity(map).name(),
    };
    Chain {
        name: affinity_reader_name(map),
        ..chain("", "The endpoint that the client keeps", vec![vec![kept]])
    }
}

/// Name of [`affinity_writer`].
pub(super) fn affinity_writer_name(map: u64, seconds: u32) -> Name {
    format!("remember_{map:016x}_{seconds}").into()
}

/// The chain that writes the affinity entries of one Service.
pub(super) fn affinity_writer(map: u64, seconds: u32) -> Chain {
    let rules = PROTOCOLS.map(|protocol| {
        vec![
            Statement::ProtocolIs(protocol),
            Statement::UpdateMap {
                key: affinity_key(),
                data: vec![Operand::ReplySourceAddress, Operand::ReplySourcePort],
                map: SetId::Affinity(map).name(),
                seconds,
            },
        ]
    });
    Chain {
        name: affinity_writer_name(map, seconds),
        ..chain("", "The client keeps this endpoint", rules.into())
    }
}

/// The chain that finds out whose client keeps its endpoint; empty where no Service has affinity.
pub(super) fn remembering(has_affinity: bool) -> Chain {
    let mut rules = Vec::new();
    if has_affinity {
        let frontends = PROTOCOLS.map(|protocol| {
            let group = Statement::SetPriority {
                key: original_frontend(),
                map: SetId::Sticky.name(),
            };
            vec![Statement::ProtocolIs(protocol), group, jump("remember")]
        });
        let node_ports = PROTOCOLS.map(|protocol| {
            let group = Statement::SetPriority {
                key: original_node_port(),
                map: SetId::StickyNodePorts.name(),
            };
            vec![
                Statement::ProtocolIs(protocol),
                sent_to(SetId::NodeAddresses),
                group,
                jump("remember"),
            ]
        });
        rules.extend(frontends.into_iter().chain(node_ports));
    }
    chain(
        "remembering",
        "Connections that a frontend sent elsewhere",
        rules,
    )
}

/// The chains that count new connections, by frontend and by node port; empty when no Service requests it.
pub(super) fn counting(counts: bool) -> [Chain; 2] {
    let rules = |pick: Pick, set: SetId| match counts {
        true => vec![vec![in_set(pick.key(), set)]],
        false => Vec::new(),
    };
    [
        chain(
            "counting",
            "New connections to frontends whose Service asks for it",
            rules(Pick::Frontend, SetId::Counted),
        ),
        chain(
            "counting_nodeports",
            "The same for node ports",
            rules(Pick::NodePort, SetId::CountedNodePorts),
        ),
    ]
}

fn hooked(guards_ranges: bool) -> [Chain; 4] {
    let base = |name: &'static str, hook: Hook, comment: &'static str, rules| Chain {
        hook: Some(hook),
        ..chain(name, comment, rules)
    };
    let translated = |then| vec![Statement::ConnectionIsDnat, jump(then)];
    let mut leaving = vec![translated("remembering"), translated("masquerading")];
    // Last, so that another service proxy can handle a Service that is not this proxy's.
    if guards_ranges {
        let in_range = in_set(vec![Operand::DestinationAddress], SetId::ServiceCidrs);
        leaving.push(vec![in_range, goto("unallocated")]);
    }
    [
        base(
            "prerouting",
            Hook::NatPrerouting,
            "From pods and from outside",
            vec![vec![jump("arriving")]],
        ),
        base(
            "output",
            Hook::NatOutput,
            "From this node itself",
            vec![vec![jump("departing")]],
        ),
        base(
            "input",
            Hook::NatInput,
            "To endpoints on this node itself",
            vec![translated("remembering")],
        ),
        base(
            "postrouting",
            Hook::NatPostrouting,
            "To endpoints, and their clients' source addresses",
            leaving,
        ),
    ]
}
