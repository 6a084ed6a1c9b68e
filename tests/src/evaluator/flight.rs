//! A packet on its way, with its connection.

use std::net::IpAddr;

use nft::expr::{Base, CtKey, IPS_DST_NAT};
use nft::{Bytes, Family, Side};

use super::Memory;
use crate::cluster::{Node, Transport};
use crate::oracle::{Origin, Packet, Protocol};

/// A packet on its way, with its connection.
pub(super) struct Flight<'a> {
    pub(super) origin: Origin,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
    pub(super) original: (IpAddr, u16),
    pub(super) is_dnat: bool,
    pub(super) masqueraded: bool,
    pub(super) hash: u32,
    /// `skb->priority`
    pub(super) priority: u32,
    /// By which it came; empty for the node's own.
    interface: String,
    /// What packets have written.
    pub(super) memory: Memory,
    node: &'a Node,
}

impl<'a> Flight<'a> {
    pub(super) fn new(packet: &Packet, node: &'a Node, memory: &Memory, hash: u32) -> Self {
        let protocol = match packet.protocol {
            Protocol::Transport(Transport::Tcp) => 6,
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

    /// The interface's name as the kernel compares it: 16 bytes (`IFNAMSIZ`), padded with zeros.
    pub(super) fn interface_name(&self) -> [u8; 16] {
        let mut name = [0; 16];
        for (place, byte) in name.iter_mut().zip(self.interface.bytes()) {
            *place = byte;
        }
        name
    }

    /// Types of addresses, of include/uapi/linux/rtnetlink.h: `RTN_LOCAL` or `RTN_UNICAST`.
    pub(super) fn fib_type(&self, of: Side) -> u32 {
        let address = match of {
            Side::Source => self.source,
            Side::Destination => self.destination,
        };
        if address.is_loopback() || self.is_local(address) {
            2
        } else {
            1
        }
    }

    /// Bytes of the headers, as far as rules of ours may read them.
    pub(super) fn payload(
        &self,
        family: Family,
        base: Base,
        offset: u32,
        len: u32,
    ) -> Result<Bytes, String> {
        let source_at = if family == Family::Ip { 12 } else { 8 };
        let width = family.address_len() as u32;
        match (base, offset, len) {
            (Base::Network, at, len) if at == source_at && len == width => {
                Ok(Bytes::new().address(self.source))
            }
            (Base::Network, at, len) if at == source_at + width && len == width => {
                Ok(Bytes::new().address(self.destination))
            }
            (Base::Transport, 2, 2) => Ok(Bytes::new().port(self.port)),
            _ => Err(format!("payload of {len} bytes at {offset} of {base:?}")),
        }
    }

    /// What the connection says. Replies come from where the packet goes.
    pub(super) fn connection(&self, key: CtKey) -> Bytes {
        match key {
            CtKey::Status => {
                Bytes::new().with(&(if self.is_dnat { IPS_DST_NAT } else { 0 }).to_ne_bytes())
            }
            CtKey::OriginalDestinationAddress => Bytes::new().address(self.original.0),
            CtKey::OriginalDestinationPort => Bytes::new().port(self.original.1),
            CtKey::ReplySourceAddress => Bytes::new().address(self.destination),
            CtKey::ReplySourcePort => Bytes::new().port(self.port),
        }
    }
}
