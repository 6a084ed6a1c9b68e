//! A packet on its way through the chains, with its connection.

use std::net::IpAddr;

use nft::Side;

use super::Memory;
use crate::cluster::{Node, Transport};
use crate::oracle::{Origin, Packet, Protocol};

/// Protocol number of TCP (IANA).
pub(super) const TCP: u8 = 6;

/// A packet on its way, with its connection.
pub(super) struct Flight<'a> {
    pub(super) origin: Origin,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
    /// Destination before NAT.
    pub(super) original: (IpAddr, u16),
    pub(super) is_dnat: bool,
    pub(super) masqueraded: bool,
    pub(super) hash: u32,
    /// `skb->priority`
    pub(super) priority: u32,
    /// The input interface; empty for packets of the node itself.
    pub(super) interface: String,
    /// Elements that packets have written, this one included.
    pub(super) memory: Memory,
    node: &'a Node,
}

impl<'a> Flight<'a> {
    pub(super) fn new(packet: &Packet, node: &'a Node, memory: &Memory, hash: u32) -> Self {
        let protocol = match packet.protocol {
            Protocol::Transport(Transport::Tcp) => TCP,
            Protocol::Transport(Transport::Udp) => 17,
            Protocol::Transport(Transport::Sctp) => 132,
            Protocol::Icmp if packet.source.is_ipv4() => 1,
            Protocol::Icmp => 58,
        };
        Flight {
            origin: packet.origin,
            source: packet.source,
            destination: packet.destination,
            port: packet.port,
            protocol,
            original: (packet.destination, packet.port),
            is_dnat: false,
            masqueraded: false,
            hash,
            priority: 0,
            interface: match packet.origin {
                Origin::Node => String::new(),
                Origin::Elsewhere => node.interface_of(packet.source),
            },
            memory: memory.clone(),
            node,
        }
    }

    /// Whether the address is the node's.
    pub(super) fn is_local(&self, address: IpAddr) -> bool {
        self.node.interfaces.contains(&address)
    }

    pub(super) fn send_to(&mut self, address: IpAddr, port: u16) {
        (self.destination, self.port) = (address, port);
        self.is_dnat = (address, port) != self.original;
    }

    /// Whether one of the packet's addresses is the node's.
    pub(super) fn is_local_side(&self, of: Side) -> bool {
        let address = match of {
            Side::Source => self.source,
            Side::Destination => self.destination,
        };
        address.is_loopback() || self.is_local(address)
    }
}
