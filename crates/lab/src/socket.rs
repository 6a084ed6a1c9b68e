//! Sockets of the calling thread's namespace, made non-blocking so that both blocking probes (by
//! `poll`) and the shared runtime can use them. Servers and probes build on this; nothing else calls
//! the socket interface.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType,
    SockaddrStorage, bind, getsockopt, listen, recvmsg, setsockopt, socket, sockopt,
};

/// The transport protocols a Service port can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Streams.
    Tcp,
    /// Datagrams.
    Udp,
    /// One-to-one style SCTP; see [`Capability::Sctp`](crate::Capability::Sctp).
    Sctp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// A non-blocking socket of `protocol` in the family of `address`.
fn open(protocol: Protocol, address: IpAddr) -> nix::Result<OwnedFd> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    };
    let (kind, number) = match protocol {
        Protocol::Tcp => (SockType::Stream, SockProtocol::Tcp),
        Protocol::Udp => (SockType::Datagram, SockProtocol::Udp),
        Protocol::Sctp => (SockType::Stream, SockProtocol::Sctp),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    socket(family, kind, flags, number)
}

/// Whether the kernel has the protocol at all.
pub(crate) fn is_known(protocol: Protocol) -> nix::Result<()> {
    open(protocol, IpAddr::V4(Ipv4Addr::LOCALHOST)).map(drop)
}

fn bound(protocol: Protocol, at: SocketAddr) -> Result<OwnedFd> {
    let socket = open(protocol, at.ip()).with_context(|| format!("open a {protocol} socket"))?;
    if protocol != Protocol::Udp {
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    }
    bind(socket.as_raw_fd(), &SockaddrStorage::from(at))
        .with_context(|| format!("bind {protocol} {at}"))?;
    Ok(socket)
}

/// A listening socket of a connection-oriented protocol.
pub(crate) fn listening(protocol: Protocol, at: SocketAddr) -> Result<TcpListener> {
    let socket = bound(protocol, at)?;
    listen(&socket, Backlog::new(1024)?).with_context(|| format!("listen on {at}"))?;
    Ok(TcpListener::from(socket))
}

/// A datagram socket bound to `at`.
pub(crate) fn datagram(at: SocketAddr) -> Result<UdpSocket> {
    Ok(UdpSocket::from(bound(Protocol::Udp, at)?))
}

/// A socket to connect to `to` with, from `source_port` if given.
///
/// Errors when that is impossible here and now, for instance because the port is taken.
pub(crate) fn connecting(
    protocol: Protocol,
    to: SocketAddr,
    source_port: Option<u16>,
) -> Result<OwnedFd> {
    if protocol == Protocol::Sctp {
        hurry_associations();
    }
    let socket = match source_port {
        None => open(protocol, to.ip()).with_context(|| format!("open a {protocol} socket"))?,
        Some(port) => bound(protocol, SocketAddr::new(unspecified(to.ip()), port))?,
    };
    if protocol == Protocol::Tcp {
        // Closing resets the connection: no port waits in TIME_WAIT, so it can be used again at once.
        let at_once = libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        setsockopt(&socket, sockopt::Linger, &at_once)?;
    }
    Ok(socket)
}

/// SCTP has no queue for ICMP errors, and reports one only when it sends the next INIT: after 3 s, unless set
/// otherwise in the calling thread's namespace (`sctp_v4_err` in net/sctp/input.c). Where the setting cannot be written, the report takes 3 s.
fn hurry_associations() {
    for name in ["rto_min", "rto_initial"] {
        let _ = std::fs::write(format!("/proc/sys/net/sctp/{name}"), "200");
    }
}

/// What came of connecting a socket.
pub(crate) enum Connected {
    /// It is connected (for datagrams: has its peer set), still non-blocking.
    Yes,
    /// The kernel gave this error, its own or one from the network.
    No(Errno),
    /// No answer before the deadline.
    Late,
}

/// Connects a socket made by [`connecting`].
pub(crate) fn connect(socket: &OwnedFd, to: SocketAddr, deadline: Instant) -> Result<Connected> {
    queue_icmp_errors(socket, to, true)?;
    match nix::sys::socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => return Ok(Connected::Yes),
        Err(Errno::EINPROGRESS) => {}
        Err(error) => return Ok(Connected::No(error)),
    }
    if !wait_ready(socket, PollFlags::POLLOUT, deadline)? {
        return Ok(Connected::Late);
    }
    let error = getsockopt(socket, sockopt::SocketError)?;
    if error != 0 {
        return Ok(Connected::No(Errno::from_raw(error)));
    }
    if let Some(error) = queued_icmp_error(socket)? {
        return Ok(Connected::No(error));
    }
    // An established connection takes later ones as applications' sockets do.
    queue_icmp_errors(socket, to, false)?;
    Ok(Connected::Yes)
}

/// Asks for every ICMP error in the socket's error queue. Without this, a datagram socket receives the fatal
/// ones only (`__udp4_lib_err` in net/ipv4/udp.c). A stream socket would receive it a second late, from its
/// next retry: between namespaces of one machine the error comes back while `connect` still holds the
/// socket, and the kernel takes it for a soft one then (`tcp_v6_err` in net/ipv6/tcp_ipv6.c).
fn queue_icmp_errors(socket: &OwnedFd, to: SocketAddr, on: bool) -> nix::Result<()> {
    match to {
        SocketAddr::V4(_) => setsockopt(socket, sockopt::Ipv4RecvErr, &on),
        SocketAddr::V6(_) => setsockopt(socket, sockopt::Ipv6RecvErr, &on),
    }
}

/// The first error in the queue, if any.
fn queued_icmp_error(socket: &OwnedFd) -> Result<Option<Errno>> {
    let mut control = nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6);
    let received = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut [],
        Some(&mut control),
        MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT,
    );
    let message = match received {
        Ok(message) => message,
        Err(Errno::EAGAIN) => return Ok(None),
        Err(error) => return Err(error).context("read a socket's error queue"),
    };
    Ok(message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4RecvErr(error, _) | ControlMessageOwned::Ipv6RecvErr(error, _) => {
            i32::try_from(error.ee_errno).ok().map(Errno::from_raw)
        }
        _ => None,
    }))
}

/// Waits until the socket is ready or has an error; false after the deadline.
pub(crate) fn wait_ready(socket: &impl AsFd, wanted: PollFlags, deadline: Instant) -> Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the deadline has passed when the wait was in vain.
        let timeout = PollTimeout::try_from(left + Duration::from_micros(999))?;
        match poll(&mut [PollFd::new(socket.as_fd(), wanted)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for a socket"),
        }
    }
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}
