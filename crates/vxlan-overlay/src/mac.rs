//! Hardware addresses of tunnel devices: their text, and the one that follows from a node's name.

use std::fmt;
use std::str::FromStr;

use net_types::Family;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address of a node that has been given none: the same each time, locally administered and unicast
    /// (IEEE 802). Calico makes it from the name as well, so that a device made anew keeps it and no state is needed.
    pub fn of_node(name: &str, family: Family) -> Mac {
        // FNV-1a, 64 bits: fixed for all time, unlike the standard library's hasher.
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        let mut hash = name.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
        if family == Family::Ip6 {
            hash = b"-v6".iter().fold(hash, step);
        }
        // The low bits of a short text's hash are the well mixed ones; fold the high ones in.
        let [_, _, a, b, c, d, e, f] = (hash ^ (hash >> 48)).to_be_bytes();
        Mac([(a & 0xfc) | 0x02, b, c, d, e, f])
    }

    /// From the bytes of a netlink attribute.
    pub fn from_slice(bytes: &[u8]) -> Option<Mac> {
        Some(Mac(bytes.try_into().ok()?))
    }

    /// One host's address, not all zeros: what a tunnel's end can have.
    pub fn is_unicast(self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    /// Lower case with colons, as Go prints it: annotations hold this form.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Mac {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Mac, &'static str> {
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or("too short for a hardware address")?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err("not a hardware address");
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| "not a hardware address")?;
        }
        match parts.next() {
            None => Ok(Mac(bytes)),
            Some(_) => Err("too long for a hardware address"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_nodes_address_is_unicast_locally_administered_and_its_own() {
        let mut seen = BTreeSet::new();
        for number in 0..20_000 {
            for family in Family::ALL {
                let mac = Mac::of_node(&format!("node-{number}"), family);
                assert!(mac.is_unicast() && mac.0[0] & 2 == 2, "{mac}");
                assert!(seen.insert(mac), "{mac} twice");
            }
        }
        // Fixed for all time: peers rely on it.
        assert_eq!(
            Mac::of_node("node-a", Family::Ip),
            Mac::of_node("node-a", Family::Ip)
        );
    }

    #[test]
    fn text_goes_both_ways_and_nonsense_is_refused() {
        let mac: Mac = "12:C6:65:89:b4:e3".parse().unwrap();
        assert_eq!(mac.to_string(), "12:c6:65:89:b4:e3");
        for text in [
            "",
            "12:c6:65:89:b4",
            "12:c6:65:89:b4:e3:00",
            "1:2:3:4:5:6",
            "zz:c6:65:89:b4:e3",
            "+1:c6:65:89:b4:e3",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }
}
