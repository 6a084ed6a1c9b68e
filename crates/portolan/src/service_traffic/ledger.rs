//! Sums of the traffic of each Service, from entries that are listed again and again, and once when they end.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;

use netfilter::{Flow, Volume};
use service_model::ObjectName;

use super::frontends::{Frontends, Holder, Port, Request};

/// Entries whose numbers are kept from one listing to the next, about 60 bytes each. Others count when they end.
const KEPT: usize = 100_000;

/// Connections, packets and bytes, both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) flows: u64,
    pub(super) packets: u64,
    pub(super) bytes: u64,
}

/// The sums of one Service.
#[derive(Clone, Debug, Default)]
pub(super) struct Sums {
    pub(super) ports: BTreeMap<Port, Sum>,
    /// Of an annotated Service, by port and endpoint, with the last listing that had an entry of the endpoint.
    pub(super) endpoints: BTreeMap<(Port, SocketAddr), (Sum, u64)>,
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
    sums: HashMap<ObjectName, Sums>,
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
            listing,
            is_first,
            ..
        } = self;
        let Some(holder) = frontends.holder(flow.protocol, flow.destination) else {
            return;
        };
        if counted.len() >= KEPT && !counted.contains_key(&key) {
            return;
        }
        let new = Counted {
            volume,
            listing: *listing,
        };
        let before = counted.insert(key, new).map(|before| before.volume);
        if !*is_first {
            let added = Sum::between(before, volume);
            add(sums, holder, flow.answers_from, added, *listing);
        }
    }

    /// Counts what an entry has had since it was last counted, for the last time.
    pub(super) fn ended(&mut self, flow: &Flow, volume: Volume) {
        let before = self.counted.remove(&self.key(flow));
        if let Some(holder) = self.frontends.holder(flow.protocol, flow.destination) {
            let added = Sum::between(before.map(|before| before.volume), volume);
            let endpoint = flow.answers_from;
            add(&mut self.sums, holder, endpoint, added, self.listing);
        }
    }

    /// Ends a listing, after all entries that ended before and meanwhile. Entries that it did not have are gone, unless the
    /// listing was not whole; the kernel dropped the notification.
    pub(super) fn end_listing(&mut self, is_whole: bool) {
        self.is_first = false;
        let listing = self.listing;
        if is_whole {
            self.counted.retain(|_, counted| counted.listing == listing);
        }
        let frontends = &self.frontends;
        self.sums.retain(|service, sums| {
            let Some(request) = frontends.request(service) else {
                return false;
            };
            sums.forget(request, |last| is_whole && last < listing);
            true
        });
    }

    /// Notes that the kernel has dropped notifications.
    pub(super) fn lost(&mut self) {
        self.losses += 1;
    }

    /// How often the kernel has dropped notifications.
    pub(super) fn losses(&self) -> u64 {
        self.losses
    }

    /// The sums of so many Services with the most bytes, and of annotated ones in addition: as many of a namespace, and ten
    /// times as many in all. In the order of their names.
    pub(super) fn busiest(&self, most: usize) -> Vec<(&ObjectName, &Sums)> {
        let mut all: Vec<(bool, Sum, &ObjectName, &Sums)> = self
            .sums
            .iter()
            .map(|(service, sums)| {
                let is_annotated = self.frontends.endpoints(service).is_some();
                (is_annotated, sums.total(), service, sums)
            })
            .collect();
        let by_bytes = |a: &(bool, Sum, &ObjectName, &Sums), b: &(bool, Sum, _, _)| {
            let key = |(is_annotated, sum, ..): &(bool, Sum, _, _)| {
                (*is_annotated, sum.bytes, sum.packets, sum.flows)
            };
            key(b).cmp(&key(a)).then(a.2.cmp(b.2))
        };
        all.sort_unstable_by(by_bytes);
        // Annotated ones beyond the limits are like any other.
        let (mut of_namespaces, mut annotated) = (BTreeMap::new(), 0);
        for (is_annotated, _, service, _) in &mut all {
            let of_namespace: &mut usize = of_namespaces.entry(&service.namespace).or_default();
            *is_annotated &= *of_namespace < most && annotated < 10 * most;
            *of_namespace += usize::from(*is_annotated);
            annotated += usize::from(*is_annotated);
        }
        all.sort_unstable_by(by_bytes);
        all.truncate(annotated + most);
        all.sort_unstable_by(|a, b| a.2.cmp(b.2));
        all.into_iter()
            .map(|(_, _, service, sums)| (service, sums))
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

/// Adds what an entry has had to the sums of its Service, and of its endpoint if the Service is annotated.
fn add(
    sums: &mut HashMap<ObjectName, Sums>,
    holder: &Holder,
    endpoint: SocketAddr,
    added: Sum,
    listing: u64,
) {
    // Not `entry`: most of the time the Service is there, and its name is not copied.
    let sums = match sums.get_mut(&holder.service) {
        Some(sums) => sums,
        None => sums.entry(holder.service.clone()).or_default(),
    };
    sums.ports.entry(holder.port).or_default().add(added);
    if holder.is_annotated {
        let of_endpoint = sums.endpoints.entry((holder.port, endpoint));
        let (sum, last) = of_endpoint.or_default();
        sum.add(added);
        *last = listing;
    }
}

impl Sum {
    /// What an entry has had since `before`. Numbers that are smaller than before are another entry's, of the same addresses.
    fn between(before: Option<Volume>, now: Volume) -> Sum {
        let before = before.filter(|before| before.bytes <= now.bytes);
        let known = before.unwrap_or_default();
        Sum {
            flows: u64::from(before.is_none()),
            packets: now.packets.saturating_sub(known.packets),
            bytes: now.bytes.saturating_sub(known.bytes),
        }
    }

    fn add(&mut self, more: Sum) {
        self.flows += more.flows;
        self.packets += more.packets;
        self.bytes += more.bytes;
    }
}

impl Sums {
    fn total(&self) -> Sum {
        let mut total = Sum::default();
        self.ports.values().for_each(|sum| total.add(*sum));
        total
    }

    /// Forgets ports that the Service no longer has, and endpoints that it no longer has once `is_over` holds for the last listing
    /// with one of their entries.
    fn forget(&mut self, request: &Request, is_over: impl Fn(u64) -> bool) {
        let has = |port: &Port| request.frontends.iter().any(|(_, other)| other == port);
        self.ports.retain(|port, _| has(port));
        match &request.endpoints {
            None => self.endpoints.clear(),
            Some(endpoints) => self.endpoints.retain(|(port, endpoint), (_, last)| {
                has(port) && (endpoints.contains(endpoint) || !is_over(*last))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, SocketAddr};

    use service_dataplane::Claim;
    use service_model::{FrontendAddress, Protocol};

    use super::*;

    const WEB: u8 = 1;
    const HTTP: Port = Port {
        number: 80,
        protocol: Protocol::Tcp,
    };

    fn endpoint(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 244, 0, n], 8080))
    }

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
            let request = Request {
                frontends: vec![(claim, HTTP)],
                endpoints: annotated.contains(&n).then(|| [endpoint(1)].into()),
            };
            ledger.frontends.set(name(n), request);
        }
        ledger.begin();
        ledger
    }

    fn flow(service: u8, port: u16) -> Flow {
        Flow {
            protocol: Protocol::Tcp,
            source: SocketAddr::from(([10, 244, 0, 9], port)),
            destination: SocketAddr::from(([10, 96, 0, service], 80)),
            answers_from: endpoint(1),
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
        let sum = ledger.sums.get(&name(WEB)).map(Sums::total);
        let sum = sum.unwrap_or_default();
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
        ledger.frontends.set(name(WEB), Request::default());
        list(&mut ledger, &[]);
        assert!(ledger.busiest(10).is_empty());
        ledger.ended(&flow(WEB, 1), volume(500));
        assert!(ledger.busiest(10).is_empty());
    }

    #[test]
    fn endpoints_of_annotated_services_have_sums_of_their_own() {
        let mut ledger = ledger(2, &[WEB]);
        list(&mut ledger, &[]);
        let to = |service, port, n| Flow {
            answers_from: endpoint(n),
            ..flow(service, port)
        };
        ledger.ended(&to(WEB, 1, 1), volume(100));
        ledger.ended(&to(WEB, 2, 2), volume(200));
        ledger.ended(&to(WEB, 3, 2), volume(300));
        ledger.ended(&to(2, 1, 1), volume(400));
        let sums = |ledger: &Ledger| -> Vec<(u8, SocketAddr, u64, u64)> {
            let all = (1..).zip(ledger.busiest(10));
            all.flat_map(|(n, (_, sums))| {
                let endpoints = sums.endpoints.iter();
                endpoints.map(move |((_, at), (sum, _))| (n, *at, sum.flows, sum.bytes))
            })
            .collect()
        };
        let (first, second) = ((1, endpoint(1), 1, 100), (1, endpoint(2), 2, 500));
        assert_eq!(sums(&ledger), [first, second]);
        // The second one is no endpoint of the Service, as one that has ended is; its entries are gone by now.
        list(&mut ledger, &[]);
        assert_eq!(sums(&ledger), [first]);
    }

    #[test]
    fn node_ports_count_for_the_port_of_their_service() {
        let mut ledger = Ledger::default();
        let node: IpAddr = [192, 0, 2, 1].into();
        ledger.frontends.set_node_addresses(&[node]);
        let at = |address, port| Claim {
            address,
            protocol: Protocol::Tcp,
            port,
        };
        let cluster_ip = FrontendAddress::ClusterIp([10, 96, 0, WEB].into());
        let node_port = FrontendAddress::NodePort(service_model::Family::Ip);
        let request = Request {
            frontends: vec![(at(cluster_ip, 80), HTTP), (at(node_port, 30_080), HTTP)],
            endpoints: None,
        };
        ledger.frontends.set(name(WEB), request);
        ledger.begin();
        list(&mut ledger, &[]);
        ledger.ended(&flow(WEB, 1), volume(100));
        let to_node = Flow {
            destination: SocketAddr::new(node, 30_080),
            ..flow(WEB, 2)
        };
        ledger.ended(&to_node, volume(200));
        let ports: Vec<Port> = ledger.sums[&name(WEB)].ports.keys().copied().collect();
        assert_eq!((ports, sum(&ledger)), (vec![HTTP], (2, 300)));
    }

    #[test]
    fn the_busiest_and_the_annotated_services_are_exposed() {
        let names = |annotated: &[u8], most| -> Vec<ObjectName> {
            let mut ledger = ledger(9, annotated);
            list(&mut ledger, &[]);
            for n in 1..=9 {
                ledger.ended(&flow(n, 1), volume(100 * u64::from(n)));
            }
            let busiest = ledger.busiest(most).into_iter();
            busiest.map(|(service, _)| service.clone()).collect()
        };
        assert_eq!(names(&[2], 3), [name(2), name(7), name(8), name(9)]);
        assert_eq!(names(&[2], 20).len(), 9);
        // A namespace that annotates all it has leaves room for the busiest of the rest.
        let annotated = names(&[1, 2, 3, 4, 5], 2);
        assert_eq!(annotated, [name(4), name(5), name(8), name(9)]);
    }
}
