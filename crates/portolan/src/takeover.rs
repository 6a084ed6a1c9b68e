//! Removes kube-proxy's leftovers, of any mode, after the first sync, so that there is always one set of rules.
//!
//! kube-proxy does the same with the leftovers of its own other modes. Its rules must not stay: they precede Portolan's in
//! every hook, so new connections would still go to the endpoints from when kube-proxy ended. Established connections are
//! safe: conntrack holds their translation, and Portolan's NAT chains keep it in force.
//!
//! Only objects with kube-proxy's own names are removed:
//! * nftables mode: the tables `ip kube-proxy` and `ip6 kube-proxy`;
//! * iptables and IPVS modes: the `KUBE-` chains and the jumps to them, in the tables of iptables' nft variant (one
//!   transaction per table, without a program) and of its legacy variant (with iptables' own programs, where installed;
//!   see [`chains`]). Chains of kubelet stay, and so do chains that other rules jump to;
//! * IPVS mode: the device `kube-ipvs0`, virtual servers at its addresses and IP sets. Established connections live in
//!   IPVS and break without the device, so only `portolan cleanup --kube-proxy` removes these; `run` logs a warning.
//!
//! A kube-proxy that still runs writes its rules again. They are removed again at intervals, with a warning. Connections
//! are safe meanwhile, since either set of rules serves them.

pub(crate) mod alarm;
pub(crate) mod chains;
pub mod ipvs;
pub(crate) mod legacy;
pub(crate) mod owner;

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use netfilter::ForeignRuleset;
use nft::Family;
use tokio_util::sync::CancellationToken;

use alarm::Alarm;
use owner::{ChainOwner, Removed};

/// Name of kube-proxy's own tables in nftables mode.
pub(crate) const TABLE: &str = "kube-proxy";
/// kube-proxy's chains.
const CHAINS: ChainOwner = ChainOwner {
    tables: &["nat", "filter", "mangle"],
    owns: is_kube_proxys,
    permits: None,
};
/// Interval of the first removals, and of later ones.
const INTERVALS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// Number of first removals.
const FIRST_REMOVALS: usize = 30;

/// Whether a chain of an iptables table is kube-proxy's (pkg/proxy/iptables and pkg/proxy/ipvs, up to 1.37).
///
/// Not kube-proxy's: kubelet's `KUBE-FIREWALL` of the filter table, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT`.
/// `KUBE-MARK-DROP` was kubelet's; only old kubelets leave it behind.
fn is_kube_proxys(table: &str, chain: &str) -> bool {
    /// Prefixes of chains of one Service or endpoint.
    const HASHED: [&str; 6] = [
        "KUBE-SVC-",
        "KUBE-SVL-",
        "KUBE-SEP-",
        "KUBE-FW-",
        "KUBE-EXT-",
        "KUBE-XLB-",
    ];
    const ANYWHERE: [&str; 6] = [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-NODE-PORT",
        "KUBE-PROXY-CANARY",
        "KUBE-PROXY-FIREWALL",
        "KUBE-LOAD-BALANCER",
    ];
    const NAT: [&str; 3] = ["KUBE-POSTROUTING", "KUBE-MARK-MASQ", "KUBE-FIREWALL"];
    const FILTER: [&str; 5] = [
        "KUBE-EXTERNAL-SERVICES",
        "KUBE-FORWARD",
        "KUBE-SOURCE-RANGES-FIREWALL",
        "KUBE-IPVS-FILTER",
        "KUBE-IPVS-OUT-FILTER",
    ];
    let of_table: &[&str] = match table {
        "nat" => &NAT,
        "filter" => &FILTER,
        _ => &[],
    };
    ANYWHERE.contains(&chain)
        || of_table.contains(&chain)
        || HASHED.iter().any(|prefix| chain.starts_with(prefix))
}

/// Result of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TakeoverReport {
    /// Number of tables of nftables mode.
    pub tables: usize,
    /// Chains of iptables' tables.
    pub iptables: Removed,
    /// Leftovers of IPVS mode.
    pub ipvs: Ipvs,
    /// Failures, each with its reason.
    pub failures: Vec<String>,
}

/// Leftovers of IPVS mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ipvs {
    /// There are none.
    #[default]
    None,
    /// Kept for the established connections in them.
    Stays(ipvs::Leftovers),
    Removed,
}

/// Whether to keep IPVS, whose established connections would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    Keep,
    End,
}

impl fmt::Display for TakeoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nftables tables, {}", self.tables, self.iptables)?;
        if self.ipvs == Ipvs::Removed {
            f.write_str(", IPVS device, servers and sets")?;
        }
        Ok(())
    }
}

/// Removes everything once. Continues after failures, and reports each.
pub fn remove(connections: Connections) -> TakeoverReport {
    let mut report = TakeoverReport::default();
    match ForeignRuleset::open() {
        Ok(mut foreign) => {
            for family in Family::ALL {
                match foreign.delete_table(family, TABLE) {
                    Ok(there) => report.tables += usize::from(there),
                    Err(error) => report
                        .failures
                        .push(format!("table {family} {TABLE}: {error}")),
                }
            }
            report.iptables = chains::remove(&mut foreign, &CHAINS, &Family::ALL);
            report.failures.append(&mut report.iptables.failures);
            ipvs::remove(&mut foreign, connections, &mut report);
        }
        Err(error) => report.failures.push(error.to_string()),
    }
    report
}

/// Removes kube-proxy's leftovers at intervals until canceled, and reports those it cannot look for. To be called after
/// the first sync.
pub(crate) async fn run(alarm: Alarm, cancel: CancellationToken) -> Result<()> {
    let removal = || {
        let alarm = alarm.clone();
        move || {
            let report = remove(Connections::Keep);
            alarm.judge(&report);
            report
        }
    };
    keep_removing(removal, cancel).await
}

/// Result of removing another program's leftovers once.
pub(crate) trait Removal: Default + Send + 'static {
    /// Whether anything was removed.
    fn removed(&self) -> bool;

    /// Logs the result, except for what it has in common with the one `before`. `was_there`: an earlier removal removed
    /// something already.
    fn log(&self, before: &Self, was_there: bool);
}

/// Removes at intervals, since a program that has just been replaced may still write its rules, until canceled.
pub(crate) async fn keep_removing<R: Removal, F: FnOnce() -> R + Send + 'static>(
    mut remove: impl FnMut() -> F,
    cancel: CancellationToken,
) -> Result<()> {
    let [first, later] = INTERVALS;
    let pauses = std::iter::repeat_n(first, FIRST_REMOVALS).chain(std::iter::repeat(later));
    let (mut before, mut was_there) = (R::default(), false);
    for pause in pauses {
        let report = tokio::task::spawn_blocking(remove()).await?;
        report.log(&before, was_there);
        was_there |= report.removed();
        before = report;
        let pause = cancel.run_until_cancelled(tokio::time::sleep(pause));
        if pause.await.is_none() {
            break;
        }
    }
    Ok(())
}

impl Removal for TakeoverReport {
    fn removed(&self) -> bool {
        self.tables > 0 || self.iptables.any() || self.ipvs == Ipvs::Removed
    }

    fn log(&self, before: &TakeoverReport, was_there: bool) {
        match (self.removed(), was_there) {
            (true, false) => tracing::info!(removed = %self, "removed kube-proxy leftovers"),
            (true, true) => {
                tracing::warn!(removed = %self, "removed kube-proxy rules again; is kube-proxy still running on this node?")
            }
            (false, _) => {}
        }
        if self.iptables.kept != before.iptables.kept {
            tracing::warn!(
                chains = self.iptables.kept.join(" "),
                "keeping kube-proxy chains that other rules jump to"
            );
        }
        if let Ipvs::Stays(found) = &self.ipvs
            && !matches!(before.ipvs, Ipvs::Stays(_))
        {
            tracing::warn!(
                device = ipvs::DEVICE,
                addresses = found.addresses.len(),
                virtual_servers = found.virtual_servers,
                "keeping kube-proxy's IPVS servers for their established connections; \
                 `portolan cleanup --kube-proxy` removes them"
            );
        }
        if self.failures != before.failures {
            for failure in &self.failures {
                tracing::warn!(error = failure, "cannot remove kube-proxy leftovers");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_of_kubelet_and_of_others_are_not_kube_proxys() {
        for (table, chain) in [
            ("filter", "KUBE-FIREWALL"),
            ("mangle", "KUBE-KUBELET-CANARY"),
            ("mangle", "KUBE-IPTABLES-HINT"),
            ("nat", "KUBE-KUBELET-CANARY"),
            ("filter", "KUBE-ROUTER-INPUT"),
            ("filter", "KUBE-POD-FW-X"),
            ("nat", "CNI-HOSTPORT-DNAT"),
            ("nat", "OUTPUT"),
            ("mangle", "KUBE-FORWARD"),
        ] {
            assert!(!is_kube_proxys(table, chain), "{table} {chain}");
        }
        for (table, chain) in [
            ("nat", "KUBE-SERVICES"),
            ("nat", "KUBE-SEP-ZZZ"),
            ("nat", "KUBE-FIREWALL"),
            ("filter", "KUBE-FORWARD"),
            ("filter", "KUBE-IPVS-FILTER"),
            ("mangle", "KUBE-PROXY-CANARY"),
        ] {
            assert!(is_kube_proxys(table, chain), "{table} {chain}");
        }
    }
}
