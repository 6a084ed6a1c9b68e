//! What this node's kernel should hold: a function of configuration, nodes and the network below.
//!
//! No clock, no effect: the same facts give the same [`Plan`], whatever came before. What cannot be served is left out
//! and named as a [`Problem`]; it never keeps the rest from being served.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nft::Family;

use crate::annotations::{Names, Said, Vtep};
use crate::config::Config;
use crate::mac::Mac;
use crate::peers::Node;
use crate::underlay::{External, Preferences, Surroundings, of, of_mut};

/// Outer Ethernet, IP, UDP and VXLAN headers: 50 bytes over IPv4, 70 over IPv6 (RFC 7348; kernel `VXLAN_HEADROOM`).
pub const fn overhead(family: Family) -> u32 {
    match family {
        Family::Ip => 50,
        Family::Ip6 => 70,
    }
}

/// Everything a plan follows from.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The operator's decisions.
    pub config: &'a Config,
    /// The operator's word about the interface.
    pub preferences: &'a Preferences,
    /// Names of the annotations.
    pub names: &'a Names,
    /// The name of this node.
    pub own: &'a str,
    /// A peer without annotations has its node's address and a hardware address from its name. For folders of
    /// manifests; in a cluster such a node takes no part.
    pub infer: bool,
    /// Hardware addresses of the devices that are there.
    pub found: [Option<Mac>; 2],
    /// The network below.
    pub surroundings: &'a Surroundings,
}

/// What the kernel should hold, and what others should be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By family; `None` where there is nothing to carry, or no way yet.
    pub tunnels: [Option<Tunnel>; 2],
    /// What cannot be served.
    pub problems: Vec<Problem>,
}

impl Plan {
    /// Peers that are reached in this family, by name.
    pub fn peers(&self, family: Family) -> &[Peer] {
        let tunnel = of(&self.tunnels, family);
        tunnel.as_ref().map_or(&[], |tunnel| &tunnel.peers)
    }

    /// Number of peers that are reached, in the family that reaches more.
    pub fn peer_count(&self) -> usize {
        let counts = Family::ALL.map(|family| self.peers(family).len());
        counts.into_iter().max().unwrap_or_default()
    }
}

/// The tunnel of one family. Of thousands of peers only this is remembered: all that the kernel should hold for them
/// follows, see [`Tunnel::entries`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub device: Device,
    /// What peers should be told as this node's address: another one than [`Device::local`] behind address
    /// translation.
    pub published: IpAddr,
    /// This node's pod range.
    pub pod_cidr: IpNet,
    /// What of that no pod has leads nowhere.
    pub blackhole: bool,
    /// Who is reached, by name.
    pub peers: Vec<Peer>,
    /// Routes through the tunnel name nexthop objects instead of gateways.
    pub nexthops: bool,
}

/// What hangs on a tunnel's device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// Ways to peers' pods.
    pub routes: BTreeMap<IpNet, Way>,
    /// Hardware addresses behind the gateways of those routes.
    pub neighbours: BTreeMap<IpAddr, Mac>,
    /// Nodes behind the hardware addresses.
    pub fdb: BTreeMap<Mac, IpAddr>,
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
    /// It is on the link of our interface, and reached without the tunnel.
    pub direct: bool,
    /// Addresses of the Node object, of the family, beside the public one.
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

/// Something that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Problem {
    /// The Node object of this node is not there.
    #[error("no Node object of this node yet")]
    NoOwnNode,
    /// It has no range for pods.
    #[error(
        "no pod range for this node (spec.podCIDRs): is the controller manager run with --allocate-node-cidrs?"
    )]
    NoPodCidr,
    /// No interface will do.
    #[error("no {0} interface to the other nodes: give --iface, or wait for a default route")]
    NoExternal(Family),
    /// A peer whose annotations are no good.
    #[error("node {node}: {reason}")]
    Unusable {
        /// Its name.
        node: Arc<str>,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two nodes' ranges overlap: the one that is kept goes on.
    #[error(
        "nodes {kept} and {left_out} both have pod range {range}: {kept} keeps it, {left_out} cannot be reached"
    )]
    DuplicateRange {
        /// The range that is left out.
        range: IpNet,
        /// Keeps it.
        kept: Arc<str>,
        /// Is left out.
        left_out: Arc<str>,
    },
    /// Two nodes say the same address or hardware address of themselves.
    #[error(
        "nodes {kept} and {left_out} both claim {what}: {kept} keeps it, {left_out} cannot be reached"
    )]
    DuplicateEnd {
        /// The address.
        what: String,
        /// Keeps it.
        kept: Arc<str>,
        /// Is left out.
        left_out: Arc<str>,
    },
    /// A range outside the cluster's.
    #[error("node {node}: pod range {range} is outside the cluster's network")]
    OutsideNetwork {
        /// Its name.
        node: Arc<str>,
        /// The range.
        range: IpNet,
    },
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
    for family in Family::ALL
        .into_iter()
        .filter(|family| facts.config.carries(*family))
    {
        let Some(pod_cidr) = range_of(own, family) else {
            continue;
        };
        let Some((external, published)) = own_end(facts, own, family) else {
            plan.problems.push(Problem::NoExternal(family));
            continue;
        };
        let device = device(facts, own, family, pod_cidr, &external);
        let ends = (device.mac, published);
        let mut peers = peers(
            facts,
            own,
            family,
            pod_cidr,
            ends,
            nodes.clone(),
            &mut plan.problems,
        );
        for peer in &mut peers {
            let link = facts.surroundings.on_link(peer.vtep.public_ip);
            peer.direct = facts.config.direct_routing && link == Some(device.parent);
        }
        *of_mut(&mut plan.tunnels, family) = Some(Tunnel {
            device,
            published,
            pod_cidr,
            blackhole: facts.config.blackhole,
            nexthops: family == Family::Ip && peers.len() > facts.config.nexthops_above,
            peers,
        });
    }
    plan.problems.sort();
    plan.problems.dedup();
    plan
}

impl Tunnel {
    /// Neighbour and FDB entry are there for direct peers as well: when the link goes, the tunnel serves at once.
    pub fn entries(&self) -> Entries {
        let mut entries = Entries::default();
        if self.blackhole {
            entries.routes.insert(self.pod_cidr, Way::Blackhole);
        }
        for peer in &self.peers {
            let Vtep { mac, public_ip } = peer.vtep;
            let way = match peer.direct {
                true => Way::Direct(public_ip, self.device.parent),
                false => Way::Tunnel(peer.gateway()),
            };
            entries.routes.insert(peer.pod_cidr, way);
            entries.neighbours.insert(peer.gateway(), mac);
            entries.fdb.insert(mac, public_ip);
        }
        entries
    }
}

/// Interface and address of this node, and what is published.
fn own_end(facts: Facts<'_>, own: &Node, family: Family) -> Option<(External, IpAddr)> {
    let asked = facts.names.node_public_ip(&own.annotations, family);
    let overwrite = facts.names.public_ip_overwrite(&own.annotations, family);
    let mut known: Vec<IpAddr> = asked.into_iter().collect();
    // An address that an operator wants published says nothing about an interface, even if one has it.
    if overwrite.is_none() {
        known.extend(facts.names.own_public_ip(&own.annotations, family));
    }
    known.extend(&own.addresses);
    let external = facts
        .surroundings
        .external(family, facts.preferences, &known)?;
    let published = overwrite
        .or(asked)
        .or(*of(&facts.preferences.public_ip, family))
        .unwrap_or(external.address);
    Some((external, published))
}

fn device(
    facts: Facts<'_>,
    own: &Node,
    family: Family,
    pod_cidr: IpNet,
    external: &External,
) -> Device {
    // What peers hold comes first, then what they may hold, then what they would work out.
    let mac = facts
        .names
        .own_mac(&own.annotations, family)
        .or(of(&facts.found, family).filter(|mac| mac.is_unicast() && !facts.infer))
        .unwrap_or_else(|| Mac::of_node(&own.name, family));
    let outer_mtu = facts.config.outer_mtu.unwrap_or(external.mtu);
    Device {
        name: facts.config.device_name(family),
        vni: facts.config.vni,
        port: facts.config.port,
        mac,
        // Never below what IPv6 needs to be carried (RFC 8200, section 5), as far as the kernel allows.
        mtu: outer_mtu.saturating_sub(overhead(family)).max(68),
        parent: external.index,
        local: external.address,
        address: IpNet::from(pod_cidr.network()),
    }
}

/// The peers that can be served. Where two nodes claim the same, this node's own claim comes first and else the first
/// name: everybody decides alike, and nothing flips.
fn peers<'a>(
    facts: Facts<'_>,
    own: &Node,
    family: Family,
    own_range: IpNet,
    own_end: (Mac, IpAddr),
    nodes: impl Iterator<Item = &'a Node>,
    problems: &mut Vec<Problem>,
) -> Vec<Peer> {
    let mut macs: BTreeMap<Mac, &Arc<str>> = BTreeMap::from([(own_end.0, &own.name)]);
    let mut addresses: BTreeMap<IpAddr, &Arc<str>> = BTreeMap::from([(own_end.1, &own.name)]);
    let mut ranges = Ranges::default();
    ranges.claim(own_range, own.name.clone());
    let mut peers = Vec::new();
    for node in nodes.filter(|node| node.name != own.name) {
        let Some(pod_cidr) = range_of(node, family) else {
            continue;
        };
        let vtep = match end_of(facts, node, family) {
            Ok(Some(vtep)) => vtep,
            Ok(None) => continue,
            Err(reason) => {
                problems.push(Problem::Unusable {
                    node: node.name.clone(),
                    reason,
                });
                continue;
            }
        };
        if facts
            .config
            .network(family)
            .is_some_and(|network| !network.contains(&pod_cidr))
        {
            problems.push(Problem::OutsideNetwork {
                node: node.name.clone(),
                range: pod_cidr,
            });
            continue;
        }
        if let Some(kept) = macs
            .get(&vtep.mac)
            .map(|kept| (kept, vtep.mac.to_string()))
            .or_else(|| {
                addresses
                    .get(&vtep.public_ip)
                    .map(|kept| (kept, vtep.public_ip.to_string()))
            })
        {
            let (kept, what) = ((*kept.0).clone(), kept.1);
            problems.push(Problem::DuplicateEnd {
                what,
                kept,
                left_out: node.name.clone(),
            });
            continue;
        }
        if let Some(kept) = ranges.claim(pod_cidr, node.name.clone()) {
            problems.push(Problem::DuplicateRange {
                range: pod_cidr,
                kept,
                left_out: node.name.clone(),
            });
            continue;
        }
        macs.insert(vtep.mac, &node.name);
        addresses.insert(vtep.public_ip, &node.name);
        let more = node.addresses.iter().copied();
        let more = more.filter(|a| Family::of(*a) == family && *a != vtep.public_ip);
        peers.push(Peer {
            name: node.name.clone(),
            vtep,
            pod_cidr,
            direct: false,
            more_addresses: more.collect(),
        });
    }
    peers.shrink_to_fit();
    peers
}

fn end_of(facts: Facts<'_>, node: &Node, family: Family) -> Result<Option<Vtep>, &'static str> {
    match &node.said {
        Said::Vteps(vteps) => Ok(*of(vteps, family)),
        Said::Unusable(reason) => Err(reason),
        Said::Nothing if facts.infer => Ok(node
            .addresses
            .iter()
            .find(|address| Family::of(**address) == family)
            .map(|address| Vtep {
                mac: Mac::of_node(&node.name, family),
                public_ip: *address,
            })),
        Said::Nothing => Ok(None),
    }
}

fn range_of(node: &Node, family: Family) -> Option<IpNet> {
    node.pod_cidrs
        .iter()
        .find(|range| Family::of(range.addr()) == family)
        .map(IpNet::trunc)
}

/// Ranges that do not overlap, and whose they are.
#[derive(Default)]
struct Ranges(BTreeMap<IpAddr, (IpNet, Arc<str>)>);

impl Ranges {
    /// Takes the range, or says who has some of it.
    fn claim(&mut self, range: IpNet, name: Arc<str>) -> Option<Arc<str>> {
        // Of ranges without overlap, only the last that begins up to our end can reach into ours.
        let before = self.0.range(..=range.broadcast()).next_back();
        if let Some((_, (other, kept))) = before
            && other.broadcast() >= range.network()
        {
            return Some(kept.clone());
        }
        self.0.insert(range.network(), (range, name));
        None
    }
}

#[cfg(test)]
mod tests;
