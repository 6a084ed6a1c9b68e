//! What this node's kernel should hold: a function of configuration, nodes and the network below.
//!
//! No clock, no effect: the same facts give the same [`Plan`], whatever came before. Invalid input is skipped and
//! reported as a [`Problem`]; the rest of the plan does not depend on it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use net_types::{Family, PerFamily};

use crate::annotations::{Names, ParsedAnnotations, Vtep};
use crate::carriers::{Carriers, Outer};
use crate::config::Config;
use crate::mac::Mac;
use crate::peers::{MAX_ADDRESSES, Node};
use crate::underlay::{
    External, Interface, InterfaceAddress, LOOPBACK, OnLink, Preferences, Surroundings,
    is_node_address,
};

mod claims;
mod problem;

use claims::Claims;
pub use problem::Problem;

/// Outer Ethernet, IP, UDP and VXLAN headers: 50 bytes over IPv4, 70 over IPv6 (RFC 7348; kernel `VXLAN_HEADROOM`).
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::Ip => 50,
        Family::Ip6 => 70,
    }
}

/// The least MTU of a device with IPv6 addresses (RFC 8200, section 5): below, the kernel removes them.
const MIN_MTU_V6: u32 = 1280;
/// The kernel's least MTU of an Ethernet device (`ETH_MIN_MTU`).
const MIN_MTU: u32 = 68;

/// The input of [`plan`].
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The operator's decisions.
    pub config: &'a Config,
    /// The operator's choice of the interface.
    pub preferences: &'a Preferences,
    /// Names of the annotations.
    pub names: &'a Names,
    /// The name of this node.
    pub own: &'a str,
    /// A peer without annotations has its node's address and a hardware address from its name. For folders of
    /// manifests; in a cluster such a node takes no part.
    pub infer: bool,
    /// Hardware addresses of the devices that are there.
    pub found: PerFamily<Option<Mac>>,
    /// The network below.
    pub surroundings: &'a Surroundings,
    /// What carries outer packets instead of the underlay.
    pub carriers: &'a Carriers,
}

/// What the kernel should hold, and what other nodes should learn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// `None` where this node has no pod CIDR, or no interface to the other nodes yet.
    pub tunnels: PerFamily<Option<Tunnel>>,
    /// What keeps packets from leaving in clear text in families that have to be encrypted and have no tunnel.
    pub barriers: PerFamily<Option<Barrier>>,
    /// Objects and families that are skipped, and why.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Peers of this family, in the order of their names.
    pub fn peers(&self, family: Family) -> &[Peer] {
        let tunnel = self.tunnels[family].as_ref();
        tunnel.map_or(&[], |tunnel| &tunnel.peers)
    }

    /// Number of peers in the family that has more.
    pub fn peer_count(&self) -> usize {
        let counts = Family::ALL.map(|family| self.peers(family).len());
        counts.into_iter().max().unwrap_or_default()
    }

    /// Whether a family has no interface to the other nodes.
    pub fn lacks_external(&self) -> bool {
        let lacks = |problem: &Problem| matches!(problem, Problem::NoExternal(_));
        self.problems.iter().any(lacks)
    }
}

/// Stands in for a tunnel: pods of other nodes are not reached at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The range of all pods, or the pod CIDRs of other nodes where that is not known.
    pub cluster: Vec<IpNet>,
    /// Pod CIDR of this node, if it has one.
    pub pod_cidr: Option<IpNet>,
}

/// The tunnel of one family. It stores a few numbers per peer; the entries in the kernel follow from them, see
/// [`Tunnel::entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub device: Device,
    /// The address that peers should send to: differs from [`Device::local`] behind address translation.
    pub published: IpAddr,
    /// The published address is this node's own choice, and not only what was published before.
    pub chosen: bool,
    /// Names of the interfaces that outer packets may arrive by; empty: any, since the address of this node is on the
    /// loopback interface.
    pub inputs: Vec<String>,
    /// Addresses of this node: no frame comes from them.
    pub own_addresses: Vec<IpAddr>,
    /// Pod CIDR of this node.
    pub pod_cidr: IpNet,
    /// Install a blackhole route for unused pod addresses.
    pub blackhole: bool,
    /// The peers, in the order of their names.
    pub peers: Vec<Peer>,
    /// Whether routes name nexthop objects instead of gateways.
    pub nexthops: bool,
    /// The device carries less than pods were made for: the segments of their connections are clamped to its MTU.
    pub clamps: bool,
    /// What other nodes' pods are sent leaves by the device or not at all.
    pub sealed: bool,
}

/// Routes, neighbors and FDB entries of a tunnel device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Routes to the pod CIDRs of peers.
    pub routes: BTreeMap<IpNet, Way>,
    /// Hardware addresses behind the gateways of those routes.
    pub neighbors: BTreeMap<IpAddr, Mac>,
    /// Nodes behind the hardware addresses.
    pub fdb: BTreeMap<Mac, Outer>,
}

/// A tunnel device as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Name, at most 15 bytes.
    pub name: String,
    /// VXLAN network identifier.
    pub vni: u32,
    /// UDP port.
    pub port: u16,
    /// Hardware address.
    pub mac: Mac,
    /// Largest inner packet.
    pub mtu: u32,
    /// The external interface.
    pub parent: u32,
    /// Source of outer packets.
    pub local: IpAddr,
    /// Its address: the first of the pod range, alone (`/32`, `/128`).
    pub address: IpNet,
}

/// How a range is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Through the tunnel, by the peer's device address.
    Tunnel(IpAddr),
    /// By the peer itself, which is on the link of this interface.
    Direct(IpAddr, u32),
    /// Through the tunnel, by the nexthop object of this number. [`Entries`] say [`Way::Tunnel`], and their tunnel
    /// says [`Tunnel::nexthops`].
    Nexthop(u32),
    /// Nowhere.
    Blackhole,
}

/// A peer in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: Arc<str>,
    /// Hardware and node address.
    pub vtep: Vtep,
    /// Its pods.
    pub pod_cidr: IpNet,
    /// The interface by which it is reached without the tunnel: the kernel sends to its public address without a gateway.
    pub direct: Option<u32>,
    /// The interface that carries its outer packets instead of the underlay.
    pub via: Option<u32>,
    /// It probes its peers: it says so, or no Node says anything.
    pub probes: bool,
    /// Addresses of the Node object, of the family, beside the public one: those that no pod and no other node has, and
    /// no more than count ([`MAX_ADDRESSES`]); then those that it had until a moment ago.
    pub more_addresses: Box<[IpAddr]>,
}

impl Peer {
    /// The address of its device: the first of its pod range.
    pub fn gateway(&self) -> IpAddr {
        self.pod_cidr.network()
    }

    /// All addresses it may send from: the public one first.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + Clone {
        let more = self.more_addresses.iter().copied();
        std::iter::once(self.vtep.public_ip).chain(more)
    }
}

/// Plans for the node `facts.own` among `nodes`, which come in the order of their names.
pub fn plan<'a>(facts: Facts<'_>, nodes: impl Iterator<Item = &'a Node> + Clone) -> Plan {
    let mut plan = Plan::default();
    let Some(own) = nodes.clone().find(|node| *node.name == *facts.own) else {
        plan.problems.push(Problem::NoOwnNode);
        return plan;
    };
    if own.pod_cidrs.is_empty() {
        plan.problems.push(Problem::NoPodCidr);
    }
    let mut others: Vec<&Node> = nodes.filter(|node| node.name != own.name).collect();
    others.sort_by(|a, b| a.seniority().cmp(&b.seniority()));
    let carried = |family: &Family| facts.config.carries(*family);
    for family in Family::ALL.into_iter().filter(carried) {
        let Some(pod_cidr) = range_of(own, family) else {
            continue;
        };
        if let Some(address) = own
            .addresses
            .iter()
            .find(|address| pod_cidr.contains(*address))
        {
            plan.problems.push(Problem::HoldsAddress {
                node: own.name.clone(),
                range: pod_cidr,
                address: *address,
                left_out: own.name.clone(),
            });
            continue;
        }
        let Some((external, (published, chosen))) = own_end(facts, own, family) else {
            plan.problems.push(Problem::NoExternal(family));
            continue;
        };
        let carrying = facts.carriers.overhead[outermost(facts, own)];
        let device = device(facts, own, family, pod_cidr, &external, carrying);
        if family == Family::Ip6 && device.mtu < MIN_MTU_V6 {
            plan.problems.push(Problem::SmallMtu {
                mtu: device.mtu + overhead(family) + carrying,
                interface: external.name,
                inner: device.mtu,
                needed: MIN_MTU_V6 + overhead(family) + carrying,
            });
            continue;
        }
        let vtep = Vtep {
            mac: device.mac,
            public_ip: published,
        };
        let claims = Claims::of_own(own, vtep, pod_cidr, device.local);
        let inner = |interface: &Interface| is_inner(facts, own, interface);
        let inputs = facts.surroundings.inputs(family, external.index, inner);
        let inputs = facts.carriers.inputs(inputs);
        // Packets to and from an address of the loopback interface take any way.
        let parent = (family, (external.name != LOOPBACK).then_some(device.parent));
        let mut own_addresses = vec![published, device.local];
        let of_family = own.addresses.iter().filter(|a| Family::of(**a) == family);
        own_addresses.extend(of_family);
        own_addresses.sort();
        own_addresses.dedup();
        let peers = peers(facts, &others, parent, claims, &mut plan.problems);
        plan.tunnels[family] = Some(Tunnel {
            device,
            published,
            chosen,
            inputs,
            own_addresses,
            pod_cidr,
            blackhole: facts.config.blackhole,
            nexthops: family == Family::Ip && peers.len() > facts.config.nexthops_above,
            clamps: carrying > 0,
            sealed: facts.carriers.sealed,
            peers,
        });
    }
    for family in Family::ALL.into_iter().filter(carried) {
        if facts.carriers.sealed && plan.tunnels[family].is_none() {
            let of_others = others.iter().filter_map(|node| range_of(node, family));
            plan.barriers[family] = Some(Barrier {
                cluster: match facts.config.network(family) {
                    Some(network) => vec![network],
                    None => of_others.collect(),
                },
                pod_cidr: range_of(own, family),
            });
        }
    }
    plan.problems.sort();
    plan.problems.dedup();
    plan
}

impl Tunnel {
    /// Neighbor and FDB entry are there for direct peers as well: when the link goes, the tunnel serves at once.
    pub fn entries(&self) -> Entries {
        let mut entries = Entries::default();
        if self.blackhole {
            entries.routes.insert(self.pod_cidr, Way::Blackhole);
        }
        for peer in &self.peers {
            let Vtep { mac, public_ip } = peer.vtep;
            let way = match peer.direct {
                Some(interface) => Way::Direct(public_ip, interface),
                None => Way::Tunnel(peer.gateway()),
            };
            entries.routes.insert(peer.pod_cidr, way);
            entries.neighbors.insert(peer.gateway(), mac);
            let (node, via) = (public_ip, peer.via);
            entries.fdb.insert(mac, Outer { node, via });
        }
        entries
    }
}

/// Interface and address of this node, what is published, and whether that is its own choice.
fn own_end(facts: Facts<'_>, own: &Node, family: Family) -> Option<(External, (IpAddr, bool))> {
    let asked = facts.names.node_public_ip(&own.annotations, family);
    let overwrite = facts.names.public_ip_overwrite(&own.annotations, family);
    let mut known: Vec<IpAddr> = asked.into_iter().collect();
    // What another program published, flannel at a take-over, is kept. An own choice follows what it was made by.
    let chosen = facts.names.chosen_public_ip(&own.annotations, family);
    let found = facts.names.own_public_ip(&own.annotations, family);
    let inherited = found.filter(|found| chosen != Some(*found));
    // An address that an operator wants published says nothing about an interface, even if one has it.
    if overwrite.is_none() {
        known.extend(inherited);
    }
    known.extend(&own.addresses);
    let inner = |interface: &Interface| is_inner(facts, own, interface);
    let surroundings = facts.surroundings;
    let external = surroundings.external(family, facts.preferences, &known, inner)?;
    let wish = overwrite.or(asked).or(facts.preferences.public_ip[family]);
    let published = wish.unwrap_or(external.address);
    let chosen =
        wish.is_some() || facts.preferences.name_interfaces() || inherited != Some(published);
    Some((external, (published, chosen)))
}

/// The family of the packets that carry outer packets: IPv4 where this node has it.
fn outermost(facts: Facts<'_>, own: &Node) -> Family {
    let carried = facts.config.carries(Family::Ip) && range_of(own, Family::Ip).is_some();
    match carried && own_end(facts, own, Family::Ip).is_some() {
        true => Family::Ip,
        false => Family::Ip6,
    }
}

/// Whatever puts an address of the node on them (a DHCP client that configures every device), the devices of the overlay
/// and of pods do not lead to other nodes.
fn is_inner(facts: Facts<'_>, own: &Node, interface: &Interface) -> bool {
    let overlay = Some((facts.config.vni, facts.config.port));
    let mut names = Family::ALL
        .map(|family| facts.config.device_name(family))
        .into_iter();
    let is_of_a_pod = |address: &InterfaceAddress| {
        let mut ranges = own.pod_cidrs.iter();
        ranges.any(|range| range.contains(&address.net.addr()))
    };
    interface.tunnel == overlay
        || names.any(|name| name == interface.name)
        || interface.addresses.iter().any(is_of_a_pod)
}

fn device(
    facts: Facts<'_>,
    own: &Node,
    family: Family,
    pod_cidr: IpNet,
    external: &External,
    carrying: u32,
) -> Device {
    // What peers hold comes first, then what they may hold, then what they would work out.
    let mac = facts
        .names
        .own_mac(&own.annotations, family)
        .or(facts.found[family].filter(|mac| mac.is_unicast() && !facts.infer))
        .unwrap_or_else(|| Mac::of_node(&own.name, family));
    // The kernel takes no more than the interface carries.
    let outer_mtu = facts.config.outer_mtu.unwrap_or(external.mtu);
    let headers = overhead(family) + carrying;
    let mtu = outer_mtu.min(external.mtu).saturating_sub(headers);
    let mtu = mtu.min(facts.config.pod_mtu.unwrap_or(u32::MAX));
    Device {
        name: facts.config.device_name(family),
        vni: facts.config.vni,
        port: facts.config.port,
        mac,
        mtu: mtu.max(MIN_MTU),
        parent: external.index,
        local: external.address,
        address: IpNet::from(pod_cidr.network()),
    }
}

/// The peers of a family, in the order of their names. The nodes come in the order in which they claim.
fn peers<'a>(
    facts: Facts<'_>,
    nodes: &[&'a Node],
    (family, parent): (Family, Option<u32>),
    mut claims: Claims<'a>,
    problems: &mut Vec<Problem>,
) -> Vec<Peer> {
    let mut peers = Vec::new();
    for node in nodes {
        match peer(facts, node, (family, parent), &mut claims) {
            Ok(peer) => peers.extend(peer.map(|peer| (peer, *node))),
            Err(problem) => problems.push(problem),
        }
    }
    let network = facts.config.network(family);
    for (peer, node) in &mut peers {
        let (more, dropped) = claims.more_addresses(node, peer.vtep.public_ip, network);
        peer.more_addresses = more;
        if dropped > 0 {
            problems.push(Problem::TooManyAddresses {
                node: node.name.clone(),
                family,
                dropped,
            });
        }
    }
    for (peer, node) in &mut peers {
        if !node.former.is_empty() {
            let former = claims.former_addresses(node, peer.vtep.public_ip, network);
            peer.more_addresses = peer.more_addresses.iter().copied().chain(former).collect();
        }
    }
    let mut peers: Vec<Peer> = peers.into_iter().map(|(peer, _)| peer).collect();
    peers.sort_by(|a, b| a.name.cmp(&b.name));
    peers.shrink_to_fit();
    peers
}

/// The peer of a node, if it takes part in this family. `parent` is the interface to the other nodes; `None`: any.
fn peer<'a>(
    facts: Facts<'_>,
    node: &'a Node,
    (family, parent): (Family, Option<u32>),
    claims: &mut Claims<'a>,
) -> Result<Option<Peer>, Problem> {
    let Some(pod_cidr) = range_of(node, family) else {
        return Ok(None);
    };
    let invalid = |reason| Problem::Unusable {
        node: node.name.clone(),
        reason,
    };
    let Some(vtep) = end_of(facts, node, family).map_err(invalid)? else {
        return match node.parsed {
            ParsedAnnotations::Vteps(_) => Err(Problem::NoVtep {
                node: node.name.clone(),
                family: family.api_name(),
            }),
            _ => Ok(None),
        };
    };
    let network = facts.config.network(family);
    if network.is_some_and(|network| !network.contains(&pod_cidr)) {
        return Err(Problem::OutsideNetwork {
            node: node.name.clone(),
            range: pod_cidr,
        });
    }
    claims.claim(&node.name, vtep, pod_cidr)?;
    let ways = &facts.surroundings.ways;
    let on_link = ways.get(&vtep.public_ip).copied().flatten();
    let link = on_link.map(|OnLink(interface)| interface);
    Ok(Some(Peer {
        name: node.name.clone(),
        vtep,
        pod_cidr,
        // A direct route would pass by what carries outer packets.
        direct: link
            .filter(|_| facts.config.direct_routing && !facts.carriers.are_used())
            .filter(|link| parent.is_none_or(|p| p == *link)),
        via: facts.carriers.of(&node.name),
        probes: node.probes || matches!(node.parsed, ParsedAnnotations::Absent),
        more_addresses: Box::default(),
    }))
}

fn end_of(facts: Facts<'_>, node: &Node, family: Family) -> Result<Option<Vtep>, &'static str> {
    match &node.parsed {
        ParsedAnnotations::Vteps(vteps) => Ok(vteps[family]),
        ParsedAnnotations::Invalid(reason) => Err(reason),
        ParsedAnnotations::Absent if facts.infer => Ok(node
            .addresses
            .iter()
            .find(|address| Family::of(**address) == family && is_node_address(**address))
            .map(|address| Vtep {
                mac: Mac::of_node(&node.name, family),
                public_ip: *address,
            })),
        ParsedAnnotations::Absent => Ok(None),
    }
}

fn range_of(node: &Node, family: Family) -> Option<IpNet> {
    node.pod_cidrs
        .iter()
        .find(|range| Family::of(range.addr()) == family)
        .map(IpNet::trunc)
}

#[cfg(test)]
mod tests;
