//! One probe over one path, and its outcome.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use super::measurement::PacketOutcome;
use nix::errno::Errno;
use rustix::net::sockopt::{
    Ipv4PathMtuDiscovery, Ipv6PathMtuDiscovery, set_ip_mtu_discover, set_ipv6_mtu_discover,
};
use std::os::fd::AsFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::wire::{HEADER, Packet, STREAM};

/// How often a datagram is sent within the time limit: a single loss is not a failure.
const TRIES: u32 = 3;
/// Largest datagram of these probes.
pub(super) const LARGEST: usize = 65_535;

/// The outcome of a datagram.
#[derive(Debug, Default)]
pub(super) struct Reply {
    pub(super) outcome: PacketOutcome,
    pub(super) answer: Option<Packet>,
    pub(super) elapsed: Duration,
}

impl Reply {
    pub(super) fn is_answered(&self) -> bool {
        self.outcome == PacketOutcome::Answered
    }
}

/// Opens a datagram socket whose packets are never fragmented.
pub(super) fn datagrams(local: SocketAddr) -> io::Result<UdpSocket> {
    let socket = std::net::UdpSocket::bind(local)?;
    socket.set_nonblocking(true)?;
    never_fragment(&socket, local.ip())?;
    UdpSocket::from_std(socket)
}

/// `IP_PMTUDISC_PROBE`: don't-fragment, and no regard for a path MTU learnt before (ip(7)).
pub(super) fn never_fragment(socket: impl AsFd, local: IpAddr) -> io::Result<()> {
    match local {
        IpAddr::V4(_) => set_ip_mtu_discover(socket, Ipv4PathMtuDiscovery::PROBE)?,
        IpAddr::V6(_) => set_ipv6_mtu_discover(socket, Ipv6PathMtuDiscovery::PROBE)?,
    }
    Ok(())
}

/// Sends a request of `size` bytes up to [`TRIES`] times, and waits for its answer.
pub(super) async fn udp(
    local: IpAddr,
    to: SocketAddr,
    request: &Packet,
    size: usize,
    patience: Duration,
) -> Reply {
    let Packet::Request { nonce, .. } = request else {
        return Reply::default();
    };
    let bytes = request.encode(size);
    let opened = async {
        let socket = datagrams(SocketAddr::new(local, 0))?;
        socket.connect(to).await?;
        io::Result::Ok(socket)
    };
    let Ok(socket) = opened.await else {
        return outcome(PacketOutcome::Unsent);
    };
    let mut refused = false;
    for _ in 0..TRIES {
        let sent = Instant::now();
        match socket.send(&bytes).await {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => refused = true,
            // Too long for this node's own devices: counts as lost.
            Err(error) if errno(&error) == Errno::EMSGSIZE => {
                return outcome(PacketOutcome::Silent);
            }
            Err(_) => return outcome(PacketOutcome::Unsent),
        }
        match timeout(patience / TRIES, answer(&socket, *nonce)).await {
            Ok(Some(answer)) => {
                return Reply {
                    outcome: PacketOutcome::Answered,
                    answer: Some(answer),
                    elapsed: sent.elapsed(),
                };
            }
            Ok(None) => refused = true,
            Err(_) => {}
        }
        // A daemon that is just starting may answer the next request.
        if refused {
            return outcome(PacketOutcome::Refused);
        }
    }
    outcome(PacketOutcome::Silent)
}

/// The answer with this nonce; `None`: "port unreachable".
async fn answer(socket: &UdpSocket, nonce: u64) -> Option<Packet> {
    let mut buffer = vec![0; LARGEST];
    loop {
        match socket.recv(&mut buffer).await {
            Ok(length) => match Packet::decode(buffer.get(..length).unwrap_or_default()) {
                Some(answer @ Packet::Answer { nonce: its, .. }) if its == nonce => {
                    return Some(answer);
                }
                _ => {}
            },
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return None,
            // "Host unreachable" and similar errors from a router: later packets may still arrive.
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

fn outcome(outcome: PacketOutcome) -> Reply {
    Reply {
        outcome,
        ..Reply::default()
    }
}

fn errno(error: &io::Error) -> Errno {
    error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw)
}

/// Connects, sends some kilobytes and expects them back.
pub(super) async fn tcp(
    local: IpAddr,
    to: SocketAddr,
    nonce: u64,
    patience: Duration,
) -> PacketOutcome {
    let opened = || {
        let socket = match local {
            IpAddr::V4(_) => TcpSocket::new_v4(),
            IpAddr::V6(_) => TcpSocket::new_v6(),
        }?;
        socket.bind(SocketAddr::new(local, 0))?;
        io::Result::Ok(socket)
    };
    let Ok(socket) = opened() else {
        return PacketOutcome::Unsent;
    };
    let mut stream = match timeout(patience, socket.connect(to)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => {
            return PacketOutcome::Refused;
        }
        Ok(Err(error)) if matches!(errno(&error), Errno::EPERM | Errno::ENETUNREACH) => {
            return PacketOutcome::Unsent;
        }
        Ok(Err(_)) | Err(_) => return PacketOutcome::Silent,
    };
    match timeout(patience, exchange(&mut stream, nonce)).await {
        Ok(Ok(true)) => PacketOutcome::Answered,
        // The peer closed the connection: packets went both ways.
        Ok(Ok(false) | Err(_)) => PacketOutcome::Refused,
        Err(_) => PacketOutcome::Silent,
    }
}

async fn exchange(stream: &mut TcpStream, nonce: u64) -> io::Result<bool> {
    let (want, earlier) = (0, 0);
    let mut bytes = Packet::Request {
        want,
        nonce,
        earlier,
    }
    .encode(STREAM);
    for (byte, value) in bytes.iter_mut().skip(HEADER).zip((0..=u8::MAX).cycle()) {
        *byte = value;
    }
    stream.write_all(&bytes).await?;
    let mut echoed = vec![0; STREAM];
    stream.read_exact(&mut echoed).await?;
    Ok(echoed == bytes)
}
