//! The floor: netlink messages made beforehand, sent by a socket that does nothing else.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nft::wire::encode::Batch;
use nft::{TableFlags, Transaction};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendmsg,
    setsockopt, socket, sockopt,
};
use service_dataplane::layout;

/// Enough for the largest batch of the benches, 250,000 elements.
const SEND_SPACE: usize = 128 << 20;
/// `NLMSG_ERROR`; with error 0 an acknowledgement (include/uapi/linux/netlink.h).
const ERROR: u16 = 2;

/// The bytes of a transaction: one batch, as the daemon would send it.
pub fn encode(transaction: &Transaction) -> Result<Vec<u8>> {
    let mut batch = Batch::default();
    if let Err(refused) = batch.encode(transaction, layout::TABLE, TableFlags::default(), 1) {
        bail!(
            "step {} of a transaction cannot be written",
            refused.operation
        );
    }
    Ok(batch.bytes().to_vec())
}

/// A netlink socket.
#[derive(Debug)]
pub struct Bare {
    socket: OwnedFd,
}

impl Bare {
    /// In the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .context("open a netlink socket")?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_SPACE).context("raise the send buffer")?;
        Ok(Bare { socket })
    }

    /// Sends one batch; how long it took until the kernel had acknowledged it.
    pub fn send(&self, batch: &[u8]) -> Result<Duration> {
        let mut answer = [0; 4096];
        let start = Instant::now();
        let kernel = NetlinkAddr::new(0, 0);
        let sent = sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(batch)],
            &[],
            MsgFlags::empty(),
            Some(&kernel),
        )
        .context("send a batch")?;
        let received = loop {
            match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                received => break received.context("receive the acknowledgement")?,
            }
        };
        let elapsed = start.elapsed();
        ensure!(sent == batch.len(), "sent {sent} of {} bytes", batch.len());
        match answer.get(..received) {
            Some(
                [
                    _,
                    _,
                    _,
                    _,
                    low,
                    high,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    _,
                    a,
                    b,
                    c,
                    d,
                    ..,
                ],
            ) if u16::from_ne_bytes([*low, *high]) == ERROR => {
                match i32::from_ne_bytes([*a, *b, *c, *d]) {
                    0 => Ok(elapsed),
                    error => bail!("the kernel refused a batch: {}", Errno::from_raw(-error)),
                }
            }
            _ => bail!("the kernel answered something else than an acknowledgement"),
        }
    }
}
