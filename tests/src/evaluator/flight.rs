//! A packet on its way, with its connection.

use std::net::IpAddr;

use nft::expr::{Base, CtKey, IPS_DST_NAT};
use nft::{Bytes, Family};

use crate::cluster::Transport;
use crate::oracle::{Packet, Protocol};

/// A packet on its way, with its connection.
pub(super) struct Flight {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: u8,
    pub(super) original: (IpAddr, u16),
    pub(super) is_dnat: bool,
    pub(super) masqueraded: bool,
    pub(super) hash: u32,
}

impl Flight {
    pub(super) fn new(packet: &Packet, hash: u32) -> Self {
        let protocol = match packet.protocol {
            Protocol::Transport(Transport::Tcp) => 6,
            Protocol::Transport(Transport::Udp) => 17,
            Protocol::Transport(Transport::Sctp) => 132,
            Protocol::Icmp if packet.source.is_ipv4() => 1,
            Protocol::Icmp => 58,
        };
        Flight {
            source: packet.source,
            destination: packet.destination,
            port: packet.port,
            protocol,
            original: (packet.destination, packet.port),
            is_dnat: false,
            masqueraded: false,
            hash,
        }
    }

    pub(super) fn send_to(&mut self, address: IpAddr, port: u16) {
        (self.destination, self.port) = (address, port);
        self.is_dnat = (address, port) != self.original;
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

    /// What the connection says, the tuple in its original direction.
    pub(super) fn connection(&self, key: CtKey) -> Bytes {
        match key {
            CtKey::Status => {
                Bytes::new().with(&(if self.is_dnat { IPS_DST_NAT } else { 0 }).to_ne_bytes())
            }
            CtKey::OriginalDestinationAddress => Bytes::new().address(self.original.0),
            CtKey::OriginalDestinationPort => Bytes::new().port(self.original.1),
        }
    }
}
