//! Removes what kube-proxy has left on the node, whatever its mode was: after our first commit, so that there is no
//! moment without rules.
//!
//! kube-proxy does the same with the leftovers of its own other modes. Its rules must not stay: they come before ours in
//! every hook (theirs were there first), so that a connection would still be sent to endpoints of the day kube-proxy
//! ended. Established connections do not notice: their translation is in connection tracking, and our NAT chains keep
//! it in force.
//!
//! What is removed is certainly kube-proxy's, by names that are its alone:
//! * nftables mode: the tables `ip kube-proxy` and `ip6 kube-proxy`;
//! * iptables and IPVS modes: its `KUBE-` chains and the jumps to them, in the tables of iptables' nft variant (one
//!   transaction a table, no program needed) and of its legacy variant (with iptables' own programs, where they are;
//!   see [`chains`]). Chains of kubelet stay, and so does a chain that somebody else's rules lead to;
//! * IPVS mode: the device `kube-ipvs0`, virtual servers at its addresses and IP sets. Established connections live in
//!   IPVS itself and end when the device goes, so that only `portolan cleanup --kube-proxy` does this; `run` says that
//!   they are there.
//!
//! A kube-proxy that still runs writes its rules again. They are looked for from time to time, removed again, and the
//! fight is reported; it does no harm to connections, for either set of rules serves them.

pub(crate) mod chains;
pub mod ipvs;
pub(crate) mod legacy;
pub(crate) mod owner;

use std::fmt;
use std::time::Duration;

use nft::{Family, Foreign};
use tokio_util::sync::CancellationToken;

use owner::{ChainOwner, Removed};

/// Name of kube-proxy's own tables in nftables mode.
const TABLE: &str = "kube-proxy";
/// Its chains.
const CHAINS: ChainOwner = ChainOwner {
    tables: &["nat", "filter", "mangle"],
    owns: is_kube_proxys,
    permits: None,
};
/// Between the first looks, and between later ones.
const LOOKS: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(60)];
/// So many looks are first ones.
const FIRST_LOOKS: usize = 30;

/// Whether a chain of an iptables table is kube-proxy's (pkg/proxy/iptables and pkg/proxy/ipvs, up to 1.37).
///
/// Not its: kubelet's `KUBE-FIREWALL` of the filter table, `KUBE-KUBELET-CANARY` and `KUBE-IPTABLES-HINT`.
/// `KUBE-MARK-DROP` was kubelet's, and is left behind by none but old ones.
fn is_kube_proxys(table: &str, chain: &str) -> bool {
    /// Of one Service or endpoint; a hash follows.
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

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Tables of nftables mode.
    pub tables: usize,
    /// Chains of iptables' tables.
    pub iptables: Removed,
    /// What IPVS mode has left is there, or was removed.
    pub ipvs: Ipvs,
    /// What could not be done, each with its reason.
    pub failures: Vec<String>,
}

/// Leftovers of IPVS mode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Ipvs {
    /// There are none.
    #[default]
    None,
    /// They stay: established connections live in them.
    Stays(ipvs::Leftovers),
    /// They were removed.
    Removed,
}

/// What to do with IPVS, whose established connections would end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Leaves it.
    Keep,
    /// Removes it all the same.
    End,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} nftables tables, {}", self.tables, self.iptables)?;
        if self.ipvs == Ipvs::Removed {
            f.write_str(", IPVS device, servers and sets")?;
        }
        Ok(())
    }
}

/// Removes everything once. Goes on after a failure, and reports each.
pub fn remove(connections: Connections) -> Report {
    let mut report = Report::default();
    match Foreign::open() {
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

/// Removes, and looks again from time to time, until cancelled. To be called once our own rules stand.
pub async fn run(cancel: CancellationToken) {
    keep_removing(|| || remove(Connections::Keep), cancel).await;
}

/// What a look for another program's leftovers has come to.
pub(crate) trait Removal: Default + Send + 'static {
    /// Whether anything was removed.
    fn removed(&self) -> bool;

    /// Says what was done; what stands as it did at the look `before` is not repeated. `was_there`: an earlier look
    /// has removed something already.
    fn log(&self, before: &Self, was_there: bool);
}

/// Removes, and looks again from time to time for what a program that has just been replaced may still write, until
/// cancelled.
pub(crate) async fn keep_removing<R: Removal, F: FnOnce() -> R + Send + 'static>(
    mut look: impl FnMut() -> F,
    cancel: CancellationToken,
) {
    let [first, later] = LOOKS;
    let pauses = std::iter::repeat_n(first, FIRST_LOOKS).chain(std::iter::repeat(later));
    let (mut before, mut was_there) = (R::default(), false);
    for pause in pauses {
        let Ok(report) = tokio::task::spawn_blocking(look()).await else {
            return;
        };
        report.log(&before, was_there);
        was_there |= report.removed();
        before = report;
        let pause = cancel.run_until_cancelled(tokio::time::sleep(pause));
        if pause.await.is_none() {
            return;
        }
    }
}

impl Removal for Report {
    fn removed(&self) -> bool {
        self.tables > 0 || self.iptables.any() || self.ipvs == Ipvs::Removed
    }

    fn log(&self, before: &Report, was_there: bool) {
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
