use proptest::prelude::*;

use super::*;
use crate::backend::Backend as _;
use crate::kernel::Kernel;
use crate::model::{Element, Family, Field, Set, SetKind, Table};
use crate::namespace::{in_namespace, kernel, load};
use crate::samples;
use crate::transaction::{Operation, Transaction};

const PLENTY: Duration = Duration::from_secs(10);
/// The port of no socket: a monitor that has it for its own drops nothing.
const NOBODY: u32 = 1;

fn filled(elements: u16) -> Transaction {
    let table = Table {
        family: Family::Ip,
        name: "portolan".into(),
        comment: "".into(),
    };
    let set = Set {
        name: "frontends".into(),
        key: vec![Field::Address, Field::Protocol, Field::Port],
        kind: SetKind::Set,
        interval: false,
        comment: "".into(),
    };
    let elements = (0..elements)
        .map(|n| Element::member(samples::frontend(Family::Ip, n)))
        .collect();
    let mut transaction = Transaction::new();
    transaction.push(Family::Ip, Operation::AddTable(table));
    transaction.push(Family::Ip, Operation::AddSet(set));
    transaction.push(
        Family::Ip,
        Operation::AddElements {
            set: "frontends".into(),
            elements,
        },
    );
    transaction
}

#[test]
fn foreign_changes_are_reported_and_ours_are_not() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        // Notifications are queued before the transaction returns: there is nothing to wait for.
        kernel.commit(&filled(3)).unwrap();
        let is_woken = monitor.socket.wait(Duration::ZERO).unwrap();
        assert!(!is_woken, "our own notifications wake the reader");
        assert_eq!(monitor.try_next().unwrap(), None);

        load("add element ip portolan frontends { 1.1.1.1 . tcp . 1 }");
        let changed = |kernel: &mut Kernel| {
            let generation = kernel.generation().unwrap();
            Some(Notice::Changed(generation))
        };
        assert_eq!(monitor.wait(PLENTY).unwrap(), changed(&mut kernel));
        assert_eq!(monitor.try_next().unwrap(), None);

        load("add table ip other; add table inet portolan");
        assert_eq!(monitor.try_next().unwrap(), None);
        load("add table ip6 portolan");
        assert_eq!(monitor.try_next().unwrap(), changed(&mut kernel));
        assert_eq!(monitor.try_next().unwrap(), None);
    });
}

#[test]
fn a_foreign_transaction_is_reported_once() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        kernel.commit(&filled(0)).unwrap();
        let elements: Vec<String> = (1..=5_000)
            .map(|port| format!("1.1.1.1 . tcp . {port}"))
            .collect();
        load(&format!(
            "add table ip6 portolan; add element ip portolan frontends {{ {} }}",
            elements.join(", ")
        ));
        load("flush ruleset");
        let last = kernel.generation().unwrap();
        let mut reported = Vec::new();
        while let Some(notice) = monitor.try_next().unwrap() {
            reported.push(notice);
        }
        assert_eq!(reported.len(), 2, "{reported:?}");
        assert_eq!(reported.last(), Some(&Notice::Changed(last)));
    });
}

#[test]
fn our_bulk_load_is_not_reported() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        kernel.commit(&filled(60_000)).unwrap();
        assert_eq!(monitor.try_next().unwrap(), None);
    });
}

#[test]
fn lost_notifications_are_reported_as_an_overrun() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), NOBODY).unwrap();
        kernel.commit(&filled(0)).unwrap();
        monitor.socket.set_receive_space(2048).unwrap();
        kernel.commit(&filled(5_000)).unwrap();
        assert_eq!(monitor.try_next().unwrap(), Some(Notice::Overrun));
    });
}

proptest! {
    #[test]
    fn any_datagram_is_read_without_harm(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(notices(&datagram, "portolan", 7, &mut false).len() <= 15);
    }
}

/// Whether its socket has received anything.
fn has_received(monitor: &mut Monitor) -> bool {
    let mut received = false;
    while monitor.socket.try_receive().unwrap().is_some() {
        received = true;
    }
    received
}

#[test]
fn a_large_commit_sends_nothing_to_a_muted_monitor() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), NOBODY).unwrap();
        kernel.commit(&filled(20_000)).unwrap();
        assert!(
            has_received(&mut monitor),
            "the kernel notifies of our own changes, too"
        );
        let mut deletion = Transaction::new();
        deletion.push(Family::Ip, Operation::DeleteTable);
        kernel.commit(&deletion).unwrap();
        assert!(has_received(&mut monitor));

        kernel.mute_during_large_commits(&monitor).unwrap();
        kernel.commit(&filled(20_000)).unwrap();
        assert!(!has_received(&mut monitor));
        assert_eq!(monitor.try_next().unwrap(), None);
        load("add element ip portolan frontends { 1.1.1.1 . tcp . 1 }");
        let generation = kernel.generation().unwrap();
        let changed = Some(Notice::Changed(generation));
        assert_eq!(monitor.try_next().unwrap(), changed);
    });
}
