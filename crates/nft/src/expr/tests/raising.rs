//! From expressions back to statements: what was lowered comes back, and nothing else passes for it.

use proptest::prelude::*;

use super::*;

#[test]
fn an_update_rule_is_recognized_in_either_register_layout() {
    let rule = Rule {
        statements: vec![Statement::UpdateMap {
            key: vec![Operand::SourceAddress, Operand::Protocol, Operand::Group],
            data: vec![Operand::ReplySourceAddress, Operand::ReplySourcePort],
            map: "affinity".into(),
            seconds: 10800,
        }],
    };
    for family in Family::ALL {
        let as_by_nft_1_1 = lower_placing(&rule, family, |end| end);
        assert_ne!(as_by_nft_1_1, lower(&rule, family));
        assert_eq!(raise(&as_by_nft_1_1, family), rule);
        // Over its own key it is another rule.
        let overlapping = lower_placing(&rule, family, |end| end - 1);
        assert_ne!(raise(&overlapping, family), rule);
    }
}

#[test]
fn a_rule_in_other_registers_is_unknown() {
    let rule: Rule = vec![Statement::DnatMap {
        key: slot(2),
        map: "backends".into(),
    }]
    .into();
    let mut exprs = lower(&rule, Family::Ip);
    exprs[3] = Expr::SymHash {
        modulus: 2,
        dreg: Register(4),
    };
    let raised = raise(&exprs, Family::Ip);
    assert_eq!(
        raised.statements,
        [Statement::Unknown(
            "payload meta payload hash lookup nat".into()
        )]
    );
}

#[test]
fn a_leftover_load_is_unknown() {
    let exprs = [Expr::MetaL4Proto { dreg: Register(0) }, Expr::Reject];
    assert!(matches!(
        raise(&exprs, Family::Ip).statements.as_slice(),
        [Statement::Unknown(names)] if names == "meta reject"
    ));
}

pub(crate) fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::Ip), Just(Family::Ip6)]
}

fn any_name() -> impl Strategy<Value = Name> {
    "[a-z][a-z0-9_]{0,20}".prop_map(Name::from)
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    prop_oneof![
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Sctp)
    ]
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    prop_oneof![
        Just(Verdict::Accept),
        Just(Verdict::Drop),
        Just(Verdict::Return),
        any_name().prop_map(Verdict::Jump),
        any_name().prop_map(Verdict::Goto),
    ]
}

fn any_key() -> impl Strategy<Value = Vec<Operand>> {
    let operand = prop_oneof![
        Just(Operand::SourceAddress),
        Just(Operand::DestinationAddress),
        Just(Operand::Protocol),
        Just(Operand::DestinationPort),
        Just(Operand::OriginalDestinationAddress),
        Just(Operand::OriginalDestinationPort),
        Just(Operand::ReplySourceAddress),
        Just(Operand::ReplySourcePort),
        Just(Operand::Group),
        (1..=65536u32).prop_map(|modulus| Operand::SymHash { modulus }),
        any_transport(),
    ];
    prop::collection::vec(operand, 1..5)
}

/// Bytes 2 and 3 are the destination port, which has a name of its own.
fn any_transport() -> impl Strategy<Value = Operand> {
    (4..=64u8, 1..=16u8, any::<bool>(), 0..=128u8).prop_map(|(offset, len, whole, prefix)| {
        let prefix = if whole { len * 8 } else { prefix % (len * 8) };
        Operand::Transport {
            offset,
            len,
            prefix,
        }
    })
}

/// Comparisons with as many bytes as the operand has.
fn any_comparison() -> impl Strategy<Value = Statement> {
    let operand = prop_oneof![
        Just(Operand::SourceAddress),
        Just(Operand::DestinationAddress),
        Just(Operand::DestinationPort),
        any_transport()
    ];
    (operand, any::<[u8; 16]>(), any::<bool>()).prop_map(|(operand, bytes, negate)| {
        let len = match operand {
            Operand::Transport { len, .. } => usize::from(len),
            Operand::DestinationPort => 2,
            _ => 4,
        };
        Statement::Equals {
            operand,
            value: Bytes::from_slice(&bytes[..len]).unwrap(),
            negate,
        }
    })
}

pub(crate) fn any_rule() -> impl Strategy<Value = Rule> {
    let statement =
        prop_oneof![
            (any_key(), any_name(), any::<bool>())
                .prop_map(|(key, set, negate)| Statement::InSet { key, set, negate }),
            any_protocol().prop_map(Statement::ProtocolIs),
            Just(Statement::ConnectionIsDnat),
            (any::<bool>(), any::<bool>()).prop_map(|(source, negate)| {
                let of = if source {
                    Side::Source
                } else {
                    Side::Destination
                };
                Statement::LocalAddress { of, negate }
            }),
            ("[a-z]{1,15}", any::<bool>(), any::<bool>()).prop_map(|(name, prefix, negate)| {
                let name = name.into();
                Statement::InputInterface {
                    name,
                    prefix,
                    negate,
                }
            }),
            "[a-z]{1,15}".prop_map(|name| Statement::OutputInterface { name: name.into() }),
            Just(Statement::ClampMaxseg),
            (any_key(), any_name()).prop_map(|(key, map)| Statement::SetPriority { key, map }),
            Just(Statement::ClearPriority),
            (any_key(), any_key(), any_name(), 1u32..100_000).prop_map(
                |(key, data, map, seconds)| Statement::UpdateMap {
                    key,
                    data,
                    map,
                    seconds
                }
            ),
            (any_key(), any_name()).prop_map(|(key, map)| Statement::VerdictMap { key, map }),
            (any_key(), any_name()).prop_map(|(key, map)| Statement::DnatMap { key, map }),
            any_comparison(),
            Just(Statement::Counter),
            Just(Statement::NoTrack),
            (1..1000u32, 1..1000u32)
                .prop_map(|(per_second, burst)| Statement::Limit { per_second, burst }),
            Just(Statement::Trace),
            Just(Statement::Masquerade),
            Just(Statement::Reject),
            Just(Statement::RejectTcpReset),
            any_verdict().prop_map(Statement::Verdict),
        ];
    prop::collection::vec(statement, 0..6).prop_map(Rule::from)
}

proptest! {
    #[test]
    fn raising_undoes_lowering(rule in any_rule(), family in any_family()) {
        prop_assert_eq!(raise(&lower(&rule, family), family), rule);
    }

    #[test]
    fn shuffled_expressions_raise_to_what_they_are_or_to_unknown(
        rule in any_rule(),
        family in any_family(),
        order in any::<prop::sample::Index>(),
    ) {
        let mut exprs = lower(&rule, family);
        if !exprs.is_empty() {
            let middle = order.index(exprs.len());
            exprs.rotate_left(middle);
        }
        let raised = raise(&exprs, family);
        let unknown = matches!(raised.statements.as_slice(), [Statement::Unknown(_)]);
        prop_assert!(unknown || lower(&raised, family) == exprs);
    }
}
