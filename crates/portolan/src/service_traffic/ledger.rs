//! Sums of the traffic of each Service, from entries that are listed again and again, and once when they end.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use netfilter::{Flow, Volume};
use service_model::ObjectName;

use super::frontends::Frontends;

/// Entries whose numbers are kept from one listing to the next, about 60 bytes each. Others count when they end.
const KEPT: usize = 100_000;

/// Connections, packets and bytes of a Service, both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) flows: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// What has been counted of an entry.
#[derive(Clone, Copy, Debug)]
struct Counted {
    volume: Volume,
    /// The last listing that had the entry.
    listing: u64,
}

/// The sums.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) frontends: Frontends,
    sums: HashMap<ObjectName, Sum>,
    /// By a hash of the entry.
    counted: HashMap<u64, Counted>,
    hasher: RandomState,
    /// Number of the current listing. The first one only says what there was before: see [`Ledger::begin`].
    listing: u64,
    is_first: bool,
    losses: u64,
}

impl Ledger {
    /// Begins to count: what the entries at the first listing have had by then is not counted.
    pub(super) fn begin(&mut self) {
        self.counted.clear();
        self.is_first = true;
    }

    /// Begins a listing of all entries.
    pub(super) fn begin_listing(&mut self) {
        self.listing += 1;
    }

    /// Counts what a listed entry has had since it was last counted.
    pub(super) fn listed(&mut self, flow: &Flow, volume: Volume) {
        let key = self.key(flow);
        let Ledger {
            frontends,
            sums,
            counted,
            ..
        } = self;
        let Some(service) = frontends.holder(flow.protocol, flow.destination) else {
            return;
        };
        if counted.len() >= KEPT && !counted.contains_key(&key) {
            return;
        }
        let new = Counted {
            volume,
            listing: self.listing,
        };
        let before = counted.insert(key, new).map(|before| before.volume);
        if !self.is_first {
            add(sums, service, before, volume);
        }
    }

    /// Counts what an entry has had since it was last counted, for the last time.
    pub(super) fn ended(&mut self, flow: &Flow, volume: Volume) {
        let before = self.counted.remove(&self.key(flow));
        if let Some(service) = self.frontends.holder(flow.protocol, flow.destination) {
            let before = before.map(|before| before.volume);
            add(&mut self.sums, service, before, volume);
        }
    }

    /// Ends a listing, after all entries that ended before and meanwhile. Entries that it did not have are gone, unless the
    /// listing was not whole; the kernel dropped the notification.
    pub(super) fn end_listing(&mut self, is_whole: bool) {
        self.is_first = false;
        if is_whole {
            let listing = self.listing;
            self.counted.retain(|_, counted| counted.listing == listing);
        }
        let frontends = &self.frontends;
        self.sums.retain(|service, _| frontends.has(service));
    }

    /// Notes that the kernel has dropped notifications.
    pub(super) fn lost(&mut self) {
        self.losses += 1;
    }

    /// How often the kernel has dropped notifications.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// The sums of the annotated Services and of those with the most bytes: this many altogether, unless there are more annotated
    /// ones, of which there are at most ten times as many.
    pub(super) fn busiest(&self, most: usize) -> Vec<(&ObjectName, Sum)> {
        let mut all: Vec<(bool, Sum, &ObjectName)> = self
            .sums
            .iter()
            .map(|(service, sum)| (self.frontends.is_annotated(service), *sum, service))
            .collect();
        all.sort_unstable_by(|a, b| {
            let key = |one: &(bool, Sum, _)| (one.0, one.1.bytes, one.1.packets, one.1.flows);
            key(b).cmp(&key(a)).then(a.2.cmp(b.2))
        });
        let annotated = all.iter().filter(|one| one.0).count();
        all.truncate(most.max(annotated.min(10 * most)));
        all.sort_unstable_by(|a, b| a.2.cmp(b.2));
        all.into_iter()
            .map(|(_, sum, service)| (service, sum))
            .collect()
    }

    fn key(&self, flow: &Flow) -> u64 {
        let Flow {
            protocol,
            source,
            destination,
            answers_from,
            ..
        } = flow;
        self.hasher
            .hash_one((protocol, source, destination, answers_from))
    }
}

/// Adds what an entry has had since `before`. Numbers that are smaller than before are another entry's, of the same addresses.
fn add(
    sums: &mut HashMap<ObjectName, Sum>,
    service: &ObjectName,
    before: Option<Volume>,
    now: Volume,
) {
    let before = before.filter(|before| before.bytes <= now.bytes);
    let known = before.unwrap_or_default();
    // Not `entry`: most of the time the Service is there, and its name is not copied.
    let sum = match sums.get_mut(service) {
        Some(sum) => sum,
        None => sums.entry(service.clone()).or_default(),
    };
    sum.flows += u64::from(before.is_none());
    sum.packets += now.packets.saturating_sub(known.packets);
    sum.bytes += now.bytes.saturating_sub(known.bytes);
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use service_dataplane::Claim;
    use service_model::{FrontendAddress, Protocol};

    use super::*;

    const WEB: u8 = 1;

    fn name(n: u8) -> ObjectName {
        ObjectName::new("shop", format!("web-{n}"))
    }

    fn ledger(services: u8, annotated: &[u8]) -> Ledger {
        let mut ledger = Ledger::default();
        ledger.frontends.set_node_addresses(&[] as &[IpAddr]);
        for n in 1..=services {
            let claim = Claim {
                address: FrontendAddress::ClusterIp([10, 96, 0, n].into()),
                protocol: Protocol::Tcp,
                port: 80,
            };
            let is_annotated = annotated.contains(&n);
            ledger.frontends.set(name(n), vec![(claim, is_annotated)]);
        }
        ledger.begin();
        ledger
    }

    fn flow(service: u8, port: u16) -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            source: SocketAddr::from(([10, 244, 0, 9], port)),
            destination: SocketAddr::from(([10, 96, 0, service], 80)),
            answers_from: SocketAddr::from(([10, 244, 0, 1], 8080)),
            answered: true,
        }
    }

    fn volume(bytes: u64) -> Volume {
        Volume {
            packets: bytes / 100,
            bytes,
        }
    }

    fn list(ledger: &mut Ledger, entries: &[(u16, u64)]) {
        ledger.begin_listing();
        for (port, bytes) in entries {
            ledger.listed(&flow(WEB, *port), volume(*bytes));
        }
        ledger.end_listing(true);
    }

    fn sum(ledger: &Ledger) -> (u64, u64) {
        let sum = ledger.sums.get(&name(WEB)).copied().unwrap_or_default();
        assert_eq!(sum.packets, sum.bytes / 100);
        (sum.flows, sum.bytes)
    }

    #[test]
    fn what_was_there_before_the_start_does_not_count() {
        let mut ledger = ledger(1, &[]);
        list(&mut ledger, &[(1, 1_000)]);
        assert_eq!(sum(&ledger), (0, 0));
        list(&mut ledger, &[(1, 1_500), (2, 300)]);
        assert_eq!(sum(&ledger), (1, 800));
    }

    #[test]
    fn an_entry_counts_once_through_listings_and_its_end() {
        let mut ledger = ledger(1, &[]);
        list(&mut ledger, &[]);
        list(&mut ledger, &[(1, 200)]);
        // Lives between two listings.
        ledger.ended(&flow(WEB, 2), volume(500));
        // Ends during a listing that still has it, and one that has it no more.
        ledger.begin_listing();
        ledger.listed(&flow(WEB, 1), volume(300));
        ledger.ended(&flow(WEB, 1), volume(400));
        ledger.end_listing(true);
        assert_eq!(sum(&ledger), (2, 900));
        list(&mut ledger, &[(1, 100)]);
        assert_eq!(sum(&ledger), (3, 1_000), "a new entry of the same ports");
        assert_eq!(ledger.counted.len(), 1);
    }

    #[test]
    fn entries_whose_end_was_lost_are_forgotten() {
        let mut ledger = ledger(1, &[]);
        list(&mut ledger, &[]);
        list(&mut ledger, &[(1, 200), (2, 200)]);
        ledger.begin_listing();
        ledger.listed(&flow(WEB, 2), volume(200));
        ledger.end_listing(false);
        assert_eq!(ledger.counted.len(), 2, "a listing that was not whole");
        list(&mut ledger, &[(2, 200)]);
        assert_eq!((ledger.counted.len(), sum(&ledger)), (1, (2, 400)));
    }

    #[test]
    fn sums_of_a_deleted_service_are_gone() {
        let mut ledger = ledger(1, &[]);
        list(&mut ledger, &[]);
        ledger.ended(&flow(WEB, 1), volume(500));
        ledger.frontends.set(name(WEB), Vec::new());
        list(&mut ledger, &[]);
        assert!(ledger.busiest(10).is_empty());
        ledger.ended(&flow(WEB, 1), volume(500));
        assert!(ledger.busiest(10).is_empty());
    }

    #[test]
    fn the_busiest_and_the_annotated_services_are_exposed() {
        let mut ledger = ledger(9, &[2]);
        list(&mut ledger, &[]);
        for n in 1..=9 {
            ledger.ended(&flow(n, 1), volume(100 * u64::from(n)));
        }
        let names = |most| -> Vec<ObjectName> {
            let busiest = ledger.busiest(most).into_iter();
            busiest.map(|(service, _)| service.clone()).collect()
        };
        assert_eq!(names(3), [name(2), name(8), name(9)]);
        assert_eq!(names(20).len(), 9);
    }
}
