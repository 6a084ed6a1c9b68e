//! Spares a monitor what we write ourselves.
//!
//! The kernel tells the group of every element, also of ours: that was near half of what a large transaction took
//! (benches/README.md), and more work for the reader. While nobody is in the group it tells nothing
//! (`nfnetlink_has_listeners`). So the monitor's socket leaves for the time of a large transaction; that nobody else
//! changed anything meanwhile is seen by the generations, and if somebody has, the monitor is told
//! [`super::Notice::Overrun`].

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{MsgFlags, send, setsockopt};

use crate::socket::{JoinGroup, LeaveGroup};

/// A monitor's membership in its group, in the hands of who writes ([`crate::Kernel::spare`]).
#[derive(Debug)]
pub struct Membership {
    /// The monitor's socket.
    pub(super) socket: OwnedFd,
    pub(super) missed: Arc<AtomicBool>,
}

impl Membership {
    pub(crate) fn leave(&self) -> Result<(), Errno> {
        setsockopt(&self.socket, LeaveGroup, &libc::NFNLGRP_NFTABLES)
    }

    pub(crate) fn join(&self) -> Result<(), Errno> {
        setsockopt(&self.socket, JoinGroup, &libc::NFNLGRP_NFTABLES)
    }

    /// Others have changed something that was not told. Wakes the monitor by an answer to nothing (NLMSG_NOOP).
    pub(crate) fn missed(&self) -> Result<(), Errno> {
        self.missed.store(true, Ordering::Release);
        // A header alone (`struct nlmsghdr`): length, kind and flags, sequence number, port.
        let mut nothing = 16_u32.to_ne_bytes().to_vec();
        for half in [libc::NLMSG_NOOP, libc::NLM_F_REQUEST | libc::NLM_F_ACK] {
            nothing.extend((half as u16).to_ne_bytes());
        }
        nothing.resize(16, 0);
        send(self.socket.as_raw_fd(), &nothing, MsgFlags::empty()).map(drop)
    }
}
