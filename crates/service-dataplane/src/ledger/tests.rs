use std::collections::BTreeMap;

use nft::{Operation, Statement};
use proptest::prelude::*;
use service_model::{Affinity, Backend, Protocol};

use super::*;
use crate::samples::{batches, facts, frontend, name};

/// The last wish of each Service.
fn last_intents(batches: &[Vec<Update>]) -> Vec<ServiceIntent> {
    let mut last: BTreeMap<ObjectName, Option<Arc<ServiceIntent>>> = BTreeMap::new();
    for update in batches.iter().flatten() {
        last.insert(update.service.clone(), update.intent.clone());
    }
    last.into_values()
        .flatten()
        .map(|intent| (*intent).clone())
        .collect()
}

proptest! {
    #[test]
    fn contents_depend_on_the_last_intents_alone(batches in batches()) {
        let mut ledger = Ledger::default();
        for batch in batches.clone() {
            ledger.apply(batch);
        }
        prop_assert_eq!(ledger.contents(&facts()), crate::contents(&facts(), last_intents(&batches)));
    }

    #[test]
    fn undoing_a_batch_restores_the_contents(batches in batches(), last in batches()) {
        let mut ledger = Ledger::default();
        for batch in batches {
            ledger.apply(batch);
        }
        let before = ledger.contents(&facts());
        for batch in last {
            let undo = ledger.apply(batch).undo;
            ledger.apply(undo);
            prop_assert_eq!(&ledger.contents(&facts()), &before);
        }
    }

    #[test]
    fn the_same_intents_again_change_nothing(batches in batches()) {
        let mut ledger = Ledger::default();
        for batch in batches {
            ledger.apply(batch.clone());
            prop_assert!(ledger.apply(batch).transaction.is_empty());
        }
    }
}

proptest! {
    /// Adding such a rule makes the kernel walk the map: milliseconds instead of microseconds.
    #[test]
    fn no_rule_is_bound_to_a_map_that_has_elements(batches in batches()) {
        let mut ledger = Ledger::default();
        for batch in batches {
            let mut empty = Vec::new();
            for (family, step) in ledger.apply(batch).transaction.operations {
                match step {
                    Operation::AddSet(set) => empty.push((family, set.name)),
                    Operation::AddElements { set, .. } => empty.retain(|known| *known != (family, set.clone())),
                    Operation::SetRules(chain) => {
                        for statement in chain.rules.into_iter().flat_map(|rule| rule.statements) {
                            if let Statement::DnatMap { map, .. } | Statement::VerdictMap { map, .. } = statement {
                                prop_assert!(empty.contains(&(family, map.clone())), "{} is not empty", map);
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn intent(n: u8, created: Option<i64>, endpoints: u8) -> Update {
    let backends = (0..endpoints)
        .map(|host| Backend {
            address: [10, 244, n, host + 1].into(),
            port: 8080,
            local: false,
        })
        .collect();
    let at = FrontendAddress::ClusterIp([10, 96, 0, 1].into());
    let frontend = frontend(at, Protocol::Tcp, 80, Disposition::Balance(backends));
    ServiceIntent {
        service: name(n),
        created,
        frontends: vec![frontend],
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: false,
        health_check: None,
    }
    .into()
}

#[test]
fn the_younger_gets_a_contested_frontend_when_the_older_goes() {
    let mut ledger = Ledger::default();
    let alone =
        |n, created| crate::contents(&facts(), [(*intent(n, created, 2).intent.unwrap()).clone()]);

    assert_eq!(ledger.apply(vec![intent(1, Some(7), 2)]).conflicts, []);
    let conflicts = ledger.apply(vec![intent(2, Some(3), 2)]).conflicts;
    let claim = Claim {
        address: FrontendAddress::ClusterIp([10, 96, 0, 1].into()),
        protocol: Protocol::Tcp,
        port: 80,
    };
    assert_eq!(
        conflicts,
        [Conflict {
            claim,
            winner: name(2),
            loser: name(1)
        }]
    );
    assert_eq!(ledger.contents(&facts()), alone(2, Some(3)));

    ledger.apply(vec![Update {
        service: name(2),
        intent: None,
    }]);
    assert_eq!(ledger.contents(&facts()), alone(1, Some(7)));
}

#[test]
fn one_endpoint_more_changes_three_elements() {
    let mut ledger = Ledger::default();
    ledger.apply(vec![intent(1, None, 3)]);
    // One backend and the move from one size set to the next.
    assert_eq!(
        ledger
            .apply(vec![intent(1, None, 4)])
            .transaction
            .element_count(),
        3
    );
    assert_eq!(
        ledger
            .apply(vec![intent(1, None, 3)])
            .transaction
            .element_count(),
        3
    );
}

/// `n`'s frontend at `address`, port 80, with one endpoint; `group` is its affinity's.
fn at(n: u8, address: FrontendAddress, group: Option<u32>) -> Update {
    let backend = Backend {
        address: [10, 244, n, 1].into(),
        port: 8080,
        local: false,
    };
    let disposition = Disposition::Balance([backend].into());
    let mut frontend = frontend(address, Protocol::Tcp, 80, disposition);
    frontend.affinity = group.map(|group| Affinity { seconds: 60, group });
    ServiceIntent {
        service: name(n),
        created: Some(n.into()),
        frontends: vec![frontend],
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: false,
        health_check: None,
    }
    .into()
}

#[test]
fn an_external_address_yields_while_it_is_a_cluster_ip() {
    let address = [10, 96, 0, 1].into();
    let (external, cluster_ip) = (
        FrontendAddress::External(address),
        FrontendAddress::ClusterIp(address),
    );
    let mut ledger = Ledger::default();
    // The external one is the older Service.
    assert_eq!(ledger.apply(vec![at(1, external, None)]).conflicts, []);
    let alone = ledger.contents(&facts());
    let conflicts = ledger.apply(vec![at(2, cluster_ip, None)]).conflicts;
    let lost = Conflict {
        claim: Claim {
            address: external,
            protocol: Protocol::Tcp,
            port: 80,
        },
        winner: name(2),
        loser: name(1),
    };
    assert_eq!(conflicts, std::slice::from_ref(&lost));
    let only_cluster_ip = crate::contents(
        &facts(),
        [(*at(2, cluster_ip, None).intent.unwrap()).clone()],
    );
    assert_eq!(ledger.contents(&facts()), only_cluster_ip);
    // Asking again does not help.
    assert_eq!(ledger.apply(vec![at(1, external, None)]).conflicts, [lost]);
    assert_eq!(ledger.contents(&facts()), only_cluster_ip);
    ledger.apply(vec![Update {
        service: name(2),
        intent: None,
    }]);
    assert_eq!(ledger.contents(&facts()), alone);
}

#[test]
fn of_colliding_affinity_groups_the_older_is_kept() {
    let ip = |host: u8| FrontendAddress::ClusterIp([10, 96, 0, host].into());
    let intents = |updates: Vec<Update>| {
        let intents = updates
            .into_iter()
            .map(|update| (*update.intent.unwrap()).clone());
        crate::contents(&facts(), intents.collect::<Vec<_>>())
    };
    let mut ledger = Ledger::default();
    ledger.apply(vec![at(2, ip(2), Some(7))]);
    assert_eq!(
        ledger.contents(&facts()),
        intents(vec![at(2, ip(2), Some(7))])
    );
    ledger.apply(vec![at(1, ip(1), Some(7))]);
    let met = intents(vec![at(1, ip(1), Some(7)), at(2, ip(2), None)]);
    assert_eq!(ledger.contents(&facts()), met);
    ledger.apply(vec![Update {
        service: name(1),
        intent: None,
    }]);
    assert_eq!(
        ledger.contents(&facts()),
        intents(vec![at(2, ip(2), Some(7))])
    );
}
