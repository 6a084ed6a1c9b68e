//! Netfilter beside our own tables, over netlink: conntrack entries, and rules and IP sets of other programs.
//!
//! [`Conntrack`] finds and deletes entries, and finds attempts that nobody has answered ([`Sampler`]: in a part of the table);
//! [`EndedFlows`] receives entries when they end;
//! [`ForeignRuleset`] reads and removes what other programs have in the ruleset. Which entries and chains those are is the
//! caller's decision. Our own tables are [`nft`]'s.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod conntrack;
mod foreign;
#[cfg(test)]
mod testing;

pub use conntrack::{Attempt, Conntrack, EndedFlows, Flow, FlowFilter, Sampler, Volume};
pub use foreign::{BaseChain, Ending, ForeignRuleset, Leftovers, leftovers};
