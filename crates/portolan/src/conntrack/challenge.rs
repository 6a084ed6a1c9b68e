//! Provokes a packet from idle clients whose conntrack entry was deleted, so that they get a RST.
//!
//! A client is reset when its next packet finds no connection, but a client that waits for an answer sends nothing. A SYN
//! within a connection is answered by an acknowledgement, whatever its sequence number (RFC 5961, section 4), and that
//! answer is the next packet. With SYN and FIN set, conntrack treats the packet as invalid (`tcp_valid_flags` of
//! nf_conntrack_proto_tcp.c) and creates no entry, which would keep the answer from being translated.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use net_types::internet_checksum;
use socket2::{Domain, Protocol, Socket, Type};

/// `IPPROTO_RAW`: packets are sent with the headers they have.
const RAW: i32 = 255;
/// `IPPROTO_TCP`
const TCP: u8 = 6;
const TTL: u8 = 64;
const SYN_FIN: u8 = 0x03;
const TCP_HEADER: u8 = 20;

/// Sends a challenge to the client of a connection to `frontend`, with the frontend as its source.
///
/// Errors: EPERM without CAP_NET_RAW in this network namespace.
pub(super) fn challenge(client: SocketAddr, frontend: SocketAddr) -> io::Result<()> {
    let domain = Domain::for_address(client);
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(RAW)))?;
    socket.set_nonblocking(true)?;
    let to = SocketAddr::new(client.ip(), 0);
    socket.send_to(&packet(client, frontend)?, &to.into())?;
    Ok(())
}

/// The packet with its headers. The kernel adds the checksum of the IPv4 header (raw(7)).
fn packet(client: SocketAddr, frontend: SocketAddr) -> io::Result<Vec<u8>> {
    let segment = segment(client, frontend);
    match (frontend.ip(), client.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => Ok(ipv4(from, to, &segment)),
        (IpAddr::V6(from), IpAddr::V6(to)) => Ok(ipv6(from, to, &segment)),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// RFC 791, section 3.1
fn ipv4(from: Ipv4Addr, to: Ipv4Addr, segment: &[u8]) -> Vec<u8> {
    const HEADER: u8 = 20;
    let (version_and_words, length) = (0x45, HEADER + TCP_HEADER);
    let mut packet = vec![version_and_words, 0, 0, length];
    packet.extend([0, 0, 0, 0, TTL, TCP, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(segment);
    packet
}

/// RFC 8200, section 3
fn ipv6(from: Ipv6Addr, to: Ipv6Addr, segment: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0, 0, TCP_HEADER, TCP, TTL];
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(segment);
    packet
}

/// RFC 9293, section 3.1
fn segment(client: SocketAddr, frontend: SocketAddr) -> Vec<u8> {
    let mut segment = Vec::from(frontend.port().to_be_bytes());
    segment.extend(client.port().to_be_bytes());
    segment.extend([0; 8]);
    // The data offset, in words.
    segment.extend([(TCP_HEADER / 4) << 4, SYN_FIN]);
    segment.extend([0; 6]);
    let mut summed = octets(frontend.ip());
    summed.extend(octets(client.ip()));
    summed.extend([0, TCP, 0, TCP_HEADER]);
    summed.extend(&segment);
    let sum = internet_checksum(&summed).to_be_bytes();
    if let Some(place) = segment.get_mut(16..18) {
        place.copy_from_slice(&sum);
    }
    segment
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().into(),
        IpAddr::V6(v6) => v6.octets().into(),
    }
}
