use std::sync::Arc;

use nft::Fake;
use proptest::prelude::*;
use service_model::{Disposition, FrontendAddress, Protocol, ServiceIntent};

use super::*;
use crate::samples::{self, backend, batches, facts, frontend, name, other_facts, removal};

fn synced(dataplane: &Dataplane<Fake>) -> bool {
    let wanted = dataplane.desired();
    let found = Family::ALL.map(|family| dataplane.backend().contents(family));
    found.into_iter().eq(wanted.into_iter().map(Some))
}

proptest! {
    #[test]
    fn every_batch_leaves_the_tables_as_planned(batches in batches()) {
        let mut dataplane = Dataplane::new(Fake::new(), facts());
        for batch in batches {
            let outcome = dataplane.commit(batch).unwrap();
            prop_assert_eq!(outcome.quarantined, []);
            prop_assert!(synced(&dataplane));
        }
    }

    #[test]
    fn facts_change_with_all_services_at_once(batches in batches(), then in batches()) {
        let mut dataplane = Dataplane::new(Fake::new(), facts());
        for batch in batches {
            dataplane.commit(batch).unwrap();
        }
        for (batch, facts) in then.into_iter().zip([other_facts(), facts()].into_iter().cycle()) {
            let transactions = dataplane.refresh(facts, batch).unwrap().transactions;
            prop_assert!(transactions <= 1);
            prop_assert!(synced(&dataplane));
        }
    }

    #[test]
    fn a_restart_writes_only_the_difference(batches in batches(), missed in batches()) {
        let mut dataplane = Dataplane::new(Fake::new(), facts());
        for batch in batches {
            dataplane.commit(batch).unwrap();
        }
        let mut ledger = dataplane.ledger;
        let mut restarted = Dataplane::new(dataplane.backend, facts());
        for batch in missed {
            ledger.apply(batch);
        }
        restarted.ledger = ledger;
        restarted.repair().unwrap();
        prop_assert!(synced(&restarted));
        let mut again = Dataplane::new(restarted.backend, facts());
        again.ledger = restarted.ledger;
        prop_assert_eq!(again.repair().unwrap().transactions, 0);
    }
}

/// Service `n` with endpoints on these hosts, or refused if there are none.
fn intent(n: u8, hosts: &[u8]) -> ServiceIntent {
    let backends: Arc<[_]> = hosts.iter().map(|host| backend(244, *host)).collect();
    let disposition = match backends.is_empty() {
        true => Disposition::Refuse,
        false => Disposition::Balance(backends),
    };
    let address = FrontendAddress::ClusterIp([10, 96, 0, n].into());
    samples::intent(
        n,
        None,
        vec![frontend(address, Protocol::Tcp, 80, disposition)],
    )
}

/// Service `n` with one endpoint, on host `n`.
fn service(n: u8) -> Update {
    intent(n, &[n]).into()
}

#[test]
fn a_node_address_that_comes_has_flows_to_node_ports_checked() {
    let mut at_node_port = intent(1, &[1]);
    at_node_port.frontends[0].address = FrontendAddress::NodePort(Family::Ip);
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    dataplane
        .commit(vec![at_node_port.into(), service(2)])
        .unwrap();
    let mut more = facts();
    more.node_addresses.push([203, 0, 113, 1].into());
    more.node_addresses.sort_unstable();
    let checked = dataplane.refresh(more, Vec::new()).unwrap().flows;
    let claims: Vec<_> = checked.iter().map(|check| check.claim.address).collect();
    assert_eq!(claims, [FrontendAddress::NodePort(Family::Ip)]);
    assert!(checked.iter().all(|check| check.serving.is_some()));
    // A removed address needs no check: no rule would translate flows to that address.
    assert_eq!(dataplane.refresh(facts(), Vec::new()).unwrap().flows, []);
}

/// A fake that refuses elements which lead to host `n`.
fn refusing(n: u8) -> Fake {
    let refused = nft::Data::Value(endpoint(n));
    let mut fake = Fake::new();
    fake.refuse(move |_, element| element.data == refused, Errno::ENOSPC);
    fake
}

#[test]
fn a_refused_service_is_quarantined_and_others_go_in() {
    let mut dataplane = Dataplane::new(refusing(7), facts());
    let outcome = dataplane.commit((1..=100).map(service).collect()).unwrap();
    let quarantined = outcome.quarantined.into_iter().map(|q| q.service);
    assert_eq!(quarantined.collect::<Vec<_>>(), [name(7)]);
    assert!(synced(&dataplane));
    // Without tables there is nothing to protect by trials, each of which is a refusal.
    assert!(dataplane.backend().counters().refused <= 9);
    // A later change of another Service takes one transaction, as ever.
    let later = dataplane.commit(vec![service(101)]).unwrap();
    assert_eq!(later.transactions, 1);
}

#[test]
fn a_quarantined_service_keeps_its_last_good_rules() {
    let mut dataplane = Dataplane::new(refusing(7), facts());
    dataplane.commit(vec![service(1)]).unwrap();
    let before = dataplane.desired();
    let outcome = dataplane.commit(vec![intent(1, &[7]).into()]).unwrap();
    assert_eq!(outcome.quarantined.len(), 1);
    assert_eq!(dataplane.desired(), before);
    assert!(synced(&dataplane));
    dataplane.commit(vec![intent(1, &[8]).into()]).unwrap();
    assert!(dataplane.quarantine().is_empty());
    assert_ne!(dataplane.desired(), before);
}

#[test]
fn a_failing_backend_loses_no_update() {
    for errno in [Errno::EPERM, Errno::ENOMEM, Errno::ENOBUFS, Errno::EMSGSIZE] {
        let mut dataplane = Dataplane::new(Fake::new(), facts());
        dataplane.commit(vec![service(1)]).unwrap();
        dataplane.backend_mut().fail_next(errno);
        dataplane.commit(vec![service(2)]).unwrap_err();
        assert!(dataplane.quarantine().is_empty());
        dataplane.repair().unwrap();
        assert!(synced(&dataplane));
        let both = [intent(1, &[1]), intent(2, &[2])];
        assert_eq!(dataplane.desired(), crate::contents(&facts(), both));
    }
}

#[test]
fn a_refused_service_keeps_no_rules_of_an_earlier_one() {
    let mut moved = intent(1, &[7]);
    moved.frontends[0].address = FrontendAddress::ClusterIp([10, 96, 0, 9].into());
    let mut later = intent(1, &[7]);
    later.created = Some(5);
    for recreated in [moved, later] {
        let mut dataplane = Dataplane::new(refusing(7), facts());
        dataplane.commit(vec![service(1), service(2)]).unwrap();
        let batch = vec![Update::from(recreated), service(3)];
        let outcome = dataplane.commit(batch).unwrap();
        assert_eq!(outcome.quarantined.len(), 1);
        assert!(synced(&dataplane));
        let left = [intent(2, &[2]), intent(3, &[3])];
        assert_eq!(dataplane.desired(), crate::contents(&facts(), left));
    }
}

#[test]
fn a_refused_service_at_a_restart_interrupts_no_other() {
    let mut dataplane = Dataplane::new(refusing(99), facts());
    let good = || (2..=20).map(service).chain([with_affinity(&[1])]);
    dataplane.commit(good().collect()).unwrap();
    add_entries(&mut dataplane, &[affinity_entry(1, 1)]);
    let mut restarted = Dataplane::new(dataplane.backend, facts());
    let bad = Update::from(intent(21, &[99]));
    let outcome = restarted.commit(good().chain([bad]).collect()).unwrap();
    let quarantined = outcome.quarantined.into_iter().map(|q| q.service);
    assert_eq!(quarantined.collect::<Vec<_>>(), [name(21)]);
    assert_eq!(outcome.transactions, 0, "the others had their elements");
    assert!(synced(&restarted));
    let entries = affinity_entries(&mut restarted, Family::Ip);
    assert_eq!(entries, [affinity_entry(1, 1)]);
}

#[test]
fn many_refused_services_at_a_restart_are_quarantined() {
    let refused = (1..=100).step_by(2).map(endpoint).map(nft::Data::Value);
    let refused: Vec<nft::Data> = refused.collect();
    let mut fake = Fake::new();
    fake.refuse(
        move |_, element| refused.contains(&element.data),
        Errno::ENOSPC,
    );
    let mut dataplane = Dataplane::new(fake, facts());
    let good = || (2..=100).step_by(2);
    dataplane.commit(good().map(service).collect()).unwrap();
    let mut restarted = Dataplane::new(dataplane.backend, facts());
    let outcome = restarted.commit((1..=100).map(service).collect()).unwrap();
    assert_eq!(outcome.quarantined.len(), 50);
    assert!(synced(&restarted));
    let left = good().map(|n| intent(n, &[n]));
    assert_eq!(restarted.desired(), crate::contents(&facts(), left));
}

#[test]
fn two_refused_of_400_at_a_restart_interrupt_no_other() {
    let intent = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let address = FrontendAddress::ClusterIp([10, 96, high, low].into());
        let endpoint = Disposition::Balance([backend(high, low)].into());
        let frontends = vec![frontend(address, Protocol::Tcp, 80, endpoint)];
        ServiceIntent {
            service: ObjectName::new("default", format!("service-{n:03}")),
            ..samples::intent(0, None, frontends)
        }
    };
    let bad = [100, 300];
    let mut fake = Fake::new();
    let refused = bad.map(|n: u16| {
        let [high, low] = n.to_be_bytes();
        let address = nft::Bytes::new().address([10, high, 0, low].into());
        nft::Data::Value(address.port(8080))
    });
    fake.refuse(
        move |_, element| refused.contains(&element.data),
        Errno::ENOSPC,
    );
    let good = || (0..400).filter(|n| !bad.contains(n)).map(intent);
    let mut dataplane = Dataplane::new(fake, facts());
    dataplane
        .commit(good().map(Update::from).collect())
        .unwrap();
    let before = dataplane.backend().counters().transactions;
    let mut restarted = Dataplane::new(dataplane.backend, facts());
    let all = (0..400).map(intent).map(Update::from);
    let outcome = restarted.commit(all.collect()).unwrap();
    let quarantined = outcome.quarantined.into_iter().map(|q| q.service);
    let expected = bad.map(|n| intent(n).service);
    assert_eq!(quarantined.collect::<Vec<_>>(), expected);
    assert!(synced(&restarted));
    assert_eq!(restarted.desired(), crate::contents(&facts(), good()));
    assert_eq!(restarted.backend().counters().transactions, before);
}

#[test]
fn a_repair_quarantines_what_the_kernel_refuses_by_now() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    dataplane.commit((1..=20).map(service).collect()).unwrap();
    let refused = nft::Data::Value(endpoint(7));
    let backend = dataplane.backend_mut();
    backend.refuse(move |_, element| element.data == refused, Errno::ENOSPC);
    backend.change_as_foreign(Family::Ip, |contents| *contents = None);
    let outcome = dataplane.repair().unwrap();
    let quarantined = outcome.quarantined.into_iter().map(|q| q.service);
    assert_eq!(quarantined.collect::<Vec<_>>(), [name(7)]);
    assert!(synced(&dataplane));
    assert_eq!(dataplane.intent(&name(7)), None);
    assert_eq!(
        dataplane.intent(&name(8)).as_deref(),
        Some(&intent(8, &[8]))
    );
}

#[test]
fn a_refusal_that_no_service_causes_quarantines_none() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    let refuse = |dataplane: &mut Dataplane<Fake>| {
        let backend = dataplane.backend_mut();
        backend.refuse(|set, _| *set == "node_addresses", Errno::ENOSPC);
    };
    refuse(&mut dataplane);
    let batch = (1..=9).map(service).collect();
    dataplane.commit(batch).unwrap_err();
    for _ in 0..2 {
        dataplane.repair().unwrap_err();
        dataplane.backend_mut().refuse_nothing();
        dataplane.repair().unwrap();
        assert!(dataplane.quarantine().is_empty());
        assert!(synced(&dataplane));
        let all = (1..=9).map(|n| intent(n, &[n]));
        assert_eq!(dataplane.desired(), crate::contents(&facts(), all));
        // The same after a sync.
        refuse(&mut dataplane);
        let backend = dataplane.backend_mut();
        backend.change_as_foreign(Family::Ip, |contents| *contents = None);
    }
}

#[test]
fn failing_commits_keep_one_check_for_each_frontend() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    dataplane.commit(vec![service(1)]).unwrap();
    for n in 0..100 {
        let changed = Update::from(intent(1, &[2 + n % 2]));
        for update in [changed, service(9), removal(9)] {
            dataplane.backend_mut().fail_next(Errno::ENOBUFS);
            dataplane.commit(vec![update]).unwrap_err();
        }
    }
    assert_eq!(dataplane.flows.len(), 2);
    assert_eq!(dataplane.last_good.len(), 1);
    let flows = dataplane.repair().unwrap().flows;
    let serving: Vec<_> = flows.iter().map(|check| check.serving.as_deref()).collect();
    assert_eq!(serving, [Some(&[backend(244, 3)][..]), None]);
    assert!(dataplane.flows.is_empty() && dataplane.last_good.is_empty());
}

#[test]
fn a_foreign_change_is_repaired_without_quarantine() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    dataplane.commit((1..=20).map(service).collect()).unwrap();
    dataplane
        .backend_mut()
        .change_as_foreign(Family::Ip, |contents| *contents = None);
    // The kernel refuses to delete elements that are gone, so the tables are read and repaired.
    let outcome = dataplane.commit((1..=20).map(removal).collect()).unwrap();
    assert_eq!(outcome.quarantined, []);
    assert!(synced(&dataplane));
}

fn endpoint(host: u8) -> nft::Bytes {
    nft::Bytes::new()
        .address([10, 244, 0, host].into())
        .port(8080)
}

/// The affinity entry that keeps a client of group 7 at a host.
fn affinity_entry(client: u8, host: u8) -> Element {
    let key = nft::Bytes::new().address([192, 0, 2, client].into());
    let key = key.protocol(Protocol::Tcp).group(7);
    Element::value(key, endpoint(host))
}

/// Adds affinity entries, as rules do when packets pass.
fn add_entries(dataplane: &mut Dataplane<Fake>, elements: &[Element]) {
    let mut transaction = Transaction::new();
    let add = Operation::AddElements {
        set: affinity::map(3),
        elements: elements.to_vec(),
    };
    transaction.push(Family::Ip, add);
    dataplane.backend_mut().commit(&transaction).unwrap();
}

fn affinity_entries(dataplane: &mut Dataplane<Fake>, family: Family) -> Vec<Element> {
    let backend = dataplane.backend_mut();
    backend.dynamic_elements(family, &affinity::map(3)).unwrap()
}

/// Service 1 with affinity, in group 7.
fn with_affinity(hosts: &[u8]) -> Update {
    let mut intent = intent(1, hosts);
    intent.frontends[0].affinity = Some(service_model::Affinity {
        seconds: 60,
        group: 7,
        map: 3,
    });
    intent.into()
}

#[test]
fn affinity_entries_go_with_their_endpoint_only() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    // What the daemon does after a commit, from another thread: the number of entries deleted.
    let clean = |dataplane: &mut Dataplane<Fake>, outcome: SyncOutcome| {
        let mut deleted = 0;
        for (family, map) in outcome.affinity.maps() {
            assert_eq!(map, 3);
            let entries = affinity_entries(dataplane, family);
            let stale = outcome.affinity.stale(family, map, entries);
            deleted += dataplane.forget(family, map, stale);
        }
        deleted
    };
    let outcome = dataplane.commit(vec![with_affinity(&[1, 2])]).unwrap();
    clean(&mut dataplane, outcome);
    add_entries(&mut dataplane, &[affinity_entry(1, 2)]);
    let outcome = dataplane.repair().unwrap();
    assert_eq!(outcome.transactions, 0);
    assert_eq!(clean(&mut dataplane, outcome), 0);
    let outcome = dataplane.commit(vec![with_affinity(&[1, 2, 3])]).unwrap();
    assert!(
        outcome.affinity.is_empty(),
        "no endpoint was removed, so no entry needs to be read"
    );
    let outcome = dataplane.commit(vec![with_affinity(&[2, 3])]).unwrap();
    assert_eq!(clean(&mut dataplane, outcome), 0);
    let outcome = dataplane.commit(vec![with_affinity(&[3])]).unwrap();
    assert_eq!(clean(&mut dataplane, outcome), 1);
    assert_eq!(affinity_entries(&mut dataplane, Family::Ip), []);
    // A repair checks all entries: which endpoints were removed meanwhile is unknown.
    add_entries(&mut dataplane, &[affinity_entry(1, 2)]);
    let outcome = dataplane.repair().unwrap();
    assert_eq!(clean(&mut dataplane, outcome), 1);
}

#[test]
fn stale_entries_stay_when_their_endpoint_is_back() {
    let mut dataplane = Dataplane::new(Fake::new(), facts());
    dataplane.commit(vec![with_affinity(&[1, 2])]).unwrap();
    let entries = [(1, 1), (2, 2), (3, 1)].map(|(client, host)| affinity_entry(client, host));
    add_entries(&mut dataplane, &entries);
    let outcome = dataplane.commit(vec![with_affinity(&[3])]).unwrap();
    let found = affinity_entries(&mut dataplane, Family::Ip);
    let mut stale = outcome.affinity.stale(Family::Ip, 3, found);
    assert_eq!(stale.len(), 3);
    // Meanwhile one endpoint is back, and two other entries have timed out.
    dataplane.commit(vec![with_affinity(&[2])]).unwrap();
    stale.insert(1, affinity_entry(4, 1));
    stale.insert(0, affinity_entry(0, 1));
    assert_eq!(dataplane.forget(Family::Ip, 3, stale), 2);
    let left = affinity_entries(&mut dataplane, Family::Ip);
    assert_eq!(left, [affinity_entry(2, 2)]);
}

/// A backend whose calls fail where `fail` returns an error for the number of the call.
struct Flaky {
    inner: Fake,
    calls: usize,
    fail: Box<dyn FnMut(usize) -> Option<Errno> + Send>,
}

impl Flaky {
    fn call(&mut self) -> Result<&mut Fake, CommitError> {
        self.calls += 1;
        if let Some(errno) = (self.fail)(self.calls) {
            // Have the fake produce the error, as its socket would.
            self.inner.fail_next(errno);
            let mut unsent = Transaction::new();
            unsent.push(Family::Ip, Operation::DeleteTable);
            self.inner.commit(&unsent)?;
        }
        Ok(&mut self.inner)
    }
}

impl Backend for Flaky {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.call()?.commit(transaction)
    }

    fn generation(&mut self) -> Result<Generation, CommitError> {
        self.call()?.generation()
    }

    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError> {
        self.call()?.list(family)
    }

    fn dynamic_elements(
        &mut self,
        family: Family,
        map: &nft::Name,
    ) -> Result<Vec<Element>, CommitError> {
        self.call()?.dynamic_elements(family, map)
    }

    fn adopt(&mut self, family: Family) -> Result<nft::Adoption, CommitError> {
        self.call()?.adopt(family)
    }
}

#[test]
fn a_failure_beside_a_refused_service_loses_no_update() {
    for at in 1.. {
        let flaky = Flaky {
            inner: refusing(7),
            calls: 0,
            fail: Box::new(|_| None),
        };
        let mut dataplane = Dataplane::new(flaky, facts());
        dataplane.commit(vec![service(1), service(3)]).unwrap();
        let failing = dataplane.backend().calls + at;
        dataplane.backend_mut().fail = Box::new(move |n| (n == failing).then_some(Errno::ENOBUFS));
        let refused = [3, 4].map(|n| Update::from(intent(n, &[7])));
        let batch = [service(2)].into_iter().chain(refused);
        let committed = dataplane.commit(batch.collect());
        let failed = committed.is_err();
        assert_eq!(failed, dataplane.backend().calls >= failing);
        let outcome = committed.or_else(|_| dataplane.repair()).unwrap();
        let left = [1, 2, 3].map(|n| intent(n, &[n]));
        assert_eq!(dataplane.desired(), crate::contents(&facts(), left));
        let found = Family::ALL.map(|family| dataplane.backend().inner.contents(family));
        assert_eq!(found, dataplane.desired().map(Some));
        let quarantined: Vec<_> = dataplane.quarantine().keys().collect();
        assert_eq!(quarantined, [&name(3), &name(4)]);
        // Whichever call has found them.
        let reported = outcome.quarantined.iter();
        let reported: Vec<_> = reported.map(|q| (&q.service, &q.last_good)).collect();
        let kept = Some(Arc::new(intent(3, &[3])));
        assert_eq!(reported, [(&name(3), &kept), (&name(4), &None)]);
        if !failed {
            assert!(at > 10, "{at} calls");
            break;
        }
        assert_eq!(dataplane.repair().unwrap().quarantined, []);
    }
}

const ERRNOS: [Errno; 12] = [
    Errno::EINTR,
    Errno::EAGAIN,
    Errno::ENOBUFS,
    Errno::ENOMEM,
    Errno::EBUSY,
    Errno::EEXIST,
    Errno::ENOENT,
    Errno::EPERM,
    Errno::ENOSPC,
    Errno::EMSGSIZE,
    Errno::EOPNOTSUPP,
    Errno::EINVAL,
];

/// Commits changes and new facts while calls fail, and repairs after each failure. Whether no Service was quarantined.
fn commit_while_failing(
    fail: Box<dyn FnMut(usize) -> Option<Errno> + Send>,
) -> (Dataplane<Flaky>, bool) {
    let flaky = Flaky {
        inner: Fake::new(),
        calls: 0,
        fail,
    };
    let mut dataplane = Dataplane::new(flaky, facts());
    let mut was_full = false;
    let mut settle = |dataplane: &mut Dataplane<Flaky>, result: Result<SyncOutcome, SyncError>| {
        let mut outcome = result;
        for _ in 0..200 {
            let full = dataplane.backend().inner.contents(Family::Ip).is_some();
            assert!(full || !was_full, "the table is gone");
            was_full |= full;
            match outcome {
                Ok(outcome) => return outcome.quarantined.is_empty(),
                Err(_) => outcome = dataplane.repair(),
            }
        }
        panic!("no repair succeeds");
    };
    let mut good = true;
    let result = dataplane.commit(vec![service(1), service(2)]);
    good &= settle(&mut dataplane, result);
    let result = dataplane.commit(vec![service(3)]);
    good &= settle(&mut dataplane, result);
    let result = dataplane.refresh(other_facts(), vec![service(4)]);
    good &= settle(&mut dataplane, result);
    dataplane
        .backend_mut()
        .inner
        .change_as_foreign(Family::Ip6, |contents| *contents = None);
    let result = dataplane.repair();
    good &= settle(&mut dataplane, result);
    let result = dataplane.commit(vec![removal(1)]);
    good &= settle(&mut dataplane, result);
    (dataplane, good)
}

fn as_planned(dataplane: &Dataplane<Flaky>) -> bool {
    let wanted = dataplane.desired().map(Some);
    let found = Family::ALL.map(|family| dataplane.backend().inner.contents(family));
    let left = (2..=4).map(|n| intent(n, &[n]));
    wanted == found && dataplane.desired() == crate::contents(&other_facts(), left)
}

#[test]
fn every_errno_at_every_step_converges_without_an_empty_table() {
    let (dataplane, good) = commit_while_failing(Box::new(|_| None));
    assert!(good && as_planned(&dataplane));
    let calls = dataplane.backend().calls;
    assert!(calls > 10, "{calls} calls");
    for errno in ERRNOS {
        for at in 1..=calls {
            let (dataplane, good) =
                commit_while_failing(Box::new(move |n| (n == at).then_some(errno)));
            assert!(good && as_planned(&dataplane), "{errno} at call {at}");
        }
    }
}

#[test]
fn a_fifth_of_all_calls_failing_loses_nothing() {
    for seed in 0..200 {
        let mut state: u64 = seed;
        let fail = move |_| {
            // Knuth's constants; the upper bits are random enough.
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let number = (state >> 33) as usize;
            number
                .is_multiple_of(5)
                .then(|| ERRNOS[number / 5 % ERRNOS.len()])
        };
        let (dataplane, good) = commit_while_failing(Box::new(fail));
        assert!(good && as_planned(&dataplane), "seed {seed}");
    }
}
