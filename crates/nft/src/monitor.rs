//! Reports changes that other processes make to our tables.
//!
//! A socket of its own in the group `NFNLGRP_NFTABLES`. Each notification carries the port id of the socket whose
//! request led to it, so our own are recognized by the [`crate::Kernel`]'s port: a filter in the kernel drops them, so that
//! our commits do not wake the reader. Of foreign ones only the table's name is read. What changed is left to [`crate::Backend::list`].
//!
//! The kernel ends the notifications of a transaction with the generation that it made (`nf_tables_gen_notify`). A
//! foreign transaction is reported once, with that generation: who has read the table at that generation or later need
//! not read it again.
//!
//! While no socket is in the group, the kernel writes no notifications (`nfnetlink_has_listeners`). They take near half the
//! time of a large transaction (benches/README.md), and the reader skips them. So [`crate::Kernel`] mutes the monitor
//! during its large commits; generations show whether another process changed something at that time.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use netlink::{Malformed, Membership, Message, NetlinkFamily, Socket, failed, is_string, messages};
use nix::errno::Errno;
use nix::libc::NFNLGRP_NFTABLES;

use crate::model::Name;
use crate::transaction::{CommitError, Generation};
use crate::wire::abi::{SUBSYSTEM, message, table};
use crate::wire::header::{attributes, family, generation};

/// Notifications of about 100,000 elements fit; the kernel takes the memory only while they wait.
const RECEIVE_SPACE: usize = 32 << 20;

/// Why the table should be read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A foreign transaction changed one of Portolan's tables, and made this generation.
    Changed(Generation),
    /// Notifications were lost: anything may have changed.
    Overrun,
}

/// A subscription to nf_tables changes in one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    table: Name,
    own_port: u32,
    /// A foreign change of our table has been received, and its generation has not.
    foreign_change_pending: bool,
    /// Received in one datagram and not returned yet.
    pending: VecDeque<Notice>,
    /// Something may have changed while the monitor was muted.
    missed: Arc<AtomicBool>,
}

impl Monitor {
    /// Subscribes to changes of the tables of this name, except those made through the socket of this port
    /// ([`crate::Kernel::port`]).
    pub fn open(table: Name, own_port: u32) -> Result<Self, CommitError> {
        let socket = Socket::open(NetlinkFamily::Netfilter)?;
        socket.set_receive_space(RECEIVE_SPACE)?;
        // All messages of a datagram are of one transaction (`nft_commit_notify`), and so of one port.
        socket.drop_messages_of(own_port);
        socket.join(NFNLGRP_NFTABLES)?;
        Ok(Monitor {
            socket,
            table,
            own_port,
            foreign_change_pending: false,
            pending: VecDeque::new(),
            missed: Arc::default(),
        })
    }

    /// What mutes this monitor, for [`crate::Kernel::mute_during_large_commits`].
    pub(crate) fn mute(&self) -> Result<Mute, CommitError> {
        Ok(Mute {
            membership: self.socket.membership(NFNLGRP_NFTABLES)?,
            missed: self.missed.clone(),
        })
    }

    /// The next notice, if there is one now. Call it until it returns `None` each time the descriptor becomes
    /// readable.
    pub fn try_next(&mut self) -> Result<Option<Notice>, CommitError> {
        loop {
            if let Some(notice) = self.pending.pop_front() {
                return Ok(Some(notice));
            }
            if self.missed.swap(false, Ordering::Acquire) {
                return Ok(Some(Notice::Overrun));
            }
            match self.socket.try_receive() {
                Ok(Some(datagram)) => {
                    let pending = &mut self.foreign_change_pending;
                    let notices = notices(datagram, &self.table, self.own_port, pending);
                    self.pending.extend(notices);
                }
                Ok(None) => return Ok(None),
                // EMSGSIZE: a datagram longer than the buffer was cut, so its notifications are lost too.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => return Ok(Some(Notice::Overrun)),
                Err(errno) => return Err(failed("receive notifications")(errno).into()),
            }
        }
    }

    /// Waits for the next notice; `None` when the time has passed.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<Notice>, CommitError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(notice) = self.try_next()? {
                return Ok(Some(notice));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.wait(left)?;
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// For tokio's `AsyncFd`.
impl AsRawFd for Monitor {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_fd().as_raw_fd()
    }
}

/// Mutes a monitor: takes its socket out of the group for a while.
#[derive(Debug)]
pub(crate) struct Mute {
    membership: Membership,
    missed: Arc<AtomicBool>,
}

impl Mute {
    pub(crate) fn leave(&self) -> Result<(), CommitError> {
        Ok(self.membership.leave()?)
    }

    pub(crate) fn join(&self) -> Result<(), CommitError> {
        Ok(self.membership.join()?)
    }

    /// Has the monitor report [`Notice::Overrun`]: there was a foreign change while it was muted.
    pub(crate) fn report_missed(&self) -> Result<(), CommitError> {
        self.missed.store(true, Ordering::Release);
        Ok(self.membership.wake()?)
    }
}

/// The notices in a datagram. A message that does not decode may hide anything. `foreign_change_pending` outlives the
/// datagram, since the notifications of one transaction may come in several.
fn notices(
    datagram: &[u8],
    table: &str,
    own_port: u32,
    foreign_change_pending: &mut bool,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    for message in messages(datagram) {
        let notice = match message.and_then(|message| read(&message, table, own_port)) {
            Ok(Notification::Other) => continue,
            Ok(Notification::ForeignChange) => {
                *foreign_change_pending = true;
                continue;
            }
            Ok(Notification::End(generation)) => match std::mem::take(foreign_change_pending) {
                true => Notice::Changed(generation),
                false => continue,
            },
            Err(_) => Notice::Overrun,
        };
        if !notices.contains(&notice) {
            notices.push(notice);
        }
    }
    notices
}

/// Number of notices in a datagram of any bytes.
#[cfg(test)]
pub(crate) fn notices_in(datagram: &[u8]) -> usize {
    notices(datagram, "portolan", 7, &mut false).len()
}

enum Notification {
    /// Portolan's own, or about another table.
    Other,
    /// Another process changed one of Portolan's tables.
    ForeignChange,
    /// The last notification of a transaction.
    End(Generation),
}

fn read(message: &Message<'_>, our_table: &str, own_port: u32) -> Result<Notification, Malformed> {
    if message.kind >> 8 != SUBSYSTEM || message.port == own_port {
        return Ok(Notification::Other);
    }
    if message.kind == message::NEW_GENERATION {
        return generation(message).map(Notification::End);
    }
    if family(message).is_none() {
        return Ok(Notification::Other);
    }
    // Every nf_tables object names its table in attribute 1.
    match attributes(message)?.find(table::NAME)? {
        Some(name) if is_string(name, our_table) => Ok(Notification::ForeignChange),
        _ => Ok(Notification::Other),
    }
}
