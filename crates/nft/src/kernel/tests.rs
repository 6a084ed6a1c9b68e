mod ownership;
mod replies;

use std::collections::BTreeMap;

use netlink::{Attributes, flag};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;
use crate::diff::diff;
use crate::model::{
    Bytes, Chain, Data, Element, Field, Hook, Rule, Set, SetKind, Statement, Table, Verdict,
};
use crate::monitor::Notice;
use crate::namespace::{in_namespace, kernel, listed, load, nft};
use crate::wire::abi::{self, message};
use crate::wire::decode::Reading;
use crate::wire::header::attributes;
use crate::{samples, text};

fn run<T: std::fmt::Debug>(
    cases: u32,
    strategy: impl Strategy<Value = T>,
    test: impl Fn(T) -> Result<(), TestCaseError>,
) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&strategy, test)
        .unwrap_or_else(|failure| panic!("{failure}"));
}

fn transaction(steps: impl IntoIterator<Item = Operation>) -> Transaction {
    Transaction {
        operations: steps.into_iter().map(|step| (Family::Ip, step)).collect(),
    }
}

/// Commits these steps.
#[track_caller]
fn commit(kernel: &mut Kernel, steps: impl IntoIterator<Item = Operation>) {
    kernel.commit(&transaction(steps)).unwrap();
}

/// What the kernel says of these steps, which it refuses.
#[track_caller]
fn refusal(kernel: &mut Kernel, steps: impl IntoIterator<Item = Operation>) -> (Errno, Culprit) {
    match kernel.commit(&transaction(steps)) {
        Err(CommitError::Refused { errno, culprit, .. }) => (errno, *culprit),
        other => panic!("{other:?}"),
    }
}

fn add_table() -> Operation {
    Operation::AddTable(Table {
        family: Family::Ip,
        name: "portolan".into(),
        comment: "a test".into(),
    })
}

fn set(name: &'static str, key: &[Field], kind: SetKind, interval: bool) -> Operation {
    let (name, comment) = (name.into(), "".into());
    Operation::AddSet(Set {
        name,
        key: key.to_vec(),
        kind,
        interval,
        comment,
    })
}

fn add(set: &'static str, elements: Vec<Element>) -> Operation {
    Operation::AddElements {
        set: set.into(),
        elements,
    }
}

fn delete(set: &'static str, elements: Vec<Element>) -> Operation {
    Operation::DeleteElements {
        set: set.into(),
        elements,
    }
}

fn frontend(number: u16) -> Bytes {
    samples::frontend(Family::Ip, number)
}

/// A table with a set, a map and an interval set.
fn small() -> Transaction {
    let frontend = [Field::Address, Field::Protocol, Field::Port];
    let endpoint = vec![crate::DataField::Address, crate::DataField::Port];
    transaction([
        add_table(),
        set("frontends", &frontend, SetKind::Set, false),
        set("backends", &frontend, SetKind::Map(endpoint), false),
        set("pods", &[Field::Address], SetKind::Set, true),
    ])
}

fn small_kernel() -> Kernel {
    let mut kernel = kernel(false);
    kernel.commit(&small()).unwrap();
    kernel
}

fn range(first: [u8; 4], last: [u8; 4]) -> Element {
    let bytes = |octets: [u8; 4]| Bytes::from_slice(&octets).unwrap();
    Element::range(bytes(first), bytes(last))
}

#[test]
fn any_table_and_its_nft_listing_read_back_equal() {
    in_namespace(|| {
        run(24, samples::any_table(), |wanted| {
            let family = wanted.table.family;
            let mut kernel = kernel(false);
            kernel.commit(&diff(None, &wanted)).unwrap();
            prop_assert_eq!(&listed(&mut kernel, family), &wanted);

            let listing = nft(&["list", "ruleset"], "").unwrap();
            nft(&["delete", "table", family.keyword(), "portolan"], "").unwrap();
            prop_assert_eq!(kernel.list(family).unwrap(), None);
            load(&listing);
            prop_assert_eq!(&listed(&mut kernel, family), &wanted, "{}", listing);
            nft(&["flush", "ruleset"], "").unwrap();
            Ok(())
        });
    });
}

/// User data of the table and of each set and chain, which the kernel ignores.
fn user_data(kernel: &mut Kernel, family: Family) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for (kind, name, udata) in [
        (message::GET_SET, abi::set::NAME, abi::set::USERDATA),
        (message::GET_CHAIN, abi::chain::NAME, abi::chain::USERDATA),
        (message::GET_TABLE, abi::table::NAME, abi::table::USERDATA),
    ] {
        let asked = kernel.ask(
            kind,
            flag::DUMP,
            Some(family),
            |_| {},
            |message| {
                let fields = attributes(message)?;
                let name =
                    String::from_utf8_lossy(fields.clone().find(name)?.unwrap()).into_owned();
                let udata = Attributes::find(fields, udata)?.unwrap_or_default();
                found.insert(format!("{kind} {name}"), udata.to_vec());
                Ok(())
            },
        );
        assert_eq!(asked, Ok(Reply::Done));
    }
    found
}

#[test]
fn user_data_is_byte_for_byte_what_nft_stores() {
    in_namespace(|| {
        run(8, samples::any_table(), |wanted| {
            let family = wanted.table.family;
            let mut kernel = kernel(false);
            kernel.commit(&diff(None, &wanted)).unwrap();
            let ours = user_data(&mut kernel, family);
            let operations = vec![(family, Operation::DeleteTable)];
            kernel.commit(&Transaction { operations }).unwrap();
            load(&text::table(&wanted));
            prop_assert!(ours.len() > 10);
            prop_assert_eq!(user_data(&mut kernel, family), ours);
            nft(&["flush", "ruleset"], "").unwrap();
            Ok(())
        });
    });
}

#[test]
fn nothing_to_do_sends_nothing() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        kernel.commit(&Transaction::new()).unwrap();
        commit(&mut kernel, [add("frontends", vec![])]);
        assert_eq!(kernel.sent(), Sent::default());
        kernel.commit(&small()).unwrap();
        assert_eq!((kernel.sent().transactions, kernel.sent().messages), (1, 4));
    });
}

#[test]
fn a_long_list_of_elements_is_split_and_arrives_whole() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let elements: Vec<_> = (0..10_000).map(|n| Element::member(frontend(n))).collect();
        let before = kernel.sent().messages;
        commit(&mut kernel, [add("frontends", elements.clone())]);
        assert!(kernel.sent().messages - before >= 2);
        let mut wanted = elements;
        wanted.sort();
        assert_eq!(
            listed(&mut kernel, Family::Ip).elements["frontends"],
            wanted
        );
    });
}

#[test]
fn an_element_may_be_added_again_but_not_with_other_data() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let to = |number| samples::endpoint(Family::Ip, number);
        let first = Element::value(frontend(1), to(1));
        commit(&mut kernel, [add("backends", vec![first.clone()])]);
        commit(&mut kernel, [add("backends", vec![first.clone()])]);

        let other = Element::value(frontend(1), to(2));
        let new = Element::value(frontend(2), to(2));
        let steps = [
            add("frontends", vec![Element::member(frontend(1))]),
            add("backends", vec![new, first.clone(), other.clone()]),
        ];
        let (errno, culprit) = refusal(&mut kernel, steps);
        assert_eq!(errno, Errno::EEXIST);
        assert_eq!((culprit.operation, culprit.family), (1, Family::Ip));
        assert_eq!(culprit.element, Some(("backends".into(), Some(other))));
        let table = listed(&mut kernel, Family::Ip);
        assert_eq!(table.elements["backends"], [first], "all or nothing");
        assert!(!table.elements.contains_key("frontends"));
    });
}

#[test]
fn the_element_at_fault_is_found_in_any_message_of_its_step() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let elements: Vec<_> = (0..5_000).map(|n| Element::member(frontend(n))).collect();
        commit(&mut kernel, [add("frontends", elements.clone())]);
        for at in [0, 1234, 4_999] {
            let missing = Element::member(frontend(60_000));
            let mut deleted = elements.clone();
            deleted[at] = missing.clone();
            let (errno, culprit) = refusal(&mut kernel, [delete("frontends", deleted)]);
            assert_eq!(errno, Errno::ENOENT);
            assert_eq!(culprit.element, Some(("frontends".into(), Some(missing))));
        }
    });
}

#[test]
fn the_first_of_several_refused_steps_is_named() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let lone = Rule::from(vec![Statement::Verdict(Verdict::Jump("nowhere".into()))]);
        let chain = |rules| Chain {
            name: "c".into(),
            hook: None,
            comment: "".into(),
            rules,
        };
        let steps = [
            Operation::AddChain(chain(vec![])),
            Operation::SetRules(chain(vec![lone])),
            Operation::DeleteSet("missing".into()),
        ];
        let (errno, culprit) = refusal(&mut kernel, steps);
        assert_eq!((errno, culprit.operation), (Errno::ENOENT, 1));
        assert_eq!(culprit.element, None);
    });
}

#[test]
fn observed_only_values_are_not_sent() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let before = kernel.sent();
        let chain = Chain {
            name: "c".into(),
            hook: Some(Hook::Unknown),
            comment: "".into(),
            rules: vec![],
        };
        let steps = [add_table(), Operation::AddChain(chain)];
        let (_, culprit) = refusal(&mut kernel, steps);
        assert_eq!(culprit.operation, 1);
        assert_eq!(kernel.sent(), before);
    });
}

#[test]
fn ranges_list_as_prefixes_and_come_and_go_one_by_one() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let all = [
            range([0, 0, 0, 0], [9, 255, 255, 255]),
            range([10, 244, 0, 0], [10, 244, 0, 255]),
            range([10, 244, 1, 0], [10, 244, 1, 255]),
            range([10, 250, 0, 7], [10, 250, 0, 7]),
            range([255, 0, 0, 0], [255, 255, 255, 255]),
        ];
        for one in &all {
            commit(&mut kernel, [add("pods", vec![one.clone()])]);
        }
        commit(&mut kernel, [add("pods", all.to_vec())]);
        assert_eq!(listed(&mut kernel, Family::Ip).elements["pods"], all);
        let listing = nft(&["list", "set", "ip", "portolan", "pods"], "").unwrap();
        for prefix in [
            "10.244.0.0/24",
            "10.244.1.0/24",
            "10.250.0.7",
            "255.0.0.0/8",
        ] {
            assert!(listing.contains(prefix), "{prefix} in {listing}");
        }
        for (gone, one) in all.iter().enumerate() {
            commit(&mut kernel, [delete("pods", vec![one.clone()])]);
            let left = listed(&mut kernel, Family::Ip)
                .elements
                .remove("pods")
                .unwrap_or_default();
            assert_eq!(left, all[gone + 1..]);
        }
    });
}

#[test]
fn a_range_that_overlaps_another_is_refused_by_name() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let wide = range([10, 0, 0, 0], [10, 0, 255, 255]);
        let narrow = range([10, 0, 7, 0], [10, 0, 7, 255]);
        let apart = range([11, 0, 0, 0], [11, 0, 0, 255]);
        commit(&mut kernel, [add("pods", vec![wide])]);
        let (_, culprit) = refusal(&mut kernel, [add("pods", vec![apart, narrow.clone()])]);
        assert_eq!(culprit.element, Some(("pods".into(), Some(narrow))));
    });
}

#[test]
fn foreign_additions_are_read_as_unknown() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        load(
            "table ip portolan {
               set timed { type ipv4_addr; flags timeout; }
               set sized { type ipv4_addr; size 7; }
               set odd { type mark; }
               chain prerouting { type filter hook prerouting priority 0; policy drop; }
               chain rules {
                 ip ttl 7 counter accept
                 tcp dport { 80, 443 } drop
                 meta l4proto tcp accept
                 dnat to 1.2.3.4
                 masquerade random
                 reject with icmp type host-unreachable
               }
             }
             table ip other { set frontends { type ipv4_addr; elements = { 1.1.1.1 }; }; }
             table ip6 portolan { set frontends { type ipv6_addr; elements = { ::1 }; }; }
             add element ip portolan pods { 1.2.3.0/24 }",
        );
        let table = listed(&mut kernel, Family::Ip);
        for name in ["timed", "sized", "odd"] {
            assert_eq!(table.sets[name].kind, SetKind::Unknown, "{name}");
        }
        assert_eq!(table.sets.len(), 6, "anonymous sets belong to their rules");
        assert_eq!(table.chains["prerouting"].hook, Some(Hook::Unknown));
        let known = |rule: &Rule| !matches!(rule.statements[..], [Statement::Unknown(_)]);
        let known: Vec<bool> = table.chains["rules"].rules.iter().map(known).collect();
        assert_eq!(known, [false, true, true, false, false, false]);
        assert!(
            matches!(
                &table.chains["rules"].rules[1].statements[1],
                Statement::InSet { set, .. } if set.starts_with("__set")
            ),
            "a name that no set of ours can have"
        );
        assert_eq!(table.elements.keys().collect::<Vec<_>>(), ["pods"]);
        assert_eq!(
            table.elements["pods"],
            [range([1, 2, 3, 0], [1, 2, 3, 255])]
        );
    });
}

#[test]
fn a_catch_all_element_is_seen_and_can_be_deleted() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let plain = set("plain", &[Field::Address], SetKind::Set, false);
        commit(&mut kernel, [plain]);
        load("add element ip portolan plain { * }");
        let star = Element {
            key: Bytes::new(),
            last: None,
            data: Data::None,
        };
        assert_eq!(
            listed(&mut kernel, Family::Ip).elements["plain"],
            std::slice::from_ref(&star)
        );
        commit(&mut kernel, [delete("plain", vec![star])]);
        assert!(listed(&mut kernel, Family::Ip).elements.is_empty());
    });
}

#[test]
fn each_transaction_of_any_process_makes_a_generation() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let before = kernel.generation().unwrap();
        listed(&mut kernel, Family::Ip);
        assert_eq!(kernel.generation().unwrap(), before);
        let element = Element::member(frontend(1));
        commit(&mut kernel, [add("frontends", vec![element])]);
        let own = kernel.generation().unwrap();
        load("add table ip other");
        let foreign = kernel.generation().unwrap();
        assert!(foreign.is_since(own) && own.is_since(before));
        assert!(!before.is_since(own) && !own.is_since(foreign));
        assert!(Generation(1).is_since(Generation(u32::MAX)));
    });
}

#[test]
fn reading_beside_a_busy_writer_sees_complete_transactions() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        let pair: Vec<_> = [1, 2].map(|n| Element::member(frontend(n))).to_vec();
        let mut writer = crate::namespace::kernel(false);
        std::thread::scope(|scope| {
            let busy = scope.spawn(|| {
                for _ in 0..200 {
                    commit(&mut writer, [add("frontends", pair.clone())]);
                    commit(&mut writer, [delete("frontends", pair.clone())]);
                }
            });
            while !busy.is_finished() {
                match kernel.list(Family::Ip) {
                    Ok(table) => {
                        let elements = table.unwrap().elements.remove("frontends");
                        assert!(matches!(elements.map_or(0, |list| list.len()), 0 | 2));
                    }
                    Err(error) => {
                        assert!(matches!(
                            error,
                            CommitError::Netlink(netlink::Error::Failed {
                                errno: Errno::EAGAIN,
                                ..
                            })
                        ));
                    }
                }
            }
        });
    });
}

#[test]
fn a_foreign_change_while_muted_is_reported_as_an_overrun() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        let mute = monitor.mute().unwrap();
        for is_changed in [false, true, false] {
            let beside = |_: &mut Kernel| {
                if is_changed {
                    load("add table ip other; add table ip portolan");
                }
                Err(failed("send")(Errno::EIO).into())
            };
            assert!(kernel.with_monitor_muted(&mute, beside).is_err());
            let expected = is_changed.then_some(Notice::Overrun);
            assert_eq!(monitor.try_next().unwrap(), expected);
        }
        load("delete table ip portolan");
        let changed = Notice::Changed(kernel.generation().unwrap());
        assert_eq!(monitor.try_next().unwrap(), Some(changed));
    });
}

#[test]
fn a_missed_change_wakes_a_waiting_monitor() {
    in_namespace(|| {
        let kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        let mute = monitor.mute().unwrap();
        let (waits, waiting) = std::sync::mpsc::channel();
        let waiter = std::thread::spawn(move || {
            waits.send(()).unwrap();
            monitor.wait(Duration::from_secs(60))
        });
        waiting.recv().unwrap();
        mute.report_missed().unwrap();
        assert_eq!(waiter.join().unwrap().unwrap(), Some(Notice::Overrun));
    });
}
