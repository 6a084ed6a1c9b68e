//! From steps and requests to rtnetlink messages: functions without effects.

use std::net::IpAddr;

use ipnet::IpNet;
use net_types::Family;
use netlink_packet_core::{
    NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NetlinkSerializable,
};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage as Message};

use super::nexthop;
use crate::carriers::Outer;
use crate::difference::{self, ObservedRoute, Operation};
use crate::mac::Mac;
use crate::marks::PROTOCOL;
use crate::plan::{Device, Way};

/// Makes what must not be there yet.
const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// Makes what is there or not.
const PUT: u16 = NLM_F_CREATE | NLM_F_REPLACE;
/// Changes or deletes what must be there.
const THERE: u16 = 0;
/// Better than any other route to the same gateway.
const GUIDE_METRIC: u32 = 1;

/// A request: message type, flags, and all that follows `struct nlmsghdr`.
pub(crate) type Request = (u16, u16, Vec<u8>);

/// The request of a step; `None` if it cannot be expressed.
pub(crate) fn step_request(operation: &Operation) -> Option<Request> {
    Some(match operation {
        Operation::MakeNexthop(index, id) => (nexthop::NEW, NEW, nexthop::to_make(*index, *id)),
        Operation::MoveNexthop(index, id) => (nexthop::NEW, PUT, nexthop::to_make(*index, *id)),
        Operation::DeleteNexthop(_, id) => (nexthop::DELETE, THERE, nexthop::to_delete(*id)),
        _ => {
            let (message, flags) = step(operation)?;
            request(&message, flags)
        }
    })
}

/// The request of a question.
pub(crate) fn question_request(asked: Question) -> Request {
    match question(asked) {
        Some((message, flags)) => request(&message, flags),
        None => (nexthop::GET, NLM_F_DUMP, nexthop::to_list()),
    }
}

fn request(message: &Message, flags: u16) -> Request {
    let mut payload = vec![0; message.buffer_len()];
    message.serialize(&mut payload);
    (message.message_type(), flags, payload)
}

/// The message of a step, and its flags; `None` for steps about nexthop objects.
fn step(operation: &Operation) -> Option<(Message, u16)> {
    Some(match operation {
        Operation::MakeNexthop(..) | Operation::MoveNexthop(..) | Operation::DeleteNexthop(..) => {
            return None;
        }
        Operation::DeleteDevice(index) => (Message::DelLink(change_of(*index, vec![])), THERE),
        Operation::CreateDevice(device) => (Message::NewLink(create(device)), NEW),
        Operation::SetMtu(index, mtu) => (change(*index, vec![LinkAttribute::Mtu(*mtu)]), THERE),
        Operation::SetMac(index, mac) => (
            change(*index, vec![LinkAttribute::Address(mac.0.into())]),
            THERE,
        ),
        Operation::SetOuter(index, parent, local) => {
            // The port must not be mentioned: the kernel would refuse even the same one.
            let data = vec![
                InfoVxlan::Link(*parent),
                local_end(*local),
                InfoVxlan::Learning(false),
            ];
            (change(*index, vec![vxlan(data)]), THERE)
        }
        Operation::SetUp(index) => {
            let mut message = LinkMessage::default();
            message.header.index = *index;
            message.header.flags = LinkFlags::Up;
            message.header.change_mask = LinkFlags::Up;
            (Message::NewLink(message), THERE)
        }
        Operation::AddAddress(index, net) => (Message::NewAddress(address(*index, *net)), PUT),
        Operation::DeleteAddress(index, net) => (Message::DelAddress(address(*index, *net)), THERE),
        Operation::PutNeighbor(index, ip, mac) => (
            Message::NewNeighbour(neighbor(*index, *ip, Some(*mac))),
            PUT,
        ),
        Operation::DeleteNeighbor(index, ip) => {
            (Message::DelNeighbour(neighbor(*index, *ip, None)), THERE)
        }
        Operation::PutForwarding(index, mac, outer) => (
            Message::NewNeighbour(forwarding(*index, *mac, Some(*outer))),
            PUT,
        ),
        Operation::DeleteForwarding(index, mac) => {
            (Message::DelNeighbour(forwarding(*index, *mac, None)), THERE)
        }
        Operation::PutRoute(index, destination, way) => {
            let wanted = difference::route(*destination, *way);
            (Message::NewRoute(route(*index, &wanted)), PUT)
        }
        Operation::DeleteRoute(index, found) => {
            (Message::DelRoute(route_to_delete(*index, found)), THERE)
        }
    })
}

/// What can be asked, each answered by a dump or one message.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Question {
    /// All links.
    Links,
    /// All addresses.
    Addresses,
    /// Routes of the main table.
    Routes(Family),
    /// Neighbors of a device.
    Neighbors(Family, u32),
    /// FDB of a device.
    Forwarding(u32),
    /// The route to an address.
    WayTo(IpAddr),
    /// All nexthop objects.
    Nexthops,
}

/// The message of a question, and its flags; `None` for the one about nexthop objects.
fn question(question: Question) -> Option<(Message, u16)> {
    Some(match question {
        Question::Nexthops => return None,
        Question::Links => (Message::GetLink(LinkMessage::default()), NLM_F_DUMP),
        Question::Addresses => (Message::GetAddress(AddressMessage::default()), NLM_F_DUMP),
        Question::Routes(of) => {
            let mut message = RouteMessage::default();
            message.header.address_family = family(of);
            message.header.table = RouteHeader::RT_TABLE_MAIN;
            (Message::GetRoute(message), NLM_F_DUMP)
        }
        Question::Neighbors(of, index) => {
            let mut message = NeighbourMessage::default();
            message.header.family = family(of);
            message.attributes = vec![NeighbourAttribute::IfIndex(index)];
            (Message::GetNeighbour(message), NLM_F_DUMP)
        }
        Question::Forwarding(index) => {
            let mut message = NeighbourMessage::default();
            message.header.family = AddressFamily::Bridge;
            message.header.ifindex = index;
            (Message::GetNeighbour(message), NLM_F_DUMP)
        }
        Question::WayTo(to) => {
            let mut message = RouteMessage::default();
            message.header.address_family = family(Family::of(to));
            message.header.destination_prefix_length = if to.is_ipv4() { 32 } else { 128 };
            message.attributes = vec![RouteAttribute::Destination(to.into())];
            (Message::GetRoute(message), THERE)
        }
    })
}

pub(crate) fn family(family: Family) -> AddressFamily {
    match family {
        Family::Ip => AddressFamily::Inet,
        Family::Ip6 => AddressFamily::Inet6,
    }
}

fn create(device: &Device) -> LinkMessage {
    let data = vec![
        InfoVxlan::Id(device.vni),
        InfoVxlan::Link(device.parent),
        local_end(device.local),
        InfoVxlan::Learning(false),
        InfoVxlan::Port(device.port),
    ];
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(device.name.clone()),
        LinkAttribute::Mtu(device.mtu),
        // With an address given here, udev does not assign one: it replaces only those that the kernel generated.
        LinkAttribute::Address(device.mac.0.into()),
        vxlan(data),
    ];
    message
}

fn vxlan(data: Vec<InfoVxlan>) -> LinkAttribute {
    LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vxlan),
        LinkInfo::Data(InfoData::Vxlan(data)),
    ])
}

fn local_end(local: IpAddr) -> InfoVxlan {
    match local {
        IpAddr::V4(v4) => InfoVxlan::Local(v4),
        IpAddr::V6(v6) => InfoVxlan::Local6(v6),
    }
}

fn change(index: u32, attributes: Vec<LinkAttribute>) -> Message {
    Message::NewLink(change_of(index, attributes))
}

fn change_of(index: u32, attributes: Vec<LinkAttribute>) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    message
}

fn address(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(Family::of(net.addr()));
    message.header.prefix_len = net.prefix_len();
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
    ];
    if net.addr().is_ipv6() {
        message
            .attributes
            .push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

/// With a hardware address to put it, without to delete it.
fn neighbor(index: u32, ip: IpAddr, mac: Option<Mac>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(Family::of(ip));
    message.header.ifindex = index;
    message.attributes = vec![NeighbourAttribute::Destination(neighbor_address(ip))];
    if let Some(mac) = mac {
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.0.into()));
    }
    message
}

/// With a node to put it, without to delete all of the hardware address.
fn forwarding(index: u32, mac: Mac, outer: Option<Outer>) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.0.into())];
    if let Some(Outer { node, via }) = outer {
        let node = NeighbourAttribute::Destination(neighbor_address(node));
        message.attributes.push(node);
        message
            .attributes
            .extend(via.map(NeighbourAttribute::IfIndex));
    }
    message
}

fn neighbor_address(ip: IpAddr) -> NeighbourAddress {
    match ip {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }
}

/// `tunnel` is the device of ways through it.
fn route(tunnel: u32, route: &ObservedRoute) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = route.destination;
    message.header.address_family = family(Family::of(destination.addr()));
    message.header.destination_prefix_length = destination.prefix_len();
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::from(route.protocol);
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Destination(destination.addr().into())];
    let via = match route.way {
        Some(Way::Tunnel(gateway)) => {
            message.header.flags = RouteFlags::Onlink;
            Some((gateway, tunnel))
        }
        Some(Way::Direct(gateway, index)) => Some((gateway, index)),
        Some(Way::Nexthop(id)) => {
            message.attributes.push(RouteAttribute::NhId(id));
            None
        }
        Some(Way::Blackhole) => {
            message.header.kind = RouteType::BlackHole;
            None
        }
        None => None,
    };
    if let Some((gateway, index)) = via {
        message
            .attributes
            .push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(index));
    }
    if route.metric != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(route.metric));
    }
    message
}

/// Names exactly this route: of its kind where that is known, whatever its scope, and by its metric also where that is
/// the default one (the kernel takes none for any).
fn route_to_delete(tunnel: u32, found: &ObservedRoute) -> RouteMessage {
    let mut message = route(tunnel, found);
    message.header.scope = RouteScope::NoWhere;
    if found.way.is_none() {
        message.header.kind = RouteType::Unspec;
    }
    if found.metric == 0 && found.priority() != 0 {
        message
            .attributes
            .push(RouteAttribute::Priority(found.priority()));
    }
    message
}

/// The requests that add and delete a route through the tunnel to a gateway of IPv6 alone.
pub(crate) fn guide_requests(tunnel: u32, gateway: IpAddr) -> [Request; 2] {
    let guide = ObservedRoute {
        destination: IpNet::from(gateway),
        metric: GUIDE_METRIC,
        way: None,
        protocol: PROTOCOL,
    };
    let mut message = route(tunnel, &guide);
    message.attributes.push(RouteAttribute::Oif(tunnel));
    [
        request(&Message::NewRoute(message.clone()), NEW),
        request(&Message::DelRoute(message), THERE),
    ]
}
