//! Effects on the kernel over rtnetlink: [`Kernel`] reads and changes, [`Monitor`] reports foreign changes.
//!
//! What messages mean is in `encode` and `decode`, both functions of values; `frame` separates the messages of a
//! datagram, and `nexthop` has those that `netlink-packet-route` lacks.

mod decode;
mod encode;
mod frame;
mod kernel;
mod monitor;
mod nexthop;

pub use kernel::{Kernel, KernelError, Refused, Watched};
pub use monitor::{Concern, Monitor};
