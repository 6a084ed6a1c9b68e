//! Which nodes announce keys, and the WireGuard peers that follow: functions of values.

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

/// The nodes that announce a key of another node, by name, each with the name of the other one.
pub(super) type Copied = BTreeMap<Arc<str>, Arc<str>>;

/// What settles conflicts between nodes, as in the plan: the lesser one keeps what both claim.
pub(super) type Age = (bool, bool, i64);

/// Reads what the nodes announce. Of several nodes with the same key, the older keeps it; the others are
/// returned. `own` is the name of this node and its keys.
pub(super) fn roster<'a>(
    nodes: impl Iterator<Item = &'a Node>,
    own: (&str, &BTreeSet<PublicKey>),
) -> (Roster, Copied) {
    let mut others: Vec<(&Node, Announced)> = nodes
        .filter(|node| *node.name != *own.0)
        .filter_map(|node| Some((node, Announced::parse(node.encryption.as_deref()?)?)))
        .collect();
    others.sort_by(|(a, _), (b, _)| (age(Some(*a)), &a.name).cmp(&(age(Some(*b)), &b.name)));
    let this: Arc<str> = own.0.into();
    let own_keys = own.1.iter().map(|key| (*key, this.clone()));
    let mut owners: BTreeMap<PublicKey, Arc<str>> = own_keys.collect();
    let (mut roster, mut copied) = (Roster::new(), Copied::new());
    for (node, announced) in others {
        let keys = announced.keys.iter().map(|(_, key, _)| *key);
        if let Some(owner) = keys.clone().find_map(|key| owners.get(&key)) {
            copied.insert(node.name.clone(), owner.clone());
            continue;
        }
        owners.extend(keys.map(|key| (key, node.name.clone())));
        roster.insert(node.name.clone(), announced);
    }
    (roster, copied)
}

/// The age of a node: one that is held yields to all others, one whose kubelet is not heard of to all that are neither, and
/// an unknown age is the youngest.
pub(super) fn age(node: Option<&Node>) -> Age {
    let (held, stale) = node.map_or((true, true), |node| (node.held, node.stale));
    let created = node.and_then(|node| node.created).unwrap_or(i64::MAX);
    (held, stale, created)
}

/// Finds the nodes whose public address belongs to another one: packets to it can be encrypted for one of them only.
///
/// The oldest keeps the address, as in the plan: a kubelet publishes what it likes. The machine of the oldest may be gone: then
/// a younger Node has the address, if that one has a live session from where the oldest is reached, and the oldest has none.
/// `is_live_from` says whether a node has a live session whose packets come from an address. The address in question is the one
/// at which WireGuard reaches the oldest, which need not be the shared one: one session carries both families.
pub(super) fn replaced(
    plan: &Plan,
    age: impl Fn(&str) -> Age,
    is_live_from: impl Fn(&str, IpAddr) -> bool,
) -> Replaced {
    let tunnels = plan.tunnels.values().flatten();
    let all = tunnels.flat_map(|tunnel| &tunnel.peers);
    let ends = all.clone().map(|peer| (peer.vtep.public_ip, &peer.name));
    let mut ends: Vec<(IpAddr, &Arc<str>)> = ends.collect();
    ends.sort_unstable();
    let mut replaced = Replaced::new();
    let groups = ends.chunk_by(|a, b| a.0 == b.0);
    for nodes in groups.filter(|nodes| nodes.len() > 1) {
        let names = nodes.iter().map(|(_, name)| *name);
        let oldest = names.clone().min_by_key(|name| (age(name), *name));
        let Some(first) = all.clone().find(|peer| Some(&peer.name) == oldest) else {
            continue;
        };
        let place = first.vtep.public_ip;
        let rated = names
            .clone()
            .map(|name| (!is_live_from(name, place), age(name), name));
        let Some((.., owner)) = rated.min() else {
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
        let (known, copied) = roster(nodes.iter(), ("self", &own));
        let names: Vec<&str> = known.keys().map(|name| &**name).collect();
        assert_eq!(names, ["b", "c"]);
        assert_eq!(copied, Copied::from([("a".into(), "b".into())]));
    }

    #[test]
    fn this_nodes_own_key_is_nobody_elses() {
        let nodes = [node("a", 1, 9), node("self", 2, 9)];
        let own = BTreeSet::from([PublicKey([9; 32])]);
        let (roster, copied) = roster(nodes.iter(), ("self", &own));
        assert!(roster.is_empty());
        assert_eq!(copied, Copied::from([("a".into(), "self".into())]));
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

    /// Which of the nodes has the address that all of them publish, given the sources of their live sessions.
    fn owner(plan: &Plan, nodes: &[Node], sources: &[(&str, &str)]) -> String {
        let node = |name: &str| nodes.iter().find(|node| *node.name == *name);
        let replaced = replaced(
            plan,
            |name| age(node(name)),
            |name, from| {
                let mut sources = sources.iter();
                sources.any(|(of, source)| *of == name && source.parse::<IpAddr>() == Ok(from))
            },
        );
        let owners: BTreeSet<&str> = replaced.values().map(|owner| &**owner).collect();
        assert_eq!(owners.len(), 1, "{replaced:?}");
        assert_eq!(replaced.len(), nodes.len() - 1);
        owners.first().unwrap().to_string()
    }

    #[test]
    fn a_younger_node_takes_an_address_only_if_alone_there() {
        let (there, elsewhere) = ("192.0.2.7", "192.0.2.9");
        let ends = [
            end("b-old", there),
            end("a-new", there),
            end("c", "192.0.2.8"),
        ];
        let plan = plan(ends.into());
        let (old, new) = (node("b-old", 100, 1), node("a-new", 200, 2));
        let nodes = [old.clone(), new.clone()];
        let owner = |sources: &[(&str, &str)]| owner(&plan, &nodes, sources);
        assert_eq!(owner(&[]), "b-old");
        assert_eq!(owner(&[("a-new", elsewhere)]), "b-old");
        assert_eq!(owner(&[("b-old", there), ("a-new", elsewhere)]), "b-old");
        assert_eq!(owner(&[("b-old", there), ("a-new", there)]), "b-old");
        // Both behind NAT.
        assert_eq!(
            owner(&[("b-old", elsewhere), ("a-new", elsewhere)]),
            "b-old"
        );
        // The machine was replaced.
        assert_eq!(owner(&[("a-new", there)]), "a-new");
        for (held, stale) in [(true, false), (false, true)] {
            let old = Node {
                held,
                stale,
                ..old.clone()
            };
            let nodes = [old, new.clone()];
            let owner = |sources: &[(&str, &str)]| self::owner(&plan, &nodes, sources);
            assert_eq!(owner(&[]), "a-new");
            assert_eq!(owner(&[("b-old", there), ("a-new", elsewhere)]), "b-old");
        }
    }

    #[test]
    fn one_session_shows_who_has_the_addresses_of_both_families() {
        let (v4, v6) = ("192.0.2.7", "2001:db8::7");
        let mut plan = plan(vec![end("b-old", v4), end("a-new", v4)]);
        plan.tunnels[Family::Ip6] = plan.tunnels[Family::Ip].clone();
        let nodes = [node("b-old", 100, 1), node("a-new", 200, 2)];
        for peer in &mut plan.tunnels[Family::Ip6].as_mut().unwrap().peers {
            peer.vtep.public_ip = v6.parse().unwrap();
        }
        assert_eq!(owner(&plan, &nodes, &[("a-new", v4)]), "a-new");
        // Who has an IPv4 address of its own is not at that of the other.
        let tunnel = plan.tunnels[Family::Ip].as_mut().unwrap();
        tunnel.peers[1].vtep.public_ip = "192.0.2.9".parse().unwrap();
        assert_eq!(owner(&plan, &nodes, &[("a-new", "192.0.2.9")]), "b-old");
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
