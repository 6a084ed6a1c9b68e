//! Lowering: the expressions that the kernel is sent for a rule do what the rule's statements mean.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used)]

use nft::expr::{Base, CtKey, Expr, LookupResult, lower};
use nft::{Family, Rule, Side, Verdict};
use portolan_tests::cluster::Generator;
use portolan_tests::evaluator::{Evaluator, Memory};
use portolan_tests::oracle::Packet;
use portolan_tests::{in_parallel, number_from_env, packets, product};

/// Far from the pods that endpoints are made of.
const CLIENT_POD: u8 = 200;

/// The first packet of a random cluster for which the lowered table differs from the meaning of its statements.
fn difference(seed: u64, lower: impl Fn(&Rule, Family) -> Vec<Expr>) -> Option<String> {
    let cluster = Generator::new(seed).cluster();
    let node = &cluster.nodes[0];
    let packets = packets::interesting(&cluster, node, CLIENT_POD);
    for table in product::contents(&cluster, node) {
        let meant = Evaluator::new(&table).unwrap();
        let lowered = match Evaluator::lowered(&table, &lower) {
            Ok(lowered) => lowered,
            Err(error) => return Some(error),
        };
        let of_family = |packet: &&Packet| Family::of(packet.destination) == table.table.family;
        for packet in packets.iter().filter(of_family) {
            let mut memories = vec![Memory::new()];
            let first = meant.fates(packet, node, &memories[0]).unwrap();
            memories.extend(first.into_values().take(2).map(|course| course.memory));
            for memory in &memories {
                let expected = meant.fates(packet, node, memory);
                let got = lowered.fates(packet, node, memory);
                if got != expected {
                    return Some(format!("{packet}: {got:?} instead of {expected:?}"));
                }
            }
        }
    }
    None
}

#[test]
fn lowered_tables_do_what_their_statements_mean() {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    in_parallel(seed..seed + 300, |seed| {
        assert_eq!(difference(seed, lower), None, "PORTOLAN_SEED={seed}");
    });
}

/// A way to get an expression wrong.
type Mistake = fn(&mut Expr);

const MISTAKES: &[(&str, Mistake)] = &[
    ("memberships are inverted", |expr| {
        if let Expr::Lookup { result, .. } = expr {
            *result = match *result {
                LookupResult::Member => LookupResult::NotMember,
                LookupResult::NotMember => LookupResult::Member,
                other => other,
            }
        }
    }),
    ("source and destination addresses are swapped", |expr| {
        if let Expr::Payload {
            base: Base::Network,
            offset,
            ..
        } = expr
        {
            *offset = match *offset {
                12 => 16,
                16 => 12,
                8 => 24,
                _ => 8,
            }
        }
    }),
    ("comparisons are inverted", |expr| {
        if let Expr::Cmp { equal, .. } = expr {
            *equal = !*equal;
        }
    }),
    ("the original destination is read from replies", |expr| {
        if let Expr::Ct { key, .. } = expr
            && *key == CtKey::OriginalDestinationAddress
        {
            *key = CtKey::ReplySourceAddress;
        }
    }),
    ("there is one slot more", |expr| {
        if let Expr::SymHash { modulus, .. } = expr {
            *modulus += 1;
        }
    }),
    ("the port is taken from the address", |expr| {
        if let Expr::DestinationNat { address, port } = expr {
            *port = *address;
        }
    }),
    ("affinity groups are forgotten", |expr| {
        if matches!(expr, Expr::SetPriority { .. }) {
            *expr = Expr::Counter;
        }
    }),
    ("affinity entries hold their key", |expr| {
        if let Expr::Update { key, data, .. } = expr {
            *data = *key;
        }
    }),
    ("the wrong address is asked for its type", |expr| {
        if let Expr::FibType { of, .. } = expr {
            *of = match of {
                Side::Source => Side::Destination,
                Side::Destination => Side::Source,
            }
        }
    }),
    ("rejected packets are dropped", |expr| {
        if matches!(expr, Expr::Reject | Expr::RejectReset) {
            *expr = Expr::Immediate {
                verdict: Verdict::Drop,
            };
        }
    }),
];

#[test]
fn every_mistake_in_lowering_is_noticed() {
    for (what, mistake) in MISTAKES {
        let wrong = |rule: &Rule, family| {
            let mut lowered = lower(rule, family);
            lowered.iter_mut().for_each(mistake);
            lowered
        };
        let noticed = (1..=100).any(|seed| difference(seed, wrong).is_some());
        assert!(noticed, "{what}, and nothing changes");
    }
}
