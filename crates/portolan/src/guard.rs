//! What keeps established connections translated through a foreign flush, where the table cannot keep itself.
//!
//! Owns the choice by what the kernel can do:
//!
//! * tables can be owned for good: the table survives, nothing else is needed;
//! * tables can be owned by a socket ([`service_dataplane::guard`]): a second table that is;
//! * tables cannot be owned (before Linux 5.12): no nftables ruleset outlives `nft flush ruleset`, but what iptables'
//!   legacy variant holds does. Its table `nat`, once looked into, keeps the kernel's NAT hooks (`nf_nat_register_fn`),
//!   and a rule with a conntrack match keeps connection tracking (`nf_ct_netns_get`); no packet needs to pass either.
//!   The chain stays when the daemon ends, as the table does, and goes with `portolan cleanup`.
//!
//! Without a guard everything works but for connections that are established when somebody flushes.

use nft::{Family, Feature, Features, Foreign, Kernel};
use service_dataplane::guard::{self, Guard};

use crate::takeover::chains::{self, Removed, Theirs};
use crate::takeover::legacy;

/// The table of iptables that the guard is in.
const TABLE: &str = "nat";
/// Its chain; no rule leads there.
const CHAIN: &str = "PORTOLAN-GUARD";
/// That it asks connection tracking is all.
const RULE: &str = "-m conntrack --ctstate INVALID -j RETURN";

/// For the removal.
const CHAINS: Theirs = Theirs {
    tables: &[TABLE],
    owns: |_, chain| chain == CHAIN,
    permits: None,
};

/// Sets up what is needed. The value is to be held: a guard table goes with it.
pub(crate) fn stand(features: &Features) -> Option<Guard<Kernel>> {
    if features.has(Feature::TablePersist) && features.has(Feature::TableOwner) {
        return None;
    }
    if features.has(Feature::TableOwner) {
        let guard = Kernel::open_tied(guard::TABLE.into()).and_then(Guard::stand);
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

/// Removes what [`stand`] leaves behind.
pub(crate) fn remove(foreign: &mut Foreign) -> Removed {
    chains::remove(foreign, &CHAINS, &Family::ALL)
}
