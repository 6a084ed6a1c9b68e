//! The packets worth trying on a cluster.
//!
//! Every frontend from every kind of source, and what lies just beside the frontends: unknown ports, other
//! protocols, node ports on addresses that have none, addresses of Services that are not ours.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::cluster::generate::{outside_address, pod_address};
use crate::cluster::{Cluster, Node, Service, Transport, endpoint_addresses};
use crate::oracle::{Origin, Packet, Protocol, primary_address};

/// A sender as a node sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sender {
    /// Where the packet enters.
    pub origin: Origin,
    /// Its source address.
    pub source: IpAddr,
}

/// All packets worth trying on `node`, in order, without repetition. Pods at `client_pod` are clients, not
/// endpoints.
pub fn interesting(cluster: &Cluster, node: &Node, client_pod: u8) -> Vec<Packet> {
    let mut out = BTreeSet::new();
    let endpoints = endpoint_addresses(cluster);
    for ipv4 in [true, false] {
        let senders = senders(node, client_pod, ipv4);
        let clients = hairpins(cluster, node, ipv4, &endpoints);
        for service in &cluster.services {
            for address in service.cluster_ips.iter().filter(|a| a.is_ipv4() == ipv4) {
                cluster_ip_packets(service, *address, &senders, &clients, &mut out);
            }
            node_port_packets(service, node, ipv4, &senders, &clients, &mut out);
        }
        let unrelated: [IpAddr; 2] = match ipv4 {
            true => [
                Ipv4Addr::new(10, 96, 0, 9).into(),
                Ipv4Addr::new(10, 244, 1, 2).into(),
            ],
            false => [
                Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 9).into(),
                Ipv6Addr::new(0xfd00, 0x244, 1, 0, 0, 0, 0, 2).into(),
            ],
        };
        for address in unrelated {
            add(
                &mut out,
                &senders,
                address,
                Protocol::Transport(Transport::Tcp),
                80,
            );
        }
    }
    out.into_iter().collect()
}

/// One of each kind: a pod on the node, one on another, the node itself, a host outside.
fn senders(node: &Node, client_pod: u8, ipv4: bool) -> Vec<Sender> {
    let number = node.name.trim_start_matches("node-").parse().unwrap_or(1);
    let other = if number == 1 { 2 } else { 1 };
    let mut senders = vec![
        Sender {
            origin: Origin::Elsewhere,
            source: pod_address(number, client_pod, ipv4),
        },
        Sender {
            origin: Origin::Elsewhere,
            source: pod_address(other, client_pod, ipv4),
        },
        Sender {
            origin: Origin::Elsewhere,
            source: outside_address(ipv4),
        },
    ];
    if let Some(source) = primary_address(node, ipv4) {
        senders.push(Sender {
            origin: Origin::Node,
            source,
        });
    }
    senders
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

fn cluster_ip_packets(
    service: &Service,
    address: IpAddr,
    senders: &[Sender],
    clients: &[Sender],
    out: &mut BTreeSet<Packet>,
) {
    for port in &service.ports {
        let protocol = Protocol::Transport(port.transport);
        add(out, senders, address, protocol, port.port);
        add(out, clients, address, protocol, port.port);
        let one = senders.get(..1).unwrap_or_default();
        for other in Transport::ALL {
            add(out, one, address, Protocol::Transport(other), port.port);
            add(
                out,
                one,
                address,
                Protocol::Transport(other),
                port.node_port.max(1),
            );
        }
    }
    add(
        out,
        senders,
        address,
        Protocol::Transport(Transport::Tcp),
        9,
    );
    add(out, senders, address, Protocol::Icmp, 0);
}

fn node_port_packets(
    service: &Service,
    node: &Node,
    ipv4: bool,
    senders: &[Sender],
    clients: &[Sender],
    out: &mut BTreeSet<Packet>,
) {
    let one = senders.get(2..3).unwrap_or_default();
    let own = node
        .interfaces
        .iter()
        .filter(|a| a.is_ipv4() == ipv4 && !a.is_loopback());
    for port in service.ports.iter().filter(|p| p.node_port != 0) {
        let protocol = Protocol::Transport(port.transport);
        for address in own.clone() {
            add(out, senders, *address, protocol, port.node_port);
            add(out, clients, *address, protocol, port.node_port);
            add(out, one, *address, protocol, port.port);
            for other in Transport::ALL {
                add(
                    out,
                    one,
                    *address,
                    Protocol::Transport(other),
                    port.node_port,
                );
            }
        }
        // A node port is on nodes only: not on someone else's address that passes by.
        add(
            out,
            senders,
            outside_address(ipv4),
            protocol,
            port.node_port,
        );
        let loopback: IpAddr = if ipv4 {
            Ipv4Addr::LOCALHOST.into()
        } else {
            Ipv6Addr::LOCALHOST.into()
        };
        let local = Sender {
            origin: Origin::Node,
            source: loopback,
        };
        add(out, &[local], loopback, protocol, port.node_port);
    }
}

fn add(
    out: &mut BTreeSet<Packet>,
    senders: &[Sender],
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
) {
    let packets = senders
        .iter()
        .filter(|s| s.source != destination || s.origin == Origin::Node);
    out.extend(packets.map(|s| Packet {
        origin: s.origin,
        source: s.source,
        destination,
        protocol,
        port,
    }));
}
