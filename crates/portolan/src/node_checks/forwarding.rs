//! Whether this node forwards at all, where no overlay examines it: the switch of each family, and chains that drop what is
//! forwarded.

use std::fs::read_to_string;

use net_types::Family;
use overlay_probe::forward_chains;

use super::Check;
use crate::takeover::legacy;

/// The switch of each family (Documentation/networking/ip-sysctl.rst).
fn switch(family: Family) -> &'static str {
    match family {
        Family::Ip => "net.ipv4.ip_forward",
        Family::Ip6 => "net.ipv6.conf.all.forwarding",
    }
}

pub(super) fn settings(families: &[Family]) -> Check {
    let mut check = Check::new("forwarding");
    for family in families {
        let name = switch(*family);
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        if read_to_string(path).is_ok_and(|value| value.trim() == "0") {
            check.faults.push(format!(
                "{name} is 0, so {} packets to endpoints that are not in the host network are dropped: set it to 1",
                family.api_name()
            ));
        }
    }
    check
}

pub(super) fn chains(families: &[Family]) -> Check {
    let mut check = Check::new("forward chains");
    let legacy = overlay_probe::LegacyIptables {
        tables: legacy::tables,
        dropping_forwarders: legacy::dropping_forwarders,
    };
    match forward_chains(legacy, families) {
        Ok(found) => (check.faults, check.notes) = (found.faults, found.notes),
        Err(error) => tracing::debug!(error = format!("{error:#}"), "cannot read chains"),
    }
    check
}
