//! A node's WireGuard devices: what the kernel should hold, and the steps to get there.
//!
//! * **Facts**: [`Wanted`] says which devices there should be, with their peers, the routes that lead through them and
//!   the rule that keeps packets of the sealed port from leaving in clear text.
//! * **Decision**: [`difference`] says by which [`Step`]s the observed state becomes the wanted one.
//! * **Effects**: [`Kernel`] reads and writes over generic netlink (`linux/wireguard.h`) and rtnetlink.
//!
//! The kernel derives public keys from private ones: the crate has no cryptography. Which nodes are peers, and where keys
//! are kept, is left to the caller.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod difference;
mod kernel;
mod key;
mod state;

pub use difference::{Deletions, difference};
pub use kernel::{Kernel, KernelError, Refused};
pub use key::{InvalidKey, PrivateKey, PublicKey};
pub use state::{
    Device, KEEPALIVE, Observed, ObservedDevice, ObservedPeer, Peer, PeerChange, RULE_PRIORITY,
    Rule, SEAL_PRIORITY, SESSION, Seal, Step, UNREACHABLE, Wanted, overhead,
};
