//! Nexthop objects of IPv4 (`linux/nexthop.h`, Linux 5.3): a route names one by its ID instead of a gateway and a
//! device.
//!
//! Thousands of plain routes with a gateway each cost the kernel quadratic time, since it looks for an equal way among
//! all of a device's; routes by number do not. All programs of a network namespace share the IDs: Portolan's are the
//! gateway's address, so they follow from the plan; an ID that another program uses is left alone.

use std::net::Ipv4Addr;

use netlink::{Attributes, Writer};

use crate::marks::{PROTOCOL, nexthop_gateway};

pub(crate) const NEW: u16 = 104;
pub(crate) const DELETE: u16 = 105;
pub(crate) const GET: u16 = 106;

const ID: u16 = 1;
const OUT: u16 = 5;
const GATEWAY: u16 = 6;
/// `RTNH_F_ONLINK`
const ONLINK: u32 = 4;
/// `struct nhmsg`: family, scope, protocol, a reserved byte, flags.
const HEADER: usize = 8;

/// A nexthop object as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Nexthop {
    pub(crate) id: u32,
    pub(crate) out: Option<u32>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) protocol: u8,
}

impl Nexthop {
    /// From what follows the netlink header.
    pub(crate) fn read(bytes: &[u8]) -> Option<Nexthop> {
        let protocol = *bytes.get(2)?;
        let (mut id, mut out, mut gateway) = (None, None, None);
        for attribute in Attributes::new(bytes.get(HEADER..)?) {
            let attribute = attribute.ok()?;
            let value: Option<[u8; 4]> = attribute.payload.try_into().ok();
            match attribute.kind {
                ID => id = value.map(u32::from_ne_bytes),
                OUT => out = value.map(u32::from_ne_bytes),
                GATEWAY => gateway = value.map(Ipv4Addr::from),
                _ => {}
            }
        }
        Some(Nexthop {
            id: id?,
            out,
            gateway,
            protocol,
        })
    }

    /// Whether Portolan has created it.
    pub(crate) fn is_ours(&self) -> bool {
        self.gateway == Some(nexthop_gateway(self.id)) && self.protocol == PROTOCOL
    }
}

/// What follows the header of a message that makes the nexthop object of this number, through a device.
pub(crate) fn to_make(device: u32, id: u32) -> Vec<u8> {
    let mut out = Writer {
        bytes: vec![nix::libc::AF_INET as u8, 0, PROTOCOL, 0],
        ..Writer::default()
    };
    out.bytes.extend(ONLINK.to_ne_bytes());
    out.put(ID, &id.to_ne_bytes());
    out.put(OUT, &device.to_ne_bytes());
    out.put(GATEWAY, &nexthop_gateway(id).octets());
    out.bytes
}

/// What follows the header of a message that deletes it.
pub(crate) fn to_delete(id: u32) -> Vec<u8> {
    let mut out = Writer {
        bytes: to_list(),
        ..Writer::default()
    };
    out.put(ID, &id.to_ne_bytes());
    out.bytes
}

/// What follows the header of a request for all of them, of any family.
pub(crate) fn to_list() -> Vec<u8> {
    vec![0; HEADER]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::nexthop_id;

    #[test]
    fn what_is_written_reads_back_and_nonsense_does_not() {
        let id = nexthop_id("10.244.7.0".parse().unwrap()).unwrap();
        let bytes = to_make(9, id);
        let found = Nexthop::read(&bytes).unwrap();
        assert_eq!((found.id, found.out), (id, Some(9)));
        assert_eq!(found.gateway, Some(Ipv4Addr::new(10, 244, 7, 0)));
        assert!(found.is_ours());
        for end in 0..bytes.len() {
            let cut = Nexthop::read(&bytes[..end]);
            assert!(cut.is_none_or(|cut| cut != found), "{end}");
        }
        // An attribute that says it has no length must not be read for ever.
        assert_eq!(Nexthop::read(&[0; 16]), None);
    }
}
