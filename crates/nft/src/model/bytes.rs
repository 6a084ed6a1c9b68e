//! The bytes of a key or value, inline.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Family, Protocol};

/// Up to 40 bytes inline: the widest key of Portolan's tables is 16 + 4 + 4 + 16 (address, protocol, port, client address).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes {
    len: u8,
    bytes: [u8; Bytes::CAPACITY],
}

impl Bytes {
    /// Most bytes it holds.
    pub const CAPACITY: usize = 40;

    /// No bytes.
    pub const fn new() -> Self {
        Bytes {
            len: 0,
            bytes: [0; Bytes::CAPACITY],
        }
    }

    /// From a slice; `None` when it is too long.
    pub fn from_slice(slice: &[u8]) -> Option<Self> {
        let mut out = Bytes::new();
        out.bytes.get_mut(..slice.len())?.copy_from_slice(slice);
        out.len = slice.len() as u8;
        Some(out)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    /// Appends `part` padded with zeros to a multiple of 4. Portolan's own parts always fit; what would not is
    /// cut, which a debug build refuses.
    #[must_use]
    pub fn with(mut self, part: &[u8]) -> Self {
        let start = usize::from(self.len);
        let padded = part.len().next_multiple_of(4);
        debug_assert!(
            start + padded <= Bytes::CAPACITY,
            "key wider than Bytes::CAPACITY"
        );
        if let Some(place) = self.bytes.get_mut(start..start + part.len()) {
            place.copy_from_slice(part);
            self.len = (start + padded) as u8;
        }
        self
    }

    /// Appends an address.
    #[must_use]
    pub fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(a) => self.with(&a.octets()),
            IpAddr::V6(a) => self.with(&a.octets()),
        }
    }

    /// Appends a protocol number, padded.
    #[must_use]
    pub fn protocol(self, protocol: Protocol) -> Self {
        self.with(&[protocol as u8])
    }

    /// Appends a port in network order, padded.
    #[must_use]
    pub fn port(self, port: u16) -> Self {
        self.with(&port.to_be_bytes())
    }

    /// Appends a slot number in host order.
    #[must_use]
    pub fn slot(self, slot: u32) -> Self {
        self.with(&slot.to_ne_bytes())
    }

    /// Appends a group number in host order.
    #[must_use]
    pub fn group(self, group: u32) -> Self {
        self.with(&group.to_ne_bytes())
    }

    /// The number in host order at `offset`.
    pub fn number_at(&self, offset: usize) -> Option<u32> {
        let raw = self.as_slice().get(offset..offset + 4)?;
        Some(u32::from_ne_bytes(raw.try_into().ok()?))
    }

    /// The address at `offset`, if `family`'s width lies inside.
    pub fn address_at(&self, offset: usize, family: Family) -> Option<IpAddr> {
        let raw = self.as_slice().get(offset..offset + family.address_len())?;
        match family {
            Family::Ip => Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(raw).ok()?))),
            Family::Ip6 => Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(raw).ok()?))),
        }
    }

    /// The port at `offset`.
    pub fn port_at(&self, offset: usize) -> Option<u16> {
        let raw = self.as_slice().get(offset..offset + 2)?;
        Some(u16::from_be_bytes(raw.try_into().ok()?))
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Bytes::new()
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
