//! One owned nftables table per family, natively over netlink.
//!
//! Three layers, each usable without the next:
//!
//! * **Values**: [`Table`], [`Set`], [`Chain`], [`Rule`], [`Statement`], [`Element`] and the
//!   [`Transaction`] that changes them. Pure, comparable, printable as nft text ([`text`]).
//! * **Registers**: [`expr`] lowers statements to the kernel's register machine exactly as nft does,
//!   and [`wire`] encodes and decodes netlink messages. Pure, fuzzed.
//! * **Effects**: [`Kernel`] is one netlink socket that lives as long as the daemon; [`Monitor`] hears
//!   of changes made by others; [`trace`] what rules do with a packet; [`Features`] finds out by trying what the kernel can do; [`Fake`] obeys
//!   the kernel's rules in memory, for tests.
//!
//! No text of foreign origin can enter a ruleset: names and comments are `'static` or made by us.

mod conntrack;
pub mod diff;
pub mod expr;
mod fake;
pub mod features;
mod foreign;
mod kernel;
mod link;
pub mod model;
mod monitor;
mod socket;
pub mod text;
pub mod trace;
mod transaction;
pub mod wire;

#[cfg(test)]
mod agreement;
#[cfg(test)]
mod namespace;
#[cfg(test)]
mod samples;

pub use conntrack::{Conntrack, Flow, FlowFilter};
pub use fake::{Counters, Fake};
pub use features::{Feature, Features};
pub use foreign::{AnyFamily, BaseChain, Foreign, Leftovers, leftovers};
pub use kernel::{Kernel, KernelConfig, Sent, TableFeatures};
pub use model::{
    Bytes, Chain, Data, DataField, Element, Family, Field, Hook, Name, Operand, Protocol, Rule,
    Set, SetKind, Side, Statement, Table, Verdict,
};
pub use monitor::{Membership, Monitor, Notice};
pub use transaction::{
    Adoption, Backend, CommitError, Culprit, Generation, Operation, TableContents, Transaction,
};
pub use wire::decode::TableState;
pub use wire::encode::TableFlags;
