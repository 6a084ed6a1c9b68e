//! Addresses and ranges as text, made canonical.
//!
//! Invariant: two texts for one address give one value, so an address can be a key. Leading zeros in IPv4 are
//! decimal, as Kubernetes reads them (`ParseIPSloppy`; CVE-2021-29923 is what happens when components
//! disagree). IPv4-mapped IPv6 addresses and zones are refused: the kernel would look them up as something else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// An address, or why the text is none.
pub fn parse_address(text: &str) -> Result<IpAddr, &'static str> {
    if text.contains('%') {
        return Err("has a zone");
    }
    if !text.contains(':') {
        return parse_ipv4(text)
            .map(IpAddr::V4)
            .ok_or("is not an IP address");
    }
    let address: Ipv6Addr = text.parse().map_err(|_| "is not an IP address")?;
    match address.to_ipv4_mapped() {
        Some(_) => Err("is an IPv4-mapped IPv6 address"),
        None => Ok(IpAddr::V6(address)),
    }
}

/// A range without host bits, or why the text is none.
pub fn parse_cidr(text: &str) -> Result<IpNet, &'static str> {
    let (address, length) = text.split_once('/').ok_or("is not a CIDR")?;
    let address = parse_address(address)?;
    let length = parse_decimal(length).ok_or("is not a CIDR")?;
    let range = IpNet::new(address, length).map_err(|_| "is not a CIDR")?;
    Ok(range.trunc())
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.');
    let mut octets = [0; 4];
    for octet in &mut octets {
        *octet = parse_decimal(parts.next()?)?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// Digits only: `u8::from_str` alone would take a sign.
fn parse_decimal(text: &str) -> Option<u8> {
    let wanted = text.bytes().all(|b| b.is_ascii_digit());
    wanted.then(|| text.parse().ok()).flatten()
}

/// Why an address cannot be a backend, if so (apimachinery `ValidateNonSpecialIP`; CVE-2021-25737).
pub(super) fn endpoint_refusal(address: IpAddr) -> Option<&'static str> {
    let link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if link_local {
        return Some("is a link-local address");
    }
    cluster_ip_refusal(address)
}

/// Why an address cannot be a cluster IP, if so: the kernel would not route it, or we would take the node's own.
pub(super) fn cluster_ip_refusal(address: IpAddr) -> Option<&'static str> {
    if address.is_unspecified() {
        Some("is the unspecified address")
    } else if address.is_loopback() {
        Some("is a loopback address")
    } else if address.is_multicast() {
        Some("is a multicast address")
    } else if address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("is the broadcast address")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_texts_for_one_address_give_one_value() {
        for (text, canonical) in [
            ("10.0.0.1", "10.0.0.1"),
            ("010.000.0.001", "10.0.0.1"),
            ("172.30.0.041", "172.30.0.41"),
            ("fd00::1", "fd00::1"),
            ("FD00:0:0:0::0001", "fd00::1"),
            ("64:ff9b::192.0.2.1", "64:ff9b::c000:201"),
        ] {
            let parsed = parse_address(text);
            assert_eq!(
                parsed.map(|a| a.to_string()),
                Ok(canonical.to_owned()),
                "{text}"
            );
        }
        assert_eq!(
            parse_cidr("203.0.113.077/025").map(|c| c.to_string()),
            Ok("203.0.113.0/25".into())
        );
        assert_eq!(
            parse_cidr("fd00::1:2/64").map(|c| c.to_string()),
            Ok("fd00::/64".into())
        );
    }

    #[test]
    fn other_texts_than_plain_addresses_are_refused() {
        for text in [
            "",
            "10",
            "10.0.0",
            "10.0.0.0.1",
            "10.0.0.256",
            "10.0.0.-1",
            "10.0.0.+1",
            "10.0.0.",
            "10..0.1",
            "0x0a.0.0.1",
            " 10.0.0.1",
            "10.0.0.1\n",
            "fe80::1%eth0",
            "::ffff:10.0.0.1",
            "::ffff:a00:1",
            "1::2::3",
            "fd00::g",
            "[fd00::1]",
            "example.com",
            "١٠.0.0.1",
        ] {
            assert!(parse_address(text).is_err(), "{text}");
        }
        for text in [
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.0/-1",
            "10.0.0.0/",
            "/8",
            "fd00::/129",
            "::ffff:10.0.0.0/104",
        ] {
            assert!(parse_cidr(text).is_err(), "{text}");
        }
    }
}
