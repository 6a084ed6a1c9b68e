//! Ownership of the table, and what ownership protects from.

use super::*;
use crate::backend::Adoption;
use crate::wire::decode::TableState;

/// The state of the table, which exists.
#[track_caller]
fn state(kernel: &mut Kernel) -> TableState {
    kernel.table_state(Family::Ip).unwrap().unwrap()
}

/// Waits until no socket owns the table. The kernel closes a socket a little later if another test's thread has just
/// forked: the child holds a copy of the descriptor until it executes nft.
fn await_orphan(kernel: &mut Kernel) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while state(kernel).owner.is_some() {
        assert!(std::time::Instant::now() < end, "still owned");
        std::thread::yield_now();
    }
}

/// Whether this kernel keeps owned tables; if not, says that the test is skipped.
fn keeps_owned_tables(kernel: &Kernel) -> bool {
    let persist = kernel.features().persist;
    if !persist {
        eprintln!("SKIPPED: this kernel cannot keep owned tables (Linux 6.9)");
    }
    persist
}

/// Replaces the table by one that the kernel's socket owns.
fn replace_table(kernel: &mut Kernel) {
    let mut steps = transaction([Operation::DeleteTable]);
    steps.operations.extend(small().operations);
    kernel.commit(&steps).unwrap();
}

#[test]
fn a_dormant_table_is_read_as_dormant() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        assert_eq!(kernel.table_state(Family::Ip6).unwrap(), None);
        assert_eq!(state(&mut kernel), TableState::default());
        load("table ip portolan { flags dormant; }");
        assert!(state(&mut kernel).dormant);
        commit(&mut kernel, [add_table()]);
        assert_eq!(state(&mut kernel), TableState::default());
    });
}

#[test]
fn an_owned_table_outlives_flushes_and_socket_and_is_adopted() {
    in_namespace(|| {
        let mut first = kernel(true);
        if !keeps_owned_tables(&first) {
            return;
        }
        let member = Element::member(frontend(1));
        first.commit(&small()).unwrap();
        commit(&mut first, [add("frontends", vec![member.clone()])]);
        let whole = listed(&mut first, Family::Ip);
        let owned_by = |owner| TableState {
            owner,
            persist: true,
            dormant: false,
        };
        assert_eq!(state(&mut first), owned_by(Some(first.port())));

        nft(&["flush", "ruleset"], "").unwrap();
        nft(&["delete", "table", "ip", "portolan"], "").unwrap_err();
        assert_eq!(listed(&mut first, Family::Ip), whole);
        let mut second = kernel(true);
        let deletion = delete("frontends", vec![member]);
        let (errno, _) = refusal(&mut second, [deletion.clone()]);
        assert_eq!(errno, Errno::EPERM);

        drop(first);
        await_orphan(&mut second);
        assert_eq!(state(&mut second), owned_by(None), "orphaned");
        commit(&mut second, [add_table()]);
        assert_eq!(state(&mut second), owned_by(Some(second.port())));
        assert_eq!(listed(&mut second, Family::Ip), whole);
        nft(&["flush", "ruleset"], "").unwrap();
        commit(&mut second, [deletion]);
    });
}

#[test]
fn a_table_without_owner_is_replaced_in_one_transaction() {
    in_namespace(|| {
        drop(small_kernel());
        let mut owning = kernel(true);
        if !keeps_owned_tables(&owning) {
            return;
        }
        let (errno, _) = refusal(&mut owning, [add_table()]);
        assert_eq!(errno, Errno::EOPNOTSUPP);
        replace_table(&mut owning);
        assert_eq!(state(&mut owning).owner, Some(owning.port()));
    });
}

#[test]
fn asking_for_features_leaves_no_trace() {
    in_namespace(|| {
        let (one, two) = (kernel(true), kernel(true));
        assert_eq!(one.features(), two.features());
        assert_eq!(nft(&["list", "ruleset"], "").unwrap(), "");
    });
}

#[test]
fn adopting_reports_tables_that_cannot_be_adopted() {
    in_namespace(|| {
        let mut plain = kernel(false);
        assert_eq!(plain.adopt(Family::Ip), Ok(Adoption::NoTable));
        plain.commit(&small()).unwrap();
        assert_eq!(plain.adopt(Family::Ip), Ok(Adoption::Ours));
        load("table ip portolan { flags dormant; }");
        assert_eq!(plain.adopt(Family::Ip), Ok(Adoption::Replace));
        if !plain.features().persist {
            return;
        }

        let mut owning = kernel(true);
        assert_eq!(owning.adopt(Family::Ip), Ok(Adoption::Replace));
        replace_table(&mut owning);
        assert_eq!(owning.adopt(Family::Ip), Ok(Adoption::Ours));

        let mut next = kernel(true);
        assert_eq!(next.adopt(Family::Ip), Err(CommitError::Owned(Family::Ip)));
        let whole = listed(&mut owning, Family::Ip);
        drop(owning);
        await_orphan(&mut next);
        assert_eq!(next.adopt(Family::Ip), Ok(Adoption::Ours));
        assert_eq!(state(&mut next).owner, Some(next.port()));
        assert_eq!(listed(&mut next, Family::Ip), whole, "its comment too");
    });
}
