//! The nfnetlink protocol of nf_tables as pure functions on byte slices.
//!
//! [`encode`] turns a transaction into one batch, [`decode`] folds the messages of a dump into
//! [`crate::TableContents`]; the numbers of `linux/netfilter/nf_tables.h` that both need are in `abi`.
//! Sockets are left to [`crate::Kernel`].
//!
//! Invariant: no input makes the decoders panic, loop, or allocate more than a small multiple of the
//! input's length.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

pub mod abi;
pub mod counters;
pub mod decode;
pub mod encode;
pub(crate) mod expression;
pub mod header;
pub mod hook;
pub(crate) mod udata;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;
