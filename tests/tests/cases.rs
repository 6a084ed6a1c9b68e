//! Every case folder, on the reference model and on the rendered table.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used, clippy::panic)]

use nft::Family;
use portolan_tests::case::{self, Case};
use portolan_tests::evaluator::{Evaluator, Fate, Memory};
use portolan_tests::judge::{compare, judge};
use portolan_tests::oracle::{self, Expected};
use portolan_tests::product;

fn cases() -> Vec<Case> {
    let cases = case::all().unwrap();
    assert!(cases.len() >= 100, "only {} cases found", cases.len());
    cases
}

#[test]
fn the_reference_model_agrees_with_every_case() {
    for case in cases() {
        for (packet, expected) in &case.packets {
            let model = oracle::outcome(&case.cluster, &case.node, packet);
            assert_eq!(&model, expected, "{}: {packet}", case.name);
        }
        for session in &case.sessions {
            let (first, later) = session.split_first().unwrap();
            let Expected::Balanced(backends) = oracle::outcome(&case.cluster, &case.node, first)
            else {
                panic!("{}: {first} begins no session", case.name)
            };
            for (packet, chosen) in later
                .iter()
                .flat_map(|p| backends.keys().map(move |b| (p, *b)))
            {
                let earlier = [(*first, chosen)];
                let then = oracle::outcome_after(&case.cluster, &case.node, &earlier, packet);
                let follows = matches!(&then, Expected::Balanced(to) if to.keys().eq([&chosen]));
                assert!(follows, "{}: {packet} after {chosen}: {then:?}", case.name);
            }
        }
    }
}

#[test]
fn the_table_does_what_every_case_says() {
    for case in cases() {
        let tables = product::contents_of_manifests(&case.manifests, &case.cluster, &case.node);
        let evaluators = tables.each_ref().map(|table| {
            let evaluator = Evaluator::new(table).unwrap();
            (table.table.family, evaluator)
        });
        let evaluator = |family| &evaluators.iter().find(|(of, _)| *of == family).unwrap().1;
        for (packet, expected) in &case.packets {
            let evaluator = evaluator(Family::of(packet.destination));
            let fates = evaluator.fates(packet, &case.node, &Memory::new()).unwrap();
            if let Err(got) = judge(expected, &fates) {
                panic!(
                    "{}: {packet}\n  expected: {expected:?}\n  got: {got}",
                    case.name
                );
            }
        }
        for session in &case.sessions {
            let (first, later) = session.split_first().unwrap();
            let evaluator = evaluator(Family::of(first.destination));
            let begun = evaluator.fates(first, &case.node, &Memory::new()).unwrap();
            for (fate, course) in begun {
                let mut memory = course.memory;
                for packet in later {
                    let fates = evaluator.fates(packet, &case.node, &memory).unwrap();
                    let same = |after: &Fate| after.destination() == fate.destination();
                    assert!(
                        fate.destination().is_some() && fates.keys().all(same),
                        "{}: {packet}\n  after: {fate:?}\n  got: {fates:?}",
                        case.name
                    );
                    memory = fates.into_values().next().unwrap().memory;
                }
            }
        }
    }
}

#[test]
fn other_packets_of_a_case_agree_with_the_reference_model() {
    for case in cases() {
        for node in &case.cluster.nodes {
            let tables = product::contents(&case.cluster, node);
            if let Err(difference) = compare(&case.cluster, node, &tables) {
                panic!("{}: {difference}", case.name);
            }
        }
    }
}
