//! Which nodes announce keys, and the WireGuard peers that follow: functions of values.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use net_types::{Family, PerFamily};
use vxlan_overlay::{Node, Plan};
use wireguard::{Deletions, Observed, Peer, PublicKey, Wanted};

use super::announced::{Announced, Plane};

/// A few stale peers at the start do not look like a truncated list.
const ALWAYS_BELIEVED: usize = 2;

/// The nodes with valid keys, by name.
pub(super) type Roster = BTreeMap<Arc<str>, Announced>;

/// The nodes whose public address is another node's, by name, each with the name of the other one.
pub(super) type Replaced = BTreeMap<Arc<str>, Arc<str>>;

/// Who has a public address that several nodes publish: the least.
pub(super) type Rank = (bool, bool, bool, bool, Reverse<i64>);

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

/// The rank of a node among those that publish the same address. One with a key and a live session comes first, then one that
/// is listed and whose kubelet is heard of. Of the others it is the youngest: a machine that is replaced leaves its Node behind.
pub(super) fn rank(node: Option<&Node>, has_key: bool, is_live: bool) -> Rank {
    let (held, stale) = node.map_or((true, true), |node| (node.held, node.stale));
    let created = node.and_then(|node| node.created).unwrap_or(i64::MAX);
    (!has_key, !is_live, held, stale, Reverse(created))
}

/// Finds the nodes whose public address belongs to another one: packets to it can be encrypted for one of them only.
pub(super) fn replaced(plan: &Plan, rank: impl Fn(&str) -> Rank) -> Replaced {
    let tunnels = plan.tunnels.values().flatten();
    let mut ends: Vec<(IpAddr, &Arc<str>)> = tunnels
        .flat_map(|tunnel| &tunnel.peers)
        .map(|peer| (peer.vtep.public_ip, &peer.name))
        .collect();
    ends.sort_unstable();
    let mut replaced = Replaced::new();
    let groups = ends.chunk_by(|a, b| a.0 == b.0);
    for nodes in groups.filter(|nodes| nodes.len() > 1) {
        let names = nodes.iter().map(|(_, name)| *name);
        let Some(owner) = names.clone().min_by_key(|name| (rank(name), *name)) else {
            continue;
        };
        for name in names.filter(|name| *name != owner) {
            replaced.insert(name.clone(), owner.clone());
        }
    }
    replaced
}

/// The peers of the device of a plane. An address belongs to one peer: nodes that are not replaced come first.
pub(super) fn peers(
    plan: &Plan,
    roster: &Roster,
    plane: Plane,
    replaced: &Replaced,
) -> BTreeMap<PublicKey, Peer> {
    let mut ends: BTreeMap<&str, (PerFamily<Option<IpAddr>>, BTreeSet<IpAddr>)> = BTreeMap::new();
    for (family, tunnel) in &plan.tunnels {
        for peer in tunnel.iter().flat_map(|tunnel| &tunnel.peers) {
            let (public, all) = ends.entry(&peer.name).or_default();
            public[family] = Some(peer.vtep.public_ip);
            all.extend(peer.addresses());
        }
    }
    let (first, last): (Vec<_>, Vec<_>) = ends
        .into_iter()
        .partition(|(name, _)| !replaced.contains_key(*name));
    let (mut taken, mut peers) = (BTreeSet::new(), BTreeMap::new());
    for (name, (public, mut addresses)) in first.into_iter().chain(last) {
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

/// Whether peers that are not wanted may be removed. A plan without any tunnel, for want of an interface or of the Node of this
/// node, says nothing of peers. At the start, most peers of an earlier process are not believed to be gone at once: the list
/// may be truncated.
pub(super) fn deletions(
    is_listed: bool,
    plan: &Plan,
    (wanted, found): (&Wanted, &Observed),
    at_start: bool,
) -> Deletions {
    if !is_listed || plan.tunnels.values().all(Option::is_none) {
        return Deletions::Held;
    }
    let implausible = wanted.devices.iter().any(|(name, device)| {
        let found = found.devices.get(*name);
        let found = found.map(|found| found.peers.keys()).into_iter().flatten();
        let found: Vec<&PublicKey> = found.collect();
        let stale = found.iter().filter(|key| !device.peers.contains_key(key));
        stale.count() > ALWAYS_BELIEVED.max(found.len() / 2)
    });
    match at_start && implausible {
        true => Deletions::Held,
        false => Deletions::Allowed,
    }
}

#[cfg(test)]
mod tests {
    use vxlan_overlay::{Mac, Tunnel, Vtep};
    use wireguard::{Device, ObservedDevice, ObservedPeer, PrivateKey};

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

    fn end(name: &str, address: &str) -> vxlan_overlay::Peer {
        vxlan_overlay::Peer {
            name: name.into(),
            vtep: Vtep {
                mac: Mac::of_node(name, Family::Ip),
                public_ip: address.parse().unwrap(),
            },
            pod_cidr: "10.244.1.0/24".parse().unwrap(),
            direct: None,
            via: None,
            probes: false,
            more_addresses: Box::default(),
        }
    }

    fn plan(peers: Vec<vxlan_overlay::Peer>) -> Plan {
        let local: IpAddr = "192.0.2.1".parse().unwrap();
        let device = vxlan_overlay::Device {
            name: "flannel.1".to_owned(),
            vni: 1,
            port: 8472,
            mac: Mac::of_node("self", Family::Ip),
            mtu: 1390,
            parent: 2,
            local,
            address: "10.244.0.0/32".parse().unwrap(),
        };
        let tunnel = Tunnel {
            device,
            published: local,
            chosen: true,
            inputs: Vec::new(),
            own_addresses: vec![local],
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            blackhole: false,
            peers,
            nexthops: false,
            clamps: true,
            sealed: false,
        };
        Plan {
            tunnels: PerFamily::new(Some(tunnel), None),
            ..Plan::default()
        }
    }

    #[test]
    fn an_address_of_two_nodes_belongs_to_the_living_or_younger() {
        let same = "192.0.2.7";
        let ends = [
            end("a-old", same),
            end("b-new", same),
            end("c", "192.0.2.8"),
        ];
        let plan = plan(ends.into());
        let (old, new) = (node("a-old", 100, 1), node("b-new", 200, 2));
        let owner = |nodes: &[&Node], keys: &[&str], live: &[&str]| {
            let replaced = replaced(&plan, |name| {
                let node = nodes.iter().find(|node| *node.name == *name);
                rank(node.copied(), keys.contains(&name), live.contains(&name))
            });
            assert_eq!(replaced.len(), 1);
            let mut owners = replaced.into_values();
            owners.next().unwrap().to_string()
        };
        let (nodes, both) = ([&old, &new], ["a-old", "b-new"]);
        assert_eq!(owner(&nodes, &both, &[]), "b-new");
        assert_eq!(owner(&nodes, &both, &["a-old"]), "a-old");
        assert_eq!(owner(&nodes, &both, &both), "b-new");
        assert_eq!(owner(&nodes, &["a-old"], &[]), "a-old");
        let stale = Node {
            stale: true,
            ..new.clone()
        };
        assert_eq!(owner(&[&old, &stale], &both, &[]), "a-old");
        assert_eq!(owner(&[&old, &stale], &both, &["b-new"]), "b-new");
        let held = Node { held: true, ..new };
        assert_eq!(owner(&[&old, &held], &both, &[]), "a-old");
    }

    #[test]
    fn a_node_that_is_replaced_has_no_address() {
        let (same, nodes) = ("192.0.2.7", [node("a-old", 100, 1), node("b-new", 200, 2)]);
        let plan = plan(vec![end("a-old", same), end("b-new", same)]);
        let (known, _) = roster(nodes.iter(), ("self", &BTreeSet::new()));
        let addresses = |replaced: &Replaced, key| {
            let peers = peers(&plan, &known, Plane::First, replaced);
            peers.get(&PublicKey([key; 32])).unwrap().addresses.len()
        };
        for (old, new) in [(1, 2), (2, 1)] {
            let [a, b] = &nodes;
            let (gone, kept) = if old == 1 { (a, b) } else { (b, a) };
            let replaced = Replaced::from([(gone.name.clone(), kept.name.clone())]);
            assert_eq!(addresses(&replaced, old), 0);
            assert_eq!(addresses(&replaced, new), 1);
        }
    }

    /// Whether peers are removed from a device that has these and should have none.
    fn removes(is_listed: bool, plan: &Plan, peers: u8, at_start: bool) -> bool {
        let device = Device {
            private: PrivateKey::from_random([9; 32]),
            port: 51820,
            mtu: 1440,
            table: Plane::First.table(),
            peers: BTreeMap::new(),
            ready: true,
        };
        let wanted = Wanted {
            devices: [(Plane::First.device(), device)].into(),
            seal: None,
        };
        let peer = |key| (PublicKey([key; 32]), ObservedPeer::default());
        let device = ObservedDevice {
            peers: (0..peers).map(peer).collect(),
            ..ObservedDevice::default()
        };
        let found = Observed {
            devices: [(Plane::First.device().to_owned(), device)].into(),
            ..Observed::default()
        };
        deletions(is_listed, plan, (&wanted, &found), at_start) == Deletions::Allowed
    }

    #[test]
    fn peers_stay_while_no_tunnel_is_planned() {
        let with_tunnel = plan(Vec::new());
        assert!(removes(true, &with_tunnel, 1, false));
        assert!(!removes(true, &Plan::default(), 1, false));
        assert!(!removes(false, &with_tunnel, 1, false));
        assert!(removes(true, &with_tunnel, 2, true));
        assert!(!removes(true, &with_tunnel, 3, true));
    }
}
