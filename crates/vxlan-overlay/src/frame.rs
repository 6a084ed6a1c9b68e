//! What comes over an rtnetlink socket, message by message: those of `netlink-packet-route`, and nexthop objects, which
//! it has not.

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage as Message;

use crate::nexthop::{self, Nexthop};

/// `struct nlmsghdr` (linux/netlink.h): length, type, flags, sequence number, port.
const HEADER: usize = 16;

/// One message.
pub(crate) struct Frame {
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// The port of the socket that asked for it, or that made the change.
    pub(crate) port: u32,
    pub(crate) body: Body,
}

/// What it says.
pub(crate) enum Body {
    Message(Message),
    /// A nexthop object that is there, or one that has gone.
    Nexthop(Nexthop),
    /// The end of an answer: 0, or an error number.
    End(i32),
}

/// Calls `take` for each message of a datagram that decodes. One that does not is somebody else's kind of link.
pub(crate) fn each(datagram: &[u8], mut take: impl FnMut(Frame)) {
    let mut rest = datagram;
    // A header begins with the length of the whole message.
    while let Some(length) = number(rest, 0)
        && length as usize >= HEADER
        && let Some(message) = rest.get(..length as usize)
    {
        if let Some(frame) = read(message) {
            take(frame);
        }
        rest = rest
            .get((length as usize).next_multiple_of(4)..)
            .unwrap_or_default();
    }
}

fn read(message: &[u8]) -> Option<Frame> {
    let kind = number(message, 4)?.to_ne_bytes();
    let [low, high, flag_low, flag_high] = kind;
    let body = match u16::from_ne_bytes([low, high]) {
        nexthop::NEW | nexthop::DELETE => Body::Nexthop(Nexthop::read(message.get(HEADER..)?)?),
        _ => match NetlinkMessage::deserialize(message).ok()?.payload {
            NetlinkPayload::InnerMessage(message) => Body::Message(message),
            NetlinkPayload::Done(_) => Body::End(0),
            NetlinkPayload::Error(answer) => {
                Body::End(answer.code.map_or(0, |code| code.get().saturating_neg()))
            }
            _ => return None,
        },
    };
    Some(Frame {
        flags: u16::from_ne_bytes([flag_low, flag_high]),
        sequence: number(message, 8)?,
        port: number(message, 12)?,
        body,
    })
}

/// Four bytes as a number of this machine.
pub(crate) fn number(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
