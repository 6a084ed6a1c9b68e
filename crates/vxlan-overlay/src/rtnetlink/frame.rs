//! The body of an rtnetlink message: one of `netlink-packet-route`, or a nexthop object, which that crate lacks.

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader};
use netlink_packet_route::RouteNetlinkMessage as Message;

use super::nexthop::{self, Nexthop};

/// What a message says.
pub(crate) enum Body {
    Message(Message),
    /// A nexthop object that exists, or one that was deleted.
    Nexthop(Nexthop),
}

impl Body {
    /// `None` for a message that does not decode, such as a foreign kind of link.
    pub(crate) fn of(message: &netlink::Message<'_>) -> Option<Body> {
        if let nexthop::NEW | nexthop::DELETE = message.kind {
            return Nexthop::read(message.payload).map(Body::Nexthop);
        }
        let mut header = NetlinkHeader::default();
        header.message_type = message.kind;
        let message = Message::deserialize(&header, message.payload).ok()?;
        Some(Body::Message(message))
    }
}
