//! What nodes claim for themselves in one family, and who keeps what two of them claim.
//!
//! This node's claims come first, then those of nodes whose kubelet is heard of, then those of the older Node, then those of the lesser name: all nodes decide alike,
//! and a node that joins takes nothing from one that serves. Invariant: all claims that are kept can be served at once.
//! Several nodes may have one public address, even with one hardware address: the Node object that a renamed machine
//! left behind does not cut the machine off.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use net_types::Family;

use super::{MAX_ADDRESSES, Problem};
use crate::annotations::Vtep;
use crate::mac::Mac;
use crate::peers::Node;
use crate::underlay::is_node_address;

/// The claims that are kept.
pub(super) struct Claims<'a> {
    own: (&'a Arc<str>, Vtep),
    /// Public addresses behind hardware addresses.
    ends: BTreeMap<Mac, (IpAddr, &'a Arc<str>)>,
    /// Ranges that do not overlap, by their first address.
    ranges: BTreeMap<IpAddr, (IpNet, &'a Arc<str>)>,
    /// Addresses that belong to a node.
    addresses: BTreeSet<IpAddr>,
}

impl<'a> Claims<'a> {
    /// Those of this node.
    pub(super) fn of_own(own: &'a Node, vtep: Vtep, range: IpNet, local: IpAddr) -> Claims<'a> {
        let addresses = own.addresses.iter().copied();
        Claims {
            own: (&own.name, vtep),
            ends: BTreeMap::new(),
            ranges: [(range.network(), (range, &own.name))].into(),
            addresses: addresses.chain([vtep.public_ip, local]).collect(),
        }
    }

    /// Records the claims of a node, or returns the conflict with an earlier one.
    pub(super) fn claim(
        &mut self,
        name: &'a Arc<str>,
        vtep: Vtep,
        range: IpNet,
    ) -> Result<(), Problem> {
        if let Some((what, kept)) = self.conflicting_end(vtep) {
            return Err(Problem::DuplicateEnd {
                what,
                kept: kept.clone(),
                left_out: name.clone(),
            });
        }
        // Ranges here do not overlap: only the last one that begins below our end can reach into ours.
        let before = self.ranges.range(..=range.broadcast()).next_back();
        if let Some((_, (other, kept))) = before
            && other.broadcast() >= range.network()
        {
            return Err(Problem::DuplicateRange {
                range,
                kept: (*kept).clone(),
                left_out: name.clone(),
            });
        }
        // Packets to that node, those of its tunnel too, would be sent into the tunnel.
        let holds = |(range, of): (IpNet, &Arc<str>), address| Problem::HoldsAddress {
            node: of.clone(),
            range,
            address,
            left_out: name.clone(),
        };
        let held = self.addresses.range(range.network()..=range.broadcast());
        let mut held = held.copied().chain([vtep.public_ip]);
        if let Some(address) = held.find(|address| range.contains(address)) {
            return Err(holds((range, name), address));
        }
        if let Some(around) = self.range_around(vtep.public_ip) {
            return Err(holds(around, vtep.public_ip));
        }
        self.ends.insert(vtep.mac, (vtep.public_ip, name));
        self.ranges.insert(range.network(), (range, name));
        self.addresses.insert(vtep.public_ip);
        Ok(())
    }

    /// The address that cannot lead to this VTEP, and who has it. The kernel's FDB has one node behind a hardware
    /// address; the device drops frames from its own.
    fn conflicting_end(&self, vtep: Vtep) -> Option<(String, &'a Arc<str>)> {
        let (own, own_vtep) = self.own;
        if vtep.mac == own_vtep.mac {
            return Some((vtep.mac.to_string(), own));
        }
        if vtep.public_ip == own_vtep.public_ip {
            return Some((vtep.public_ip.to_string(), own));
        }
        let (address, kept) = self.ends.get(&vtep.mac)?;
        (*address != vtep.public_ip).then(|| (vtep.mac.to_string(), *kept))
    }

    /// The addresses of a node beside its public one that count, once all nodes have claimed, and how many are above
    /// [`MAX_ADDRESSES`]. Those of pods or of another node do not count: a kubelet writes what it likes, and the
    /// filter would let its node speak for them.
    pub(super) fn more_addresses(
        &mut self,
        node: &Node,
        public_ip: IpAddr,
        network: Option<IpNet>,
    ) -> (Box<[IpAddr]>, usize) {
        let family = Family::of(public_ip);
        let written = node.addresses.iter().copied();
        let written = written.filter(|a| Family::of(*a) == family && *a != public_ip);
        let dropped = written.clone().count().saturating_sub(MAX_ADDRESSES - 1);
        let mut more = Vec::new();
        for address in written.take(MAX_ADDRESSES - 1) {
            let is_pods = self.is_of_pods(address, network);
            if is_node_address(address) && !is_pods && self.addresses.insert(address) {
                more.push(address);
            }
        }
        (more.into(), dropped)
    }

    /// The addresses of a node's former ones that nobody has, once all nodes have what they state.
    pub(super) fn former_addresses<'b>(
        &'b self,
        node: &'b Node,
        public_ip: IpAddr,
        network: Option<IpNet>,
    ) -> impl Iterator<Item = IpAddr> + 'b {
        let former = node.former.iter().copied();
        former.filter(move |address| {
            Family::of(*address) == Family::of(public_ip)
                && is_node_address(*address)
                && !self.is_of_pods(*address, network)
                && !self.addresses.contains(address)
        })
    }

    fn is_of_pods(&self, address: IpAddr, network: Option<IpNet>) -> bool {
        network.is_some_and(|network| network.contains(&address))
            || self.range_around(address).is_some()
    }

    fn range_around(&self, address: IpAddr) -> Option<(IpNet, &'a Arc<str>)> {
        let (_, found) = self.ranges.range(..=address).next_back()?;
        found.0.contains(&address).then_some(*found)
    }
}
