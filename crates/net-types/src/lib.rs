//! Types that all crates share: IP family, transport protocol, a value for each family, and where node ports are served.
//!
//! Pure. How a family or protocol is written in a rule or a message is left to the crate that
//! writes it.

use std::fmt;
use std::net::IpAddr;

mod checksum;
mod node_ports;
mod per_family;

pub use checksum::internet_checksum;
pub use node_ports::NodePortAddress;
pub use per_family::PerFamily;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4: nftables' `ip`, NFPROTO_IPV4 (2).
    Ip,
    /// IPv6: nftables' `ip6`, NFPROTO_IPV6 (10).
    Ip6,
}

impl Family {
    /// Both families, in the order used everywhere.
    pub const ALL: [Family; 2] = [Family::Ip, Family::Ip6];

    /// Width of an address in bytes: 4 or 16.
    pub const fn address_len(self) -> usize {
        match self {
            Family::Ip => 4,
            Family::Ip6 => 16,
        }
    }

    /// The family of an address.
    pub const fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ip,
            IpAddr::V6(_) => Family::Ip6,
        }
    }

    /// nftables' keyword: `ip` or `ip6`.
    pub const fn keyword(self) -> &'static str {
        match self {
            Family::Ip => "ip",
            Family::Ip6 => "ip6",
        }
    }

    /// The Kubernetes API's name (core/v1 `IPFamily`): `IPv4` or `IPv6`.
    pub const fn api_name(self) -> &'static str {
        match self {
            Family::Ip => "IPv4",
            Family::Ip6 => "IPv6",
        }
    }
}

/// Writes [`Family::keyword`].
impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.keyword())
    }
}

/// A transport protocol that a Service port can have (core/v1 `Protocol`), by its IANA number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// 6
    Tcp = 6,
    /// 17
    Udp = 17,
    /// 132
    Sctp = 132,
}

impl Protocol {
    /// nftables' keyword: `tcp`, `udp`, `sctp`.
    pub const fn keyword(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// Writes the Kubernetes API's name: `TCP`, `UDP`, `SCTP`.
impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}
