//! Lets the endpoints of large frontends keep their slots.
//!
//! An endpoint's place in [`Disposition::Balance`] is its slot in the tables. Sorted endpoints shift when one of them is
//! replaced: of 4,096, half on average. Here the new one gets the slot of the old one, and the others stay.

use std::collections::HashMap;
use std::sync::Arc;

use crate::intent::{Backend, Disposition, Frontend, ServiceIntent};

/// Smaller frontends stay sorted: they are written in well below a millisecond, and people read them.
const SMALLEST: usize = 256;

/// A list before, and the planned one that takes its place.
type Pair = (Arc<[Backend]>, Arc<[Backend]>);

/// Reorders the endpoints of frontends that have as many of them as `before`: each that is in both keeps its slot, the others
/// get the free slots in their order. Only for [`SMALLEST`] endpoints or more, since a different number of endpoints has a map
/// of its own.
pub fn keep_slots(intent: &mut ServiceIntent, before: &ServiceIntent) {
    // Frontends of a port share their lists. Lists are kept so that no address of one is used again meanwhile.
    let mut known: HashMap<[*const Backend; 2], (Pair, Arc<[Backend]>)> = HashMap::new();
    let mut keep = |now: &mut Disposition, before: &Disposition| {
        let (Disposition::Balance(now), Disposition::Balance(before)) = (now, before) else {
            return;
        };
        if now.len() != before.len() || now.len() < SMALLEST {
            return;
        }
        let pair = [before.as_ptr(), now.as_ptr()];
        let (_, placed) = known.entry(pair).or_insert_with(|| {
            let placed = placed(now, before);
            ((before.clone(), now.clone()), placed)
        });
        *now = placed.clone();
    };
    let key = |frontend: &Frontend| (frontend.address, frontend.protocol, frontend.port);
    let mut rest = before.frontends.iter().peekable();
    for frontend in &mut intent.frontends {
        while rest.next_if(|before| key(before) < key(frontend)).is_some() {}
        let Some(before) = rest.next_if(|before| key(before) == key(frontend)) else {
            continue;
        };
        keep(&mut frontend.disposition, &before.disposition);
        if let (Some(now), Some(before)) = (&mut frontend.outside, &before.outside) {
            keep(now, before);
        }
    }
}

/// Whether [`keep_slots`] may have changed the order of endpoints, so that a plan alone does not tell it.
pub fn has_kept_slots(intent: &ServiceIntent) -> bool {
    let is_large = |disposition: &Disposition| match disposition {
        Disposition::Balance(backends) => backends.len() >= SMALLEST,
        Disposition::Refuse | Disposition::Drop => false,
    };
    let mut frontends = intent.frontends.iter();
    frontends.any(|one| is_large(&one.disposition) || one.outside.as_ref().is_some_and(is_large))
}

/// `now`, which is sorted and as long as `before`, in the order of `before`.
fn placed(now: &[Backend], before: &Arc<[Backend]>) -> Arc<[Backend]> {
    let key = |backend: &Backend| (backend.address, backend.port);
    let mut stays = vec![false; now.len()];
    let kept = before.iter().map(|old| {
        let at = now.binary_search_by_key(&key(old), key).ok()?;
        *stays.get_mut(at)? = true;
        now.get(at).copied()
    });
    let kept: Vec<Option<Backend>> = kept.collect();
    let mut new = now.iter().zip(stays).filter(|(_, stays)| !stays);
    let mut next = || new.next().map(|(backend, _)| *backend);
    let all = kept.into_iter().filter_map(|at| at.or_else(&mut next));
    let all: Arc<[Backend]> = all.collect();
    // Shared with what is in force already.
    if all == *before { before.clone() } else { all }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;

    use super::*;
    use crate::intent::{FrontendAddress, Masquerade};
    use crate::objects::{ObjectName, Protocol};

    fn backends(numbers: impl IntoIterator<Item = u16>) -> Arc<[Backend]> {
        let backend = |n: u16| Backend {
            address: IpAddr::from([10, 0, (n >> 8) as u8, n as u8]),
            port: 80,
            local: false,
        };
        numbers.into_iter().map(backend).collect()
    }

    /// Frontends of one cluster IP.
    fn intent(ports: &[(u16, &Arc<[Backend]>)]) -> ServiceIntent {
        let frontend = |(port, backends): &(u16, &Arc<[Backend]>)| Frontend {
            address: FrontendAddress::ClusterIp([10, 96, 0, 1].into()),
            protocol: Protocol::Tcp,
            port: *port,
            service_port: *port,
            disposition: Disposition::Balance(Arc::clone(backends)),
            outside: None,
            masquerade: Masquerade::OffCluster,
            allowed_sources: None,
            affinity: None,
            counted: false,
            serving: Arc::clone(backends),
        };
        ServiceIntent {
            service: ObjectName::new("shop", "web"),
            created: None,
            frontends: ports.iter().map(frontend).collect(),
            load_balancer_ips: Vec::new(),
            relays: BTreeMap::new(),
            reset_removed: false,
            health_check: None,
        }
    }

    fn list(intent: &ServiceIntent, at: usize) -> &Arc<[Backend]> {
        match &intent.frontends[at].disposition {
            Disposition::Balance(backends) => backends,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_endpoint_that_replaces_another_gets_its_slot() {
        let before = intent(&[(80, &backends(0..1000))]);
        let mut now = intent(&[(80, &backends(1..1001))]);
        keep_slots(&mut now, &before);
        let expected = backends(std::iter::once(1000).chain(1..1000));
        assert_eq!(*list(&now, 0), expected);
        // And so on: the order is that of what is in force, not the sorted one.
        let mut later = intent(&[(80, &backends((1..500).chain(501..1002)))]);
        keep_slots(&mut later, &now);
        let changed = list(&later, 0).iter().zip(list(&now, 0).iter());
        assert_eq!(changed.filter(|(a, b)| a != b).count(), 1);
        let mut same = intent(&[(80, &backends(1..1001))]);
        keep_slots(&mut same, &now);
        assert!(Arc::ptr_eq(list(&same, 0), list(&now, 0)));
    }

    #[test]
    fn all_endpoints_are_used_once_whatever_changed() {
        let before = intent(&[(80, &backends(0..600)), (81, &backends(0..600))]);
        for step in [1, 7, 300, 599, 600] {
            let wanted = backends(step..step + 600);
            // Two ports of one Service share their lists.
            let mut now = intent(&[(80, &wanted), (81, &wanted)]);
            keep_slots(&mut now, &before);
            let mut found = list(&now, 0).to_vec();
            found.sort_unstable();
            assert_eq!(found, *wanted);
            assert_eq!(list(&now, 0), list(&now, 1));
        }
    }

    #[test]
    fn other_numbers_and_small_frontends_are_sorted() {
        for (old, new) in [(0..1000, 1..1000), (0..255, 1..256), (0..1000, 0..1001)] {
            let before = intent(&[(80, &backends(old))]);
            let wanted = backends(new);
            let mut now = intent(&[(80, &wanted)]);
            keep_slots(&mut now, &before);
            assert_eq!(*list(&now, 0), wanted);
        }
    }

    #[test]
    fn a_frontend_without_predecessor_is_sorted() {
        let before = intent(&[(80, &backends(0..1000)), (82, &backends(0..1000))]);
        let wanted = backends(1..1001);
        let mut now = intent(&[(79, &wanted), (81, &wanted), (82, &wanted), (83, &wanted)]);
        keep_slots(&mut now, &before);
        let is_sorted = |at| list(&now, at).is_sorted();
        assert_eq!([0, 1, 2, 3].map(is_sorted), [true, true, false, true]);
    }
}
