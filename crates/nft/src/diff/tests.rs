//! For any two tables, the difference is within the rules and makes the one the other.

use proptest::prelude::*;

use super::*;
use crate::backend::Backend;
use crate::fake::Fake;
use crate::model::Family;
use crate::samples::{self, Shape, any_table, meddled_pairs};

fn plain(reworded: Vec<&'static str>) -> TableContents {
    let shape = Shape {
        sizes: vec![2, 3],
        output: true,
        catch: true,
        reworded,
        ranges: false,
    };
    let mut contents = shape.table(Family::Ip);
    let large = Verdict::Goto("pick_2".into());
    let large = vec![Element::verdict(samples::frontend(Family::Ip, 1), large)];
    contents.elements.insert("frontends_large".into(), large);
    contents
}

fn operations(found: &TableContents, wanted: &TableContents) -> Vec<Operation> {
    diff(Some(found), wanted)
        .operations
        .into_iter()
        .map(|(_, operation)| operation)
        .collect()
}

#[test]
fn only_the_elements_that_differ_are_sent() {
    let found = plain(vec![]);
    let mut wanted = found.clone();
    let key = |n| samples::frontend(Family::Ip, n).slot(0);
    let value = |n, to| Element::value(key(n), samples::endpoint(Family::Ip, to));
    let mut found = found;
    found.elements.insert(
        "backends".into(),
        vec![value(0, 1), value(4, 1), value(8, 1)],
    );
    wanted.elements.insert(
        "backends".into(),
        vec![value(0, 1), value(4, 2), value(12, 1)],
    );
    let set = || Name::from("backends");
    assert_eq!(
        operations(&found, &wanted),
        [
            Operation::DeleteElements {
                set: set(),
                elements: vec![value(4, 1), value(8, 1)]
            },
            Operation::AddElements {
                set: set(),
                elements: vec![value(4, 2), value(12, 1)]
            },
        ]
    );
}

#[test]
fn a_list_without_elements_is_no_difference() {
    let mut found = plain(vec![]);
    found.elements.insert("hairpin".into(), vec![]);
    assert!(operations(&found, &plain(vec![])).is_empty());
    assert!(operations(&plain(vec![]), &found).is_empty());
}

#[test]
fn a_changed_rule_rewrites_its_chain_alone() {
    let found = plain(vec![]);
    let mut wanted = found.clone();
    let chain = wanted.chains.get_mut("cluster").unwrap();
    chain.rules.pop();
    let chain = chain.clone();
    assert_eq!(operations(&found, &wanted), [Operation::SetRules(chain)]);
}

#[test]
fn a_recreated_chain_first_loses_its_rules_and_references() {
    let (found, wanted) = (plain(vec![]), plain(vec!["pick_2"]));
    let text = diff(Some(&found), &wanted).to_string();
    let steps: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with('\t'))
        .collect();
    assert_eq!(
        steps,
        [
            "set rules ip cluster",
            "set rules ip pick_2",
            "delete elements ip frontends_large",
            "delete chain ip pick_2",
            "add chain ip pick_2",
            "set rules ip cluster",
            "set rules ip pick_2",
            "add elements ip frontends_large",
        ]
    );
}

#[test]
fn rules_that_are_not_ours_do_not_keep_sets_from_being_deleted() {
    let wanted = plain(vec!["backends"]);
    let mut found = plain(vec![]);
    let foreign = Rule::from(vec![Statement::Unknown("meta lookup".into())]);
    found
        .chains
        .get_mut("services")
        .unwrap()
        .rules
        .push(foreign.clone());
    let operations = operations(&found, &wanted);
    let services = |operation: &Operation| match operation {
        Operation::SetRules(chain) if chain.name == "services" => Some(chain.rules.is_empty()),
        _ => None,
    };
    let written: Vec<bool> = operations.iter().filter_map(services).collect();
    assert_eq!(written, [true, false]);
    let text = Transaction {
        operations: operations.into_iter().map(|o| (Family::Ip, o)).collect(),
    };
    assert!(!text.to_string().contains("unknown rule"));
}

#[test]
fn a_table_with_another_comment_is_replaced_whole() {
    let (found, wanted) = (plain(vec!["table"]), plain(vec![]));
    let mut fake = Fake::holding(found.clone());
    fake.commit(&diff(Some(&found), &wanted)).unwrap();
    assert_eq!(fake.contents(Family::Ip), Some(wanted));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_difference_turns_any_table_into_any_other((found, wanted) in meddled_pairs()) {
        let family = wanted.table.family;
        let mut fake = Fake::holding(found.clone());
        let transaction = diff(Some(&found), &wanted);
        prop_assert_eq!(fake.commit(&transaction), Ok(()), "{}", transaction);
        prop_assert_eq!(fake.contents(family), Some(wanted));
    }

    #[test]
    fn any_table_is_built_from_nothing_and_equals_itself(wanted in any_table()) {
        let family = wanted.table.family;
        let mut fake = Fake::new();
        let transaction = diff(None, &wanted);
        prop_assert_eq!(fake.commit(&transaction), Ok(()), "{}", transaction);
        prop_assert_eq!(fake.contents(family), Some(wanted.clone()));
        prop_assert!(diff(Some(&wanted), &wanted).is_empty());
    }
}
