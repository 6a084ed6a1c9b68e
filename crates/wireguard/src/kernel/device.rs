//! Messages of the generic netlink family "wireguard" (`linux/wireguard.h`): functions without effects.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netlink::{Attributes, Malformed, Message, Writer};

use crate::key::{PrivateKey, PublicKey};
use crate::state::{KEEPALIVE, ObservedDevice, ObservedPeer, Peer, PeerChange, Step};

/// `GENL_ID_CTRL`
pub(super) const CONTROL: u16 = 0x10;
/// Bytes of `struct genlmsghdr`.
const HEADER: usize = 4;
/// `CTRL_CMD_GETFAMILY`, version 1.
pub(super) const FAMILY_REQUEST: [u8; HEADER] = [3, 1, 0, 0];
/// `CTRL_ATTR_FAMILY_ID`
const FAMILY_ID: u16 = 1;
/// `CTRL_ATTR_FAMILY_NAME`
pub(super) const FAMILY_NAME: u16 = 2;
/// `WG_GENL_NAME`
pub(super) const FAMILY: &str = "wireguard";
/// `WG_CMD_GET_DEVICE`, `WG_GENL_VERSION`.
pub(super) const GET_DEVICE: [u8; HEADER] = [0, 1, 0, 0];
/// `WG_CMD_SET_DEVICE`, `WG_GENL_VERSION`.
pub(super) const SET_DEVICE: [u8; HEADER] = [1, 1, 0, 0];

/// `WGDEVICE_A_IFINDEX`
pub(super) const INDEX: u16 = 1;
/// `enum wgdevice_attribute`
mod attribute {
    pub(super) const PRIVATE_KEY: u16 = 3;
    pub(super) const PUBLIC_KEY: u16 = 4;
    pub(super) const LISTEN_PORT: u16 = 6;
    pub(super) const FWMARK: u16 = 7;
    pub(super) const PEERS: u16 = 8;
}
/// `enum wgpeer_attribute` and `enum wgpeer_flag`
mod peer {
    pub(super) const PUBLIC_KEY: u16 = 1;
    pub(super) const PRESHARED_KEY: u16 = 2;
    pub(super) const FLAGS: u16 = 3;
    pub(super) const ENDPOINT: u16 = 4;
    pub(super) const KEEPALIVE: u16 = 5;
    pub(super) const LAST_HANDSHAKE: u16 = 6;
    pub(super) const RX_BYTES: u16 = 7;
    pub(super) const TX_BYTES: u16 = 8;
    pub(super) const ALLOWED_IPS: u16 = 9;

    pub(super) const REMOVE_ME: u32 = 1;
    pub(super) const REPLACE_ALLOWED_IPS: u32 = 2;
}
/// `enum wgallowedip_attribute`
mod allowed {
    pub(super) const FAMILY: u16 = 1;
    pub(super) const ADDRESS: u16 = 2;
    pub(super) const CIDR_MASK: u16 = 3;
}
/// `AF_INET` and `AF_INET6`
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
/// Items of lists have no type.
const ITEM: u16 = 0;
/// Peers in one message: an attribute holds 64 kB, and a peer with a dozen addresses takes less than 600 bytes.
const PEERS_AT_ONCE: usize = 64;

/// The number of the family that a reply of the controller names.
pub(super) fn family(message: &Message<'_>) -> Result<Option<u16>, Malformed> {
    let Some(id) = message.attributes(HEADER)?.find(FAMILY_ID)? else {
        return Ok(None);
    };
    let id = id.try_into().map(u16::from_ne_bytes);
    id.map(Some)
        .map_err(|_| Malformed::Value("CTRL_ATTR_FAMILY_ID"))
}

/// The attributes of the requests that a step needs; `None` for a step of another protocol.
pub(super) fn requests(step: &Step) -> Option<Vec<Vec<u8>>> {
    match step {
        Step::SetKey(index, private, port) => {
            let mut out = start(*index);
            out.put(attribute::PRIVATE_KEY, &private.0);
            out.put(attribute::LISTEN_PORT, &port.to_ne_bytes());
            out.put(attribute::FWMARK, &0_u32.to_ne_bytes());
            Some(vec![out.bytes])
        }
        Step::ChangePeers(index, changes) => {
            let chunks = changes.chunks(PEERS_AT_ONCE);
            let chunk = |changes: &[PeerChange]| {
                let mut out = start(*index);
                out.nest(attribute::PEERS, |out| {
                    for change in changes {
                        out.nest(ITEM, |out| write_peer(change, out));
                    }
                });
                out.bytes
            };
            Some(chunks.map(chunk).collect())
        }
        _ => None,
    }
}

fn start(index: u32) -> Writer {
    let mut out = Writer::default();
    out.put(INDEX, &index.to_ne_bytes());
    out
}

fn write_peer(change: &PeerChange, out: &mut Writer) {
    let (key, flags) = match change {
        PeerChange::Put(key, _) => (key, peer::REPLACE_ALLOWED_IPS),
        PeerChange::Remove(key) => (key, peer::REMOVE_ME),
    };
    out.put(peer::PUBLIC_KEY, &key.0);
    out.put(peer::FLAGS, &flags.to_ne_bytes());
    let PeerChange::Put(_, wanted) = change else {
        return;
    };
    let Peer {
        endpoint,
        addresses,
    } = wanted;
    out.put(peer::PRESHARED_KEY, &[0; 32]);
    out.put(peer::ENDPOINT, &endpoint_bytes(*endpoint));
    out.put(peer::KEEPALIVE, &KEEPALIVE.to_ne_bytes());
    out.nest(peer::ALLOWED_IPS, |out| {
        for address in addresses {
            out.nest(ITEM, |out| write_address(*address, out));
        }
    });
}

fn write_address(address: IpAddr, out: &mut Writer) {
    match address {
        IpAddr::V4(v4) => {
            out.put(allowed::FAMILY, &AF_INET.to_ne_bytes());
            out.put(allowed::ADDRESS, &v4.octets());
            out.put(allowed::CIDR_MASK, &[32]);
        }
        IpAddr::V6(v6) => {
            out.put(allowed::FAMILY, &AF_INET6.to_ne_bytes());
            out.put(allowed::ADDRESS, &v6.octets());
            out.put(allowed::CIDR_MASK, &[128]);
        }
    }
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn endpoint_bytes(endpoint: SocketAddr) -> Vec<u8> {
    let family = if endpoint.is_ipv4() {
        AF_INET
    } else {
        AF_INET6
    };
    let mut bytes = family.to_ne_bytes().to_vec();
    bytes.extend(endpoint.port().to_be_bytes());
    match endpoint.ip() {
        IpAddr::V4(v4) => {
            bytes.extend(v4.octets());
            bytes.extend([0; 8]);
        }
        IpAddr::V6(v6) => {
            bytes.extend([0; 4]);
            bytes.extend(v6.octets());
            bytes.extend([0; 4]);
        }
    }
    bytes
}

/// Reads one message of the dump of a device into what earlier ones said: a peer with many addresses may continue.
pub(super) fn read(message: &Message<'_>, device: &mut ObservedDevice) -> Result<(), Malformed> {
    for attribute in message.attributes(HEADER)? {
        let attribute = attribute?;
        let payload = attribute.payload;
        match attribute.kind {
            attribute::PRIVATE_KEY => device.private = key(payload)?.map(PrivateKey),
            attribute::PUBLIC_KEY => device.public = key(payload)?.map(PublicKey),
            attribute::LISTEN_PORT => device.port = u16_of(payload)?,
            attribute::FWMARK => device.mark = u32_of(payload)?,
            attribute::PEERS => {
                for item in Attributes::new(payload) {
                    read_peer(item?.payload, device)?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_peer(payload: &[u8], device: &mut ObservedDevice) -> Result<(), Malformed> {
    let name = Attributes::new(payload).find(peer::PUBLIC_KEY)?;
    let name: Option<[u8; 32]> = name.and_then(|name| name.try_into().ok());
    let name = name.ok_or(Malformed::Missing("WGPEER_A_PUBLIC_KEY"))?;
    let peer: &mut ObservedPeer = device.peers.entry(PublicKey(name)).or_default();
    for attribute in Attributes::new(payload) {
        let attribute = attribute?;
        let payload = attribute.payload;
        match attribute.kind {
            peer::PRESHARED_KEY => peer.has_preshared_key = key(payload)?.is_some(),
            peer::ENDPOINT => peer.endpoint = endpoint_of(payload),
            peer::KEEPALIVE => peer.keepalive = u16_of(payload)?,
            peer::LAST_HANDSHAKE => peer.last_handshake = time(payload)?,
            peer::RX_BYTES => peer.received = u64_of(payload)?,
            peer::TX_BYTES => peer.sent = u64_of(payload)?,
            peer::ALLOWED_IPS => read_allowed(payload, &mut peer.allowed)?,
            _ => {}
        }
    }
    Ok(())
}

fn read_allowed(payload: &[u8], into: &mut BTreeSet<(IpAddr, u8)>) -> Result<(), Malformed> {
    for item in Attributes::new(payload) {
        let fields = Attributes::new(item?.payload);
        let address = fields.clone().find(allowed::ADDRESS)?.unwrap_or_default();
        let mask = fields.find(allowed::CIDR_MASK)?.unwrap_or_default();
        let address = match (<[u8; 4]>::try_from(address), <[u8; 16]>::try_from(address)) {
            (Ok(v4), _) => IpAddr::from(v4),
            (_, Ok(v6)) => IpAddr::from(v6),
            _ => return Err(Malformed::Value("WGALLOWEDIP_A_IPADDR")),
        };
        let [mask] = *mask else {
            return Err(Malformed::Value("WGALLOWEDIP_A_CIDR_MASK"));
        };
        into.insert((address, mask));
    }
    Ok(())
}

fn endpoint_of(payload: &[u8]) -> Option<SocketAddr> {
    let (family, rest) = payload.split_first_chunk::<2>()?;
    let (port, rest) = rest.split_first_chunk::<2>()?;
    let port = u16::from_be_bytes(*port);
    let address = match u16::from_ne_bytes(*family) {
        AF_INET => IpAddr::V4(Ipv4Addr::from(*rest.first_chunk::<4>()?)),
        AF_INET6 => {
            let address = rest.get(4..)?.first_chunk::<16>()?;
            IpAddr::V6(Ipv6Addr::from(*address))
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

/// `struct __kernel_timespec`; zero: never.
fn time(payload: &[u8]) -> Result<Option<Duration>, Malformed> {
    let bad = || Malformed::Value("WGPEER_A_LAST_HANDSHAKE_TIME");
    let (seconds, nanoseconds) = payload.split_first_chunk::<8>().ok_or_else(bad)?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).unwrap_or_default();
    let nanoseconds = nanoseconds.first_chunk::<8>().ok_or_else(bad)?;
    let nanoseconds = i64::from_ne_bytes(*nanoseconds).clamp(0, 999_999_999);
    let nanoseconds = u32::try_from(nanoseconds).unwrap_or_default();
    let time = Duration::new(seconds, nanoseconds);
    Ok((time > Duration::ZERO).then_some(time))
}

/// A key; `None` if it is all zeros.
fn key(payload: &[u8]) -> Result<Option<[u8; 32]>, Malformed> {
    let key: [u8; 32] = payload.try_into().map_err(|_| Malformed::Value("a key"))?;
    Ok((key != [0; 32]).then_some(key))
}

fn u16_of(payload: &[u8]) -> Result<u16, Malformed> {
    let bytes = payload.try_into().map(u16::from_ne_bytes);
    bytes.map_err(|_| Malformed::Value("a number of 16 bits"))
}

fn u32_of(payload: &[u8]) -> Result<u32, Malformed> {
    let bytes = payload.try_into().map(u32::from_ne_bytes);
    bytes.map_err(|_| Malformed::Value("a number of 32 bits"))
}

fn u64_of(payload: &[u8]) -> Result<u64, Malformed> {
    let bytes = payload.try_into().map(u64::from_ne_bytes);
    bytes.map_err(|_| Malformed::Value("a number of 64 bits"))
}

#[cfg(test)]
mod tests;
