//! ctnetlink's messages: `linux/netfilter/nfnetlink_conntrack.h`, and net/netfilter/nf_internals.h for the filter's flags.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink::{Attributes, Malformed, Message, Writer, be32};
use nft::Protocol;
use nft::wire::header::attributes;

use super::{Flow, FlowFilter, Volume};

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u16 = 1;
/// `IPCTNL_MSG_CT_GET`
pub(super) const GET: u16 = SUBSYSTEM << 8 | 1;
/// `IPCTNL_MSG_CT_DELETE`
pub(super) const DELETE: u16 = SUBSYSTEM << 8 | 2;

// `enum ctattr_type`
const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const STATUS: u16 = 3;
const TIMEOUT: u16 = 7;
const COUNTERS_ORIG: u16 = 9;
const COUNTERS_REPLY: u16 = 10;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;
const STATUS_MASK: u16 = 26;

// `enum ctattr_tuple`, `enum ctattr_ip`, `enum ctattr_l4proto`, `enum ctattr_counters`, `enum ctattr_filter`
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4_SRC: u16 = 1;
const V4_DST: u16 = 2;
const V6_SRC: u16 = 3;
const V6_DST: u16 = 4;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const COUNTERS_PACKETS: u16 = 1;
const COUNTERS_BYTES: u16 = 2;
const FILTER_ORIG_FLAGS: u16 = 1;
const FILTER_REPLY_FLAGS: u16 = 2;

// `CTA_FILTER_F_*` (net/netfilter/nf_internals.h)
const MATCH_IP_DST: u32 = 1 << 1;
const MATCH_PROTO_NUM: u32 = 1 << 3;
const MATCH_DST_PORT: u32 = 1 << 5;

/// `IPS_SEEN_REPLY`
const SEEN_REPLY: u32 = 1 << 1;
/// `IPS_DST_NAT`
const DST_NAT: u32 = 1 << 5;

/// What identifies one entry to the kernel, as the kernel wrote it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Handle {
    /// `CTA_TUPLE_ORIG`
    tuple: Vec<u8>,
    /// `CTA_ID`
    id: Option<[u8; 4]>,
    /// `CTA_ZONE`
    zone: Option<[u8; 2]>,
}

impl Handle {
    /// Writes the handle. There is always a tuple: a deletion without one would flush the table.
    pub(super) fn put(&self, out: &mut Writer) {
        out.nest(TUPLE_ORIG, |out| out.bytes.extend_from_slice(&self.tuple));
        if let Some(id) = self.id {
            out.put(ID, &id);
        }
        if let Some(zone) = self.zone {
            out.put(ZONE, &zone);
        }
    }
}

/// Writes a dump's filter.
pub(super) fn put_filter(out: &mut Writer, filter: &FlowFilter) {
    let mut flags = MATCH_PROTO_NUM;
    out.nest(TUPLE_ORIG, |out| {
        // Not for IPv6: `ctnetlink_filter_match_tuple` inverts the comparison of addresses there and returns all
        // entries except those that match (seen on Linux 6.18). Addresses are compared here instead.
        if let Some(IpAddr::V4(v4)) = filter.destination {
            flags |= MATCH_IP_DST;
            out.nest(TUPLE_IP, |out| out.put(V4_DST, &v4.octets()));
        }
        out.nest(TUPLE_PROTO, |out| {
            out.put(PROTO_NUM, &[filter.protocol as u8]);
            if let Some(port) = filter.port {
                flags |= MATCH_DST_PORT;
                out.put(PROTO_DST_PORT, &port.to_be_bytes());
            }
        });
    });
    out.nest(FILTER, |out| {
        // These two are in host order.
        out.put(FILTER_ORIG_FLAGS, &flags.to_ne_bytes());
        out.put(FILTER_REPLY_FLAGS, &0u32.to_ne_bytes());
    });
    if filter.unanswered {
        out.put_u32(STATUS, 0);
        out.put_u32(STATUS_MASK, SEEN_REPLY);
    }
}

/// Writes a dump's filter for translated flows without a reply, of all families and protocols.
pub(super) fn put_attempts_filter(out: &mut Writer) {
    out.put_u32(STATUS, DST_NAT);
    out.put_u32(STATUS_MASK, DST_NAT | SEEN_REPLY);
}

/// Writes a dump's filter for translated flows, of all families and protocols.
pub(super) fn put_translated_filter(out: &mut Writer) {
    out.put_u32(STATUS, DST_NAT);
    out.put_u32(STATUS_MASK, DST_NAT);
}

/// Reads an entry of a dump or a notification; `None` for protocols that Services cannot have.
pub(super) fn read(message: &Message<'_>) -> Result<Option<(Flow, Handle)>, Malformed> {
    let (mut original, mut reply, mut status, mut id, mut zone) = (None, None, 0, None, None);
    for attribute in attributes(message)? {
        let attribute = attribute?;
        let payload = attribute.payload;
        match attribute.kind {
            TUPLE_ORIG => original = Some(payload),
            TUPLE_REPLY => reply = Some(payload),
            STATUS => status = be32(payload, "CTA_STATUS")?,
            ID => id = payload.try_into().ok(),
            ZONE => zone = payload.try_into().ok(),
            _ => {}
        }
    }
    let original = original.ok_or(Malformed::Missing("CTA_TUPLE_ORIG"))?;
    let reply = reply.ok_or(Malformed::Missing("CTA_TUPLE_REPLY"))?;
    let (Some(there), Some(back)) = (tuple(original)?, tuple(reply)?) else {
        return Ok(None);
    };
    let flow = Flow {
        protocol: there.protocol,
        source: there.source,
        destination: there.destination,
        answers_from: back.source,
        answered: status & SEEN_REPLY != 0,
    };
    let tuple = original.to_vec();
    Ok(Some((flow, Handle { tuple, id, zone })))
}

/// Reads how many seconds an entry stays if no packet of it comes; `None` where the kernel does not say.
pub(super) fn read_timeout(message: &Message<'_>) -> Result<Option<u32>, Malformed> {
    for attribute in attributes(message)? {
        let attribute = attribute?;
        if attribute.kind == TIMEOUT {
            return be32(attribute.payload, "CTA_TIMEOUT").map(Some);
        }
    }
    Ok(None)
}

/// Reads what an entry has counted, in both directions together; nothing where the kernel does not count.
pub(super) fn read_volume(message: &Message<'_>) -> Result<Volume, Malformed> {
    let mut volume = Volume::default();
    for attribute in attributes(message)? {
        let attribute = attribute?;
        if !matches!(attribute.kind, COUNTERS_ORIG | COUNTERS_REPLY) {
            continue;
        }
        for part in Attributes::new(attribute.payload) {
            let part = part?;
            let number = || part.payload.try_into().map_or(0, u64::from_be_bytes);
            match part.kind {
                COUNTERS_PACKETS => volume.packets += number(),
                COUNTERS_BYTES => volume.bytes += number(),
                _ => {}
            }
        }
    }
    Ok(volume)
}

struct Tuple {
    protocol: Protocol,
    source: SocketAddr,
    destination: SocketAddr,
}

fn tuple(payload: &[u8]) -> Result<Option<Tuple>, Malformed> {
    let mut protocol = None;
    let (mut source, mut destination) = (None, None);
    let (mut source_port, mut destination_port) = (None, None);
    for attribute in Attributes::new(payload) {
        let attribute = attribute?;
        match attribute.kind {
            TUPLE_IP => {
                for part in Attributes::new(attribute.payload) {
                    let part = part?;
                    match part.kind {
                        V4_SRC | V6_SRC => source = address(part.payload),
                        V4_DST | V6_DST => destination = address(part.payload),
                        _ => {}
                    }
                }
            }
            TUPLE_PROTO => {
                for part in Attributes::new(attribute.payload) {
                    let part = part?;
                    match part.kind {
                        PROTO_NUM => protocol = of_number(part.payload),
                        PROTO_SRC_PORT => source_port = port(part.payload),
                        PROTO_DST_PORT => destination_port = port(part.payload),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let Some(protocol) = protocol else {
        return Ok(None);
    };
    let joined =
        |address: Option<IpAddr>, port: Option<u16>| Some(SocketAddr::new(address?, port?));
    Ok(Some(Tuple {
        protocol,
        source: joined(source, source_port).ok_or(Malformed::Missing("a source"))?,
        destination: joined(destination, destination_port)
            .ok_or(Malformed::Missing("a destination"))?,
    }))
}

fn of_number(payload: &[u8]) -> Option<Protocol> {
    let protocols = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    protocols.into_iter().find(|p| payload == [*p as u8])
}

fn address(payload: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(payload) {
        return Some(Ipv4Addr::from(v4).into());
    }
    let v6 = <[u8; 16]>::try_from(payload).ok()?;
    Some(Ipv6Addr::from(v6).into())
}

fn port(payload: &[u8]) -> Option<u16> {
    payload.try_into().ok().map(u16::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An entry as a dump lists it.
    fn entry(source: &str, destination: &str) -> Vec<u8> {
        let socket = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let (source, destination) = (socket(source), socket(destination));
        let tuple = |out: &mut Writer, from: SocketAddr, to: SocketAddr| {
            out.nest(TUPLE_IP, |out| {
                let mut put = |kinds: [u16; 2], ip: IpAddr| match ip {
                    IpAddr::V4(v4) => out.put(kinds[0], &v4.octets()),
                    IpAddr::V6(v6) => out.put(kinds[1], &v6.octets()),
                };
                put([V4_SRC, V6_SRC], from.ip());
                put([V4_DST, V6_DST], to.ip());
            });
            out.nest(TUPLE_PROTO, |out| {
                out.put(PROTO_NUM, &[Protocol::Udp as u8]);
                out.put(PROTO_SRC_PORT, &from.port().to_be_bytes());
                out.put(PROTO_DST_PORT, &to.port().to_be_bytes());
            });
        };
        let mut out = Writer::default();
        let start = out.start(SUBSYSTEM << 8, 0, 1, &[2, 0, 0, 0]);
        out.nest(TUPLE_ORIG, |out| tuple(out, source, destination));
        out.nest(TUPLE_REPLY, |out| tuple(out, destination, source));
        out.put_u32(STATUS, SEEN_REPLY);
        out.put(ID, &[1, 2, 3, 4]);
        out.put(ZONE, &[0, 5]);
        out.finish(start);
        out.bytes
    }

    #[test]
    fn mutated_entries_of_conntrack_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/conntrack");
        let seeds = [
            entry("10.0.0.1:1000", "10.96.0.10:53"),
            entry("[fd00::1]:1000", "[fd00:96::a]:53"),
        ];
        fuzz::fuzz(&corpus, seeds, |datagram| {
            let read = |message: Message<'_>| match read(&message) {
                Ok(None) => "other".to_owned(),
                Ok(Some((flow, handle))) => {
                    // What is read can be written to delete the entry.
                    let mut out = Writer::default();
                    handle.put(&mut out);
                    format!("{:?} {}", flow.protocol, flow.answered)
                }
                Err(error) => error.to_string(),
            };
            let found = netlink::messages(datagram).flatten().map(read);
            fuzz::outcome(found.collect::<Vec<_>>())
        });
    }
}
