//! Removes flannel's leftover firewall rules of either mode, once Portolan's own masquerading is in place.
//!
//! Two layers of masquerading do no harm meanwhile: only the first to match acts on a connection, and an established
//! one keeps its translation in its conntrack entry. Only flannel's own objects are removed, by name: the tables of its
//! nftables mode, and of its iptables mode the chains `FLANNEL-POSTRTG` and `FLANNEL-FWD` with the jumps to them, in
//! both variants of iptables. `FLANNEL-FWD` stays where `FORWARD` drops by default: it is what lets pods through there.
//!
//! A flanneld that is started again creates its rules again. The device, its routes and entries are not leftovers: they
//! are taken over.

use anyhow::Result;
use net_types::Family;
use netfilter::ForeignRuleset;
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

/// What was removed, and what could not be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct FlannelRemoval {
    tables: Vec<&'static str>,
    iptables: Removed,
}

/// Removes leftovers and checks again from time to time, until canceled. `families` are those whose masquerading
/// Portolan has taken over.
pub(super) async fn run(
    mut families: watch::Receiver<Vec<Family>>,
    cancel: CancellationToken,
) -> Result<()> {
    let any = families.wait_for(|families| !families.is_empty());
    if any.await.is_err() {
        // The overlay has ended, and says why.
        return Ok(());
    }
    let look = || {
        let families = families.borrow().clone();
        move || remove(&families)
    };
    keep_removing(look, cancel).await
}

fn remove(families: &[Family]) -> FlannelRemoval {
    let mut removal = FlannelRemoval::default();
    let mut foreign = match ForeignRuleset::open() {
        Ok(foreign) => foreign,
        Err(error) => {
            removal.iptables.failures.push(error.to_string());
            return removal;
        }
    };
    let mut failures = Vec::new();
    for family in families.iter().copied() {
        match foreign.delete_table(family, table(family)) {
            Ok(true) => removal.tables.push(table(family)),
            Ok(false) => {}
            Err(error) => failures.push(format!("table {}: {error}", table(family))),
        }
    }
    removal.iptables = chains::remove(&mut foreign, &CHAINS, families);
    let unreadable = removal.iptables.unreadable.iter();
    failures.extend(unreadable.map(|table| {
        format!("legacy table {table}: no iptables-legacy program is installed to look for flannel's chains")
    }));
    removal.iptables.failures.append(&mut failures);
    removal
}

impl Removal for FlannelRemoval {
    fn removed(&self) -> bool {
        !self.tables.is_empty() || self.iptables.any()
    }

    fn log(&self, before: &FlannelRemoval, was_there: bool) {
        let (tables, iptables) = (&self.tables, &self.iptables);
        if self.removed() && was_there {
            tracing::warn!(?tables, chains = %iptables, "flannel's rules were created again: does flanneld still run on this node?");
        } else if self.removed() {
            tracing::info!(?tables, chains = %iptables, "removed what flannel left behind");
        }
        if iptables.kept != before.iptables.kept {
            tracing::warn!(chains = ?iptables.kept, "keeping flannel chains that rules of other programs jump to");
        }
        if iptables.permitting && !before.iptables.permitting {
            tracing::warn!(
                "keeping {FORWARD}: FORWARD drops by default, and this chain accepts the packets of pods"
            );
        }
        if iptables.failures != before.iptables.failures {
            for failure in &iptables.failures {
                tracing::warn!(failure, "cannot remove a leftover of flannel; retrying");
            }
        }
    }
}
