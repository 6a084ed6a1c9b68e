//! What the kernel holds, and the ordered steps from there to what it should hold.
//!
//! Owns the kernel's behavior (measured on Linux 6.18): a device that goes down loses routes and neighbors; a device whose
//! hardware address changes while it is up loses its neighbors, even permanent ones, but not its FDB entries; a device that
//! loses its last address loses its IPv4 routes; `local` and the parent change in place if the request has no port. Kind,
//! VNI, port, remote and outer family of a device cannot be changed: the device is created again, as flannel does.
//!
//! Additions come before deletions, and the neighbor and FDB entry of a peer before the route to the peer, so that every
//! route leads to a complete path. With thousands of peers, IPv4 routes name nexthop objects; an ID that another program
//! uses is left alone, and the route has a plain gateway instead.
//!
//! Invariant: the steps change the observed state to the wanted state, or create a device that has to be observed first.
//! There are no steps between equal states.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use net_types::{Family, PerFamily};

use crate::carriers::Outer;
use crate::mac::Mac;
use crate::marks::{BLACKHOLE_METRIC, PROTOCOL, nexthop_id};
use crate::plan::{Device, Entries, Peer, Tunnel, Way};
use crate::underlay::Surroundings;

mod words;

/// What the kernel shows at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// The network that carries the tunnels.
    pub surroundings: Surroundings,
    /// Our devices and what belongs to them, by family.
    pub tunnels: PerFamily<ObservedTunnel>,
}

impl Observed {
    /// The state after all steps to these tunnels, deletions too: reading thousands of entries again would cost more than
    /// the change of one node. `None` while a device is still to be created.
    pub fn after(&self, tunnels: &PerFamily<Option<Tunnel>>) -> Option<Observed> {
        let mut after = self.clone();
        for (family, found) in after.tunnels.iter_mut() {
            if let Some(wanted) = &tunnels[family] {
                *found = found.after(wanted)?;
            }
        }
        Some(after)
    }

    /// This state without the addresses and entries of the devices, which [`Observed::after`] adds again.
    pub fn below(&self) -> Observed {
        let tunnel = |_, tunnel: &ObservedTunnel| ObservedTunnel {
            device: tunnel.device.clone(),
            foreign_nexthops: tunnel.foreign_nexthops.clone(),
            rivals: tunnel.rivals.clone(),
            guests: tunnel.guests.clone(),
            ..ObservedTunnel::default()
        };
        Observed {
            surroundings: self.surroundings.clone(),
            tunnels: self.tunnels.as_ref().map(tunnel),
        }
    }
}

impl ObservedTunnel {
    fn after(&self, wanted: &Tunnel) -> Option<ObservedTunnel> {
        let vxlan = ObservedVxlan {
            vni: wanted.device.vni,
            port: wanted.device.port,
            parent: wanted.device.parent,
            local: Some(wanted.device.local),
            remote: None,
            learning: false,
        };
        let device = ObservedDevice {
            index: self.device.as_ref()?.index,
            up: true,
            mac: wanted.device.mac,
            mtu: wanted.device.mtu,
            vxlan: Some(vxlan),
        };
        let entries = wanted.entries();
        Some(ObservedTunnel {
            device: Some(device),
            addresses: BTreeSet::from([wanted.device.address]),
            routes: self.routes_for(wanted, &entries).collect(),
            nexthops: self.nexthops_for(wanted, &entries),
            neighbors: entries.neighbors,
            fdb: entries.fdb.into_iter().collect(),
            odd_fdb: BTreeSet::new(),
            misplaced_nexthops: BTreeSet::new(),
            foreign_nexthops: self.foreign_nexthops.clone(),
            rivals: self
                .rivals
                .iter()
                .filter(|rival| !rival.is_in_the_place_of(&entries.routes))
                .cloned()
                .collect(),
            guests: self.guests.clone(),
        })
    }

    /// Foreign routes that keep packets for pods of peers from the tunnel, and are not replaced: routes with a better
    /// metric, or to a part of a pod CIDR.
    pub fn overriding(&self, wanted: &Tunnel) -> Vec<&ObservedRoute> {
        if self.rivals.is_empty() {
            return Vec::new();
        }
        let routes = wanted.entries().routes;
        let rivals = self.rivals.iter().filter(|rival| {
            let destination = rival.destination;
            let mut around = routes.range(..=destination);
            let inside = around.next_back().is_some_and(|(range, way)| {
                range.contains(&destination)
                    && *way != Way::Blackhole
                    && (*range != destination || rival.priority() < route(*range, *way).priority())
            });
            inside && !rival.is_in_the_place_of(&routes)
        });
        rivals.collect()
    }

    /// The wanted routes as the kernel will show them. A foreign nexthop object is not used.
    fn routes_for(
        &self,
        wanted: &Tunnel,
        entries: &Entries,
    ) -> impl Iterator<Item = ObservedRoute> {
        let routes = entries.routes.iter();
        routes.map(|(destination, way)| self.route_for(wanted, *destination, *way))
    }

    fn route_for(&self, wanted: &Tunnel, destination: IpNet, way: Way) -> ObservedRoute {
        let object = match way {
            Way::Tunnel(gateway) if wanted.nexthops => nexthop_id(gateway),
            _ => None,
        };
        let object = object.filter(|id| !self.foreign_nexthops.contains(id));
        route(destination, object.map_or(way, Way::Nexthop))
    }

    fn nexthops_for(&self, wanted: &Tunnel, entries: &Entries) -> BTreeSet<u32> {
        let ids = self
            .routes_for(wanted, entries)
            .filter_map(|route| match route.way {
                Some(Way::Nexthop(id)) => Some(id),
                _ => None,
            });
        ids.collect()
    }
}

/// One of our devices with its addresses, routes and entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedTunnel {
    /// The device of this name.
    pub device: Option<ObservedDevice>,
    /// Its addresses, without link-local ones.
    pub addresses: BTreeSet<IpNet>,
    /// The overlay's routes of the main table and this family: those marked as ours, and those through the device in
    /// flannel's form ([`ObservedRoute::is_flannels`]).
    pub routes: BTreeSet<ObservedRoute>,
    /// Foreign routes to pods.
    pub rivals: BTreeSet<ObservedRoute>,
    /// Gateways of foreign routes through the device to other destinations than pods.
    pub guests: BTreeSet<IpAddr>,
    /// Its permanent neighbors of this family, without those of `guests`.
    pub neighbors: BTreeMap<IpAddr, Mac>,
    /// Its permanent FDB entries, without those of `guests`.
    pub fdb: BTreeSet<(Mac, Outer)>,
    /// Hardware addresses with FDB entries that send to another port or VNI than the device does, or to a nexthop object.
    pub odd_fdb: BTreeSet<Mac>,
    /// IDs of our nexthop objects on it.
    pub nexthops: BTreeSet<u32>,
    /// IDs of our nexthop objects on a device of another name.
    pub misplaced_nexthops: BTreeSet<u32>,
    /// IDs of foreign nexthop objects.
    pub foreign_nexthops: BTreeSet<u32>,
}

/// A device as found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedDevice {
    /// Interface index.
    pub index: u32,
    /// Administrative state.
    pub up: bool,
    /// Hardware address.
    pub mac: Mac,
    /// Largest inner packet, in bytes.
    pub mtu: u32,
    /// VXLAN settings; `None` for a device of another kind.
    pub vxlan: Option<ObservedVxlan>,
}

/// The VXLAN part of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ObservedVxlan {
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Index of the interface that sends outer packets.
    pub parent: u32,
    /// Source of outer packets.
    pub local: Option<IpAddr>,
    /// Outer destination of frames that no FDB entry matches.
    pub remote: Option<IpAddr>,
    /// Whether the device learns hardware addresses from packets.
    pub learning: bool,
}

/// A route as found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedRoute {
    /// The range of destinations.
    pub destination: IpNet,
    /// Lower is preferred; 0 means the kernel's default of the family.
    pub metric: u32,
    /// Where packets go; `None` for routes of a form that Portolan never writes.
    pub way: Option<Way>,
    /// `rtm_protocol`
    pub protocol: u8,
}

/// Metric of an IPv6 route that is written without one (`IP6_RT_PRIO_USER`, include/net/ip6_route.h).
pub(crate) const DEFAULT_METRIC_V6: u32 = 1024;

impl ObservedRoute {
    /// Whether the route has flannel's form: through the first address of the destination, without a metric.
    pub fn is_flannels(&self) -> bool {
        let gateway = Way::Tunnel(self.destination.network());
        self.metric == 0 && self.way == Some(gateway)
    }

    /// The metric by which the kernel compares routes to one destination.
    pub(crate) fn priority(&self) -> u32 {
        match (self.metric, self.destination) {
            (0, IpNet::V6(_)) => DEFAULT_METRIC_V6,
            (metric, _) => metric,
        }
    }

    /// Whether a wanted route has the same destination and metric, and so replaces this route.
    fn is_in_the_place_of(&self, wanted: &BTreeMap<IpNet, Way>) -> bool {
        let same = |way: &Way| route(self.destination, *way).priority() == self.priority();
        wanted.get(&self.destination).is_some_and(same)
    }
}

/// One step. A first field of type `u32` is the index of the tunnel device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Deletes the device; the kernel deletes its addresses, routes and entries.
    DeleteDevice(u32),
    /// Creates the device, down and without address.
    CreateDevice(Device),
    /// Changes the MTU, in bytes.
    SetMtu(u32, u32),
    /// Changes the hardware address; the kernel deletes the device's neighbors.
    SetMac(u32, Mac),
    /// Changes the interface and source of outer packets, and turns learning off, in place.
    SetOuter(u32, u32, IpAddr),
    /// Sets the device up.
    SetUp(u32),
    /// Adds an address.
    AddAddress(u32, IpNet),
    /// Deletes an address.
    DeleteAddress(u32, IpNet),
    /// Adds or replaces a permanent neighbor.
    PutNeighbor(u32, IpAddr, Mac),
    /// Deletes a neighbor.
    DeleteNeighbor(u32, IpAddr),
    /// Adds or replaces a permanent FDB entry.
    PutForwarding(u32, Mac, Outer),
    /// Deletes the FDB entries of a hardware address.
    DeleteForwarding(u32, Mac),
    /// Creates the nexthop object of this ID, through the device.
    MakeNexthop(u32, u32),
    /// Moves our nexthop object of this ID from another device to this one.
    MoveNexthop(u32, u32),
    /// Deletes the nexthop object of this ID; the kernel deletes the routes that name the object.
    DeleteNexthop(u32, u32),
    /// Adds or replaces a route, which need not lead through the device.
    PutRoute(u32, IpNet, Way),
    /// Deletes exactly this route, which need not lead through the device.
    DeleteRoute(u32, ObservedRoute),
}

/// The device of our name differs from the wanted one in a setting that only a new device can have, and may not be deleted
/// yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the {what} of the device differs and cannot be changed in place: the device is created again once all Nodes are listed"
)]
pub struct Mismatch {
    /// What differs.
    pub what: &'static str,
}

/// Whether stale entries are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletions {
    /// Stale entries stay: the list of peers may be incomplete.
    Held,
    /// Stale entries are deleted.
    Allowed,
}

/// The steps for one family.
pub fn difference(
    wanted: &Tunnel,
    found: &ObservedTunnel,
    deletions: Deletions,
) -> Result<Vec<Operation>, Mismatch> {
    let Some(device) = &found.device else {
        return Ok(vec![Operation::CreateDevice(wanted.device.clone())]);
    };
    if let Some(what) = mismatch(&wanted.device, device) {
        return match deletions {
            Deletions::Held => Err(Mismatch { what }),
            Deletions::Allowed => Ok(vec![
                Operation::DeleteDevice(device.index),
                Operation::CreateDevice(wanted.device.clone()),
            ]),
        };
    }
    let mut steps = Vec::new();
    let forgets_neighbors = device_steps(&wanted.device, device, found, &mut steps);
    let index = device.index;
    let entries = wanted.entries();
    for (address, mac) in &entries.neighbors {
        if forgets_neighbors || found.neighbors.get(address) != Some(mac) {
            steps.push(Operation::PutNeighbor(index, *address, *mac));
        }
    }
    for (mac, outer) in &entries.fdb {
        if found.odd_fdb.contains(mac) {
            steps.push(Operation::DeleteForwarding(index, *mac));
        }
        if !found.fdb.contains(&(*mac, *outer)) {
            steps.push(Operation::PutForwarding(index, *mac, *outer));
        }
    }
    let nexthops = found.nexthops_for(wanted, &entries);
    let missing = nexthops.difference(&found.nexthops);
    steps.extend(
        missing.map(|id| match found.misplaced_nexthops.contains(id) {
            true => Operation::MoveNexthop(index, *id),
            false => Operation::MakeNexthop(index, *id),
        }),
    );
    for route in found.routes_for(wanted, &entries) {
        if let Some(way) = route.way.filter(|_| !found.routes.contains(&route)) {
            steps.push(Operation::PutRoute(index, route.destination, way));
        }
    }
    if deletions == Deletions::Allowed {
        deletion_steps((wanted, &entries), found, index, &mut steps);
        let all = found.nexthops.union(&found.misplaced_nexthops);
        let stale = all.filter(|id| !nexthops.contains(id));
        steps.extend(stale.map(|id| Operation::DeleteNexthop(index, *id)));
    }
    Ok(steps)
}

/// Devices of the overlay's names that stand in for a wanted one: the kernel has one device for a VNI, port and outer
/// family, so a device of the name of a family that is not carried can keep the other family's from being created.
pub fn in_the_way(
    wanted: &PerFamily<Option<Tunnel>>,
    found: &PerFamily<ObservedTunnel>,
) -> Vec<Operation> {
    let uncarried = found.iter().filter(|(family, _)| wanted[*family].is_none());
    let devices = uncarried.filter_map(|(_, tunnel)| tunnel.device.as_ref());
    let takes_its_place = |device: &&ObservedDevice| {
        let mut tunnels = wanted.values().flatten();
        tunnels.any(|tunnel| mismatch(&tunnel.device, device).is_none_or(|what| what == REMOTE))
    };
    let devices = devices.filter(takes_its_place);
    devices
        .map(|device| Operation::DeleteDevice(device.index))
        .collect()
}

/// The number of neighbors whose peer is no longer wanted, and the number of all neighbors.
pub fn stale(wanted: &Tunnel, found: &ObservedTunnel) -> (usize, usize) {
    let gateways: BTreeSet<IpAddr> = wanted.peers.iter().map(Peer::gateway).collect();
    let found = found.neighbors.keys();
    let all = found.len();
    (found.filter(|found| !gateways.contains(found)).count(), all)
}

/// A wanted route as the kernel shows it.
pub(crate) fn route(destination: IpNet, way: Way) -> ObservedRoute {
    let metric = if way == Way::Blackhole {
        BLACKHOLE_METRIC
    } else {
        0
    };
    ObservedRoute {
        destination,
        metric,
        way: Some(way),
        protocol: PROTOCOL,
    }
}

/// The setting that does not keep the kernel from refusing another device of the same VNI, port and outer family.
const REMOTE: &str = "remote";

/// The first setting that differs and that only a new device can have.
fn mismatch(wanted: &Device, found: &ObservedDevice) -> Option<&'static str> {
    let Some(vxlan) = &found.vxlan else {
        return Some("kind");
    };
    // A device without `local` and `remote` sends over IPv4. The outer family cannot be changed.
    let outer = vxlan.local.or(vxlan.remote).map_or(Family::Ip, Family::of);
    if vxlan.vni != wanted.vni {
        Some("VNI")
    } else if vxlan.port != wanted.port {
        Some("port")
    } else if outer != Family::of(wanted.local) {
        Some("outer family")
    } else {
        vxlan.remote.is_some().then_some(REMOTE)
    }
}

/// Adds the steps for the VXLAN device itself. Returns whether they make the kernel delete the device's neighbors.
fn device_steps(
    wanted: &Device,
    device: &ObservedDevice,
    found: &ObservedTunnel,
    steps: &mut Vec<Operation>,
) -> bool {
    let vxlan = device.vxlan.clone().unwrap_or_default();
    let index = device.index;
    if (vxlan.parent, vxlan.local, vxlan.learning) != (wanted.parent, Some(wanted.local), false) {
        steps.push(Operation::SetOuter(index, wanted.parent, wanted.local));
    }
    if device.mtu != wanted.mtu {
        steps.push(Operation::SetMtu(index, wanted.mtu));
    }
    if device.mac != wanted.mac {
        steps.push(Operation::SetMac(index, wanted.mac));
    }
    if !found.addresses.contains(&wanted.address) {
        steps.push(Operation::AddAddress(index, wanted.address));
    }
    if !device.up {
        steps.push(Operation::SetUp(index));
    }
    device.mac != wanted.mac
}

/// Adds the deletions: routes before the neighbors and FDB entries that they need.
fn deletion_steps(
    (wanted, entries): (&Tunnel, &Entries),
    found: &ObservedTunnel,
    index: u32,
    steps: &mut Vec<Operation>,
) {
    for stray in found.routes.union(&found.rivals) {
        let destination = stray.destination;
        let way = entries.routes.get(&destination);
        let wanted = way.map(|way| found.route_for(wanted, destination, *way));
        let goes = match wanted.filter(|wanted| wanted.priority() == stray.priority()) {
            // Adding a missing route replaces one with its destination and metric. If the wanted route exists already, the
            // kernel may still prefer a foreign one beside it, so it is deleted.
            Some(wanted) => found.routes.contains(&wanted) && *stray != wanted,
            None => found.routes.contains(stray),
        };
        if goes {
            steps.push(Operation::DeleteRoute(index, stray.clone()));
        }
    }
    // Addresses of an earlier pod CIDR are /32 or /128; other addresses are foreign and left alone.
    let stray = found.addresses.iter().filter(|address| {
        **address != wanted.device.address && address.prefix_len() == address.max_prefix_len()
    });
    for address in stray {
        steps.push(Operation::DeleteAddress(index, *address));
    }
    let stale = found.fdb.iter().map(|(mac, _)| *mac);
    let stale: BTreeSet<Mac> = stale
        .chain(found.odd_fdb.iter().copied())
        .filter(|mac| !entries.fdb.contains_key(mac))
        .collect();
    steps.extend(
        stale
            .into_iter()
            .map(|mac| Operation::DeleteForwarding(index, mac)),
    );
    for address in found.neighbors.keys() {
        if !entries.neighbors.contains_key(address) {
            steps.push(Operation::DeleteNeighbor(index, *address));
        }
    }
}

#[cfg(test)]
mod tests;
