//! The nfnetlink protocol of nf_tables as pure functions on byte slices.
//!
//! [`encode`] turns a transaction into one batch, [`decode`] folds the messages of a dump into
//! [`crate::TableContents`]; the numbers of `linux/netfilter/nf_tables.h` that both need are in `abi`.
//! Sockets are left to [`crate::Kernel`].
//!
//! Invariant: no input makes the decoders panic, loop, or allocate more than a small multiple of the
//! input's length.

pub(crate) mod abi;
pub(crate) mod attribute;
pub mod counts;
pub mod decode;
pub mod encode;
pub(crate) mod expression;
pub(crate) mod frame;
pub(crate) mod hook;
pub(crate) mod udata;

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

pub use frame::{Message, messages};

/// Bytes that are not what the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A length field points outside its buffer, or is shorter than its own header.
    #[error("{0} has a bad length")]
    Length(&'static str),
    /// An attribute that must be there is not.
    #[error("attribute {0} is missing")]
    Missing(&'static str),
    /// An attribute's payload has the wrong size or form.
    #[error("attribute {0} has a bad value")]
    Value(&'static str),
}
