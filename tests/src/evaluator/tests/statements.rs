//! Statements that write elements, and those that match a packet's origin, each in a table of its own.

use nft::Side;

use super::*;

const MAP: &str = "affinity";
const DROP: Statement = Statement::Verdict(Verdict::Drop);

/// A table of these chains and sets.
fn table(chains: Vec<(Name, Chain)>, sets: Vec<(Name, Set)>) -> TableContents {
    TableContents {
        table: Table {
            family: Family::Ip,
            name: "t".into(),
            comment: "".into(),
        },
        sets: sets.into_iter().collect(),
        chains: chains.into_iter().collect(),
        elements: BTreeMap::new(),
    }
}

fn prerouting(rules: Vec<Vec<Statement>>) -> (Name, Chain) {
    chain("prerouting", Some(Hook::NatPrerouting), rules)
}

fn fates_of(contents: &TableContents, source: &str, memory: &Memory) -> Fates {
    let packet = packet(Origin::Elsewhere, source, VIP, 80);
    let evaluator = Evaluator::new(contents).unwrap();
    evaluator
        .fates(&packet, &node("192.168.77.11"), memory)
        .unwrap()
}

fn drops(contents: &TableContents, source: &str) -> bool {
    fates_of(contents, source, &Memory::new()).contains_key(&Fate::Dropped)
}

#[test]
fn a_key_is_in_a_range_if_every_part_of_it_is() {
    let key = [Operand::DestinationAddress, Operand::SourceAddress];
    let ranges = set(
        "ranges",
        &[Field::Address, Field::Address],
        SetKind::Set,
        true,
    );
    let rule = vec![in_set(&key, "ranges", false), DROP];
    let mut contents = table(vec![prerouting(vec![rule])], vec![ranges]);
    let pair = |first: &str, second: &str| Bytes::new().address(ip(first)).address(ip(second));
    let range = Element::range(pair(VIP, "10.244.1.4"), pair(VIP, "10.244.1.9"));
    let other = Element::range(
        pair("10.96.0.9", "10.0.0.0"),
        pair("10.96.0.9", "10.255.255.255"),
    );
    contents
        .elements
        .insert("ranges".into(), vec![range, other]);
    let met = [
        "10.244.1.3",
        "10.244.1.4",
        "10.244.1.9",
        "10.244.1.10",
        "10.244.0.5",
    ];
    assert_eq!(
        met.map(|source| drops(&contents, source)),
        [false, true, true, false, false]
    );
    let enclosing = Element::range(pair(VIP, "10.0.0.0"), pair(VIP, "10.255.0.0"));
    contents.elements.get_mut("ranges").unwrap().push(enclosing);
    assert!(Evaluator::new(&contents).is_err_and(|error| error.contains("overlap")));
}

#[test]
fn interfaces_match_by_name_or_prefix_and_own_packets_have_none() {
    // Packets of the pod with this address come in by pod5.
    let matches = |name: &'static str, prefix, negate| {
        let interface = Statement::InputInterface {
            name: name.into(),
            prefix,
            negate,
        };
        drops(
            &table(vec![prerouting(vec![vec![interface, DROP]])], vec![]),
            CLIENT,
        )
    };
    assert!(matches("pod5", false, false) && matches("po", true, false));
    assert!(!matches("pod", false, false) && !matches("pod51", false, false));
    assert!(!matches("eth", true, false) && matches("eth0", false, true));
    let own = chain(
        "output",
        Some(Hook::NatOutput),
        vec![vec![
            Statement::InputInterface {
                name: "eth0".into(),
                prefix: false,
                negate: true,
            },
            DROP,
        ]],
    );
    let contents = table(vec![own], vec![]);
    let evaluator = Evaluator::new(&contents).unwrap();
    let packet = packet(Origin::Node, "192.168.77.11", VIP, 80);
    let fates = evaluator.fates(&packet, &node("192.168.77.11"), &Memory::new());
    assert!(fates.unwrap().contains_key(&Fate::Dropped));
}

#[test]
fn addresses_of_the_node_and_loopback_are_local() {
    let matches = |source, negate| {
        let local = Statement::LocalAddress {
            of: Side::Source,
            negate,
        };
        drops(
            &table(vec![prerouting(vec![vec![local, DROP]])], vec![]),
            source,
        )
    };
    assert!(matches("192.168.77.11", false) && matches("127.0.0.1", false));
    assert!(!matches(CLIENT, false) && matches(CLIENT, true));
}

/// One frontend with affinity: a group, two backends, and a rule at the end that writes the client's entry.
fn with_affinity() -> TableContents {
    let frontend_key = [
        Operand::DestinationAddress,
        Operand::Protocol,
        Operand::DestinationPort,
    ];
    let client_key = [Operand::SourceAddress, Operand::Protocol, Operand::Group];
    let mut pick = frontend_key.to_vec();
    pick.push(Operand::SymHash { modulus: 2 });
    let group = || Statement::SetPriority {
        key: frontend_key.to_vec(),
        map: "groups".into(),
    };
    let original = Statement::SetPriority {
        key: vec![
            Operand::OriginalDestinationAddress,
            Operand::Protocol,
            Operand::OriginalDestinationPort,
        ],
        map: "groups".into(),
    };
    let dnat = |key: &[Operand], map: &'static str| Statement::DnatMap {
        key: key.to_vec(),
        map: map.into(),
    };
    let update = Statement::UpdateMap {
        key: client_key.to_vec(),
        data: vec![Operand::ReplySourceAddress, Operand::ReplySourcePort],
        map: MAP.into(),
        seconds: 60,
    };
    let chains = vec![
        prerouting(vec![
            vec![group()],
            vec![dnat(&client_key, MAP)],
            vec![dnat(&pick, "backends")],
        ]),
        chain(
            "postrouting",
            Some(Hook::NatPostrouting),
            vec![
                vec![Statement::ProtocolIs(nft::Protocol::Tcp), original],
                vec![Statement::ProtocolIs(nft::Protocol::Tcp), update],
                vec![Statement::ClearPriority],
            ],
        ),
    ];
    let endpoint = || vec![DataField::Address, DataField::Port];
    let frontend_fields = [Field::Address, Field::Protocol, Field::Port];
    let mut slot_fields = frontend_fields.to_vec();
    slot_fields.push(Field::Slot);
    let sets = vec![
        set(
            "groups",
            &frontend_fields,
            SetKind::Map(vec![DataField::Group]),
            false,
        ),
        set("backends", &slot_fields, SetKind::Map(endpoint()), false),
        set(
            MAP,
            &[Field::Address, Field::Protocol, Field::Group],
            SetKind::Dynamic(endpoint()),
            false,
        ),
    ];
    let mut contents = table(chains, sets);
    let group = Element::value(frontend(VIP, 80), Bytes::new().group(7));
    contents.elements.insert("groups".into(), vec![group]);
    let backends = vec![backend(80, 0, POD_A), backend(80, 1, POD_B)];
    contents.elements.insert("backends".into(), backends);
    contents
}

#[test]
fn an_affinity_entry_keeps_its_client_and_no_other() {
    let contents = with_affinity();
    let begun = fates_of(&contents, CLIENT, &Memory::new());
    assert_eq!(begun.len(), 2, "{begun:?}");
    for (fate, course) in begun {
        let after = fates_of(&contents, CLIENT, &course.memory);
        assert_eq!(after.keys().collect::<Vec<_>>(), [&fate]);
        assert_eq!(after[&fate].memory, course.memory);
        assert_eq!(fates_of(&contents, "10.244.1.8", &course.memory).len(), 2);
    }
}

#[test]
fn an_update_keeps_the_data_of_an_entry() {
    let mut contents = with_affinity();
    let begun = fates_of(&contents, CLIENT, &Memory::new());
    let (_, first) = begun.into_iter().next().unwrap();
    // Without the rule that reads entries, the next connection goes to any backend; the entry keeps its data.
    contents
        .chains
        .get_mut("prerouting")
        .unwrap()
        .rules
        .remove(1);
    let again = fates_of(&contents, CLIENT, &first.memory);
    assert_eq!(again.len(), 2);
    assert!(again.values().all(|course| course.memory == first.memory));
}

#[test]
fn elements_of_a_dynamic_map_are_an_error() {
    let mut contents = with_affinity();
    let key = Bytes::new()
        .address(ip(CLIENT))
        .protocol(nft::Protocol::Tcp)
        .group(7);
    let value = Bytes::new().address(ip(POD_A)).port(8080);
    contents
        .elements
        .insert(MAP.into(), vec![Element::value(key, value)]);
    assert!(Evaluator::new(&contents).is_err());
}
