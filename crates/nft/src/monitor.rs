//! Hears of changes to our tables made by others.
//!
//! A socket of its own in the group `NFNLGRP_NFTABLES`. Each notification carries the port id of the socket
//! whose request led to it, so our own are told apart by the [`crate::Kernel`]'s port, unread beyond
//! their header; of others' only the table's name is read. What changed is left to
//! [`crate::Backend::list`].
//!
//! The kernel ends the notifications of a transaction with the generation that it made
//! (`nf_tables_gen_notify`). A transaction of others is told once, with that generation: who has read the table at
//! it or later need not read it again.

mod membership;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::model::Name;
use crate::socket::Socket;
use crate::transaction::{CommitError, Generation};
use crate::wire::abi::{SUBSYSTEM, message, table};
use crate::wire::attribute::string;
use crate::wire::frame::generation;
use crate::wire::{Malformed, Message, messages};

pub use membership::Membership;

/// `1 << (NFNLGRP_NFTABLES - 1)`, the group as a bit of the address.
const GROUP: u32 = 1 << 6;

/// Notifications of about 100,000 elements fit; the kernel takes the memory only while they wait.
const RECEIVE_SPACE: usize = 32 << 20;

/// What was heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Somebody else changed a table of ours, or something in it, and the ruleset came to this generation.
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
    /// The transaction that is being told changes a table of ours, and is somebody else's.
    is_ours_changed: bool,
    /// Heard in one datagram and not handed out yet.
    pending: VecDeque<Notice>,
    /// Something may have changed while the socket was not in the group.
    missed: Arc<AtomicBool>,
}

impl Monitor {
    /// Subscribes to changes of the tables of this name, but for those that the socket of this port
    /// makes ([`crate::Kernel::port`]).
    pub fn open(table: Name, own_port: u32) -> Result<Self, CommitError> {
        let socket = Socket::open(GROUP).map_err(failed("subscribe"))?;
        socket
            .set_receive_space(RECEIVE_SPACE)
            .map_err(failed("set receive space"))?;
        Ok(Monitor {
            socket,
            table,
            own_port,
            is_ours_changed: false,
            pending: VecDeque::new(),
            missed: Arc::default(),
        })
    }

    /// For [`crate::Kernel::spare`].
    pub fn membership(&self) -> Result<Membership, CommitError> {
        Ok(Membership {
            socket: self.socket.try_clone().map_err(failed("subscribe"))?,
            missed: self.missed.clone(),
        })
    }

    /// The next notice, if one is there now. To be called until it answers `None` each time the descriptor
    /// becomes readable.
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
                    let changed = &mut self.is_ours_changed;
                    let heard = heard(datagram, &self.table, self.own_port, changed);
                    self.pending.extend(heard);
                }
                Ok(None) => return Ok(None),
                // EMSGSIZE: one datagram was cut, which is as lost as the others.
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => return Ok(Some(Notice::Overrun)),
                Err(errno) => return Err(failed("listen")(errno)),
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
            self.socket.wait(Some(left)).map_err(failed("listen"))?;
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

/// The notices in a datagram. One that does not decode may hide anything. `is_ours_changed` outlives the datagram, since
/// a transaction may be told in several.
pub(crate) fn heard(
    datagram: &[u8],
    table: &str,
    own_port: u32,
    is_ours_changed: &mut bool,
) -> Vec<Notice> {
    let mut notices = Vec::new();
    for message in messages(datagram) {
        let notice = match message.and_then(|message| read(&message, table, own_port)) {
            Ok(Told::Nothing) => continue,
            Ok(Told::Change) => {
                *is_ours_changed = true;
                continue;
            }
            Ok(Told::End(generation)) => match std::mem::take(is_ours_changed) {
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

/// What one message tells.
enum Told {
    Nothing,
    /// Somebody else changed a table of ours.
    Change,
    /// All of a transaction was told.
    End(Generation),
}

fn read(message: &Message<'_>, our_table: &str, own_port: u32) -> Result<Told, Malformed> {
    if message.kind >> 8 != SUBSYSTEM || message.port == own_port {
        return Ok(Told::Nothing);
    }
    if message.kind == message::NEW_GENERATION {
        return generation(message).map(Told::End);
    }
    if message.family().is_none() {
        return Ok(Told::Nothing);
    }
    // Every nf_tables object names its table in attribute 1.
    match message.attributes()?.find(table::NAME)? {
        Some(name) if string(name, "table name")? == our_table => Ok(Told::Change),
        _ => Ok(Told::Nothing),
    }
}

fn failed(action: &'static str) -> impl Fn(Errno) -> CommitError {
    move |errno| CommitError::Socket { action, errno }
}
