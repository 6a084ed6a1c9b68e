//! Tables of the shape that carries Services, fixed and random. For tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use proptest::sample::subsequence;

use crate::model::*;
use crate::transaction::TableContents;

mod meddling;

use meddling::Meddling;

const FRONTEND: [Operand; 3] = [
    Operand::DestinationAddress,
    Operand::Protocol,
    Operand::DestinationPort,
];
const NODE_PORT: [Operand; 2] = [Operand::Protocol, Operand::DestinationPort];

/// An address of the family that ends in `number`.
pub(crate) fn address(family: Family, number: u16) -> IpAddr {
    match family {
        Family::Ip => {
            let [high, low] = number.to_be_bytes();
            IpAddr::V4(Ipv4Addr::new(10, 96, high, low))
        }
        Family::Ip6 => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, number)),
    }
}

/// `address . protocol . port`
pub(crate) fn frontend(family: Family, number: u16) -> Bytes {
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(number % 3)];
    Bytes::new()
        .address(address(family, number / 4))
        .protocol(protocol)
        .port(80 + number % 4)
}

/// `protocol . port`
pub(crate) fn node_port(number: u16) -> Bytes {
    Bytes::new().protocol(Protocol::Tcp).port(30000 + number)
}

/// `address . port`
pub(crate) fn endpoint(family: Family, number: u16) -> Bytes {
    Bytes::new()
        .address(address(family, 0x100 + number))
        .port(8080)
}

/// `len` neighboring blocks of the address space from block `start`, of 64 blocks.
pub(crate) fn blocks(family: Family, start: u8, len: u8) -> Element {
    let first = u128::from(start) << 122;
    let last = first + ((u128::from(len) << 122).wrapping_sub(1));
    let bytes = |number: u128| match family {
        Family::Ip => IpAddr::V4(Ipv4Addr::from_bits((number >> 96) as u32)),
        Family::Ip6 => IpAddr::V6(Ipv6Addr::from_bits(number)),
    };
    Element::range(
        Bytes::new().address(bytes(first)),
        Bytes::new().address(bytes(last)),
    )
}

fn set(name: impl Into<Name>, key: &[Field], kind: SetKind, comment: &'static str) -> Set {
    let key = key.to_vec();
    Set {
        name: name.into(),
        key,
        kind,
        interval: false,
        comment: comment.into(),
    }
}

fn rule(statements: impl Into<Vec<Statement>>) -> Rule {
    Rule::from(statements.into())
}

fn in_set(key: &[Operand], set: impl Into<Name>) -> Statement {
    Statement::InSet {
        key: key.to_vec(),
        set: set.into(),
        negate: false,
    }
}

fn goto(chain: impl Into<Name>) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

fn jump(chain: impl Into<Name>) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

/// What may differ between two tables of the same shape.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Counts that have a size set and a pick chain.
    pub(crate) sizes: Vec<u32>,
    /// Sets and chains with another comment.
    pub(crate) reworded: Vec<&'static str>,
    /// Whether cluster addresses are ranges.
    pub(crate) ranges: bool,
    /// Whether the node itself is served.
    pub(crate) output: bool,
    /// Whether the pick chains are caught by slot 0.
    pub(crate) catch: bool,
}

impl Shape {
    fn comment(&self, name: &str) -> Name {
        if self.reworded.contains(&name) {
            "Another text".into()
        } else {
            Name::default()
        }
    }

    fn sets(&self) -> Vec<Set> {
        use Field::{Address, Group, Port, Protocol, Slot};
        let endpoint = SetKind::Map(vec![DataField::Address, DataField::Port]);
        let frontend = [Address, Protocol, Port];
        let mut sets = vec![
            set(
                "backends",
                &[Address, Protocol, Port, Slot],
                endpoint.clone(),
                "Where it goes",
            ),
            set(
                "affinity",
                &[Address, Protocol, Group],
                SetKind::Dynamic(vec![DataField::Address, DataField::Port]),
                "Learned",
            ),
            set(
                "allowed",
                &[Address, Protocol, Port, Address],
                SetKind::Set,
                "",
            ),
            set("counted", &frontend, SetKind::Counters, "New connections"),
            set(
                "sticky",
                &frontend,
                SetKind::Map(vec![DataField::Group]),
                "",
            ),
            set("sticky_10", &[Group], SetKind::Set, "Ten seconds"),
            set("nodeport_backends", &[Protocol, Port, Slot], endpoint, ""),
            set(
                "frontends_large",
                &frontend,
                SetKind::VerdictMap,
                "Big ones",
            ),
            set("no_endpoints", &frontend, SetKind::Set, "Refused"),
            set("cluster_ips", &[Address], SetKind::Set, ""),
            set("hairpin", &[Address, Address], SetKind::Set, ""),
            set("masquerade_nodeports", &[Protocol, Port], SetKind::Set, ""),
            set("pod_cidrs", &[Address], SetKind::Set, "Pods"),
        ];
        for size in &self.sizes {
            sets.push(set(
                format!("frontends_{size}"),
                &frontend,
                SetKind::Set,
                "",
            ));
        }
        for set in &mut sets {
            set.interval = ["allowed", "pod_cidrs"].contains(&set.name.as_ref())
                || self.ranges && set.name == "cluster_ips";
            if self.reworded.contains(&set.name.as_ref()) {
                set.comment = self.comment(&set.name);
            }
        }
        sets
    }

    fn cluster_rules(&self) -> Vec<Rule> {
        let mut rules: Vec<Rule> = self
            .sizes
            .iter()
            .map(|n| {
                rule([
                    in_set(&FRONTEND, format!("frontends_{n}")),
                    goto(format!("pick_{n}")),
                ])
            })
            .collect();
        let (key, map) = (FRONTEND.to_vec(), "frontends_large".into());
        rules.push(rule([Statement::VerdictMap { key, map }]));
        rules.push(rule([in_set(&FRONTEND, "no_endpoints"), Statement::Reject]));
        rules.push(rule([Statement::RejectTcpReset]));
        rules.push(rule([Statement::Reject]));
        rules
    }

    fn pick_rules(&self, size: u32) -> Vec<Rule> {
        let mut moduli = vec![size];
        moduli.extend(self.catch.then_some(1));
        let dnat = |modulus| {
            let key = [&FRONTEND[..], &[Operand::SymHash { modulus }]].concat();
            rule([Statement::DnatMap {
                key,
                map: "backends".into(),
            }])
        };
        moduli.into_iter().map(dnat).collect()
    }

    /// Rules on the source of a packet, and on the affinity entry of its client.
    fn policy_rules(&self) -> [Rule; 6] {
        let from_range = [&FRONTEND[..], &[Operand::SourceAddress]].concat();
        let not_allowed = Statement::InSet {
            key: from_range,
            set: "allowed".into(),
            negate: true,
        };
        let local = |of, negate| Statement::LocalAddress { of, negate };
        let interface = |name: &'static str, prefix, negate| Statement::InputInterface {
            name: name.into(),
            prefix,
            negate,
        };
        let group = Statement::SetPriority {
            key: FRONTEND.to_vec(),
            map: "sticky".into(),
        };
        let (drop, back) = (Verdict::Drop, Verdict::Return);
        [
            rule([in_set(&FRONTEND, "counted")]),
            rule([
                in_set(&FRONTEND, "no_endpoints"),
                not_allowed,
                Statement::Verdict(drop),
            ]),
            rule([
                local(Side::Source, true),
                interface("veth", true, true),
                jump("sticky"),
            ]),
            rule([interface("cni0", false, false), Statement::Verdict(back)]),
            rule([local(Side::Destination, false), jump("sticky")]),
            rule([group, jump("sticky")]),
        ]
    }

    /// nft 1.0.6 lacks registers to load the IPv6 form.
    fn learning_rules(&self, family: Family) -> Vec<Rule> {
        let learn = Statement::UpdateMap {
            key: vec![Operand::SourceAddress, Operand::Protocol, Operand::Group],
            data: vec![Operand::ReplySourceAddress, Operand::ReplySourcePort],
            map: "affinity".into(),
            seconds: 10,
        };
        let group = Statement::SetPriority {
            key: vec![
                Operand::OriginalDestinationAddress,
                Operand::Protocol,
                Operand::OriginalDestinationPort,
            ],
            map: "sticky".into(),
        };
        let tcp = || Statement::ProtocolIs(Protocol::Tcp);
        let mut rules = vec![rule([tcp(), group])];
        let learn = rule([tcp(), in_set(&[Operand::Group], "sticky_10"), learn]);
        rules.extend((family == Family::Ip).then_some(learn));
        rules.push(rule([Statement::ClearPriority]));
        rules
    }

    fn chains(&self, family: Family) -> Vec<Chain> {
        let chain = |name: &str, hook: Option<Hook>, rules: Vec<Rule>| {
            let comment = self.comment(name);
            Chain {
                name: name.to_owned().into(),
                hook,
                comment,
                rules,
            }
        };
        let masquerade =
            |condition: Vec<Statement>| rule([condition, vec![Statement::Masquerade]].concat());
        let not_pod = Statement::InSet {
            key: vec![Operand::SourceAddress],
            set: "pod_cidrs".into(),
            negate: true,
        };
        let original = [Operand::Protocol, Operand::OriginalDestinationPort];
        let masquerading = vec![
            masquerade(vec![in_set(
                &[Operand::SourceAddress, Operand::DestinationAddress],
                "hairpin",
            )]),
            masquerade(vec![
                in_set(&[Operand::OriginalDestinationAddress], "cluster_ips"),
                not_pod,
            ]),
            masquerade(vec![
                Statement::ProtocolIs(Protocol::Sctp),
                in_set(&original, "masquerade_nodeports"),
            ]),
        ];
        let key = [&NODE_PORT[..], &[Operand::SymHash { modulus: 3 }]].concat();
        let mut chains = vec![
            chain("cluster", None, self.cluster_rules()),
            chain(
                "nodeports",
                None,
                vec![rule([Statement::DnatMap {
                    key,
                    map: "nodeport_backends".into(),
                }])],
            ),
            chain(
                "services",
                None,
                vec![
                    rule([
                        in_set(&[Operand::DestinationAddress], "cluster_ips"),
                        goto("cluster"),
                    ]),
                    rule([jump("policies")]),
                    rule([jump("nodeports")]),
                ],
            ),
            chain("policies", None, self.policy_rules().into()),
            chain(
                "sticky",
                None,
                vec![rule([Statement::DnatMap {
                    key: vec![Operand::SourceAddress, Operand::Protocol, Operand::Group],
                    map: "affinity".into(),
                }])],
            ),
            chain("learning", None, self.learning_rules(family)),
            chain(
                "input",
                Some(Hook::NatInput),
                vec![rule([Statement::ConnectionIsDnat, jump("learning")])],
            ),
            chain("masquerading", None, masquerading),
            chain(
                "clamp",
                Some(Hook::FilterForward),
                vec![rule([
                    Statement::OutputInterface {
                        name: "flannel.1".into(),
                    },
                    Statement::ClampMaxseg,
                ])],
            ),
            chain(
                "sealed",
                Some(Hook::FilterPostrouting),
                vec![rule([Statement::OutputInterface { name: "lo".into() }])],
            ),
            chain(
                "prerouting",
                Some(Hook::NatPrerouting),
                vec![rule([jump("services")])],
            ),
            chain(
                "postrouting",
                Some(Hook::NatPostrouting),
                vec![
                    rule([Statement::ConnectionIsDnat, jump("learning")]),
                    rule([Statement::ConnectionIsDnat, jump("masquerading")]),
                ],
            ),
        ];
        if self.output {
            chains.push(chain(
                "output",
                Some(Hook::NatOutput),
                vec![rule([jump("services")])],
            ));
        }
        for size in &self.sizes {
            chains.push(chain(&format!("pick_{size}"), None, self.pick_rules(*size)));
        }
        chains
    }

    /// A table of this shape without elements.
    pub(crate) fn table(&self, family: Family) -> TableContents {
        let table = Table {
            family,
            name: "portolan".into(),
            comment: if self.reworded.contains(&"table") {
                "Other"
            } else {
                "Services"
            }
            .into(),
        };
        let sets = self
            .sets()
            .into_iter()
            .map(|set| (set.name.clone(), set))
            .collect();
        let chains = self
            .chains(family)
            .into_iter()
            .map(|chain| (chain.name.clone(), chain))
            .collect();
        TableContents {
            table,
            sets,
            chains,
            elements: BTreeMap::new(),
        }
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    let names = vec![
        "backends",
        "frontends_large",
        "no_endpoints",
        "cluster_ips",
        "pod_cidrs",
        "cluster",
        "services",
        "pick_2",
        "prerouting",
        "postrouting",
        "table",
    ];
    // Half of the tables word nothing anew, so that not every pair of tables remakes something.
    let reworded = prop_oneof![Just(vec![]), subsequence(names, 0..3)];
    (
        subsequence(vec![1, 2, 3, 5], 1..=4),
        reworded,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(sizes, reworded, ranges, output, catch)| Shape {
            sizes,
            reworded,
            ranges,
            output,
            catch,
        })
}

/// Some of the numbers below `end`, ascending.
fn some(end: u16) -> impl Strategy<Value = Vec<u16>> {
    subsequence((0..end).collect::<Vec<_>>(), 0..=usize::from(end))
}

/// Ranges that do not overlap but may touch, also at both ends of the address space.
fn ranges(family: Family) -> impl Strategy<Value = Vec<Element>> {
    prop::collection::vec((0u8..4, 1u8..9), 0..9).prop_map(move |gaps| {
        let mut start = 0;
        let mut ranges = Vec::new();
        for (gap, len) in gaps {
            if start + gap + len > 64 {
                break;
            }
            ranges.push(blocks(family, start + gap, len));
            start += gap + len;
        }
        ranges
    })
}

/// Random contents of a table of the Service shape.
pub(crate) fn tables(family: Family) -> impl Strategy<Value = TableContents> {
    let data = || prop::collection::vec((any::<bool>(), 0u16..3), 24);
    let members = (some(24), some(8), some(8), some(6));
    (
        shapes(),
        data(),
        data(),
        members,
        ranges(family),
        ranges(family),
    )
        .prop_map(move |(shape, backends, verdicts, members, pods, cluster)| {
            let mut contents = shape.table(family);
            let (refused, cluster_ips, hairpin, ports) = members;
            let chosen = |data: Vec<(bool, u16)>| {
                (0u16..)
                    .zip(data)
                    .filter(|(_, (there, _))| *there)
                    .map(|(n, (_, to))| (n, to))
            };
            let sizes = &shape.sizes;
            let verdict = |to: u16| match to {
                0 => Verdict::Drop,
                to => {
                    Verdict::Goto(format!("pick_{}", sizes[usize::from(to) % sizes.len()]).into())
                }
            };
            let slot = |n: u16| u32::from(n % 3);
            let lone = |n: &u16| Element::member(Bytes::new().address(address(family, *n)));
            let mut add = |name: &str, mut elements: Vec<Element>| {
                elements.sort();
                contents.elements.insert(name.to_owned().into(), elements);
            };
            let backends: Vec<_> = chosen(backends).collect();
            add("backends", {
                let key = |n| frontend(family, n).slot(slot(n));
                let of = |(n, to)| Element::value(key(n), endpoint(family, to));
                backends.iter().copied().map(of).collect()
            });
            add("nodeport_backends", {
                let of = |(n, to)| Element::value(node_port(n).slot(slot(n)), endpoint(family, to));
                backends.into_iter().map(of).collect()
            });
            add(
                "frontends_large",
                chosen(verdicts)
                    .map(|(n, to)| Element::verdict(frontend(family, n), verdict(to)))
                    .collect(),
            );
            let member = |n: &u16| Element::member(frontend(family, *n));
            for (index, size) in sizes.iter().enumerate() {
                let members = refused.iter().skip(index).step_by(4).map(member).collect();
                add(&format!("frontends_{size}"), members);
            }
            add(
                "counted",
                refused.iter().skip(1).step_by(3).map(member).collect(),
            );
            add("allowed", {
                let of = |n: &u16| {
                    let first = frontend(family, *n).address(address(family, 16));
                    let last = frontend(family, *n).address(address(family, 16 + n % 3));
                    Element::range(first, last)
                };
                refused.iter().map(of).collect()
            });
            let group = |n: u16| Bytes::new().group(u32::from(n) * 0x0712_3456 + 1);
            add("sticky", {
                let of = |n: &u16| Element::value(frontend(family, *n), group(*n));
                refused.iter().step_by(2).map(of).collect()
            });
            let groups = refused.iter().map(|n| Element::member(group(*n)));
            add("sticky_10", groups.collect());
            add("no_endpoints", refused.iter().map(member).collect());
            let cluster_ips = cluster_ips.iter().map(lone).collect();
            add(
                "cluster_ips",
                if shape.ranges { cluster } else { cluster_ips },
            );
            add("hairpin", {
                let pair = |n: &u16| {
                    let address = address(family, *n);
                    Element::member(Bytes::new().address(address).address(address))
                };
                hairpin.iter().map(pair).collect()
            });
            let ports = ports
                .iter()
                .map(|n| Element::member(node_port(*n)))
                .collect();
            add("masquerade_nodeports", ports);
            add("pod_cidrs", pods);
            contents.elements.retain(|_, elements| !elements.is_empty());
            contents
        })
}

/// Random contents of one of the families.
pub(crate) fn any_table() -> impl Strategy<Value = TableContents> {
    prop_oneof![tables(Family::Ip), tables(Family::Ip6)]
}

/// Two random tables of one family.
pub(crate) fn table_pairs() -> impl Strategy<Value = (TableContents, TableContents)> {
    prop_oneof![
        (tables(Family::Ip), tables(Family::Ip)),
        (tables(Family::Ip6), tables(Family::Ip6)),
    ]
}

/// Two random tables of one family; other processes may have changed the first.
pub(crate) fn meddled_pairs() -> impl Strategy<Value = (TableContents, TableContents)> {
    let meddled = prop_oneof![Just(vec![]), subsequence(Meddling::ALL.to_vec(), 1..=4)];
    (table_pairs(), meddled).prop_map(|((mut found, wanted), meddled)| {
        meddled
            .into_iter()
            .for_each(|meddling| meddling.with(&mut found));
        (found, wanted)
    })
}
