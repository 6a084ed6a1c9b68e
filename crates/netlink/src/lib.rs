//! Netlink sockets: requests matched with their replies, subscriptions to groups, messages and attributes.
//!
//! [`Connection`] sends requests and hands over the replies; [`Socket`] is for subscribers; [`Writer`], [`messages`] and
//! [`Attributes`] write and read the bytes. What a request means is left to the caller: this crate knows
//! `linux/netlink.h` and no protocol on top of it.
//!
//! Invariant: no input makes a decoder panic, loop, or allocate more than a small multiple of the input's length.
//!
//! ```no_run
//! use netlink::{Connection, NetlinkFamily, flag};
//!
//! const RTM_GETLINK: u16 = 18;
//! /// Bytes of `struct ifinfomsg`.
//! const IFINFOMSG: usize = 16;
//! let mut connection = Connection::open(NetlinkFamily::Route)?;
//! let mut links = 0;
//! let header = [0; IFINFOMSG];
//! let reply = connection.ask(RTM_GETLINK, flag::DUMP, &header, |_| {}, |message| {
//!     links += usize::from(message.attributes(IFINFOMSG)?.count() > 0);
//!     Ok(())
//! })?;
//! println!("{reply:?}: {links} links");
//! # Ok::<(), netlink::Error>(())
//! ```

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod attribute;
mod connection;
#[cfg(feature = "faults")]
pub mod faults;
mod message;
mod socket;

pub use attribute::{ATTRIBUTE_HEADER, Attribute, Attributes, Writer, be32, is_string, string};
pub use connection::{Connection, DumpUnderWay, Reply};
pub use message::{Answer, HEADER, Message, flag, messages};
pub use socket::{Membership, NetlinkFamily, Socket};

use nix::errno::Errno;

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

/// Why a request failed. The kernel's state is unknown until it is read again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The socket failed, or the kernel refused.
    #[error("netlink: cannot {action}: {errno}")]
    Failed {
        /// What was attempted.
        action: &'static str,
        /// Error number.
        errno: Errno,
    },
    /// The reply does not decode.
    #[error("netlink: undecodable reply: {0}")]
    Malformed(#[from] Malformed),
}

/// The error of an action, from the error number it failed with.
pub fn failed(action: &'static str) -> impl Fn(Errno) -> Error {
    move |errno| Error::Failed { action, errno }
}
