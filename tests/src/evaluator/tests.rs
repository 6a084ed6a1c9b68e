//! The evaluator on tables written by hand, so that the tests do not depend on rendered tables.

mod statements;

use std::collections::BTreeMap;
use std::net::IpAddr;

use nft::{Chain, DataField, Element, Field, Operand, Set, SetKind, Statement, Table};

use super::*;
use crate::cluster::Transport;
use crate::oracle::Protocol;

const VIP: &str = "10.96.0.1";
const POD_A: &str = "10.244.1.5";
const POD_B: &str = "10.244.2.9";
const CLIENT: &str = "10.244.1.7";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn set(name: &'static str, key: &[Field], kind: SetKind, interval: bool) -> (Name, Set) {
    (
        name.into(),
        Set {
            name: name.into(),
            key: key.to_vec(),
            kind,
            interval,
            comment: "".into(),
        },
    )
}

fn chain(name: &'static str, hook: Option<Hook>, rules: Vec<Vec<Statement>>) -> (Name, Chain) {
    let rules = rules.into_iter().map(Rule::from).collect();
    (
        name.into(),
        Chain {
            name: name.into(),
            hook,
            comment: "".into(),
            rules,
        },
    )
}

fn frontend(address: &str, port: u16) -> Bytes {
    Bytes::new()
        .address(ip(address))
        .protocol(nft::Protocol::Tcp)
        .port(port)
}

fn backend(port: u16, slot: u32, to: &str) -> Element {
    Element::value(
        frontend(VIP, port).slot(slot),
        Bytes::new().address(ip(to)).port(8080),
    )
}

fn in_set(key: &[Operand], set: &'static str, negate: bool) -> Statement {
    Statement::InSet {
        key: key.to_vec(),
        set: set.into(),
        negate,
    }
}

fn goto(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

fn jump(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

const FRONTEND: [Operand; 3] = [
    Operand::DestinationAddress,
    Operand::Protocol,
    Operand::DestinationPort,
];

fn pick(modulus: u32) -> Vec<Statement> {
    let key = FRONTEND
        .into_iter()
        .chain([Operand::SymHash { modulus }])
        .collect();
    vec![Statement::DnatMap {
        key,
        map: "backends".into(),
    }]
}

/// Two backends on port 80, one slot missing on port 81, no endpoint on port 82.
fn contents() -> TableContents {
    let key = [Field::Address, Field::Protocol, Field::Port];
    let with_slot = [Field::Address, Field::Protocol, Field::Port, Field::Slot];
    let destination = SetKind::Map(vec![DataField::Address, DataField::Port]);
    let sets = [
        set("backends", &with_slot, destination, false),
        set("frontends_2", &key, SetKind::Set, false),
        set("large", &key, SetKind::VerdictMap, false),
        set("none", &key, SetKind::Set, false),
        set("cluster_ips", &[Field::Address], SetKind::Set, false),
        set("pods", &[Field::Address], SetKind::Set, true),
        set(
            "hairpin",
            &[Field::Address, Field::Address],
            SetKind::Set,
            false,
        ),
    ];
    let masquerade_hairpin = in_set(
        &[Operand::SourceAddress, Operand::DestinationAddress],
        "hairpin",
        false,
    );
    let chains = [
        chain("pick_2", None, vec![pick(2), pick(1)]),
        chain("pick_3", None, vec![pick(3)]),
        chain(
            "cluster",
            None,
            vec![
                vec![in_set(&FRONTEND, "frontends_2", false), goto("pick_2")],
                vec![Statement::VerdictMap {
                    key: FRONTEND.to_vec(),
                    map: "large".into(),
                }],
                vec![in_set(&FRONTEND, "none", false), Statement::Reject],
                vec![Statement::Reject],
            ],
        ),
        chain(
            "services",
            None,
            vec![vec![
                in_set(&[Operand::DestinationAddress], "cluster_ips", false),
                goto("cluster"),
            ]],
        ),
        chain(
            "masquerading",
            None,
            vec![
                vec![masquerade_hairpin, Statement::Masquerade],
                vec![
                    in_set(&[Operand::OriginalDestinationAddress], "cluster_ips", false),
                    in_set(&[Operand::SourceAddress], "pods", true),
                    Statement::Masquerade,
                ],
            ],
        ),
        chain(
            "prerouting",
            Some(Hook::NatPrerouting),
            vec![vec![jump("services")]],
        ),
        chain(
            "output",
            Some(Hook::NatOutput),
            vec![vec![jump("services")]],
        ),
        chain(
            "postrouting",
            Some(Hook::NatPostrouting),
            vec![vec![Statement::ConnectionIsDnat, jump("masquerading")]],
        ),
    ];
    let pods = Element::range(
        Bytes::new().address(ip("10.244.0.0")),
        Bytes::new().address(ip("10.244.255.255")),
    );
    let elements: BTreeMap<Name, Vec<Element>> = BTreeMap::from([
        (
            "backends".into(),
            vec![
                backend(80, 0, POD_A),
                backend(80, 1, POD_B),
                backend(81, 0, POD_A),
                backend(83, 0, POD_B),
            ],
        ),
        (
            "frontends_2".into(),
            vec![
                Element::member(frontend(VIP, 80)),
                Element::member(frontend(VIP, 81)),
            ],
        ),
        (
            "large".into(),
            vec![Element::verdict(
                frontend(VIP, 83),
                Verdict::Goto("pick_3".into()),
            )],
        ),
        ("none".into(), vec![Element::member(frontend(VIP, 82))]),
        (
            "cluster_ips".into(),
            vec![Element::member(Bytes::new().address(ip(VIP)))],
        ),
        ("pods".into(), vec![pods]),
        (
            "hairpin".into(),
            vec![Element::member(
                Bytes::new().address(ip(POD_A)).address(ip(POD_A)),
            )],
        ),
    ]);
    TableContents {
        table: Table {
            family: Family::Ip,
            name: "portolan".into(),
            comment: "".into(),
        },
        sets: sets.into(),
        chains: chains.into(),
        elements,
    }
}

fn packet(origin: Origin, source: &str, destination: &str, port: u16) -> Packet {
    let protocol = Protocol::Transport(Transport::Tcp);
    Packet {
        origin,
        source: ip(source),
        destination: ip(destination),
        protocol,
        port,
    }
}

fn node(address: &str) -> Node {
    Node {
        name: "node-1".into(),
        addresses: Vec::new(),
        pod_cidrs: Vec::new(),
        zone: None,
        interfaces: vec![ip(address)],
    }
}

type Shares = BTreeMap<Fate, u64>;

fn shares(fates: Fates) -> Shares {
    let shares = fates.into_iter().map(|(fate, course)| (fate, course.share));
    shares.collect()
}

fn fates(origin: Origin, source: &str, destination: &str, port: u16) -> Shares {
    let contents = contents();
    let evaluator = Evaluator::new(&contents).unwrap();
    let packet = packet(origin, source, destination, port);
    let fates = evaluator.fates(&packet, &node("192.168.77.11"), &Memory::new());
    shares(fates.unwrap())
}

fn to(address: &str, masqueraded: bool) -> Fate {
    Fate::Translated {
        to: SocketAddr::new(ip(address), 8080),
        masqueraded,
    }
}

#[test]
fn every_slot_has_its_exact_share() {
    let half = WHOLE / 2;
    let expected = Shares::from([(to(POD_A, false), half), (to(POD_B, false), half)]);
    assert_eq!(fates(Origin::Elsewhere, CLIENT, VIP, 80), expected);
}

#[test]
fn a_missing_slot_continues_with_the_next_rule() {
    assert_eq!(
        fates(Origin::Elsewhere, CLIENT, VIP, 81),
        Shares::from([(to(POD_A, false), WHOLE)])
    );
}

#[test]
fn a_slot_missing_everywhere_leaves_the_packet_as_it_is() {
    let third = (1u64 << 32).div_ceil(3);
    let expected = Shares::from([(to(POD_B, false), third), (Fate::Passed, WHOLE - third)]);
    assert_eq!(fates(Origin::Elsewhere, CLIENT, VIP, 83), expected);
}

#[test]
fn unmatched_packets_pass_and_rejected_ones_are_refused() {
    assert_eq!(
        fates(Origin::Elsewhere, CLIENT, "10.96.0.2", 80),
        Shares::from([(Fate::Passed, WHOLE)])
    );
    for port in [82, 99] {
        assert_eq!(
            fates(Origin::Node, CLIENT, VIP, port),
            Shares::from([(Fate::Rejected, WHOLE)])
        );
    }
}

#[test]
fn sources_are_judged_after_destination_nat() {
    let half = WHOLE / 2;
    let hairpin = Shares::from([(to(POD_A, true), half), (to(POD_B, false), half)]);
    assert_eq!(fates(Origin::Elsewhere, POD_A, VIP, 80), hairpin);
    let outside = Shares::from([(to(POD_A, true), half), (to(POD_B, true), half)]);
    assert_eq!(fates(Origin::Node, "192.168.77.11", VIP, 80), outside);
}

#[test]
fn packets_for_the_node_itself_skip_postrouting() {
    let contents = contents();
    let evaluator = Evaluator::new(&contents).unwrap();
    let seen = |origin| {
        let fates = evaluator
            .fates(
                &packet(origin, "192.0.2.1", VIP, 81),
                &node(POD_A),
                &Memory::new(),
            )
            .unwrap();
        fates.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(seen(Origin::Elsewhere), [to(POD_A, false)]);
    assert_eq!(seen(Origin::Node), [to(POD_A, true)]);
}

#[test]
fn a_table_the_kernel_would_refuse_is_an_error() {
    let refused = |change: fn(&mut TableContents)| {
        let mut contents = contents();
        change(&mut contents);
        let packet = packet(Origin::Elsewhere, CLIENT, VIP, 80);
        Evaluator::new(&contents)
            .and_then(|e| e.fates(&packet, &node("192.168.77.11"), &Memory::new()))
            .unwrap_err()
    };
    assert_eq!(
        refused(|c| drop(c.chains.remove("pick_2"))),
        "no chain pick_2"
    );
    assert_eq!(
        refused(|c| drop(c.chains.remove("pick_3"))),
        "no chain pick_3"
    );
    assert!(refused(|c| drop(c.sets.remove("none"))).contains("none"));
    let twice = refused(|c| {
        let again = backend(80, 0, POD_B);
        c.elements.get_mut("backends").unwrap().push(again);
    });
    assert!(twice.contains("twice"), "{twice}");
    let misplaced = refused(|c| {
        let chain = c.chains.get_mut("services").unwrap();
        chain
            .rules
            .insert(0, Rule::from(vec![Statement::Masquerade]));
    });
    assert_eq!(misplaced, "masquerade elsewhere than in postrouting");
    let endless = refused(|c| {
        let chain = c.chains.get_mut("services").unwrap();
        chain.rules.insert(0, Rule::from(vec![jump("services")]));
    });
    assert!(endless.contains("too deep"), "{endless}");
}
