//! Finds peers by name and by address: the overlay's plan, indexed for the probes.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use net_types::{Family, PerFamily};
use nft::{Bytes, Name};
use vxlan_overlay::{Peer, Plan, Tunnel, arrivals};

/// This node's VTEP in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LocalVtep {
    /// Source of outer packets.
    pub(super) host: IpAddr,
    /// Address of the device.
    pub(super) tunnel: IpAddr,
    /// Addresses of this node's pods.
    pub(super) pods: IpNet,
    /// Name of the device.
    pub(super) device: String,
    /// Largest inner packet.
    pub(super) mtu: u32,
    /// The VXLAN port.
    pub(super) port: u16,
    /// The interface to other nodes.
    pub(super) parent: String,
}

/// A peer in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: Arc<str>,
    pub(super) family: Family,
    /// Where VXLAN packets are sent.
    pub(super) host: IpAddr,
    /// Sets and keys of the elements that count its VXLAN packets.
    pub(super) arrivals: Vec<(Name, Bytes)>,
    /// Address of its device.
    pub(super) tunnel: IpAddr,
    /// It probes its peers. A request in the name of a node that does not comes from a pod that is masqueraded there.
    pub(super) probes: bool,
    /// Packets to its pods and to its device do not pass the tunnel.
    pub(super) is_direct: bool,
}

/// A path between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Path {
    /// Outside the tunnel.
    Host,
    /// Through it.
    Tunnel,
}

/// All peers. Their data stay in the plan; the directory only indexes them.
#[derive(Debug, Default)]
pub(super) struct Directory {
    plan: Arc<Plan>,
    locals: PerFamily<Option<LocalVtep>>,
    /// Addresses with their path, and the peer as family and index in the plan; sorted.
    by_address: Vec<(IpAddr, Path, Family, u32)>,
}

impl Directory {
    /// Whether it was made from an equal plan.
    pub(super) fn is_of(&self, plan: &Arc<Plan>) -> bool {
        Arc::ptr_eq(&self.plan, plan) || self.plan == *plan
    }

    /// Indexes a plan. Reads the names of interfaces from the kernel.
    pub(super) fn of(plan: &Arc<Plan>) -> Directory {
        let tunnels = plan.tunnels.as_ref();
        let locals = tunnels.map(|_, tunnel| tunnel.as_ref().map(local_vtep));
        let mut by_address = Vec::new();
        for family in Family::ALL {
            for (peer, place) in plan.peers(family).iter().zip(0..) {
                by_address.push((peer.gateway(), Path::Tunnel, family, place));
                let hosts = peer.addresses();
                by_address.extend(hosts.map(|host| (host, Path::Host, family, place)));
            }
        }
        by_address.shrink_to_fit();
        by_address.sort_unstable();
        Directory {
            plan: plan.clone(),
            locals,
            by_address,
        }
    }

    /// Names of all peers.
    pub(super) fn names(&self) -> BTreeSet<&Arc<str>> {
        let peers = Family::ALL.map(|family| self.plan.peers(family));
        peers.into_iter().flatten().map(|peer| &peer.name).collect()
    }

    /// A peer in each family that it has.
    pub(super) fn targets<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Target> + 'a {
        let target = move |family| self.target(name, family);
        Family::ALL.into_iter().filter_map(target)
    }

    /// A peer in one family.
    pub(super) fn target(&self, name: &str, family: Family) -> Option<Target> {
        let tunnel = self.plan.tunnels[family].as_ref()?;
        let peers = &tunnel.peers;
        let place = peers.binary_search_by(|peer| (*peer.name).cmp(name)).ok()?;
        Some(target(family, tunnel, peers.get(place)?))
    }

    /// This node's VTEP.
    pub(super) fn local(&self, family: Family) -> Option<&LocalVtep> {
        self.locals[family].as_ref()
    }

    /// Addresses of this node, and which path leads to each.
    pub(super) fn own(&self) -> impl Iterator<Item = (IpAddr, Path)> {
        let locals = self.locals.values().flatten();
        locals.flat_map(|local| [(local.host, Path::Host), (local.tunnel, Path::Tunnel)])
    }

    /// The peer that has this address on this path.
    pub(super) fn known(&self, address: IpAddr, path: Path) -> Option<Target> {
        let key = |entry: &(IpAddr, Path, Family, u32)| (entry.0, entry.1);
        let found = self.by_address.binary_search_by_key(&(address, path), key);
        let (_, _, family, place) = self.by_address.get(found.ok()?)?;
        let tunnel = self.plan.tunnels[*family].as_ref()?;
        let peer = tunnel.peers.get(usize::try_from(*place).ok()?)?;
        Some(target(*family, tunnel, peer))
    }
}

fn target(family: Family, tunnel: &Tunnel, peer: &Peer) -> Target {
    Target {
        node: peer.name.clone(),
        family,
        host: peer.vtep.public_ip,
        arrivals: arrivals(tunnel, peer),
        tunnel: peer.gateway(),
        probes: peer.probes,
        is_direct: peer.direct.is_some(),
    }
}

fn local_vtep(tunnel: &Tunnel) -> LocalVtep {
    let device = &tunnel.device;
    let parent = nix::net::if_::if_indextoname(device.parent);
    LocalVtep {
        host: device.local,
        tunnel: device.address.addr(),
        pods: tunnel.pod_cidr,
        device: device.name.clone(),
        mtu: device.mtu,
        port: device.port,
        parent: parent.map_or_else(
            |_| format!("interface {}", device.parent),
            |name| name.to_string_lossy().into_owned(),
        ),
    }
}
