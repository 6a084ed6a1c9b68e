//! Removes what flannel's firewall rules have left on the node, whatever its mode was, once our own stand.
//!
//! Two layers of masquerading do no harm meanwhile: only the first to match acts on a connection, and an established
//! one keeps its translation in connection tracking. What is removed is flannel's alone, by name: the tables of its
//! nftables mode, and of its iptables mode the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD` with the jumps to them, in
//! both variants of iptables. `FLANNEL-FWD` stays where `FORWARD` drops by default: it is what lets pods through there.
//!
//! A flanneld that comes back makes its own again. The device, its routes and entries are not leftovers: they are what
//! is taken over.

use netfilter::ForeignRuleset;
use nft::Family;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::takeover::owner::{ChainOwner, Removed};
use crate::takeover::{Removal, chains, keep_removing};

const POSTROUTING: &str = "FLANNEL-POSTRTG";
const FORWARD: &str = "FLANNEL-FWD";
/// flannel's own way of removing its chains looks for both in table `nat`, where one of them never is.
const CHAINS: ChainOwner = ChainOwner {
    tables: &["nat", "filter"],
    owns: |_, chain| chain == POSTROUTING || chain == FORWARD,
    permits: Some(FORWARD),
};

/// The tables of flannel's nftables mode.
const fn table(family: Family) -> &'static str {
    match family {
        Family::Ip => "flannel-ipv4",
        Family::Ip6 => "flannel-ipv6",
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Report {
    tables: Vec<&'static str>,
    iptables: Removed,
}

/// Removes, and looks again from time to time, until cancelled: of the families that `stand`, which are those whose
/// masquerading is ours now.
pub(super) async fn run(mut stand: watch::Receiver<Vec<Family>>, cancel: CancellationToken) {
    let any = stand.wait_for(|families| !families.is_empty());
    if !matches!(cancel.run_until_cancelled(any).await, Some(Ok(_))) {
        return;
    }
    let look = || {
        let families = stand.borrow().clone();
        move || remove(&families)
    };
    keep_removing(look, cancel).await;
}

fn remove(families: &[Family]) -> Report {
    let mut report = Report::default();
    let mut foreign = match ForeignRuleset::open() {
        Ok(foreign) => foreign,
        Err(error) => {
            report.iptables.failures.push(error.to_string());
            return report;
        }
    };
    let mut failures = Vec::new();
    for family in families.iter().copied() {
        match foreign.delete_table(family, table(family)) {
            Ok(true) => report.tables.push(table(family)),
            Ok(false) => {}
            Err(error) => failures.push(format!("table {}: {error}", table(family))),
        }
    }
    report.iptables = chains::remove(&mut foreign, &CHAINS, families);
    report.iptables.failures.append(&mut failures);
    report
}

impl Removal for Report {
    fn removed(&self) -> bool {
        !self.tables.is_empty() || self.iptables.any()
    }

    fn log(&self, before: &Report, was_there: bool) {
        let (tables, iptables) = (&self.tables, &self.iptables);
        if self.removed() && was_there {
            tracing::warn!(?tables, chains = %iptables, "flannel's rules were back: does it still run on this node?");
        } else if self.removed() {
            tracing::info!(?tables, chains = %iptables, "removed what flannel left behind");
        }
        if iptables.kept != before.iptables.kept {
            tracing::warn!(chains = ?iptables.kept, "somebody else's rules lead to these chains of flannel: they stay");
        }
        if iptables.permitting && !before.iptables.permitting {
            tracing::warn!(
                "{FORWARD} stays: FORWARD drops by default, and this chain lets the packets of pods through"
            );
        }
        if iptables.failures != before.iptables.failures {
            for failure in &iptables.failures {
                tracing::warn!(failure, "something of flannel's could not be removed");
            }
        }
    }
}
