//! The packets worth trying on a cluster.
//!
//! Every frontend from every kind of source, and what lies just beside the frontends: unknown ports, other
//! protocols, node ports on addresses that have none, addresses of Services that are not ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cluster::space::{node_address, outside_address, pod_address};
use crate::cluster::{Cluster, Node, Service, Transport, endpoint_addresses};
use crate::oracle::{Origin, Packet, Protocol, primary_address};

/// A sender as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// Where the packet enters.
    pub origin: Origin,
    pub source: IpAddr,
}

/// All packets worth trying on `node`, in order, without repetition. Pods at `client_pod` are clients, not
/// endpoints.
pub fn interesting(cluster: &Cluster, node: &Node, client_pod: u8) -> Vec<Packet> {
    let endpoints = endpoint_addresses(cluster);
    let mut out = BTreeSet::new();
    for ipv4 in [true, false] {
        let mut trials = Trials {
            node,
            senders: senders(node, client_pod, ipv4),
            clients: hairpins(cluster, node, ipv4, &endpoints),
            out: &mut out,
        };
        for service in &cluster.services {
            for address in service.cluster_ips.iter().filter(|a| a.is_ipv4() == ipv4) {
                trials.try_address(service, *address, usize::MAX);
            }
            for address in external_addresses(service).filter(|a| a.is_ipv4() == ipv4) {
                trials.try_address(service, address, 1);
            }
            trials.try_node_ports(service, ipv4);
        }
        trials.try_strangers(ipv4);
    }
    out.into_iter().collect()
}

/// Everything that a Service names as an external address, whether it gets it or not.
fn external_addresses(service: &Service) -> impl Iterator<Item = IpAddr> {
    let ingress = service.ingress.iter().filter_map(|i| i.ip.as_ref());
    let texts = service.external_ips.iter().chain(ingress);
    texts.filter_map(|text| text.replace(".00", ".").parse().ok())
}

/// One of each kind: a pod on the node, one on another, a host outside, another node, the node itself.
fn senders(node: &Node, client_pod: u8, ipv4: bool) -> Vec<Sender> {
    let number = node.name.trim_start_matches("node-").parse().unwrap_or(1);
    let other = if number == 1 { 2 } else { 1 };
    let received = [
        pod_address(number, client_pod, ipv4),
        pod_address(other, client_pod, ipv4),
        outside_address(ipv4),
        node_address(other, ipv4),
    ];
    let received = received.map(|source| Sender {
        origin: Origin::Elsewhere,
        source,
    });
    let own = primary_address(node, ipv4).map(|source| Sender {
        origin: Origin::Node,
        source,
    });
    received.into_iter().chain(own).collect()
}

/// Endpoints as clients: some of each Service may meet themselves.
fn hairpins(
    cluster: &Cluster,
    node: &Node,
    ipv4: bool,
    endpoints: &BTreeSet<IpAddr>,
) -> Vec<Sender> {
    let locals: BTreeSet<IpAddr> = cluster
        .slices
        .iter()
        .flat_map(|slice| &slice.endpoints)
        .filter(|e| e.node.as_ref() == Some(&node.name))
        .filter_map(|e| e.addresses.first()?.parse().ok())
        .collect();
    let (here, elsewhere): (Vec<IpAddr>, Vec<IpAddr>) = endpoints
        .iter()
        .copied()
        .filter(|a| a.is_ipv4() == ipv4 && !a.is_loopback() && !node.interfaces.contains(a))
        .partition(|a| locals.contains(a));
    let few = here
        .into_iter()
        .take(4)
        .chain(elsewhere.into_iter().take(1));
    few.map(|source| Sender {
        origin: Origin::Elsewhere,
        source,
    })
    .collect()
}

/// Where packets are gathered.
struct Trials<'a> {
    node: &'a Node,
    senders: Vec<Sender>,
    clients: Vec<Sender>,
    out: &'a mut BTreeSet<Packet>,
}

impl Trials<'_> {
    /// An address of a Service, its ports and the packets beside them; ICMP from the first `pings` senders.
    fn try_address(&mut self, service: &Service, address: IpAddr, pings: usize) {
        for port in &service.ports {
            let protocol = Protocol::Transport(port.transport);
            self.try_from_all(address, protocol, port.port);
            self.beside(address, port.port);
            self.beside(address, port.node_port.max(1));
        }
        let senders = self.senders.clone();
        self.add(&senders, address, TCP, 9);
        let pings = &senders[..pings.min(senders.len())];
        self.add(pings, address, Protocol::Icmp, 0);
    }

    fn try_node_ports(&mut self, service: &Service, ipv4: bool) {
        let node = self.node;
        let own = node.interfaces.iter();
        let own = own.filter(|a| a.is_ipv4() == ipv4 && !a.is_loopback());
        for port in service.ports.iter().filter(|p| p.node_port != 0) {
            let protocol = Protocol::Transport(port.transport);
            for address in own.clone() {
                self.try_from_all(*address, protocol, port.node_port);
                self.try_from_one(*address, protocol, port.port);
                self.beside(*address, port.node_port);
            }
            // A node port is on nodes only: not on someone else's address that passes by.
            let passing = outside_address(ipv4);
            self.add(&self.senders.clone(), passing, protocol, port.node_port);
            let loopback: IpAddr = match ipv4 {
                true => Ipv4Addr::LOCALHOST.into(),
                false => Ipv6Addr::LOCALHOST.into(),
            };
            let local = Sender {
                origin: Origin::Node,
                source: loopback,
            };
            self.add(&[local], loopback, protocol, port.node_port);
        }
    }

    /// Addresses that no Service ever has: inside the ranges of cluster IPs and not, a pod's, one outside.
    fn try_strangers(&mut self, ipv4: bool) {
        let addresses: [IpAddr; 4] = match ipv4 {
            true => [
                Ipv4Addr::new(10, 96, 0, 9).into(),
                Ipv4Addr::new(10, 97, 0, 9).into(),
                Ipv4Addr::new(10, 244, 1, 2).into(),
                Ipv4Addr::new(203, 0, 113, 250).into(),
            ],
            false => [
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 9).into(),
                Ipv6Addr::new(0xfd00, 0x97, 0, 0, 0, 0, 0, 9).into(),
                Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 2).into(),
                Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x250).into(),
            ],
        };
        for address in addresses {
            self.add(&self.senders.clone(), address, TCP, 80);
            self.try_from_one(address, Protocol::Icmp, 0);
        }
    }

    fn try_from_all(&mut self, destination: IpAddr, protocol: Protocol, port: u16) {
        self.add(&self.senders.clone(), destination, protocol, port);
        self.add(&self.clients.clone(), destination, protocol, port);
    }

    fn try_from_one(&mut self, destination: IpAddr, protocol: Protocol, port: u16) {
        let one: Vec<Sender> = self.senders.iter().take(1).copied().collect();
        self.add(&one, destination, protocol, port);
    }

    /// The same number over every protocol.
    fn beside(&mut self, destination: IpAddr, port: u16) {
        for transport in Transport::ALL {
            self.try_from_one(destination, Protocol::Transport(transport), port);
        }
    }

    fn add(&mut self, senders: &[Sender], destination: IpAddr, protocol: Protocol, port: u16) {
        let to_itself = self.node.interfaces.contains(&destination);
        for sender in senders {
            let source = match sender.origin {
                // What the node sends to an address of its own has that for its source.
                Origin::Node if to_itself => destination,
                Origin::Elsewhere if sender.source == destination => continue,
                _ => sender.source,
            };
            self.out.insert(Packet {
                origin: sender.origin,
                source,
                destination,
                protocol,
                port,
            });
        }
    }
}

const TCP: Protocol = Protocol::Transport(Transport::Tcp);
