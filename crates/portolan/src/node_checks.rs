//! What on this node can keep Service traffic from its endpoints though Portolan's rules are right: `portolan doctor` prints
//! it, beside what the overlay's probes measure.
//!
//! Reads `/proc`, interface addresses and other programs' rules at the moment of the question, and changes nothing. What
//! cannot be read is not judged.

mod conntrack;
mod forwarding;
mod local_addresses;
mod proxies;

use std::collections::BTreeMap;
use std::net::IpAddr;

use net_types::Family;
use service_model::ObjectName;

/// A difference to the API server's clock from which tokens and certificates may be refused, in seconds. The server tells
/// whole seconds, and an answer takes a moment.
const CLOCK: i64 = 10;

/// What is known beside what is read.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Whether Services are served: other proxies are in the way of these only.
    pub(crate) has_services: bool,
    /// Families in which this node has an address.
    pub(crate) families: Vec<Family>,
    /// Whether the probes of the overlay run, which examine forwarding themselves.
    pub(crate) has_probes: bool,
    /// Each cluster IP, with its Service.
    pub(crate) cluster_ips: BTreeMap<IpAddr, ObjectName>,
    /// Kernel features that are missing, one line each.
    pub(crate) fallbacks: Vec<String>,
    /// What the take-over from kube-proxy could not do.
    pub(crate) alarm: Option<String>,
    /// Nodes and endpoints that do not answer, one line each.
    pub(crate) suspects: Vec<String>,
    /// This node's clock minus the API server's, in seconds.
    pub(crate) clock: Option<i64>,
}

/// The result of one check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Check {
    /// What was examined, in a few words.
    pub(crate) name: &'static str,
    /// What drops traffic or misleads it, each with what to do.
    pub(crate) faults: Vec<String>,
    /// What an operator should know.
    pub(crate) notes: Vec<String>,
}

impl Check {
    fn new(name: &'static str) -> Check {
        Check {
            name,
            ..Check::default()
        }
    }
}

/// Examines this node. Blocks for some milliseconds.
pub(crate) fn examine(known: &Known) -> Vec<Check> {
    let mut checks = Vec::new();
    if !known.has_probes {
        checks.push(forwarding::settings(&known.families));
        checks.push(forwarding::chains(&known.families));
    }
    checks.push(conntrack::check());
    if known.has_services {
        checks.push(proxies::check(known.alarm.as_deref()));
        checks.push(local_addresses::check(&known.cluster_ips));
        checks.push(Check {
            notes: known.suspects.clone(),
            ..Check::new("failover")
        });
    }
    checks.extend(known.clock.map(clock));
    checks.push(Check {
        notes: known.fallbacks.clone(),
        ..Check::new("kernel features")
    });
    checks
}

fn clock(ahead: i64) -> Check {
    let mut check = Check::new("clock");
    if ahead.abs() >= CLOCK {
        let (by, where_to) = (ahead.abs(), if ahead > 0 { "ahead of" } else { "behind" });
        check.faults.push(format!(
            "the clock of this node is {by} s {where_to} that of the API server, so tokens and certificates may be refused: \
             let it follow a time server (NTP)"
        ));
    }
    check
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_by_a_few_seconds_is_no_fault() {
        for (ahead, words) in [
            (9, ""),
            (-9, ""),
            (10, "10 s ahead of"),
            (-3600, "3600 s behind"),
        ] {
            let faults = clock(ahead).faults;
            assert_eq!(faults.len(), usize::from(!words.is_empty()), "{ahead}");
            assert!(
                faults.iter().all(|fault| fault.contains(words)),
                "{faults:?}"
            );
        }
    }
}
