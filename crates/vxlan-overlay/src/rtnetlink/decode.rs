//! From rtnetlink messages to observed values: functions without effects.
//!
//! Foreign links, addresses and routes of every kind pass by here; what does not concern us is skipped, and nothing is
//! trusted to be there.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use crate::difference::{ObservedDevice, ObservedRoute, ObservedVxlan};
use crate::mac::Mac;
use crate::marks::{BLACKHOLE_METRIC, PROTOCOL};
use crate::plan::Way;
use crate::underlay::{Interface, InterfaceAddress};

/// `IP6_RT_PRIO_USER` (include/net/ip6_route.h): what a route without metric gets.
const DEFAULT_METRIC_V6: u32 = 1024;
/// `RTPROT_KERNEL`: routes that come with addresses.
const PROTOCOL_KERNEL: u8 = 2;
/// `RT_TABLE_MAIN`
const TABLE_MAIN: u32 = 254;

/// A link as an interface, without addresses, and as a tunnel device.
pub(crate) fn link(message: &LinkMessage) -> Option<(Interface, ObservedDevice)> {
    let (mut name, mut mtu, mut mac, mut vxlan) = (None, 0, Mac([0; 6]), None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Address(bytes) => mac = Mac::from_slice(bytes).unwrap_or(mac),
            LinkAttribute::LinkInfo(infos) => vxlan = vxlan_of(infos),
            _ => {}
        }
    }
    let (index, up) = (
        message.header.index,
        message.header.flags.contains(LinkFlags::Up),
    );
    let interface = Interface {
        index,
        name: name?,
        mtu,
        up,
        addresses: Vec::new(),
    };
    Some((
        interface,
        ObservedDevice {
            index,
            up,
            mac,
            mtu,
            vxlan,
        },
    ))
}

fn vxlan_of(infos: &[LinkInfo]) -> Option<ObservedVxlan> {
    let mut vxlan = None;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Vxlan) => {
                vxlan.get_or_insert_with(ObservedVxlan::default);
            }
            LinkInfo::Data(InfoData::Vxlan(data)) => {
                let vxlan = vxlan.get_or_insert_with(ObservedVxlan::default);
                for part in data {
                    match part {
                        InfoVxlan::Id(vni) => vxlan.vni = *vni,
                        InfoVxlan::Port(port) => vxlan.port = *port,
                        InfoVxlan::Link(parent) => vxlan.parent = *parent,
                        InfoVxlan::Local(local) => vxlan.local = Some((*local).into()),
                        InfoVxlan::Local6(local) => vxlan.local = Some((*local).into()),
                        InfoVxlan::Learning(learning) => vxlan.learning = *learning,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    vxlan
}

/// An address with the number of its interface.
pub(crate) fn address(message: &AddressMessage) -> Option<(u32, InterfaceAddress)> {
    let mut flags = AddressFlags::from_bits_retain(message.header.flags.bits().into());
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link the other one is the peer's.
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Flags(all) => flags = *all,
            _ => {}
        }
    }
    let ip: IpAddr = local.or(address)?;
    let net = IpNet::new(ip, message.header.prefix_len).ok()?;
    // The bit that says "secondary" for IPv4 says "temporary" for IPv6 (if_addr.h).
    let temporary = ip.is_ipv6() && flags.contains(AddressFlags::Secondary);
    let unstable = AddressFlags::Deprecated | AddressFlags::Tentative | AddressFlags::Dadfailed;
    let permanent = flags.contains(AddressFlags::Permanent);
    let stable = !temporary && !flags.intersects(unstable);
    Some((
        message.header.index,
        InterfaceAddress {
            net,
            permanent,
            stable,
        },
    ))
}

/// A route of the main table.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// A default route leads out by this interface, with this metric.
    Default(u32, u32),
    /// A route through this interface, or marked as ours.
    Route(Option<u32>, ObservedRoute),
}

/// A route, if it could concern us.
pub(crate) fn route(message: &RouteMessage) -> Option<Found> {
    let protocol = u8::from(message.header.protocol);
    let v4 = message.header.address_family == netlink_packet_route::AddressFamily::Inet;
    let (mut to, mut gateway, mut oif, mut metric, mut object) = (None, None, None, 0, None);
    let mut table = u32::from(message.header.table);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(number) => table = *number,
            // The kernel sends gateway and interface as well, unless sysctl nexthop_compat_mode is off.
            RouteAttribute::NhId(id) => object = Some(*id),
            _ => {}
        }
    }
    if table != TABLE_MAIN {
        return None;
    }
    if !v4 && metric == DEFAULT_METRIC_V6 {
        metric = 0;
    }
    let Some(to) = to else {
        let is_default = message.header.destination_prefix_length == 0
            && message.header.kind == RouteType::Unicast;
        return is_default.then_some(Found::Default(oif?, metric));
    };
    let destination = IpNet::new(to, message.header.destination_prefix_length).ok()?;
    if protocol == PROTOCOL_KERNEL {
        return None;
    }
    let way = match (message.header.kind, object, gateway, oif) {
        (RouteType::BlackHole, ..) if metric == BLACKHOLE_METRIC => Some(Way::Blackhole),
        (RouteType::Unicast, Some(id), ..) => Some(Way::Nexthop(id)),
        // Which of the two a way with a gateway is, the reader knows who knows the devices.
        (RouteType::Unicast, None, Some(gateway), Some(index)) => Some(Way::Direct(gateway, index)),
        _ => None,
    };
    let ours = protocol == PROTOCOL;
    let through = way.is_some() && gateway.is_some();
    (ours || through).then_some(Found::Route(
        oif,
        ObservedRoute {
            destination,
            metric,
            way,
            protocol,
        },
    ))
}

/// The interface of the answer to "which way to this address".
pub(crate) fn way_to(message: &RouteMessage) -> Option<u32> {
    message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(*index),
            _ => None,
        })
}

/// A permanent neighbor, or FDB entry: its device, address and hardware address.
pub(crate) fn neighbor(message: &NeighbourMessage) -> Option<(u32, IpAddr, Mac)> {
    // FDB entries may be NOARP as well.
    if u16::from(message.header.state) & u16::from(NeighbourState::Permanent) == 0 {
        return None;
    }
    let (mut ip, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                ip = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                ip = Some(IpAddr::V6(*v6))
            }
            // Of an FDB entry: its message has another family than its address.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                ip = address_of(bytes)
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            _ => {}
        }
    }
    Some((message.header.ifindex, ip?, mac?))
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
