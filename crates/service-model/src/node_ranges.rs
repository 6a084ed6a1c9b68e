//! What belongs to which Node: addresses and pod CIDRs, which external IPs of Services must not take from other Nodes.
//!
//! Nodes are known as far as the source reports them: all of them from a folder of manifests or with an overlay, else only
//! this one.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::objects::{Family, Node, ObjectEvent, ObjectName};

/// The addresses and pod CIDRs of all Nodes. A change costs what one Node has, and a look-up one step for each prefix length.
#[derive(Debug, Default)]
pub(crate) struct NodeRanges {
    nodes: BTreeMap<ObjectName, BTreeSet<IpNet>>,
    /// The Nodes that have a range, by name.
    owners: HashMap<IpNet, Vec<Arc<str>>>,
    /// Number of ranges of each family and prefix length.
    lengths: BTreeMap<(Family, u8), usize>,
}

impl NodeRanges {
    /// Applies an event about Nodes. Returns the ranges that a Node has gained or lost.
    pub(crate) fn event(&mut self, event: &ObjectEvent<Node>) -> Vec<IpNet> {
        match event {
            ObjectEvent::Apply(node) => self.replace(&node.name, ranges(node)),
            ObjectEvent::Delete(name) => self.replace(name, BTreeSet::new()),
            ObjectEvent::Reset { objects, invalid } => {
                let listed = objects.iter().map(|node| &node.name);
                let listed: BTreeSet<&ObjectName> = listed.chain(invalid).collect();
                let known = self.nodes.keys().filter(|name| !listed.contains(name));
                let gone: Vec<ObjectName> = known.cloned().collect();
                let gone = gone.iter().map(|name| (name, BTreeSet::new()));
                let here = objects.iter().map(|node| (&node.name, ranges(node)));
                let changed = gone.chain(here);
                changed
                    .flat_map(|(name, ranges)| self.replace(name, ranges))
                    .collect()
            }
        }
    }

    fn replace(&mut self, name: &ObjectName, new: BTreeSet<IpNet>) -> Vec<IpNet> {
        let old = match new.is_empty() {
            true => self.nodes.remove(name),
            false => self.nodes.insert(name.clone(), new.clone()),
        };
        let old = old.unwrap_or_default();
        for range in old.difference(&new) {
            self.remove(range, &name.name);
        }
        for range in new.difference(&old) {
            let owners = self.owners.entry(*range).or_default();
            if owners.is_empty() {
                *self.lengths.entry(length(range)).or_default() += 1;
            }
            owners.push(name.name.clone());
        }
        old.symmetric_difference(&new).copied().collect()
    }

    fn remove(&mut self, range: &IpNet, owner: &str) {
        let Some(owners) = self.owners.get_mut(range) else {
            return;
        };
        owners.retain(|name| **name != *owner);
        if !owners.is_empty() {
            return;
        }
        self.owners.remove(range);
        if let Some(count) = self.lengths.get_mut(&length(range)) {
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length(range));
            }
        }
    }

    /// Whether an address belongs to a Node of another name than this.
    pub(crate) fn belongs_to_other(&self, address: IpAddr, own: &str) -> bool {
        let family = Family::of(address);
        let lengths = self.lengths.range((family, 0)..=(family, u8::MAX));
        let ranges = lengths.filter_map(|((_, length), _)| IpNet::new(address, *length).ok());
        let mut owners = ranges.filter_map(|range| self.owners.get(&range.trunc()));
        owners.any(|owners| owners.iter().any(|name| **name != *own))
    }
}

fn ranges(node: &Node) -> BTreeSet<IpNet> {
    let addresses = node.addresses.iter().map(|address| IpNet::from(*address));
    let pod_cidrs = node.pod_cidrs.iter().map(IpNet::trunc);
    addresses.chain(pod_cidrs).collect()
}

fn length(range: &IpNet) -> (Family, u8) {
    (Family::of(range.addr()), range.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, address: &str, pod_cidr: &str) -> Node {
        let mut node = Node::unknown(name);
        node.addresses = vec![address.parse().unwrap()];
        node.pod_cidrs = vec![pod_cidr.parse().unwrap()];
        node
    }

    #[test]
    fn addresses_of_other_nodes_are_found_until_the_node_is_gone() {
        let mut nodes = NodeRanges::default();
        let all = || {
            [
                node("a", "192.0.2.1", "10.244.0.0/24"),
                node("b", "192.0.2.2", "10.244.1.0/24"),
                node("c", "2001:db8::3", "10.244.2.0/24"),
            ]
        };
        assert_eq!(nodes.event(&ObjectEvent::list(all())).len(), 6);
        let asked = [
            "192.0.2.1",
            "192.0.2.2",
            "10.244.0.9",
            "10.244.1.9",
            "2001:db8::3",
            "198.51.100.1",
        ];
        let found = |nodes: &NodeRanges| {
            let belongs = |address: &&&str| nodes.belongs_to_other(address.parse().unwrap(), "a");
            asked.iter().filter(belongs).copied().collect::<Vec<_>>()
        };
        assert_eq!(found(&nodes), ["192.0.2.2", "10.244.1.9", "2001:db8::3"]);
        // The same list again changes nothing.
        assert_eq!(nodes.event(&ObjectEvent::list(all())), []);
        nodes.event(&ObjectEvent::Delete(ObjectName::new("", "b")));
        assert_eq!(found(&nodes), ["2001:db8::3"]);
        let moved = node("c", "198.51.100.1", "10.244.1.0/24");
        let changed = nodes.event(&ObjectEvent::Apply(moved.into()));
        assert_eq!(changed.len(), 4);
        assert_eq!(found(&nodes), ["10.244.1.9", "198.51.100.1"]);
        // Two Nodes claim one range: it is taken until neither has it.
        let twin = node("d", "192.0.2.4", "10.244.1.0/24");
        nodes.event(&ObjectEvent::Apply(twin.into()));
        nodes.event(&ObjectEvent::Delete(ObjectName::new("", "c")));
        assert_eq!(found(&nodes), ["10.244.1.9"]);
        nodes.event(&ObjectEvent::list([]));
        assert_eq!(found(&nodes), Vec::<&str>::new());
        assert!(nodes.lengths.is_empty() && nodes.owners.is_empty());
    }
}
