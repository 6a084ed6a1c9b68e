//! What belongs to other Nodes: their addresses and pod CIDRs, which external IPs of Services must not take.
//!
//! Nodes are known as far as the source reports them: all of them from a folder of manifests or with an overlay, else only
//! this one.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::objects::{Node, ObjectEvent, ObjectName};

/// The addresses and pod CIDRs of all Nodes but one.
#[derive(Debug, Default)]
pub struct OtherNodes {
    nodes: BTreeMap<ObjectName, Vec<IpNet>>,
    /// All of them, sorted and disjoint; `None` when a Node has changed.
    ranges: Option<Vec<IpNet>>,
}

impl OtherNodes {
    /// Applies an event about Nodes, those of this name excepted.
    pub fn event(&mut self, event: &ObjectEvent<Node>, own: &str) {
        match event {
            ObjectEvent::Apply(node) => self.apply(node, own),
            ObjectEvent::Delete(name) => {
                if self.nodes.remove(name).is_some() {
                    self.ranges = None;
                }
            }
            ObjectEvent::Reset { objects, invalid } => {
                self.nodes.retain(|name, _| invalid.contains(name));
                self.ranges = None;
                objects.iter().for_each(|node| self.apply(node, own));
            }
        }
    }

    fn apply(&mut self, node: &Node, own: &str) {
        if *node.name.name == *own {
            return;
        }
        let addresses = node.addresses.iter().map(|address| IpNet::from(*address));
        let ranges: Vec<IpNet> = addresses.chain(node.pod_cidrs.iter().copied()).collect();
        if self.nodes.get(&node.name) != Some(&ranges) {
            self.nodes.insert(node.name.clone(), ranges);
            self.ranges = None;
        }
    }

    /// Those of `addresses` that belong to a Node, in their order.
    pub fn among(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
        let ranges = self.ranges.get_or_insert_with(|| {
            let all: Vec<IpNet> = self.nodes.values().flatten().copied().collect();
            let mut ranges = IpNet::aggregate(&all);
            ranges.sort_unstable_by_key(IpNet::network);
            ranges
        });
        let belongs = |address: &IpAddr| {
            let after = ranges.partition_point(|range| range.network() <= *address);
            let before = after.checked_sub(1).and_then(|at| ranges.get(at));
            before.is_some_and(|range| range.contains(address))
        };
        addresses.filter(belongs).collect()
    }
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
        let mut others = OtherNodes::default();
        let all = [
            node("a", "192.0.2.1", "10.244.0.0/24"),
            node("b", "192.0.2.2", "10.244.1.0/24"),
            node("c", "2001:db8::3", "10.244.2.0/24"),
        ];
        others.event(&ObjectEvent::list(all), "a");
        let asked = [
            "192.0.2.1",
            "192.0.2.2",
            "10.244.0.9",
            "10.244.1.9",
            "2001:db8::3",
            "198.51.100.1",
        ];
        let found = |others: &mut OtherNodes| {
            let asked = asked.iter().map(|text| text.parse().unwrap());
            let found = others.among(asked).into_iter();
            found.map(|address| address.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            found(&mut others),
            ["192.0.2.2", "10.244.1.9", "2001:db8::3"]
        );
        others.event(&ObjectEvent::Delete(ObjectName::new("", "b")), "a");
        assert_eq!(found(&mut others), ["2001:db8::3"]);
        let moved = node("c", "198.51.100.1", "10.244.1.0/24");
        others.event(&ObjectEvent::Apply(moved.into()), "a");
        assert_eq!(found(&mut others), ["10.244.1.9", "198.51.100.1"]);
    }
}
