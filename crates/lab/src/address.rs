//! The address plan of every lab: arithmetic from small numbers to addresses, nothing else. The crate
//! documentation shows the plan; this file is the only place that computes it.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use ipnet::{Ipv4Net, Ipv6Net};

/// Most nodes a lab can have: they take 192.168.77.10 to .199.
pub const MAX_NODES: u8 = 190;
/// Most clients a lab can have: they take 192.168.77.200 to .249.
pub const MAX_CLIENTS: u8 = 50;
/// Most pods on one node at a time: they take .2 to .251 of its range.
pub const MAX_PODS: u8 = 250;

/// What Service cluster IPs are taken from, IPv4.
pub const SERVICE_CIDR_V4: &str = "10.96.0.0/16";
/// What Service cluster IPs are taken from, IPv6.
pub const SERVICE_CIDR_V6: &str = "fd00:96::/112";
/// Holds every pod range, IPv4.
pub const CLUSTER_CIDR_V4: &str = "10.244.0.0/16";
/// Holds every pod range, IPv6.
pub const CLUSTER_CIDR_V6: &str = "fd00:244::/32";

/// Length of the underlay prefix, IPv4.
pub(crate) const UNDERLAY_LEN_V4: u8 = 24;
/// Length of the underlay prefix, IPv6.
pub(crate) const UNDERLAY_LEN_V6: u8 = 64;
const POD_LEN_V4: u8 = 24;
const POD_LEN_V6: u8 = 64;

/// The two addresses of a host, or of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

/// A number whose hexadecimal digits are the decimal digits of `number`, so that both families read
/// alike: node 12 is 192.168.77.12 and fd00:77::12.
fn digits(number: u8) -> u16 {
    let number = u16::from(number);
    (number / 100) << 8 | (number / 10 % 10) << 4 | (number % 10)
}

fn underlay(number: u8) -> Pair {
    Pair {
        v4: Ipv4Addr::new(192, 168, 77, number),
        v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, digits(number)),
    }
}

/// The default gateway of the underlay.
pub(crate) fn gateway() -> Pair {
    underlay(1)
}

/// The node of this index.
pub(crate) fn node(index: u8) -> Result<Pair> {
    ensure!(index < MAX_NODES, "a lab has at most {MAX_NODES} nodes");
    Ok(underlay(10 + index))
}

/// The client of this index.
pub(crate) fn client(index: u8) -> Result<Pair> {
    ensure!(
        index < MAX_CLIENTS,
        "a lab has at most {MAX_CLIENTS} clients"
    );
    Ok(underlay(200 + index))
}

/// What the pods of a node get their addresses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PodRanges {
    pub(crate) v4: Ipv4Net,
    pub(crate) v6: Ipv6Net,
}

impl PodRanges {
    /// The plan's ranges of the node of this index.
    pub(crate) fn of_node(index: u8) -> Result<PodRanges> {
        let v6 = Ipv6Addr::new(0xfd00, 0x244, digits(index), 0, 0, 0, 0, 0);
        Ok(PodRanges {
            v4: Ipv4Net::new(Ipv4Addr::new(10, 244, index, 0), POD_LEN_V4)?,
            v6: Ipv6Net::new(v6, POD_LEN_V6)?,
        })
    }

    fn numbered(self, number: u8) -> Pair {
        let v4 = u32::from(self.v4.network()) | u32::from(number);
        let v6 = u128::from(self.v6.network()) | u128::from(digits(number));
        Pair {
            v4: v4.into(),
            v6: v6.into(),
        }
    }

    /// The gateway of the pods, an address of the node.
    pub(crate) fn gateway(self) -> Pair {
        self.numbered(1)
    }

    /// The pod of this index.
    pub(crate) fn pod(self, index: u8) -> Result<Pair> {
        ensure!(index < MAX_PODS, "a node has at most {MAX_PODS} pods");
        Ok(self.numbered(2 + index))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_of_an_address_read_alike() -> Result<()> {
        assert_eq!(node(2)?.v4.to_string(), "192.168.77.12");
        assert_eq!(node(2)?.v6.to_string(), "fd00:77::12");
        assert_eq!(client(5)?.v6.to_string(), "fd00:77::205");
        let pod = PodRanges::of_node(13)?.pod(96)?;
        assert_eq!(pod.v4.to_string(), "10.244.13.98");
        assert_eq!(pod.v6.to_string(), "fd00:244:13::98");
        Ok(())
    }

    #[test]
    fn every_pod_address_is_in_the_pod_cidr_of_its_node() -> Result<()> {
        let cluster_v4: Ipv4Net = CLUSTER_CIDR_V4.parse()?;
        let cluster_v6: Ipv6Net = CLUSTER_CIDR_V6.parse()?;
        for index in 0..MAX_NODES {
            let ranges = PodRanges::of_node(index)?;
            assert!(cluster_v4.contains(&ranges.v4) && cluster_v6.contains(&ranges.v6));
            let last = ranges.pod(MAX_PODS - 1)?;
            assert!(ranges.v4.contains(&last.v4) && ranges.v6.contains(&last.v6));
        }
        assert!(node(MAX_NODES).is_err() && PodRanges::of_node(0)?.pod(MAX_PODS).is_err());
        Ok(())
    }
}
