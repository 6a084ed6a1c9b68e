use std::collections::BTreeMap;

use nft::{Operation, Statement};
use proptest::prelude::*;
use service_model::{Affinity, Protocol};

use super::*;
use crate::samples::{self, backend, batches, facts, frontend, name, removal};

/// The last intent of each Service.
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
    /// The kernel walks the map that an added rule looks up: milliseconds instead of microseconds.
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

/// The address of the cluster IP 10.96.0.`host`.
fn cluster_ip(host: u8) -> FrontendAddress {
    FrontendAddress::ClusterIp([10, 96, 0, host].into())
}

/// Service `n`'s frontend at `address`, port 80, with endpoints on hosts 1 to `endpoints`.
fn service(n: u8, created: Option<i64>, address: FrontendAddress, endpoints: u8) -> ServiceIntent {
    let backends = (1..=endpoints).map(|host| backend(n, host)).collect();
    let frontend = frontend(address, Protocol::Tcp, 80, Disposition::Balance(backends));
    samples::intent(n, created, vec![frontend])
}

/// The conflict about `address`, port 80, in which Service 2 wins over Service 1.
fn conflict_won_by_2(address: FrontendAddress) -> Conflict {
    let (protocol, port) = (Protocol::Tcp, 80);
    Conflict {
        claim: Claim {
            address,
            protocol,
            port,
        },
        winner: name(2),
        loser: name(1),
    }
}

#[test]
fn the_younger_gets_a_contested_frontend_when_the_older_goes() {
    let mut ledger = Ledger::default();
    let address = cluster_ip(1);
    let (younger, older) = (
        service(1, Some(7), address, 2),
        service(2, Some(3), address, 2),
    );
    assert_eq!(ledger.apply(vec![younger.clone().into()]).conflicts, []);
    let conflicts = ledger.apply(vec![older.clone().into()]).conflicts;
    assert_eq!(conflicts, [conflict_won_by_2(address)]);
    assert_eq!(
        ledger.contents(&facts()),
        crate::contents(&facts(), [older])
    );
    ledger.apply(vec![removal(2)]);
    assert_eq!(
        ledger.contents(&facts()),
        crate::contents(&facts(), [younger])
    );
}

#[test]
fn one_endpoint_more_changes_three_elements() {
    let mut ledger = Ledger::default();
    let mut changed = |endpoints| {
        let update = service(1, None, cluster_ip(1), endpoints).into();
        ledger.apply(vec![update]).transaction.element_count()
    };
    changed(3);
    // A backend is added, and the frontend moves from the set for 3 endpoints to the set for 4.
    assert_eq!([changed(4), changed(3)], [3, 3]);
}

/// Service `n` at `address` with one endpoint and this affinity group, older than Service `n + 1`.
fn at(n: u8, address: FrontendAddress, group: Option<u32>) -> ServiceIntent {
    let mut intent = service(n, Some(n.into()), address, 1);
    intent.frontends[0].affinity = group.map(|group| Affinity {
        seconds: 60,
        group,
        map: n.into(),
    });
    intent
}

#[test]
fn an_external_address_yields_while_it_is_a_cluster_ip() {
    let address = [10, 96, 0, 1].into();
    let (external, cluster_ip) = (
        FrontendAddress::External(address),
        FrontendAddress::ClusterIp(address),
    );
    let mut ledger = Ledger::default();
    let mut request = |intent: &ServiceIntent| {
        let conflicts = ledger.apply(vec![intent.clone().into()]).conflicts;
        (conflicts, ledger.contents(&facts()))
    };
    // The Service with the external address is the older one.
    let (first, second) = (at(1, external, None), at(2, cluster_ip, None));
    let alone = |intent: &ServiceIntent| crate::contents(&facts(), [intent.clone()]);
    assert_eq!(request(&first), (vec![], alone(&first)));
    let lost = vec![conflict_won_by_2(external)];
    assert_eq!(request(&second), (lost.clone(), alone(&second)));
    // A second request changes nothing.
    assert_eq!(request(&first), (lost, alone(&second)));
    ledger.apply(vec![removal(2)]);
    assert_eq!(ledger.contents(&facts()), alone(&first));
}

#[test]
fn of_colliding_affinity_groups_the_older_is_kept() {
    let mut ledger = Ledger::default();
    let older = at(1, cluster_ip(1), Some(7));
    let younger = |group| at(2, cluster_ip(2), group);
    ledger.apply(vec![younger(Some(7)).into()]);
    let alone = crate::contents(&facts(), [younger(Some(7))]);
    assert_eq!(ledger.contents(&facts()), alone);
    ledger.apply(vec![older.clone().into()]);
    let both = crate::contents(&facts(), [older, younger(None)]);
    assert_eq!(ledger.contents(&facts()), both);
    ledger.apply(vec![removal(1)]);
    assert_eq!(ledger.contents(&facts()), alone);
}

proptest! {
    /// The budget of a Service bounds the table.
    #[test]
    fn frontends_need_no_more_elements_than_they_are_counted_for(batches in batches()) {
        let intents = last_intents(&batches);
        let frontends = intents.iter().flat_map(|intent| &intent.frontends);
        for frontend in frontends {
            let rendered = render(frontend);
            let shared = rendered.shared.iter().filter(|(set, _)| *set != SetId::Hairpin);
            prop_assert!(rendered.own.len() + shared.count() <= frontend.elements());
        }
    }
}

/// Service `n`, older than Service `n + 1`, with frontends at this many ports of a node.
fn node_ports(n: u8, ports: u16) -> ServiceIntent {
    let frontend = |port| {
        let at = FrontendAddress::NodePort(Family::Ip);
        let backends = vec![backend(n, 1)].into();
        frontend(at, Protocol::Tcp, port, Disposition::Balance(backends))
    };
    samples::intent(n, Some(n.into()), (1..=ports).map(frontend).collect())
}

/// A tenant can let thousands of Services claim thousands of frontends.
#[test]
fn a_contested_service_costs_what_it_has_however_many_contest() {
    let mut ledger = Ledger::default();
    let everyone = (1..=200).map(|n| node_ports(n, 50).into());
    ledger.apply(everyone.collect());
    for n in [1, 2, 200] {
        let mut changed = node_ports(n, 50);
        changed.frontends[7].disposition = Disposition::Refuse;
        let update: Update = changed.into();
        let touched = ledger.touched(std::slice::from_ref(&update));
        assert_eq!(touched.len(), 1);
        let conflicts = ledger.apply(vec![update]).conflicts;
        let (won, lost) = (50 * NAMED_LOSERS, 50);
        assert_eq!(conflicts.len(), if n == 1 { won } else { lost });
    }
    assert_eq!(ledger.conflicts().len(), 199 * 50);
}

#[test]
fn a_change_of_rank_moves_all_frontends() {
    let mut ledger = Ledger::default();
    ledger.apply(vec![node_ports(1, 9).into(), node_ports(2, 9).into()]);
    let mut younger = node_ports(1, 9);
    younger.created = Some(3);
    ledger.apply(vec![younger.clone().into()]);
    let alone = crate::contents(&facts(), [node_ports(2, 9)]);
    assert_eq!(ledger.contents(&facts()), alone);
    ledger.apply(vec![removal(2)]);
    assert_eq!(
        ledger.contents(&facts()),
        crate::contents(&facts(), [younger])
    );
}
