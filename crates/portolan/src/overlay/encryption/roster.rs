//! Which nodes announce keys, and the WireGuard peers that follow: functions of values.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use net_types::{Family, PerFamily};
use vxlan_overlay::{Node, Plan};
use wireguard::{Peer, PublicKey};

use super::announced::{Announced, Plane};

/// The nodes with valid keys, by name.
pub(super) type Roster = BTreeMap<Arc<str>, Announced>;

/// Reads what the nodes announce. Of several nodes with the same key, the older keeps it; the others are named.
pub(super) fn roster<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    own: (&str, &BTreeSet<PublicKey>),
) -> (Roster, Vec<String>) {
    let mut others: Vec<(&Node, Announced)> = nodes
        .filter(|node| *node.name != *own.0)
        .filter_map(|node| Some((node, Announced::parse(node.encryption.as_deref()?)?)))
        .collect();
    let age = |node: &Node| (node.held, node.stale, node.created.unwrap_or(i64::MAX));
    others.sort_by(|(a, _), (b, _)| (age(a), &a.name).cmp(&(age(b), &b.name)));
    let (mut taken, mut roster, mut problems) = (own.1.clone(), Roster::new(), Vec::new());
    for (node, announced) in others {
        let keys: BTreeSet<PublicKey> = announced.keys.iter().map(|(_, key, _)| *key).collect();
        if keys.iter().any(|key| taken.contains(key)) {
            problems.push(format!(
                "node {} announces a WireGuard key that another node has: its packets are not encrypted",
                node.name
            ));
            continue;
        }
        taken.extend(keys);
        roster.insert(node.name.clone(), announced);
    }
    (roster, problems)
}

/// The peers of the device of a plane. An address belongs to one peer: the first by name keeps it.
pub(super) fn peers(plan: &Plan, roster: &Roster, plane: Plane) -> BTreeMap<PublicKey, Peer> {
    let mut ends: BTreeMap<&str, (PerFamily<Option<IpAddr>>, BTreeSet<IpAddr>)> = BTreeMap::new();
    for (family, tunnel) in &plan.tunnels {
        for peer in tunnel.iter().flat_map(|tunnel| &tunnel.peers) {
            let (public, all) = ends.entry(&peer.name).or_default();
            public[family] = Some(peer.vtep.public_ip);
            all.extend(peer.addresses());
        }
    }
    let (mut taken, mut peers) = (BTreeSet::new(), BTreeMap::new());
    for (name, (public, mut addresses)) in ends {
        let Some((key, port)) = roster.get(name).and_then(|known| known.key(plane)) else {
            continue;
        };
        let carried = |family: &Family| plan.tunnels[*family].is_some();
        let mut families = Family::ALL.into_iter().filter(carried);
        let Some(address) = families.find_map(|family| public[family]) else {
            continue;
        };
        addresses.retain(|address| taken.insert(*address));
        let endpoint = SocketAddr::new(address, port);
        peers.insert(
            key,
            Peer {
                endpoint,
                addresses,
            },
        );
    }
    peers
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, created: i64, key: u8) -> Node {
        let names = vxlan_overlay::Names::default();
        let mut annotations = vxlan_overlay::Annotations::new();
        let key = PublicKey([key; 32]);
        names.write_encryption(&mut annotations, &format!("wg={key}@51820"));
        Node::new(
            (name.into(), Some(created)),
            &[],
            &[],
            Arc::new(annotations),
            (&names, 1),
        )
    }

    #[test]
    fn a_key_that_two_nodes_announce_belongs_to_the_older() {
        let nodes = [node("a", 300, 1), node("b", 200, 1), node("c", 100, 2)];
        let own = BTreeSet::from([PublicKey([9; 32])]);
        let (roster, problems) = roster(nodes.iter(), ("self", &own));
        let names: Vec<&str> = roster.keys().map(|name| &**name).collect();
        assert_eq!(names, ["b", "c"]);
        assert!(problems.len() == 1 && problems[0].contains("node a "));
    }

    #[test]
    fn this_nodes_own_key_is_nobody_elses() {
        let nodes = [node("a", 1, 9), node("self", 2, 9)];
        let own = BTreeSet::from([PublicKey([9; 32])]);
        let (roster, problems) = roster(nodes.iter(), ("self", &own));
        assert!(roster.is_empty() && problems.len() == 1);
    }
}
