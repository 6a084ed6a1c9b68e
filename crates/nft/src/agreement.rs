//! The kernel, nft and the fake agree. For tests.
//!
//! Owns the properties that need a real kernel: what nft loads from our text is what netlink makes of the
//! same contents, and the fake refuses what the kernel refuses, with the same error at the same step.

use std::cell::RefCell;

use nix::errno::Errno;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::Kernel;
use crate::backend::Backend;
use crate::diff::diff;
use crate::fake::Fake;
use crate::model::{Chain, Family};
use crate::namespace::{in_namespace, kernel, listed, nft};
use crate::samples::{any_table, tables};
use crate::text;
use crate::transaction::{CommitError, Operation, TableContents, Transaction};

type Agreement = Result<(), TestCaseError>;

/// Runs a property on `cases` random values, with one kernel for all.
fn hold<S>(cases: u32, strategy: S, property: impl Fn(&mut Kernel, S::Value) -> Agreement + Send)
where
    S: Strategy + Send,
{
    in_namespace(move || {
        let kernel = RefCell::new(kernel(false));
        let config = ProptestConfig {
            failure_persistence: None,
            max_shrink_iters: 200,
            ..ProptestConfig::with_cases(cases)
        };
        TestRunner::new(config)
            .run(&strategy, |value| property(&mut kernel.borrow_mut(), value))
            .unwrap_or_else(|failure| panic!("{failure}"));
    });
}

/// Makes the kernel hold exactly this table of its family.
fn make(kernel: &mut Kernel, contents: &TableContents) -> Agreement {
    let family = contents.table.family;
    let mut transaction = Transaction::new();
    transaction.push(family, Operation::AddTable(contents.table.clone()));
    transaction.push(family, Operation::DeleteTable);
    transaction
        .operations
        .extend(diff(None, contents).operations);
    let made = kernel.commit(&transaction);
    prop_assert_eq!(made, Ok(()), "{}", transaction);
    Ok(())
}

#[test]
fn nft_loads_our_text_to_the_state_that_netlink_makes() {
    hold(24, any_table(), |kernel, contents| {
        let family = contents.table.family;
        let ours = [family.keyword(), "portolan"];
        make(kernel, &contents)?;
        prop_assert_eq!(&listed(kernel, family), &contents);
        let by_netlink = nft(&[&["list", "table"], &ours[..]].concat(), "");
        nft(&[&["delete", "table"], &ours[..]].concat(), "").map_err(TestCaseError::fail)?;
        nft(&["-f", "-"], &text::table(&contents)).map_err(TestCaseError::fail)?;
        prop_assert_eq!(&listed(kernel, family), &contents);
        let by_text = nft(&[&["list", "table"], &ours[..]].concat(), "");
        prop_assert_eq!(by_text, by_netlink);
        Ok(())
    });
}

#[test]
fn the_fake_and_the_kernel_accept_and_refuse_alike() {
    // Steps from here to there and back, some left out and in no order: most are refused for something.
    let steps = any_table().prop_flat_map(|found| {
        tables(found.table.family).prop_flat_map(move |wanted| {
            let mut steps = diff(Some(&found), &wanted).operations;
            steps.extend(diff(Some(&wanted), &found).operations);
            steps.extend(wild_steps(&wanted));
            steps.retain(|(_, step)| !may_be_range(step));
            let count = steps.len();
            let some = proptest::sample::subsequence(steps, 0..=count.min(6)).prop_shuffle();
            (Just(found.clone()), some)
        })
    });
    hold(200, steps, |kernel, (found, operations)| {
        let family = found.table.family;
        make(kernel, &found)?;
        let mut fake = Fake::holding(found);
        let transaction = Transaction { operations };
        let by_fake = outcome(fake.commit(&transaction))?;
        let by_kernel = outcome(kernel.commit(&transaction))?;
        prop_assert_eq!(by_fake, by_kernel, "{}", transaction);
        let held = kernel.list(family);
        prop_assert_eq!(Ok(fake.contents(family)), held, "{}", transaction);
        Ok(())
    });
}

/// Every declaration once more, deleted and made, and every chain's rules in another chain.
fn wild_steps(contents: &TableContents) -> Vec<(Family, Operation)> {
    let mut steps = Vec::new();
    for set in contents.sets.values() {
        steps.push(Operation::AddSet(set.clone()));
        steps.push(Operation::DeleteSet(set.name.clone()));
    }
    let chains: Vec<_> = contents.chains.values().collect();
    for (index, chain) in chains.iter().enumerate() {
        let other = chains[(index + 3) % chains.len()];
        steps.push(Operation::AddChain((*chain).clone()));
        steps.push(Operation::DeleteChain(chain.name.clone()));
        let rules = other.rules.clone();
        steps.push(Operation::SetRules(Chain {
            rules,
            ..(*chain).clone()
        }));
        steps.push(Operation::AddChain(Chain {
            hook: other.hook,
            ..(*chain).clone()
        }));
    }
    steps
        .into_iter()
        .map(|step| (contents.table.family, step))
        .collect()
}

/// Whether a step is on elements of a set that may have ranges. The kernel sees ranges as loose ends, so
/// that it accepts some that overlap, and members without an end; the fake refuses both.
fn may_be_range(step: &Operation) -> bool {
    match step {
        Operation::AddElements { set, .. } | Operation::DeleteElements { set, .. } => {
            set == "cluster_ips" || set == "pod_cidrs"
        }
        _ => false,
    }
}

/// Error and step, where refused.
fn outcome(commit: Result<(), CommitError>) -> Result<Option<(Errno, usize)>, TestCaseError> {
    match commit {
        Ok(()) => Ok(None),
        Err(CommitError::Refused { errno, culprit, .. }) => Ok(Some((errno, culprit.operation))),
        Err(error) => Err(TestCaseError::fail(error.to_string())),
    }
}
