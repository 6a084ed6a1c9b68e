//! Addresses and ranges as old objects write them.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether one of the ranges holds the address.
pub(super) fn within<'a>(ranges: impl IntoIterator<Item = &'a IpNet>, address: IpAddr) -> bool {
    ranges.into_iter().any(|range| range.contains(&address))
}

/// Old objects may hold IPv4 addresses with leading zeros, which Kubernetes reads as decimal (KEP-4858).
pub(super) fn parse_sloppily(text: &str) -> Option<IpAddr> {
    let without_zeros = |octet: &str| octet.parse().map(|n: u8| n.to_string());
    text.parse().ok().or_else(|| {
        let octets: Result<Vec<_>, _> = text.split('.').map(without_zeros).collect();
        octets.ok()?.join(".").parse().ok()
    })
}

/// The same for ranges, which may have blanks around and bits beyond their length.
pub(super) fn parse_range(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let range = IpNet::new(parse_sloppily(address)?, length.parse().ok()?).ok()?;
    Some(range.trunc())
}
