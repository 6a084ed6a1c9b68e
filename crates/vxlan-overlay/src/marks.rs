//! How Portolan marks routes and nexthop objects, to recognize its own.

use std::net::{IpAddr, Ipv4Addr};

/// Protocol of our routes and nexthop objects (`rtm_protocol`): a number that no other program uses (see `rt_protos`
/// of iproute2).
pub const PROTOCOL: u8 = 112;
/// Metric of the blackhole route: worse than any other route to the same range.
pub const BLACKHOLE_METRIC: u32 = u32::MAX - 1;

/// The ID of the nexthop object for a gateway: the address itself. IPv6 has none, where plain routes cost no more.
pub(crate) fn nexthop_id(gateway: IpAddr) -> Option<u32> {
    match gateway {
        IpAddr::V4(v4) => Some(v4.to_bits()),
        IpAddr::V6(_) => None,
    }
}

/// The gateway of our nexthop object with this ID.
pub(crate) fn nexthop_gateway(id: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(id)
}
