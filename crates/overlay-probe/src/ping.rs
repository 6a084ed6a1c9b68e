//! ICMP echo, which the kernel of any peer answers, also without a responder (RFC 792, RFC 4443).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::measurement::PacketOutcome;
use net_types::internet_checksum;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::request::never_fragment;

const ICMP_HEADER: usize = 8;
const TRIES: u32 = 3;

/// Sends echo requests, as IP packets of `size` bytes that are not fragmented, and waits for a reply.
pub(super) async fn ping(
    local: IpAddr,
    to: IpAddr,
    nonce: u64,
    size: usize,
    patience: Duration,
) -> PacketOutcome {
    let Ok((socket, raw)) = open(local, to).await else {
        return PacketOutcome::Unsent;
    };
    let bytes = request(to, nonce, size);
    for _ in 0..TRIES {
        if let Err(error) = socket.send(&bytes).await {
            let too_long = error.raw_os_error() == Some(nix::libc::EMSGSIZE);
            return match too_long {
                true => PacketOutcome::Silent,
                false => PacketOutcome::Unsent,
            };
        }
        let replied = timeout(patience / TRIES, reply(&socket, to, nonce, raw));
        if replied.await.is_ok() {
            return PacketOutcome::Answered;
        }
    }
    PacketOutcome::Silent
}

/// Opens an ICMP datagram socket, or a raw socket where `net.ipv4.ping_group_range` forbids those.
async fn open(local: IpAddr, to: IpAddr) -> io::Result<(UdpSocket, bool)> {
    let (family, protocol) = match local {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6),
    };
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let made = |kind| socket(family, kind, flags, protocol);
    let (socket, raw) = match made(SockType::Datagram) {
        Ok(socket) => (socket, false),
        Err(_) => (made(SockType::Raw)?, true),
    };
    never_fragment(&socket, local)?;
    let bound = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(local, 0));
    nix::sys::socket::bind(std::os::fd::AsRawFd::as_raw_fd(&socket), &bound)?;
    let socket = UdpSocket::from_std(std::net::UdpSocket::from(socket))?;
    socket.connect(SocketAddr::new(to, 0)).await?;
    Ok((socket, raw))
}

fn ip_header(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(_) => 20,
        IpAddr::V6(_) => 40,
    }
}

/// Type, code, checksum, identifier and number, then the nonce and filler.
fn request(to: IpAddr, nonce: u64, size: usize) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut bytes = vec![kind, 0, 0, 0, 0, 0, 0, 1];
    bytes.extend_from_slice(&nonce.to_be_bytes());
    let size = size.saturating_sub(ip_header(to));
    bytes.resize(size.max(bytes.len()), 0);
    // The checksum of ICMPv6 also covers addresses; the kernel fills it in.
    if to.is_ipv4() {
        let sum = internet_checksum(&bytes).to_be_bytes();
        if let Some(place) = bytes.get_mut(2..4) {
            place.copy_from_slice(&sum);
        }
    }
    bytes
}

async fn reply(socket: &UdpSocket, to: IpAddr, nonce: u64, raw: bool) {
    let wanted = if to.is_ipv4() { 0 } else { 129 };
    let mut buffer = vec![0; 65_535];
    loop {
        let Ok(length) = socket.recv(&mut buffer).await else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let packet = buffer.get(..length).unwrap_or_default();
        // A raw IPv4 socket shows the IP header as well.
        let header = match packet.first() {
            Some(first) if raw && to.is_ipv4() => usize::from(first & 0x0f) * 4,
            _ => 0,
        };
        let message = packet.get(header..).unwrap_or_default();
        let echoed = message.get(ICMP_HEADER..ICMP_HEADER + 8);
        if message.first() == Some(&wanted) && echoed == Some(&nonce.to_be_bytes()) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo_request_has_its_size_and_a_valid_checksum() {
        let to: IpAddr = "192.0.2.1".parse().unwrap();
        for size in [36, 37, 1450] {
            let bytes = request(to, 0x1234_5678_9abc_def0, size);
            assert_eq!(bytes.len() + 20, size);
            assert_eq!(internet_checksum(&bytes), 0);
        }
    }
}
