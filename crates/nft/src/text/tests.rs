//! nft loads what we print, and lists the same lines.

use proptest::prelude::*;

use super::*;
use crate::model::{Bytes, Protocol};
use crate::namespace::{nft_is_there, nft_list_of};
use crate::samples::{self, Shape, any_table};
use crate::transaction::{Operation, Transaction};

/// Lines of a listing with the elements of each set sorted: nft sorts them by rules of its own.
fn lines(text: &str) -> Vec<String> {
    let joined = text.replace(",\n", ", ");
    let sorted = |line: &str| match line.trim().strip_prefix("elements = {") {
        None => line.to_owned(),
        Some(elements) => {
            let mut elements: Vec<&str> = elements
                .trim_end_matches('}')
                .split(',')
                .map(str::trim)
                .collect();
            elements.sort_unstable();
            elements.join(", ")
        }
    };
    joined.lines().map(sorted).collect()
}

fn sample(family: Family) -> TableContents {
    let shape = Shape {
        sizes: vec![2],
        output: true,
        catch: true,
        ..Shape::default()
    };
    let mut contents = shape.table(family);
    let backend = |slot| {
        let key = samples::frontend(family, 1).slot(slot);
        Element::value(key, samples::endpoint(family, slot as u16))
    };
    contents
        .elements
        .insert("backends".into(), vec![backend(0), backend(1)]);
    contents
        .elements
        .insert("pod_cidrs".into(), vec![samples::blocks(family, 3, 2)]);
    let goto = Verdict::Goto("pick_2".into());
    let large = vec![Element::verdict(samples::frontend(family, 1), goto)];
    contents.elements.insert("frontends_large".into(), large);
    contents
}

#[test]
fn elements_read_as_addresses_protocols_and_ports() {
    let text = table(&sample(Family::Ip));
    assert!(
        text.contains("10.96.0.0 . udp . 81 . 1 : 10.96.1.1 . 8080"),
        "{text}"
    );
    assert!(
        text.contains("10.96.0.0 . udp . 81 : goto pick_2"),
        "{text}"
    );
    let text = table(&sample(Family::Ip6));
    assert!(
        text.contains("fd00:: . udp . 81 . 1 : fd00::101 . 8080"),
        "{text}"
    );
}

#[test]
fn ranges_are_prefixes_where_they_can_be() {
    let range = |first: [u8; 4], last: [u8; 4]| prefix_length(&first, &last);
    assert_eq!(range([10, 244, 0, 0], [10, 244, 255, 255]), Some(16));
    assert_eq!(range([0; 4], [255; 4]), Some(0));
    assert_eq!(range([10, 0, 0, 1], [10, 0, 0, 1]), Some(32));
    assert_eq!(range([10, 0, 0, 1], [10, 0, 0, 2]), None);
    assert_eq!(range([10, 1, 0, 0], [10, 2, 255, 255]), None);
    assert_eq!(prefix_length(&[0; 16], &[255; 16]), Some(0));
}

#[test]
fn a_key_of_the_wrong_width_is_printed_and_not_lost() {
    let contents = sample(Family::Ip);
    let element = Element::member(Bytes::new().protocol(Protocol::Tcp));
    let set = &contents.sets["hairpin"];
    let text = ElementText {
        family: Family::Ip,
        set,
        element: &element,
    }
    .to_string();
    assert_eq!(text, "6.0.0.0 . 0x");
}

#[test]
fn a_transaction_reads_step_by_step() {
    let contents = sample(Family::Ip);
    let set = contents.sets["backends"].clone();
    let elements = contents.elements["backends"].clone();
    let mut transaction = Transaction::new();
    let add = Operation::AddElements {
        set: set.name.clone(),
        elements,
    };
    transaction.push(Family::Ip, add);
    transaction.push(
        Family::Ip,
        Operation::SetRules(contents.chains["services"].clone()),
    );
    let text = transaction.to_string();
    assert!(
        text.starts_with("add elements ip backends\n\t0a600000"),
        "{text}"
    );
    assert!(
        text.contains("\n\tip daddr @cluster_ips goto cluster\n"),
        "{text}"
    );

    let known = |_: Family, name: &str| contents.sets.get(name);
    let text = TransactionText {
        transaction: &transaction,
        declaration: known,
    }
    .to_string();
    assert!(
        text.contains("\t10.96.0.0 . udp . 81 . 0 : 10.96.1.0 . 8080\n"),
        "{text}"
    );
}

#[test]
fn nft_lists_a_small_table_exactly_as_it_is_printed() {
    if !nft_is_there() {
        return;
    }
    for family in Family::ALL {
        let text = table(&sample(family));
        assert_eq!(
            nft_list_of(&text).unwrap_or_else(|error| panic!("{error}\n{text}")),
            text
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nft_loads_any_table_and_lists_the_same_lines(contents in any_table()) {
        if nft_is_there() {
            let text = table(&contents);
            let listing = nft_list_of(&text).map_err(|error| TestCaseError::fail(error + &text))?;
            prop_assert_eq!(lines(&listing), lines(&text));
            let again = nft_list_of(&listing).map_err(TestCaseError::fail)?;
            prop_assert_eq!(again, listing);
        }
    }
}
