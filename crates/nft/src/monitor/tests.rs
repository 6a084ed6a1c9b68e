use proptest::prelude::*;

use super::*;
use crate::model::{Element, Field, Set, SetKind, Table};
use crate::namespace::{in_namespace, kernel, load};
use crate::samples;
use crate::transaction::{Backend as _, Operation, Transaction};

const PLENTY: Duration = Duration::from_secs(10);

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
fn others_are_heard_and_we_are_not() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        // Notifications are queued before the transaction returns: there is nothing to wait for.
        kernel.commit(&filled(3)).unwrap();
        assert_eq!(monitor.try_next().unwrap(), None);

        load("add element ip portolan frontends { 1.1.1.1 . tcp . 1 }");
        assert_eq!(
            monitor.wait(PLENTY).unwrap(),
            Some(Notice::Changed(Family::Ip))
        );
        while monitor.try_next().unwrap().is_some() {}

        load("add table ip other; add table inet portolan");
        assert_eq!(monitor.try_next().unwrap(), None);
        load("add table ip6 portolan");
        assert_eq!(
            monitor.try_next().unwrap(),
            Some(Notice::Changed(Family::Ip6))
        );
        load("flush ruleset");
        assert!(monitor.try_next().unwrap().is_some());
    });
}

#[test]
fn a_bulk_load_of_ours_is_not_heard() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        kernel.commit(&filled(60_000)).unwrap();
        assert_eq!(monitor.try_next().unwrap(), None);
    });
}

#[test]
fn lost_notifications_are_said_to_be_lost_and_the_kernel_knows_if_it_matters() {
    in_namespace(|| {
        let mut kernel = kernel(false);
        let mut monitor = Monitor::open("portolan".into(), kernel.port()).unwrap();
        kernel.commit(&filled(0)).unwrap();
        kernel.list(Family::Ip).unwrap().unwrap();
        monitor.socket.set_receive_space(2048).unwrap();
        kernel.commit(&filled(5_000)).unwrap();
        assert_eq!(monitor.try_next().unwrap(), Some(Notice::Overrun));
        assert_eq!(monitor.try_next().unwrap(), None);
        assert!(!kernel.disturbed().unwrap());
    });
}

proptest! {
    #[test]
    fn any_datagram_is_heard_without_harm(datagram in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(heard(&datagram, "portolan", 7).len() <= 3);
    }
}
