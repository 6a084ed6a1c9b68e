//! The slots of endpoints in large frontends: a function of the endpoints alone, in which one that is replaced moves few others.
//!
//! Were the endpoints of a large frontend in their slots in order, one that replaces another would move all between the two: of
//! 4,096, a third on average, in one commit that others wait for.
//! Here each endpoint has an order of slots of its own, by a hash, and gets the first that no endpoint before it has got; a
//! hash says who is before whom as well. So only those move for whom a better slot gets free or is lost, one after another:
//! 13 of 4,096 on average, 8 of 256.

use std::borrow::Cow;
use std::net::IpAddr;

use service_model::{Backend, hash};

/// Smaller frontends are sorted: they are written in well below a millisecond, and people read them.
const SMALLEST: usize = 256;
/// Slots that are tried for an endpoint on average, before the rest get what is left in their order: endpoints are chosen by
/// tenants. `ln(n)` are to be expected.
const TRIED: usize = 64;
/// Between the states of the generator (SplitMix64).
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Puts endpoints, no two alike, in the order of their slots. Fixed for good: a version that changed it would move all of them.
pub fn in_slots(endpoints: &[Backend]) -> Cow<'_, [Backend]> {
    match endpoints.len() < SMALLEST {
        true => endpoints.into(),
        false => placed(endpoints, endpoints.len() * TRIED).into(),
    }
}

fn placed(endpoints: &[Backend], mut tries: usize) -> Vec<Backend> {
    let count = endpoints.len();
    let all = endpoints.iter().map(|endpoint| (seed(endpoint), *endpoint));
    let mut all: Vec<(u64, Backend)> = all.collect();
    all.sort_unstable_by_key(|(seed, backend)| (*seed, backend.address, backend.port));
    let mut slots: Vec<Option<Backend>> = vec![None; count];
    let mut rest = Vec::new();
    for (seed, backend) in all {
        let states = (1..).map(|n: u64| seed.wrapping_add(GAMMA.wrapping_mul(n)));
        let places = states.map(|state| place(hash::mixed(state), count));
        let mut tried = places.take(tries).enumerate();
        let free = tried.find(|(_, at)| slots.get(*at) == Some(&None));
        tries -= free.map_or(tries, |(before, _)| before + 1);
        match free.and_then(|(_, at)| slots.get_mut(at)) {
            Some(slot) => *slot = Some(backend),
            None => rest.push(backend),
        }
    }
    let mut rest = rest.into_iter();
    let all = slots
        .into_iter()
        .filter_map(|slot| slot.or_else(|| rest.next()));
    all.collect()
}

/// Of the endpoint, whatever node it is on.
fn seed(backend: &Backend) -> u64 {
    let port = backend.port.to_be_bytes().into_iter();
    hash::mixed(match backend.address {
        IpAddr::V4(address) => hash::fnv(address.octets().into_iter().chain(port)),
        IpAddr::V6(address) => hash::fnv(address.octets().into_iter().chain(port)),
    })
}

/// A number below `count`: the hash as a fraction of it.
fn place(hash: u64, count: usize) -> usize {
    let place = (u128::from(hash) * count as u128) >> 64;
    usize::try_from(place).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    fn backend(n: u16) -> Backend {
        let [high, low] = n.to_be_bytes();
        Backend {
            address: IpAddr::from([10, 0, high, low]),
            port: 80,
            local: false,
        }
    }

    fn slots(numbers: Range<u16>) -> Vec<Backend> {
        in_slots(&numbers.map(backend).collect::<Vec<_>>()).into_owned()
    }

    #[test]
    fn an_endpoint_that_replaces_another_moves_few_of_thousands() {
        for count in [300, 4096] {
            let all = (0..50).map(|first| {
                let (before, after) = (
                    slots(first..first + count),
                    slots(first + 1..first + 1 + count),
                );
                let moved = before.iter().zip(&after).filter(|(a, b)| a != b);
                moved.count()
            });
            let all: Vec<usize> = all.collect();
            let average = all.iter().sum::<usize>() / all.len();
            assert!(average <= 24, "{average} of {count}");
            assert!(all.iter().all(|moved| (1..=80).contains(moved)), "{all:?}");
        }
    }

    #[test]
    fn every_endpoint_has_one_slot_whatever_order_they_come_in() {
        let mut endpoints: Vec<Backend> = (0..1000).map(backend).collect();
        let in_order = in_slots(&endpoints).into_owned();
        endpoints.reverse();
        assert_eq!(*in_slots(&endpoints), in_order);
        let mut sorted = in_order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).map(backend).collect::<Vec<_>>());
        assert_ne!(sorted, in_order);
    }

    #[test]
    fn an_endpoint_that_moves_to_this_node_keeps_its_slot() {
        let mut endpoints: Vec<Backend> = (0..300).map(backend).collect();
        let before = in_slots(&endpoints).into_owned();
        endpoints[7].local = true;
        let after = in_slots(&endpoints);
        let changed = before.iter().zip(after.iter()).filter(|(a, b)| a != b);
        let changed: Vec<_> = changed
            .map(|(a, b)| (a.address == b.address, b.local))
            .collect();
        assert_eq!(changed, [(true, true)]);
    }

    #[test]
    fn small_frontends_are_sorted() {
        assert!(slots(0..255).is_sorted());
        assert!(!slots(0..256).is_sorted());
    }

    #[test]
    fn the_slots_of_endpoints_are_the_same_in_every_version() {
        let slots = slots(0..256);
        let last = |at: usize| match slots[at].address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        };
        assert_eq!(
            [0, 1, 2, 3, 4, 5, 6, 7].map(last),
            [104, 235, 126, 185, 136, 197, 111, 80]
        );
    }

    #[test]
    fn endpoints_without_a_try_left_get_the_other_slots() {
        for tries in [0, 1, 300, 1000] {
            let endpoints: Vec<Backend> = (0..300).map(backend).collect();
            let mut placed = placed(&endpoints, tries);
            placed.sort_unstable();
            assert_eq!(placed, endpoints);
        }
    }
}
