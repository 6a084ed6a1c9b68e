//! A netlink socket: system calls, and membership in multicast groups.
//!
//! A socket belongs to the network namespace of the thread that opened it. Datagrams of other processes are skipped:
//! only the kernel's are handed over.

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

use crate::attribute::Writer;
use crate::message::{control, flag};
use crate::{Error, failed};

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
    StrictCheck,
    SetOnly,
    libc::SOL_NETLINK,
    libc::NETLINK_GET_STRICT_CHK,
    bool
);
sockopt_impl!(
    AttachFilter,
    SetOnly,
    libc::SOL_SOCKET,
    libc::SO_ATTACH_FILTER,
    libc::sock_fprog
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
/// Bounds of the least that the kernel fills: a page, up to 8 kB (`NLMSG_GOODSIZE`, include/linux/netlink.h).
const SMALLEST: usize = 4 << 10;
const LONGEST_SMALL: usize = 8 << 10;

/// Offset of `nlmsg_pid` in `struct nlmsghdr`.
const PORT_OFFSET: u32 = 12;

/// What a socket talks to (netlink(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetlinkFamily {
    /// `NETLINK_ROUTE`
    Route,
    /// `NETLINK_SOCK_DIAG`
    SockDiag,
    /// `NETLINK_NETFILTER`
    Netfilter,
    /// `NETLINK_GENERIC`
    Generic,
}

/// A netlink socket.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    port: u32,
    buffer: Vec<u8>,
    send_space: usize,
}

impl Socket {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(family: NetlinkFamily) -> Result<Self, Error> {
        Self::try_open(family).map_err(failed("open a socket"))
    }

    fn try_open(family: NetlinkFamily) -> Result<Self, Errno> {
        let protocol = match family {
            NetlinkFamily::Route => SockProtocol::NetlinkRoute,
            NetlinkFamily::SockDiag => SockProtocol::NetlinkSockDiag,
            NetlinkFamily::Netfilter => SockProtocol::NetlinkNetFilter,
            NetlinkFamily::Generic => SockProtocol::NetlinkGeneric,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        setsockopt(&fd, ExtendedAck, &true)?;
        setsockopt(&fd, CappedAck, &true)?;
        // Port 0: the kernel chooses one.
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        let port = getsockname::<NetlinkAddr>(fd.as_raw_fd())?.pid();
        Ok(Socket {
            fd,
            port,
            buffer: vec![0; RECEIVE],
            send_space: 0,
        })
    }

    /// The port id that the kernel chose for the socket.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Has the kernel make dumps in datagrams of this many bytes (or [`small_datagram`], if that is more), if nothing has been
    /// received yet: each datagram is made when the one before is received, so what is in it is as old as that.
    pub(crate) fn receive_small(&mut self, bytes: usize) {
        self.buffer = vec![0; bytes];
    }

    /// Requests room for this many bytes of unread messages. Best effort without CAP_NET_ADMIN.
    pub fn set_receive_space(&self, bytes: usize) -> Result<(), Error> {
        setsockopt(&self.fd, sockopt::RcvBufForce, &bytes)
            .or_else(|_| setsockopt(&self.fd, sockopt::RcvBuf, &bytes))
            .map_err(failed("set the receive space"))
    }

    /// Has the kernel filter rtnetlink dumps by what their requests name. Older kernels (before Linux 4.20) list
    /// everything, so the caller has to filter as well.
    pub fn filter_dumps(&self) {
        let _ = setsockopt(&self.fd, StrictCheck, &true);
    }

    /// Joins a multicast group.
    pub fn join(&self, group: i32) -> Result<(), Error> {
        setsockopt(&self.fd, JoinGroup, &group).map_err(failed("join a group"))
    }

    /// Has the kernel drop datagrams that begin with a message of this port: notifications of what another socket of this
    /// process requested. They would only wake the reader. Nothing changes when the kernel refuses.
    pub fn drop_messages_of(&self, port: u32) {
        let statement = |code: u32, k: u32, if_true: u8, if_false: u8| libc::sock_filter {
            code: code as u16,
            jt: if_true,
            jf: if_false,
            k,
        };
        // A load reads a big-endian word, and headers are in the order of the machine.
        let mut program = [
            statement(
                libc::BPF_LD | libc::BPF_W | libc::BPF_ABS,
                PORT_OFFSET,
                0,
                0,
            ),
            statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                port.to_be(),
                0,
                1,
            ),
            statement(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
            statement(libc::BPF_RET | libc::BPF_K, u32::MAX, 0, 0),
        ];
        let program = libc::sock_fprog {
            len: program.len() as u16,
            filter: program.as_mut_ptr(),
        };
        let _ = setsockopt(&self.fd, AttachFilter, &program);
    }

    /// Membership in `group`, to be left and joined while another thread reads the socket.
    pub fn membership(&self, group: i32) -> Result<Membership, Error> {
        let socket = self.fd.try_clone().map_err(|error| {
            failed("clone a socket")(Errno::from_raw(error.raw_os_error().unwrap_or_default()))
        })?;
        Ok(Membership { socket, group })
    }

    /// Sends one datagram to the kernel, which processes it before this returns.
    pub fn send(&mut self, datagram: &[u8]) -> Result<(), Error> {
        #[cfg(feature = "faults")]
        if let Some(errno) = crate::faults::due() {
            return Err(failed("send")(errno));
        }
        self.make_send_space(datagram.len())
            .and_then(|()| {
                loop {
                    return match send(self.fd.as_raw_fd(), datagram, MsgFlags::empty()) {
                        Err(Errno::EINTR) => continue,
                        Err(errno) => Err(errno),
                        Ok(sent) if sent == datagram.len() => Ok(()),
                        Ok(_) => Err(Errno::EMSGSIZE),
                    };
                }
            })
            .map_err(failed("send"))
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
    /// EMSGSIZE: one was cut, and is lost too; there is room for others as long as that from then on.
    pub fn try_receive(&mut self) -> Result<Option<&[u8]>, Errno> {
        #[cfg(feature = "faults")]
        if let Some(errno) = crate::faults::due() {
            return Err(errno);
        }
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

    /// Waits until there may be something to receive; `false` when the time has passed.
    pub fn wait(&self, timeout: Duration) -> Result<bool, Error> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(failed("wait")(errno)),
        }
    }
}

/// Bytes of the shortest datagrams that the kernel fills in a dump, given the bytes of a page.
pub(crate) fn small_datagram(page: usize) -> usize {
    page.clamp(SMALLEST, LONGEST_SMALL)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A socket's membership in one multicast group.
#[derive(Debug)]
pub struct Membership {
    socket: OwnedFd,
    group: i32,
}

impl Membership {
    /// Leaves the group: the socket receives no notifications until [`Membership::join`].
    pub fn leave(&self) -> Result<(), Error> {
        setsockopt(&self.socket, LeaveGroup, &self.group).map_err(failed("leave a group"))
    }

    /// Joins the group again.
    pub fn join(&self) -> Result<(), Error> {
        setsockopt(&self.socket, JoinGroup, &self.group).map_err(failed("join a group"))
    }

    /// Makes the socket readable: requests the acknowledgement of an empty message (`NLMSG_NOOP`).
    pub fn wake(&self) -> Result<(), Error> {
        let mut out = Writer::default();
        let start = out.start(control::NOOP, flag::ACK, 0, &[]);
        out.finish(start);
        send(self.socket.as_raw_fd(), &out.bytes, MsgFlags::empty())
            .map(drop)
            .map_err(failed("wake a subscriber"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_datagrams_are_a_page_of_up_to_8_kb() {
        for (page, bytes) in [(4, 4), (8, 8), (16, 8), (64, 8)] {
            assert_eq!(small_datagram(page << 10), bytes << 10);
        }
    }
}
