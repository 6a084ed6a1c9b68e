//! Ownership of the table, and what it protects from.

use super::*;
use crate::backend::Adoption;
use crate::wire::decode::TableState;

/// Waits until no socket owns the table. A child that another test's thread has forked holds a copy of our
/// descriptor until it becomes nft, so closing may take effect a little later.
fn await_orphan(kernel: &mut Kernel) {
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while kernel
        .table_state(Family::Ip)
        .unwrap()
        .unwrap()
        .owner
        .is_some()
    {
        assert!(std::time::Instant::now() < end, "still owned");
        std::thread::yield_now();
    }
}

#[test]
fn a_table_switched_off_by_others_shows_it() {
    in_namespace(|| {
        let mut kernel = small_kernel();
        assert_eq!(kernel.table_state(Family::Ip6).unwrap(), None);
        assert_eq!(
            kernel.table_state(Family::Ip).unwrap(),
            Some(TableState::default())
        );
        load("table ip portolan { flags dormant; }");
        assert!(kernel.table_state(Family::Ip).unwrap().unwrap().dormant);
        kernel.commit(&transaction([add_table()])).unwrap();
        assert_eq!(
            kernel.table_state(Family::Ip).unwrap(),
            Some(TableState::default())
        );
    });
}

#[test]
fn an_owned_table_outlives_flushes_and_socket_and_is_adopted() {
    in_namespace(|| {
        let mut first = kernel(true);
        if !first.features().persist {
            eprintln!("SKIPPED: this kernel cannot keep owned tables (Linux 6.9)");
            return;
        }
        let member = Element::member(frontend(1));
        first.commit(&small()).unwrap();
        first
            .commit(&transaction([add("frontends", vec![member.clone()])]))
            .unwrap();
        let whole = listed(&mut first, Family::Ip);
        let owner = first.port();
        let state = |owner| TableState {
            owner,
            persist: true,
            dormant: false,
        };
        assert_eq!(
            first.table_state(Family::Ip).unwrap(),
            Some(state(Some(owner)))
        );

        nft(&["flush", "ruleset"], "").unwrap();
        nft(&["delete", "table", "ip", "portolan"], "").unwrap_err();
        assert_eq!(listed(&mut first, Family::Ip), whole);
        let mut second = kernel(true);
        let error = second.commit(&transaction([delete("frontends", vec![member.clone()])]));
        assert!(
            matches!(
                error,
                Err(CommitError::Refused {
                    errno: Errno::EPERM,
                    ..
                })
            ),
            "{error:?}"
        );

        drop(first);
        await_orphan(&mut second);
        assert_eq!(
            second.table_state(Family::Ip).unwrap(),
            Some(state(None)),
            "orphaned"
        );
        second.commit(&transaction([add_table()])).unwrap();
        assert_eq!(
            second.table_state(Family::Ip).unwrap(),
            Some(state(Some(second.port())))
        );
        assert_eq!(listed(&mut second, Family::Ip), whole);
        nft(&["flush", "ruleset"], "").unwrap();
        second
            .commit(&transaction([delete("frontends", vec![member])]))
            .unwrap();
    });
}

#[test]
fn a_table_without_owner_is_replaced_in_one_transaction() {
    in_namespace(|| {
        drop(small_kernel());
        let mut owning = kernel(true);
        if !owning.features().persist {
            eprintln!("SKIPPED: this kernel cannot keep owned tables (Linux 6.9)");
            return;
        }
        let error = owning.commit(&transaction([add_table()]));
        assert!(
            matches!(
                error,
                Err(CommitError::Refused {
                    errno: Errno::EOPNOTSUPP,
                    ..
                })
            ),
            "{error:?}"
        );
        let mut steps = transaction([Operation::DeleteTable]);
        steps.operations.extend(small().operations);
        owning.commit(&steps).unwrap();
        let state = owning.table_state(Family::Ip).unwrap().unwrap();
        assert_eq!(state.owner, Some(owning.port()));
    });
}

#[test]
fn asking_for_features_leaves_no_trace() {
    in_namespace(|| {
        let mut one = kernel(true);
        let before = one.generation().unwrap();
        let two = kernel(true);
        assert_eq!(one.generation().unwrap(), before);
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
        let mut steps = transaction([Operation::DeleteTable]);
        steps.operations.extend(small().operations);
        owning.commit(&steps).unwrap();
        assert_eq!(owning.adopt(Family::Ip), Ok(Adoption::Ours));

        let mut next = kernel(true);
        assert_eq!(next.adopt(Family::Ip), Err(CommitError::Owned(Family::Ip)));
        let whole = listed(&mut owning, Family::Ip);
        drop(owning);
        await_orphan(&mut next);
        assert_eq!(next.adopt(Family::Ip), Ok(Adoption::Ours));
        assert_eq!(
            next.table_state(Family::Ip).unwrap().unwrap().owner,
            Some(next.port())
        );
        assert_eq!(listed(&mut next, Family::Ip), whole, "its comment too");
    });
}
