//! One owned nftables table per family, natively over netlink.
//!
//! ```no_run
//! use nft::{Backend, Chain, Family, Hook, Kernel, KernelConfig, Statement, Table, TableContents};
//!
//! let rules = vec![vec![Statement::ConnectionIsDnat, Statement::Counter].into()];
//! let (name, hook, comment) = ("input".into(), Some(Hook::FilterInput), "".into());
//! let chains = [("input".into(), Chain { name, hook, comment, rules })].into();
//! let table = Table { family: Family::Ip, name: "example".into(), comment: "".into() };
//! let wanted = TableContents { table, sets: [].into(), chains, elements: [].into() };
//! println!("{wanted}"); // as `nft list table ip example` prints it
//! let mut kernel = Kernel::open(KernelConfig { table: "example".into(), owner: false })?;
//! let steps = kernel.difference(&wanted)?; // from what the kernel has
//! kernel.commit(&steps)?;
//! # Ok::<(), nft::CommitError>(())
//! ```
//!
//! Three layers, each usable without the next:
//!
//! * **Values**: [`Table`], [`Set`], [`Chain`], [`Rule`], [`Statement`], [`Element`] and the
//!   [`Transaction`] that changes them. Pure, comparable, printable as nft text ([`text`]).
//! * **Registers**: [`expr`] lowers statements to the kernel's register machine exactly as nft does,
//!   and [`wire`] encodes and decodes netlink messages. Pure, fuzzed.
//! * **Effects**: [`Tables`] opens a [`Kernel`], which commits and reads, and a [`Monitor`], which reports foreign
//!   changes; [`trace`] reports what rules do with a packet; [`Features`] finds out by trying what the kernel can do.
//!   [`Backend`] is what a kernel and the in-memory `Fake` (feature `fake`, for tests) have in common.
//!
//! No text of foreign origin can enter a ruleset: names and comments are `'static` or made by us.

mod backend;
pub mod diff;
pub mod expr;
#[cfg(any(test, feature = "fake"))]
mod fake;
pub mod features;
mod kernel;
pub mod model;
mod monitor;
mod tables;
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

pub use backend::{Adoption, Backend};
#[cfg(any(test, feature = "fake"))]
pub use fake::{Counters, Fake};
pub use features::{Feature, Features};
pub use kernel::{Kernel, KernelConfig, Sent, TableFeatures, read_generation};
pub use model::{
    Bytes, Chain, Data, DataField, Element, Family, Field, Hook, Name, Operand, Protocol, Rule,
    Set, SetKind, Side, Statement, Table, Verdict,
};
pub use monitor::{Monitor, Notice};
pub use tables::Tables;
pub use transaction::{CommitError, Culprit, Generation, Operation, TableContents, Transaction};
pub use wire::decode::TableState;
pub use wire::encode::TableFlags;
pub use wire::header::AnyFamily;
