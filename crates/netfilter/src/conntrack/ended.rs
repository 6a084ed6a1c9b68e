//! Notifications of the kernel about conntrack entries that end, with what the kernel has counted for them.
//!
//! The kernel notifies for entries that began while somebody listened (`net.netfilter.nf_conntrack_events` 2, the default since
//! Linux 5.19), or for all (1). It sends the notification before the entry leaves its table, so whoever lists the table and then
//! receives until nothing is left has missed no entry.

use std::time::Duration;

use netlink::{Error, NetlinkFamily, Socket, failed, messages};
use nix::errno::Errno;

use super::{Flow, Volume, wire};

/// `NFNLGRP_CONNTRACK_DESTROY`
const GROUP: i32 = 3;
/// Entries time out in batches: room for about 10,000 notifications.
const RECEIVE_SPACE: usize = 16 << 20;

/// Receives the translated flows of one network namespace that end: that of the thread that opened the socket.
#[derive(Debug)]
pub struct EndedFlows {
    socket: Socket,
}

impl EndedFlows {
    /// Errors: EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = Socket::open(NetlinkFamily::Netfilter)?;
        socket.set_receive_space(RECEIVE_SPACE)?;
        socket.join(GROUP)?;
        Ok(EndedFlows { socket })
    }

    /// Waits until there may be something to receive; `false` when the time has passed.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        self.socket.wait(timeout)
    }

    /// Calls `visit` with each flow that has ended, until none is left. Returns whether the kernel has dropped notifications,
    /// because they were not received fast enough.
    ///
    /// Errors: the socket has failed.
    pub fn receive(&mut self, mut visit: impl FnMut(&Flow, Volume)) -> Result<bool, Error> {
        let mut has_lost = false;
        loop {
            match self.socket.try_receive() {
                Ok(None) => return Ok(has_lost),
                Ok(Some(datagram)) => {
                    for message in messages(datagram) {
                        let message = message?;
                        if message.kind == wire::DELETE
                            && let Ok(Some((flow, _))) = wire::read(&message)
                            && flow.is_translated()
                        {
                            visit(&flow, wire::read_volume(&message)?);
                        }
                    }
                }
                Err(Errno::ENOBUFS | Errno::EMSGSIZE) => has_lost = true,
                Err(errno) => return Err(failed("receive ended conntrack entries")(errno)),
            }
        }
    }
}
