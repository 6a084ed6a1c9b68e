//! The Services of one node as elements of one constant nftables table per family.
//!
//! * [`layout`] owns the table: its sets, chains and rules, and which facts they depend on.
//! * [`render`] turns one frontend into elements of those sets.
//! * `ledger` holds what every Service requests, settles conflicts and counts shared elements; its
//!   changes are derived, never written by hand.
//! * [`conntrack`] and [`affinity`] say which conntrack and affinity entries a change makes stale.
//! * [`predict`] says what the table does with a packet, and why.
//! * [`Dataplane`] keeps a [`nft::Backend`] equal to the ledger: commits, repairs, quarantines.
//! * [`guard`] keeps established connections translated where the kernel cannot keep the table itself.
//!
//! Everything but [`Dataplane`] and [`guard::Guard`] is a function of values.

pub mod affinity;
mod claim;
pub mod conntrack;
pub mod guard;
pub mod layout;
mod ledger;
pub mod predict;
pub mod render;
#[cfg(test)]
mod samples;
mod slots;
mod sync;

pub use affinity::AffinityCheck;
pub use claim::{Claim, side_by_side};
pub use conntrack::{FlowCheck, FlowChecks};
pub use ledger::{Conflict, Update};
pub use slots::in_slots;
pub use sync::{Dataplane, Quarantined, SyncError, SyncOutcome};

use nft::TableContents;
use service_model::{NodeFacts, ServiceIntent};

/// Both tables (IPv4, IPv6) that `intents` need on the node that `facts` describe.
pub fn contents(
    facts: &NodeFacts,
    intents: impl IntoIterator<Item = ServiceIntent>,
) -> [TableContents; 2] {
    let mut ledger = ledger::Ledger::default();
    ledger.apply(intents.into_iter().map(Update::from).collect());
    ledger.contents(facts)
}
