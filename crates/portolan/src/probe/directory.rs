//! Who is where: the overlay's plan as the probes need it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use nft::Family;
use vxlan_overlay::{Plan, Tunnel};

/// This node's end of one family's tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// Source of outer packets.
    pub(super) host: IpAddr,
    /// Address of the device.
    pub(super) tunnel: IpAddr,
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
    /// Addresses it may send from.
    pub(super) hosts: Vec<IpAddr>,
    /// Address of its device.
    pub(super) tunnel: IpAddr,
}

/// A path between two nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Outside the tunnel.
    Host,
    /// Through it.
    Tunnel,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Directory {
    ends: [Option<End>; 2],
    /// Sorted by name, then family.
    pub(super) targets: Vec<Target>,
    by_address: HashMap<IpAddr, (usize, Path)>,
}

impl Directory {
    /// What a plan says. Looks up names of interfaces.
    pub(super) fn of(plan: &Plan) -> Directory {
        let ends = plan
            .tunnels
            .each_ref()
            .map(|tunnel| tunnel.as_ref().map(end));
        let mut targets: Vec<Target> = Vec::new();
        for (family, (peers, end)) in Family::ALL.into_iter().zip(plan.peers.iter().zip(&ends)) {
            if end.is_none() {
                continue;
            }
            targets.extend(peers.iter().map(|(node, peer)| Target {
                node: node.clone(),
                family,
                host: peer.vtep.public_ip,
                hosts: peer.addresses.clone(),
                tunnel: peer.pod_cidr.network(),
            }));
        }
        targets.sort_by(|a, b| (&a.node, a.tunnel).cmp(&(&b.node, b.tunnel)));
        let mut by_address = HashMap::new();
        for (index, target) in targets.iter().enumerate() {
            by_address.insert(target.tunnel, (index, Path::Tunnel));
            for host in &target.hosts {
                by_address.insert(*host, (index, Path::Host));
            }
        }
        Directory {
            ends,
            targets,
            by_address,
        }
    }

    /// This node's end.
    pub(super) fn end(&self, family: Family) -> Option<&End> {
        let [v4, v6] = &self.ends;
        match family {
            Family::Ip => v4.as_ref(),
            Family::Ip6 => v6.as_ref(),
        }
    }

    /// Addresses of this node, and which path leads to each.
    pub(super) fn own(&self) -> impl Iterator<Item = (IpAddr, Path)> {
        let ends = self.ends.iter().flatten();
        ends.flat_map(|end| [(end.host, Path::Host), (end.tunnel, Path::Tunnel)])
    }

    /// The peer that has this address on this path.
    pub(super) fn known(&self, address: IpAddr, path: Path) -> Option<&Target> {
        let (index, its) = self.by_address.get(&address)?;
        self.targets.get(*index).filter(|_| *its == path)
    }
}

fn end(tunnel: &Tunnel) -> End {
    let device = &tunnel.device;
    let parent = nix::net::if_::if_indextoname(device.parent);
    End {
        host: device.local,
        tunnel: device.address.addr(),
        device: device.name.clone(),
        mtu: device.mtu,
        port: device.port,
        parent: parent.map_or_else(
            |_| format!("interface {}", device.parent),
            |name| name.to_string_lossy().into_owned(),
        ),
    }
}
