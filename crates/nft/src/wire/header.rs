//! The header of nfnetlink messages (`struct nfgenmsg`), and what any nf_tables message names.

use std::fmt;

use netlink::{Attributes, Malformed, Message, be32};

use super::abi::{self, GENERIC, SUBSYSTEM};
use crate::model::Family;
use crate::transaction::Generation;

/// The header of a request about one family, or about all.
pub fn header(family: Option<Family>) -> [u8; GENERIC] {
    [family.map_or(0, number), 0, 0, 0]
}

/// The header of a batch's first and last message, which name the subsystem.
pub const BATCH_HEADER: [u8; GENERIC] = [0, 0, 0, SUBSYSTEM as u8];

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
pub(crate) const fn number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// Family of a message, if it is one of [`Family`].
pub(crate) fn family(message: &Message<'_>) -> Option<Family> {
    let first = message.payload.first();
    Family::ALL
        .into_iter()
        .find(|family| first == Some(&number(*family)))
}

/// Attributes of a message, after its header.
pub fn attributes<'a>(message: &Message<'a>) -> Result<Attributes<'a>, Malformed> {
    message.attributes(GENERIC)
}

/// The generation in a reply to `NFT_MSG_GETGEN`, or at the end of a transaction's notifications.
pub fn generation(message: &Message<'_>) -> Result<Generation, Malformed> {
    let id = attributes(message)?.find(abi::generation::ID)?;
    let id = be32(id.ok_or(Malformed::Missing("NFTA_GEN_ID"))?, "NFTA_GEN_ID")?;
    Ok(Generation(id))
}

/// A name of foreign origin: the kernel accepts any bytes. Empty when the attribute is absent.
pub fn foreign_name(fields: Attributes<'_>, kind: u16) -> Result<String, Malformed> {
    let bytes = fields.find(kind)?.unwrap_or_default();
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// Family of any table, also of tables that Portolan never writes (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnyFamily(pub u8);

impl AnyFamily {
    /// Both IPv4 and IPv6.
    pub const INET: AnyFamily = AnyFamily(1);
    /// IPv4.
    pub const IP: AnyFamily = AnyFamily(2);
    /// One device's packets, of any protocol.
    pub const NETDEV: AnyFamily = AnyFamily(5);
    /// Bridged packets.
    pub const BRIDGE: AnyFamily = AnyFamily(7);
    /// IPv6.
    pub const IP6: AnyFamily = AnyFamily(10);

    /// Family of the table that a message is about.
    pub fn of(message: &Message<'_>) -> AnyFamily {
        AnyFamily(message.payload.first().copied().unwrap_or(0))
    }

    /// nft's keyword, for families that nft knows.
    pub fn keyword(self) -> Option<&'static str> {
        match self {
            AnyFamily::INET => Some("inet"),
            AnyFamily::IP => Some("ip"),
            AnyFamily(3) => Some("arp"),
            AnyFamily::NETDEV => Some("netdev"),
            AnyFamily::BRIDGE => Some("bridge"),
            AnyFamily::IP6 => Some("ip6"),
            _ => None,
        }
    }
}

impl fmt::Display for AnyFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keyword() {
            Some(keyword) => f.write_str(keyword),
            None => write!(f, "family {}", self.0),
        }
    }
}
