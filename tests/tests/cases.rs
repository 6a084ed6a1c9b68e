//! Every case folder, on the reference model and on the rendered table.

// A test that panics has failed as it should.
#![allow(clippy::unwrap_used, clippy::panic)]

use nft::Family;
use portolan_tests::case::{self, Case};
use portolan_tests::evaluator::Evaluator;
use portolan_tests::judge::{compare, judge};
use portolan_tests::{oracle, product};

fn cases() -> Vec<Case> {
    let cases = case::all().unwrap();
    assert!(cases.len() >= 25, "only {} cases found", cases.len());
    cases
}

#[test]
fn the_reference_model_agrees_with_every_case() {
    for case in cases() {
        for (packet, expected) in &case.packets {
            let model = oracle::outcome(&case.cluster, &case.node, packet);
            assert_eq!(&model, expected, "{}: {packet}", case.name);
        }
    }
}

#[test]
fn the_table_does_what_every_case_says() {
    for case in cases() {
        let tables = product::contents_of_manifests(&case.manifests, &case.cluster, &case.node);
        for (packet, expected) in &case.packets {
            let family = Family::of(packet.destination);
            let table = tables.iter().find(|t| t.table.family == family).unwrap();
            let fates = Evaluator::new(table)
                .unwrap()
                .fates(packet, &case.node.interfaces)
                .unwrap();
            if let Err(got) = judge(expected, &fates) {
                panic!(
                    "{}: {packet}\n  expected: {expected:?}\n  got: {got}",
                    case.name
                );
            }
        }
    }
}

#[test]
fn the_packets_beside_those_of_a_case_fare_as_the_reference_model_says() {
    for case in cases() {
        for node in &case.cluster.nodes {
            let tables = product::contents(&case.cluster, node);
            if let Err(difference) = compare(&case.cluster, node, &tables) {
                panic!("{}: {difference}", case.name);
            }
        }
    }
}
