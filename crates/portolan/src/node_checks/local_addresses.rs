//! Cluster IPs that are addresses of this node as well: NodeLocal DNSCache has the DNS Service's, and listens there.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use service_model::ObjectName;

use super::Check;
use crate::takeover::ipvs;

/// Lines at most.
const NAMED: usize = 8;

pub(super) fn check(cluster_ips: &BTreeMap<IpAddr, ObjectName>) -> Check {
    let addresses = getifaddrs().into_iter().flatten().filter_map(|entry| {
        let address = entry.address.as_ref().and_then(ipvs::ip)?;
        Some((entry.interface_name, address))
    });
    judge(addresses, cluster_ips)
}

fn judge(
    addresses: impl Iterator<Item = (String, IpAddr)>,
    cluster_ips: &BTreeMap<IpAddr, ObjectName>,
) -> Check {
    let mut check = Check::new("local cluster IPs");
    // That one has all of them, and is named among other proxies.
    let addresses = addresses.filter(|(interface, _)| interface != ipvs::DEVICE);
    let notes = addresses.filter_map(|(interface, address)| {
        let service = cluster_ips.get(&address)?;
        Some(format!(
            "{address}, the cluster IP of {service}, is an address of {} as well: packets that a rule exempts from \
             connection tracking (NOTRACK, as NodeLocal DNSCache's do) go to the program that listens there, all others to \
             endpoints of the Service",
            interface.escape_debug()
        ))
    });
    check.notes = notes.take(NAMED).collect();
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cluster_ips_of_interfaces_beside_ipvs_are_named() {
        let dns = ObjectName::new("kube-system", "kube-dns");
        let of = |interface: &str, address: &str| (interface.to_owned(), address.parse().unwrap());
        let found = judge(
            [
                of("nodelocaldns", "10.96.0.10"),
                of("nodelocaldns", "169.254.20.10"),
                of(ipvs::DEVICE, "10.96.0.10"),
            ]
            .into_iter(),
            &BTreeMap::from([("10.96.0.10".parse().unwrap(), dns)]),
        );
        assert!(found.faults.is_empty() && found.notes.len() == 1);
        assert!(found.notes[0].contains("nodelocaldns") && found.notes[0].contains("kube-dns"));
    }
}
