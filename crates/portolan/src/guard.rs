//! Keeps established connections translated through a foreign flush, where the tables do not survive one.
//!
//! Chooses by kernel features:
//!
//! * owner and persist flags: the tables survive, and no guard is needed;
//! * owner flag only: a second, owned table is the guard ([`service_dataplane::guard`]);
//! * neither (before Linux 5.12): no nftables ruleset survives `nft flush ruleset`, but legacy iptables rules do. Its
//!   table `nat`, once read, keeps the kernel's NAT hooks (`nf_nat_register_fn`), and a rule with a conntrack match keeps
//!   conntrack (`nf_ct_netns_get`); no packet needs to pass either. The chain stays when the daemon ends, as the tables
//!   do; `portolan cleanup` removes it.
//!
//! Without a guard, a foreign flush breaks established connections; everything else works.

use netfilter::ForeignRuleset;
use nft::{Family, Feature, Features, Kernel};
use service_dataplane::guard::{self, Guard};

use crate::takeover::owner::{ChainOwner, Removed};
use crate::takeover::{chains, legacy};

/// The iptables table of the guard.
const TABLE: &str = "nat";
/// The chain of the guard. No rule jumps to it.
const CHAIN: &str = "PORTOLAN-GUARD";
/// Any rule with a conntrack match will do.
const RULE: &str = "-m conntrack --ctstate INVALID -j RETURN";

/// Selects the chain for removal.
const CHAINS: ChainOwner = ChainOwner {
    tables: &[TABLE],
    owns: |_, chain| chain == CHAIN,
    permits: None,
};

/// Sets up the guard that the kernel needs. A guard table is removed when the returned value is dropped.
pub(crate) fn set_up(features: &Features) -> Option<Guard<Kernel>> {
    if features.has(Feature::TablePersist) && features.has(Feature::TableOwner) {
        return None;
    }
    if features.has(Feature::TableOwner) {
        let guard = Kernel::open_tied(guard::TABLE.into()).and_then(Guard::install);
        return guard
            .inspect_err(|error| {
                tracing::warn!(%error, "cannot create the guard table; a foreign flush breaks established connections");
            })
            .ok();
    }
    for family in Family::ALL {
        if let Err(error) = legacy::write_chain(family, TABLE, CHAIN, &[RULE]) {
            let error = format!("{error:#}");
            tracing::warn!(%family, error, "cannot create the guard chain; a foreign flush breaks established connections");
        }
    }
    None
}

/// Removes the chain that [`set_up`] leaves behind.
pub(crate) fn remove(foreign: &mut ForeignRuleset) -> Removed {
    chains::remove(foreign, &CHAINS, &Family::ALL)
}
