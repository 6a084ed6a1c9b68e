use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::Family;

/// One item of kube-proxy's `--nodeport-addresses`: on which of the node's addresses node ports are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddress {
    /// The Node object's own address of each family (`primary`, the default in nftables mode).
    Primary,
    /// Every interface address, loopback excepted (`all`).
    All,
    /// Loopback addresses, served by a relay in the daemon (`localhost`; KEP-6032): never by rules.
    Localhost,
    /// IPv4 loopback addresses only, as kube-proxy's iptables mode serves them, by the same relay.
    LocalhostIpv4,
    /// The node's interface addresses within this range, loopback excepted.
    Cidr(IpNet),
}

impl NodePortAddress {
    /// Whether the item requests node ports on loopback addresses of `family`: by keyword, or by a range that overlaps
    /// with them (kube-proxy's rule). A range of all addresses is [`NodePortAddress::All`], which excepts loopback.
    pub fn covers_loopback(&self, family: Family) -> bool {
        let first: IpAddr = match family {
            Family::Ip => Ipv4Addr::new(127, 0, 0, 0).into(),
            Family::Ip6 => Ipv6Addr::LOCALHOST.into(),
        };
        match self {
            NodePortAddress::Localhost => true,
            NodePortAddress::LocalhostIpv4 => family == Family::Ip,
            NodePortAddress::Cidr(range) => {
                let overlaps = range.contains(&first) || range.network().is_loopback();
                overlaps && range.prefix_len() > 0 && Family::of(range.addr()) == family
            }
            NodePortAddress::Primary | NodePortAddress::All => false,
        }
    }
}

/// Writes the word or range as `--nodeport-addresses` has it; [`NodePortAddress::LocalhostIpv4`], for which kube-proxy has
/// no word, as `localhost-ipv4`.
impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NodePortAddress::Primary => f.write_str("primary"),
            NodePortAddress::All => f.write_str("all"),
            NodePortAddress::Localhost => f.write_str("localhost"),
            NodePortAddress::LocalhostIpv4 => f.write_str("localhost-ipv4"),
            NodePortAddress::Cidr(range) => range.fmt(f),
        }
    }
}
