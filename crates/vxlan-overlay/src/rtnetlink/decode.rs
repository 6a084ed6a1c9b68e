//! From rtnetlink messages to observed values: functions without effects.
//!
//! Foreign links, addresses and routes of every kind pass by here; what does not concern us is skipped, and nothing is
//! trusted to be there.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoPortKind, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};

use crate::difference::{DEFAULT_METRIC_V6, ObservedDevice, ObservedRoute, ObservedVxlan};
use crate::mac::Mac;
use crate::marks::BLACKHOLE_METRIC;
use crate::plan::Way;
use crate::underlay::{Interface, InterfaceAddress, OnLink};

/// `RTPROT_KERNEL`: routes that come with addresses.
const PROTOCOL_KERNEL: u8 = 2;
/// `RT_TABLE_MAIN`
const TABLE_MAIN: u32 = 254;

/// A link as an interface, without addresses, and as a tunnel device.
pub(crate) fn link(message: &LinkMessage) -> Option<(Interface, ObservedDevice)> {
    let (mut name, mut mtu, mut mac, mut vxlan) = (None, 0, Mac([0; 6]), None::<ObservedVxlan>);
    let (mut controller, mut is_vrf, mut is_of_vrf) = (None, false, false);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(bytes) => mtu = *bytes,
            LinkAttribute::Address(bytes) => mac = Mac::from_slice(bytes).unwrap_or(mac),
            LinkAttribute::Controller(index) => controller = Some(*index),
            LinkAttribute::LinkInfo(infos) => {
                vxlan = vxlan_of(infos);
                is_vrf = infos.contains(&LinkInfo::Kind(InfoKind::Vrf));
                is_of_vrf = infos.contains(&LinkInfo::PortKind(InfoPortKind::Vrf));
            }
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
        tunnel: vxlan.as_ref().map(|vxlan| (vxlan.vni, vxlan.port)),
        vrf: controller.filter(|_| is_of_vrf).or(is_vrf.then_some(index)),
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
                        InfoVxlan::Group(to) => vxlan.remote = Some((*to).into()),
                        InfoVxlan::Group6(to) => vxlan.remote = Some((*to).into()),
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
    /// A default route leads out by these interfaces, with this metric.
    Default(Vec<u32>, u32),
    /// Any other route that is not the kernel's own, with the interface it leads through.
    Route(Option<u32>, ObservedRoute),
}

/// A route, if it could concern us. Routes for a type of service, or by the source, are no business of the overlay.
pub(crate) fn route(message: &RouteMessage) -> Option<Found> {
    let header = &message.header;
    if header.tos != 0 || header.source_prefix_length != 0 {
        return None;
    }
    let protocol = u8::from(header.protocol);
    let v4 = header.address_family == netlink_packet_route::AddressFamily::Inet;
    let (mut to, mut gateway, mut oif, mut metric, mut object) = (None, None, None, 0, None);
    let (mut table, mut several) = (u32::from(header.table), Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => to = Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => to = Some(IpAddr::V6(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(IpAddr::V4(*ip)),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => gateway = Some(IpAddr::V6(*ip)),
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Priority(value) => metric = *value,
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::MultiPath(hops) => {
                several = hops.iter().map(|hop| hop.interface_index).collect();
            }
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
    if header.destination_prefix_length == 0 {
        several.extend(oif);
        let leads = header.kind == RouteType::Unicast && !several.is_empty();
        return leads.then_some(Found::Default(several, metric));
    }
    let destination = IpNet::new(to?, header.destination_prefix_length).ok()?;
    if protocol == PROTOCOL_KERNEL {
        return None;
    }
    let way = match (header.kind, object, gateway, oif) {
        (RouteType::BlackHole, ..) if metric == BLACKHOLE_METRIC => Some(Way::Blackhole),
        (RouteType::Unicast, Some(id), ..) => Some(Way::Nexthop(id)),
        // Which of the two a way with a gateway is, the reader knows who knows the devices.
        (RouteType::Unicast, None, Some(gateway), Some(index)) => Some(Way::Direct(gateway, index)),
        _ => None,
    };
    let route = ObservedRoute {
        destination,
        metric,
        way,
        protocol,
    };
    Some(Found::Route(oif, route))
}

/// The interfaces by which a route reaches gateways, or by which a default route leads, if its destination is not in this
/// range.
pub(crate) fn uplinks(message: &RouteMessage, pods: Option<IpNet>) -> Vec<u32> {
    let header = &message.header;
    let (mut oif, mut has_gateway, mut is_to_pods) = (None, false, false);
    let mut all = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(to) => {
                let to = match to {
                    RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
                    RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
                    _ => None,
                };
                is_to_pods = pods.zip(to).is_some_and(|(pods, to)| pods.contains(&to));
            }
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => has_gateway = true,
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::MultiPath(hops) => {
                all.extend(hops.iter().map(|hop| hop.interface_index))
            }
            _ => {}
        }
    }
    let leads = has_gateway || header.destination_prefix_length == 0;
    all.extend(oif.filter(|_| leads));
    match header.kind == RouteType::Unicast && !is_to_pods {
        true => all,
        false => Vec::new(),
    }
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

/// The interface of the answer to "which way to this address" where no gateway is on the way.
pub(crate) fn on_link(message: &RouteMessage) -> Option<OnLink> {
    let mut attributes = message.attributes.iter();
    let passes_a_gateway = attributes.any(|attribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
        )
    });
    let is_direct = message.header.kind == RouteType::Unicast && !passes_a_gateway;
    is_direct.then(|| way_to(message)).flatten().map(OnLink)
}

/// A permanent neighbor, or FDB entry.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The device.
    pub(crate) device: u32,
    /// The address of the neighbor, or of the node behind the hardware address; `None` for a nexthop object's.
    pub(crate) address: Option<IpAddr>,
    pub(crate) mac: Mac,
    /// Of an FDB entry: the interface that carries its packets.
    pub(crate) via: Option<u32>,
    /// An FDB entry that sends to another port or VNI than its device does.
    pub(crate) is_odd: bool,
}

/// A permanent neighbor, or FDB entry.
pub(crate) fn neighbor(message: &NeighbourMessage) -> Option<Entry> {
    // FDB entries may be NOARP as well.
    if u16::from(message.header.state) & u16::from(NeighbourState::Permanent) == 0 {
        return None;
    }
    let (mut address, mut mac, mut is_odd, mut via) = (None, None, false, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => {
                address = Some(IpAddr::V4(*v4))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => {
                address = Some(IpAddr::V6(*v6))
            }
            // Of an FDB entry: its message has another family than its address.
            NeighbourAttribute::Destination(NeighbourAddress::Other(bytes)) => {
                address = address_of(bytes)
            }
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = Mac::from_slice(bytes),
            // The kernel sends these only where they differ from the device's own.
            NeighbourAttribute::Port(_) | NeighbourAttribute::Vni(_) => is_odd = true,
            NeighbourAttribute::IfIndex(index) => via = Some(*index),
            _ => {}
        }
    }
    Some(Entry {
        device: message.header.ifindex,
        address,
        mac: mac?,
        via,
        is_odd,
    })
}

fn address_of(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => None,
    }
}
