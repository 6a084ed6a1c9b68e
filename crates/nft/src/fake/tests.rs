//! The kernel's rules, one by one.

use super::*;
use crate::model::{Field, Hook, Operand, Rule, Statement, Verdict};
use crate::samples::{self, Shape};

const FAMILY: Family = Family::Ip;

/// A table with one size set, a verdict element that goes to its pick chain, and a range.
fn sample() -> TableContents {
    let shape = Shape {
        sizes: vec![2],
        output: true,
        catch: true,
        ..Shape::default()
    };
    let mut contents = shape.table(FAMILY);
    let large = Element::verdict(samples::frontend(FAMILY, 1), Verdict::Goto("pick_2".into()));
    contents
        .elements
        .insert("frontends_large".into(), vec![large]);
    contents
        .elements
        .insert("backends".into(), vec![backend(7)]);
    contents
        .elements
        .insert("pod_cidrs".into(), vec![samples::blocks(FAMILY, 10, 5)]);
    contents
}

fn backend(to: u16) -> Element {
    Element::value(
        samples::frontend(FAMILY, 1).slot(0),
        samples::endpoint(FAMILY, to),
    )
}

fn add(set: &'static str, element: Element) -> Operation {
    Operation::AddElements {
        set: set.into(),
        elements: vec![element],
    }
}

fn delete(set: &'static str, element: Element) -> Operation {
    Operation::DeleteElements {
        set: set.into(),
        elements: vec![element],
    }
}

fn rules(chain: &'static str, rules: Vec<Statement>) -> Operation {
    let rules = rules
        .into_iter()
        .map(|statement| Rule::from(vec![statement]))
        .collect();
    Operation::SetRules(Chain {
        name: chain.into(),
        hook: None,
        comment: "".into(),
        rules,
    })
}

fn jump(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

fn chain(name: impl Into<Name>, hook: Option<Hook>) -> Operation {
    Operation::AddChain(Chain {
        name: name.into(),
        hook,
        comment: "".into(),
        rules: vec![],
    })
}

fn commit(fake: &mut Fake, steps: Vec<Operation>) -> Result<(), CommitError> {
    let operations = steps.into_iter().map(|step| (FAMILY, step)).collect();
    fake.commit(&Transaction { operations })
}

/// The error and the step at fault, after making sure that nothing at all was carried out.
fn refusal(steps: Vec<Operation>) -> (Errno, usize) {
    let mut fake = Fake::holding(sample());
    match commit(&mut fake, steps) {
        Err(CommitError::Refused { errno, culprit, .. }) => {
            assert_eq!(
                fake.contents(FAMILY),
                Some(sample()),
                "a refused transaction left traces"
            );
            (errno, culprit.operation)
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn accepted(steps: Vec<Operation>) -> TableContents {
    let mut fake = Fake::holding(sample());
    commit(&mut fake, steps).expect("within the rules");
    fake.contents(FAMILY).expect("still there")
}

#[test]
fn deleting_a_missing_object_is_enoent() {
    assert_eq!(
        refusal(vec![Operation::DeleteSet("no".into())]),
        (Errno::ENOENT, 0)
    );
    assert_eq!(
        refusal(vec![Operation::DeleteChain("no".into())]),
        (Errno::ENOENT, 0)
    );
    let missing = Element::value(samples::frontend(FAMILY, 2).slot(0), Bytes::new());
    assert_eq!(
        refusal(vec![delete("backends", missing)]),
        (Errno::ENOENT, 0)
    );
    let twice = vec![
        delete("backends", backend(7)),
        delete("backends", backend(7)),
    ];
    assert_eq!(refusal(twice), (Errno::ENOENT, 1));
    let half = samples::blocks(FAMILY, 10, 4);
    assert_eq!(refusal(vec![delete("pod_cidrs", half)]), (Errno::ENOENT, 0));
}

#[test]
fn naming_a_missing_object_is_enoent() {
    assert_eq!(
        refusal(vec![rules("cluster", vec![jump("no")])]),
        (Errno::ENOENT, 0)
    );
    let look_up = Statement::VerdictMap {
        key: vec![Operand::DestinationAddress],
        map: "no".into(),
    };
    assert_eq!(
        refusal(vec![rules("cluster", vec![look_up])]),
        (Errno::ENOENT, 0)
    );
    let lost = Element::verdict(samples::frontend(FAMILY, 2), Verdict::Goto("no".into()));
    assert_eq!(
        refusal(vec![add("frontends_large", lost)]),
        (Errno::ENOENT, 0)
    );
    assert_eq!(refusal(vec![add("no", backend(1))]), (Errno::ENOENT, 0));
    let step = Operation::AddSet(sample().sets["hairpin"].clone());
    let transaction = Transaction {
        operations: vec![(Family::Ip6, step)],
    };
    let error = Fake::holding(sample()).commit(&transaction);
    assert!(matches!(
        error,
        Err(CommitError::Refused {
            errno: Errno::ENOENT,
            ..
        })
    ));
}

#[test]
fn what_a_rule_or_a_verdict_element_refers_to_cannot_be_deleted() {
    assert_eq!(
        refusal(vec![Operation::DeleteSet("backends".into())]),
        (Errno::EBUSY, 0)
    );
    assert_eq!(
        refusal(vec![Operation::DeleteChain("services".into())]),
        (Errno::EBUSY, 0)
    );
    let by_element = vec![
        rules("cluster", vec![]),
        Operation::DeleteChain("pick_2".into()),
    ];
    assert_eq!(refusal(by_element), (Errno::EBUSY, 1));
    let large = sample().elements["frontends_large"][0].clone();
    let contents = accepted(vec![
        rules("cluster", vec![]),
        delete("frontends_large", large),
        Operation::DeleteChain("pick_2".into()),
        Operation::DeleteSet("frontends_2".into()),
        Operation::DeleteSet("backends".into()),
    ]);
    assert!(!contents.chains.contains_key("pick_2"));
    assert!(!contents.sets.contains_key("backends"));
}

#[test]
fn a_chain_is_deleted_with_its_own_rules() {
    let contents = accepted(vec![
        Operation::DeleteChain("prerouting".into()),
        Operation::DeleteChain("output".into()),
        Operation::DeleteChain("services".into()),
        Operation::DeleteChain("cluster".into()),
    ]);
    assert_eq!(contents.chains.len(), sample().chains.len() - 4);
}

#[test]
fn an_equal_element_is_no_error_and_another_value_is_eexist() {
    assert_eq!(accepted(vec![add("backends", backend(7))]), sample());
    assert_eq!(
        refusal(vec![add("backends", backend(8))]),
        (Errno::EEXIST, 0)
    );
    let contents = accepted(vec![
        delete("backends", backend(7)),
        add("backends", backend(8)),
    ]);
    assert_eq!(contents.elements["backends"], [backend(8)]);
}

#[test]
fn ranges_may_touch_but_not_overlap() {
    for (start, len) in [(11, 1), (9, 2), (14, 2), (9, 9), (10, 4), (0, 64)] {
        let overlap = add("pod_cidrs", samples::blocks(FAMILY, start, len));
        assert_eq!(refusal(vec![overlap]), (Errno::EEXIST, 0), "{start}+{len}");
    }
    for (start, len) in [(15, 1), (9, 1), (0, 10), (15, 49), (10, 5)] {
        accepted(vec![add("pod_cidrs", samples::blocks(FAMILY, start, len))]);
    }
}

#[test]
fn what_does_not_fit_its_set_is_einval() {
    let key = samples::frontend(FAMILY, 1);
    let address = Bytes::new().address(samples::address(FAMILY, 1));
    let unfit = [
        (
            "backends",
            Element::value(key, samples::endpoint(FAMILY, 1)),
        ),
        ("backends", Element::value(key.slot(1), address)),
        ("backends", Element::member(key.slot(1))),
        ("no_endpoints", Element::value(key, address)),
        ("frontends_large", Element::member(key)),
        ("cluster_ips", Element::range(address, address)),
        ("pod_cidrs", Element::member(address)),
    ];
    for (set, element) in unfit {
        assert_eq!(
            refusal(vec![add(set, element.clone())]),
            (Errno::EINVAL, 0),
            "{set} {element:?}"
        );
    }
    let key = vec![Operand::DestinationAddress];
    let (map, set) = ("backends".into(), "hairpin".into());
    let narrow = [
        Statement::DnatMap {
            key: key.clone(),
            map,
        },
        {
            Statement::InSet {
                key: key.clone(),
                set,
                negate: false,
            }
        },
    ];
    for statement in narrow {
        assert_eq!(
            refusal(vec![rules("cluster", vec![statement])]),
            (Errno::EINVAL, 0)
        );
    }
    let map = "cluster_ips".into();
    let kind = Statement::DnatMap { key, map };
    assert_eq!(
        refusal(vec![rules("cluster", vec![kind])]),
        (Errno::EINVAL, 0)
    );
}

#[test]
fn base_chains_cannot_be_called() {
    let call = rules("cluster", vec![jump("postrouting")]);
    assert_eq!(refusal(vec![call]), (Errno::EOPNOTSUPP, 0));
    let goto = Verdict::Goto("postrouting".into());
    let element = Element::verdict(samples::frontend(FAMILY, 2), goto);
    assert_eq!(
        refusal(vec![add("frontends_large", element)]),
        (Errno::EOPNOTSUPP, 0)
    );
}

#[test]
fn loops_are_refused_only_where_a_hook_reaches_them() {
    let looping = rules("cluster", vec![jump("services")]);
    assert_eq!(refusal(vec![looping.clone()]), (Errno::EMLINK, 0));
    accepted(vec![looping, rules("cluster", vec![])]);
    accepted(vec![chain("a", None), rules("a", vec![jump("a")])]);
    let hooked = vec![
        chain("a", None),
        rules("a", vec![jump("a")]),
        rules("output", vec![jump("a")]),
    ];
    assert_eq!(refusal(hooked), (Errno::EMLINK, 2));
    let back = Verdict::Jump("services".into());
    let by_element = add(
        "frontends_large",
        Element::verdict(samples::frontend(FAMILY, 2), back),
    );
    assert_eq!(
        refusal(vec![rules("nodeports", vec![]), by_element]),
        (Errno::EMLINK, 1)
    );
}

#[test]
fn fifteen_chains_below_a_hook_are_the_most() {
    let steps = |count: usize| {
        let name = |n: usize| Name::from(format!("deep_{n}"));
        let jump_to = |n| Rule::from(vec![Statement::Verdict(Verdict::Jump(name(n)))]);
        let with = |name, n| Chain {
            name,
            hook: None,
            comment: "".into(),
            rules: vec![jump_to(n)],
        };
        let mut steps: Vec<_> = (1..=count).map(|n| chain(name(n), None)).collect();
        steps.extend((1..count).map(|n| Operation::SetRules(with(name(n), n + 1))));
        steps.push(Operation::SetRules(with("output".into(), 1)));
        steps
    };
    accepted(steps(15));
    assert_eq!(refusal(steps(16)).0, Errno::EMLINK);
}

#[test]
fn statements_work_only_at_their_hooks() {
    let masquerade = rules("cluster", vec![Statement::Masquerade]);
    assert_eq!(refusal(vec![masquerade]), (Errno::EOPNOTSUPP, 0));
    let reject = rules("masquerading", vec![Statement::Reject]);
    assert_eq!(
        refusal(vec![rules("output", vec![]), reject]),
        (Errno::EOPNOTSUPP, 1)
    );
    let pick = rules("masquerading", vec![jump("pick_2")]);
    assert_eq!(refusal(vec![pick]), (Errno::EOPNOTSUPP, 0));
}

#[test]
fn a_set_or_chain_is_not_declared_otherwise_while_it_exists() {
    let set = sample().sets["hairpin"].clone();
    let reworded = Set {
        comment: "other".into(),
        ..set.clone()
    };
    assert_eq!(accepted(vec![Operation::AddSet(reworded)]), sample());
    let longer = Set {
        key: vec![Field::Address; 3],
        ..set
    };
    assert_eq!(refusal(vec![Operation::AddSet(longer)]), (Errno::EEXIST, 0));
    assert_eq!(
        accepted(vec![chain("services", None), chain("output", None)]),
        sample()
    );
    let hooked = |name| chain(name, Some(Hook::NatPrerouting));
    assert_eq!(refusal(vec![hooked("services")]), (Errno::EOPNOTSUPP, 0));
    assert_eq!(refusal(vec![hooked("output")]), (Errno::EOPNOTSUPP, 0));
}

#[test]
fn names_and_comments_have_limits() {
    let set = sample().sets["hairpin"].clone();
    let named = |len| {
        Operation::AddSet(Set {
            name: "n".repeat(len).into(),
            ..set.clone()
        })
    };
    accepted(vec![named(255)]);
    assert_eq!(refusal(vec![named(256)]), (Errno::ERANGE, 0));
    let commented = |name: &str, len: usize| {
        let comment = "c".repeat(len).into();
        let set = sample().sets[name].clone();
        let name = "new".into();
        Operation::AddSet(Set {
            name,
            comment,
            ..set
        })
    };
    accepted(vec![commented("hairpin", 128)]);
    assert_eq!(refusal(vec![commented("hairpin", 129)]), (Errno::ERANGE, 0));
    // What nft 1.0.6 could make of this declaration by typeof was tried too.
    accepted(vec![commented("backends", 83)]);
    assert_eq!(refusal(vec![commented("backends", 84)]), (Errno::ERANGE, 0));
}

#[test]
fn a_table_is_added_once_and_deleted_whole() {
    let table = sample().table;
    assert_eq!(accepted(vec![Operation::AddTable(table.clone())]), sample());
    let afresh = vec![Operation::DeleteTable, Operation::AddTable(table.clone())];
    assert_eq!(accepted(afresh).sets.len(), 0);
    let mut late = vec![Operation::DeleteTable, Operation::AddTable(table)];
    late.extend([chain("cluster", None), add("backends", backend(7))]);
    assert_eq!(refusal(late), (Errno::ENOENT, 3));
    assert_eq!(
        refusal(vec![Operation::DeleteTable, Operation::DeleteTable]),
        (Errno::ENOENT, 1)
    );
}

#[test]
fn an_injected_refusal_names_its_element_and_undoes_everything() {
    let mut fake = Fake::holding(sample());
    fake.refuse(
        |set, element| set == "backends" && *element == backend(9),
        Errno::EINVAL,
    );
    let delete_old = delete("backends", backend(7));
    let error = commit(
        &mut fake,
        vec![delete_old.clone(), add("backends", backend(9))],
    );
    let culprit = Culprit {
        operation: 1,
        family: FAMILY,
        element: Some(("backends".into(), Some(backend(9)))),
    };
    let errno = Errno::EINVAL;
    assert_eq!(
        error,
        Err(CommitError::Refused {
            errno,
            culprit: Box::new(culprit),
            message: None
        })
    );
    assert_eq!(fake.contents(FAMILY), Some(sample()));
    fake.refuse_nothing();
    commit(&mut fake, vec![delete_old, add("backends", backend(9))]).expect("no longer refused");
    let counters = fake.counters();
    assert_eq!(
        (counters.transactions, counters.operations, counters.refused),
        (1, 2, 1)
    );
    assert_eq!(counters.elements, 2);
}

#[test]
fn a_dormant_table_is_replaced_to_be_adopted() {
    let mut fake = Fake::holding(sample());
    assert_eq!(fake.adopt(FAMILY), Ok(Adoption::Ours));
    assert_eq!(fake.adopt(Family::Ip6), Ok(Adoption::NoTable));
    fake.make_dormant(FAMILY);
    assert_eq!(fake.adopt(FAMILY), Ok(Adoption::Replace));
    let afresh = vec![Operation::DeleteTable, Operation::AddTable(sample().table)];
    commit(&mut fake, afresh).expect("within the rules");
    assert_eq!(fake.adopt(FAMILY), Ok(Adoption::Ours));
}

#[test]
fn a_failed_socket_carries_out_nothing_and_only_once() {
    let mut fake = Fake::holding(sample());
    fake.fail_next(Errno::ENOBUFS);
    let step = || vec![delete("backends", backend(7))];
    let error = commit(&mut fake, step());
    assert_eq!(error, Err(netlink::failed("send")(Errno::ENOBUFS).into()));
    assert_eq!(fake.contents(FAMILY), Some(sample()));
    commit(&mut fake, step()).expect("the failure is over");
}

#[test]
fn foreign_changes_of_the_fake_are_not_counted() {
    let mut fake = Fake::holding(sample());
    fake.change_as_foreign(FAMILY, |contents| {
        contents.as_mut().unwrap().elements.remove("backends");
    });
    assert!(
        !fake
            .contents(FAMILY)
            .unwrap()
            .elements
            .contains_key("backends")
    );
    fake.change_as_foreign(FAMILY, |contents| *contents = None);
    assert_eq!(fake.list(FAMILY), Ok(None));
    assert_eq!(fake.counters().transactions, 0);
}
