//! A netlink socket, nothing more: the system calls that [`crate::Kernel`] and [`crate::Monitor`] share.
//!
//! It belongs to the network namespace of the thread that opens it, for life. Only datagrams of the kernel
//! itself are let through.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname,
    recvmsg, send, setsockopt, socket, sockopt,
};
use nix::{libc, setsockopt_impl, sockopt_impl};

sockopt_impl!(
    ExtendedAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_EXT_ACK,
    bool
);
sockopt_impl!(
    CappedAck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_CAP_ACK,
    bool
);

sockopt_impl!(
    JoinGroup,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_ADD_MEMBERSHIP,
    libc::c_int
);
sockopt_impl!(
    LeaveGroup,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_DROP_MEMBERSHIP,
    libc::c_int
);

/// The kernel fills dumps up to 32 kB a datagram, more when it has once seen a longer buffer.
const RECEIVE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    port: u32,
    buffer: Vec<u8>,
    send_space: usize,
}

impl Socket {
    /// A `NETLINK_NETFILTER` socket in the calling thread's network namespace, member of these multicast
    /// groups (a bit mask).
    pub(crate) fn open(groups: u32) -> Result<Self, Errno> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkNetFilter,
        )?;
        setsockopt(&fd, ExtendedAck, &true)?;
        setsockopt(&fd, CappedAck, &true)?;
        // Port 0: the kernel chooses one.
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        Ok(Socket {
            fd,
            port,
            buffer: vec![0; RECEIVE],
            send_space: 0,
        })
    }

    /// The port id the kernel chose.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Another descriptor of the same socket.
    pub(crate) fn try_clone(&self) -> Result<OwnedFd, Errno> {
        let cloned = self.fd.try_clone();
        cloned.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))
    }

    /// Asks for room for this many bytes of unread messages. Best effort without CAP_NET_ADMIN.
    pub(crate) fn set_receive_space(&self, bytes: usize) -> Result<(), Errno> {
        setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.fd, sockopt::RcvBuf, &bytes))
    }

    /// Sends one datagram to the kernel, which works through it before this returns.
    pub(crate) fn send(&mut self, datagram: &[u8]) -> Result<(), Errno> {
        self.make_send_space(datagram.len())?;
        loop {
            return match send(self.fd.as_raw_fd(), datagram, MsgFlags::empty()) {
                Err(Errno::EINTR) => continue,
                Err(errno) => Err(errno),
                Ok(sent) if sent == datagram.len() => Ok(()),
                Ok(_) => Err(Errno::EMSGSIZE),
            };
        }
    }

    /// A datagram longer than the send buffer is refused with EMSGSIZE.
    fn make_send_space(&mut self, bytes: usize) -> Result<(), Errno> {
        /// The default of most systems is 208 kB.
        const LEAST: usize = 128 << 10;
        /// The kernel keeps some of it for itself.
        const OVERHEAD: usize = 4 << 10;
        let wanted = bytes + OVERHEAD;
        if wanted > self.send_space.max(LEAST) {
            let wanted = wanted.next_power_of_two();
            setsockopt(&self.fd, sockopt::SndBufForce, &wanted)
                .or_else(|_| setsockopt(&self.fd, sockopt::SndBuf, &wanted))?;
            self.send_space = wanted;
        }
        Ok(())
    }

    /// The next datagram from the kernel; `None` when there is none now. ENOBUFS: some were lost;
    /// EMSGSIZE: one was cut, and is lost too.
    pub(crate) fn try_receive(&mut self) -> Result<Option<&[u8]>, Errno> {
        let len = loop {
            let mut into = [IoSliceMut::new(&mut self.buffer)];
            // MSG_TRUNC: the true length is answered even when the buffer is shorter.
            let flags = MsgFlags::MSG_TRUNC;
            match recvmsg::<NetlinkAddr>(self.fd.as_raw_fd(), &mut into, None, flags) {
                // Port 0 is the kernel.
                Ok(datagram) if datagram.address.is_some_and(|from| from.pid() == 0) => {
                    break datagram.bytes;
                }
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno),
            }
        };
        if len > self.buffer.len() {
            self.buffer.resize(len.next_power_of_two(), 0);
            return Err(Errno::EMSGSIZE);
        }
        Ok(self.buffer.get(..len))
    }

    /// Waits until there is something to receive; `false` when the time has passed. `None`: for ever.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Result<bool, Errno> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let timeout = match timeout {
            None => PollTimeout::NONE,
            Some(time) => PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX),
        };
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno),
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
