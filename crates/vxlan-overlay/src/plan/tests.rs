use smallvec::smallvec;

use super::*;
use crate::peers::Both;
use crate::samples::{Cluster, cluster};

fn planned(cluster: &Cluster) -> Plan {
    plan(cluster.facts(), cluster.nodes.iter())
}

fn v4(plan: &Plan) -> &Tunnel {
    plan.tunnels[Family::Ip].as_ref().unwrap()
}

#[test]
fn tunnel_device_and_entries_follow_flannels_scheme() {
    let plan = planned(&cluster(3));
    assert_eq!(plan.problems, []);
    let tunnel = v4(&plan);
    assert_eq!(tunnel.device.name, "flannel.1");
    assert_eq!(tunnel.device.address.to_string(), "10.244.0.0/32");
    assert_eq!((tunnel.device.mtu, tunnel.device.port), (1450, 8472));
    let gateway = "10.244.2.0".parse().unwrap();
    let entries = tunnel.entries();
    assert_eq!(
        entries.routes[&"10.244.2.0/24".parse().unwrap()],
        Way::Tunnel(gateway)
    );
    let mac = Mac::of_node("node-2", Family::Ip);
    assert_eq!(entries.neighbors[&gateway], mac);
    assert_eq!(
        entries.fdb[&mac].node,
        "192.0.2.12".parse::<IpAddr>().unwrap()
    );
    let v6 = plan.tunnels[Family::Ip6].as_ref().unwrap();
    assert_eq!(v6.device.name, "flannel-v6.1");
    assert_eq!(v6.device.address.to_string(), "fd00:244::/128");
    assert_eq!(v6.device.mtu, 1430);
}

#[test]
fn peer_without_annotations_counts_only_when_inferred() {
    let mut cluster = cluster(3);
    let vtep = Vtep {
        mac: "12:c6:65:89:b4:e3".parse().unwrap(),
        public_ip: "198.51.100.9".parse().unwrap(),
    };
    cluster.nodes[1].parsed = ParsedAnnotations::Vteps(PerFamily::new(Some(vtep), None));
    let plan = planned(&cluster);
    assert_eq!(v4(&plan).entries().fdb[&vtep.mac], vtep.public_ip.into());
    assert_eq!(
        plan.tunnels[Family::Ip6]
            .as_ref()
            .unwrap()
            .entries()
            .routes
            .len(),
        1
    );
    cluster.infer = false;
    assert_eq!(v4(&planned(&cluster)).entries().routes.len(), 1);
}

#[test]
fn own_mac_prefers_annotations_then_device_then_name() {
    let mut cluster = cluster(1);
    assert_eq!(
        v4(&planned(&cluster)).device.mac,
        Mac::of_node("node-0", Family::Ip)
    );
    let found: Mac = "2a:00:00:00:00:01".parse().unwrap();
    cluster.found = PerFamily::new(Some(found), None);
    assert_eq!(
        v4(&planned(&cluster)).device.mac,
        Mac::of_node("node-0", Family::Ip),
        "manifests: peers work it out"
    );
    cluster.infer = false;
    assert_eq!(v4(&planned(&cluster)).device.mac, found);
    let held = Vtep {
        mac: "12:c6:65:89:b4:e3".parse().unwrap(),
        public_ip: "192.0.2.10".parse().unwrap(),
    };
    cluster.nodes[0].annotations =
        Arc::new(Names::default().write(1, &PerFamily::new(Some(held), None)));
    assert_eq!(v4(&planned(&cluster)).device.mac, held.mac);
}

/// The routes to pods of others, as text.
fn ranges(plan: &Plan) -> Vec<String> {
    let peers = plan.peers(Family::Ip).iter();
    peers.map(|peer| peer.pod_cidr.to_string()).collect()
}

fn left_out(plan: &Plan) -> Vec<String> {
    let problems = plan.problems.iter();
    let names = problems.map(|problem| match problem {
        Problem::DuplicateRange { kept, left_out, .. }
        | Problem::DuplicateEnd { kept, left_out, .. } => format!("{left_out} for {kept}"),
        other => panic!("{other}"),
    });
    names.collect()
}

#[test]
fn overlapping_pod_cidrs_leave_out_the_lesser_name() {
    let mut cluster = cluster(4);
    cluster.nodes[2].pod_cidrs = smallvec!["10.244.1.128/25".parse().unwrap()];
    cluster.nodes[3].pod_cidrs = smallvec!["10.244.0.0/24".parse().unwrap()];
    let plan = planned(&cluster);
    assert_eq!(ranges(&plan), ["10.244.1.0/24"]);
    assert_eq!(left_out(&plan), ["node-3 for node-0", "node-2 for node-1"]);
}

#[test]
fn the_older_node_keeps_a_contested_pod_cidr() {
    let mut cluster = cluster(4);
    for (number, created) in [(1, Some(200)), (2, Some(100)), (3, None)] {
        cluster.nodes[number].created = created;
        cluster.nodes[number].pod_cidrs = smallvec!["10.244.9.0/24".parse().unwrap()];
    }
    let plan = planned(&cluster);
    assert_eq!(&*plan.peers(Family::Ip)[0].name, "node-2");
    assert_eq!(left_out(&plan), ["node-1 for node-2", "node-3 for node-2"]);
    // What an older node has that nobody hears of, the next one gets.
    cluster.nodes[2].stale = true;
    let plan = planned(&cluster);
    assert_eq!(&*plan.peers(Family::Ip)[0].name, "node-1");
    assert_eq!(left_out(&plan), ["node-2 for node-1", "node-3 for node-1"]);
}

#[test]
fn nodes_with_one_public_address_are_both_served() {
    let mut cluster = cluster(4);
    cluster.nodes[1].addresses = cluster.nodes[2].addresses.clone();
    // A renamed machine: the same hardware address as well.
    let vteps = |node: &Node| {
        let end = |family| Vtep {
            mac: "12:c6:65:89:b4:e3".parse().unwrap(),
            public_ip: node.addresses[usize::from(family == Family::Ip6)],
        };
        ParsedAnnotations::Vteps(PerFamily::from_fn(|family| Some(end(family))))
    };
    for renamed in [false, true] {
        if renamed {
            cluster.nodes[1].parsed = vteps(&cluster.nodes[1]);
            cluster.nodes[2].parsed = vteps(&cluster.nodes[2]);
        }
        let plan = planned(&cluster);
        assert_eq!(plan.problems, []);
        let entries = v4(&plan).entries();
        assert_eq!((entries.routes.len(), entries.neighbors.len()), (3, 3));
        let to: Vec<_> = entries
            .fdb
            .values()
            .map(|outer| outer.node.to_string())
            .collect();
        let shared = to.iter().filter(|to| *to == "192.0.2.12").count();
        assert_eq!(shared, if renamed { 1 } else { 2 }, "{to:?}");
    }
    // One hardware address behind two addresses can lead to one of them only: the older.
    cluster.nodes[1].created = Some(200);
    cluster.nodes[2].created = Some(100);
    cluster.nodes[1].addresses = cluster.nodes[3].addresses.clone();
    cluster.nodes[1].parsed = vteps(&cluster.nodes[1]);
    let plan = planned(&cluster);
    assert_eq!(ranges(&plan), ["10.244.2.0/24", "10.244.3.0/24"]);
    assert_eq!(left_out(&plan), ["node-1 for node-2"]);
}

#[test]
fn this_nodes_own_addresses_are_never_a_peers() {
    let mut cluster = cluster(3);
    cluster.nodes[1].addresses = cluster.nodes[0].addresses.clone();
    let plan = planned(&cluster);
    assert_eq!(ranges(&plan), ["10.244.2.0/24"]);
    assert_eq!(left_out(&plan), ["node-1 for node-0"; 2]);
}

#[test]
fn further_addresses_count_if_no_pod_or_other_node_has_them() {
    let mut cluster = cluster(3);
    let told = [
        "192.0.2.99",
        "10.244.2.9",
        "192.0.2.10",
        "192.0.2.12",
        "127.0.0.1",
        "10.200.0.1",
    ];
    for address in told {
        cluster.nodes[1].addresses.push(address.parse().unwrap());
    }
    let more = |cluster: &Cluster| -> Vec<String> {
        let plan = planned(cluster);
        let peer = &plan.peers(Family::Ip)[0];
        let more = peer.more_addresses.iter();
        more.map(ToString::to_string).collect()
    };
    assert_eq!(more(&cluster), ["192.0.2.99", "10.200.0.1"]);
    cluster.config.network = Some("10.0.0.0/8".parse().unwrap());
    assert_eq!(more(&cluster), ["192.0.2.99"]);
}

#[test]
fn a_thousand_addresses_of_a_node_count_as_eight() {
    let mut cluster = cluster(3);
    for number in 0..1000_u32 {
        let address = std::net::Ipv4Addr::from(0xc633_0000 + number);
        cluster.nodes[1].addresses.push(address.into());
    }
    let plan = planned(&cluster);
    let peers = plan.peers(Family::Ip);
    assert_eq!(peers[0].addresses().count(), MAX_ADDRESSES);
    assert_eq!(peers[1].addresses().count(), 1);
    assert_eq!(
        plan.problems,
        [Problem::TooManyAddresses {
            node: "node-1".into(),
            family: Family::Ip,
            dropped: 993,
        }]
    );
    let options = crate::RuleOptions {
        masquerade: false,
        filter: crate::Filter::Monitor,
        probe_port: None,
    };
    let table = crate::table(&cluster.config, options, &plan, Family::Ip).unwrap();
    let elements: usize = table.elements.values().map(Vec::len).sum();
    assert!(elements < 8 * MAX_ADDRESSES, "{elements} elements");
}

#[test]
fn a_former_address_counts_unless_another_node_has_it() {
    let mut cluster = cluster(4);
    let former: IpAddr = "192.0.2.77".parse().unwrap();
    let of_another = cluster.nodes[2].addresses[0];
    cluster.nodes[1].former.extend([former, of_another]);
    let plan = planned(&cluster);
    let peers = plan.peers(Family::Ip);
    assert_eq!(*peers[0].more_addresses, [former]);
    cluster.nodes[3].addresses.push(former);
    let plan = planned(&cluster);
    let peers = plan.peers(Family::Ip);
    assert!(peers[0].more_addresses.is_empty());
    assert_eq!(*peers[2].more_addresses, [former]);
}

#[test]
fn peers_on_the_link_are_direct_and_keep_tunnel_entries() {
    let mut cluster = cluster(3);
    cluster.config.direct_routing = true;
    let mut looked_up = |address: &str, way| {
        let ways = &mut cluster.surroundings.ways;
        ways.insert(address.parse().unwrap(), way);
    };
    looked_up("192.0.2.11", Some(OnLink(2)));
    // Within the range of the link, and a route by a gateway leads there, or one by another interface.
    looked_up("192.0.2.12", None);
    looked_up("2001:db8::11", Some(OnLink(3)));
    let plan = planned(&cluster);
    let direct = Way::Direct("192.0.2.11".parse().unwrap(), 2);
    assert_eq!(
        v4(&plan).entries().routes[&"10.244.1.0/24".parse().unwrap()],
        direct
    );
    assert!(matches!(
        v4(&plan).entries().routes[&"10.244.2.0/24".parse().unwrap()],
        Way::Tunnel(_)
    ));
    assert_eq!(v4(&plan).entries().neighbors.len(), 2);
    let v6 = plan.tunnels[Family::Ip6].as_ref().unwrap().entries();
    assert!(v6.routes.values().all(|way| matches!(way, Way::Tunnel(_))));
    cluster.config.direct_routing = false;
    let entries = v4(&planned(&cluster)).entries();
    let mut ways = entries.routes.values();
    assert!(ways.all(|way| matches!(way, Way::Tunnel(_))));
    // An address on the loopback interface is reached by any.
    cluster.config.direct_routing = true;
    cluster.surroundings.interfaces[0].name = "lo".to_owned();
    let v6 = planned(&cluster).tunnels[Family::Ip6].clone().unwrap();
    assert_eq!(v6.peers[0].direct, Some(3));
}

#[test]
fn what_is_missing_on_this_node_is_named() {
    let mut cluster = cluster(2);
    cluster.surroundings.interfaces.clear();
    let problems = planned(&cluster).problems;
    assert_eq!(
        problems,
        [
            Problem::NoExternal(Family::Ip),
            Problem::NoExternal(Family::Ip6)
        ]
    );
    cluster.nodes[0].pod_cidrs = Both::default();
    assert_eq!(planned(&cluster).problems, [Problem::NoPodCidr]);
    cluster.nodes.remove(0);
    assert_eq!(planned(&cluster).problems, [Problem::NoOwnNode]);
}

fn holds(plan: &Plan) -> Vec<String> {
    let problems = plan.problems.iter();
    let named = problems.map(|problem| match problem {
        Problem::HoldsAddress {
            node,
            address,
            left_out,
            ..
        } => format!("{node} holds {address}: {left_out}"),
        other => panic!("{other}"),
    });
    named.collect()
}

#[test]
fn pod_cidrs_over_addresses_of_nodes_are_refused_and_named() {
    let mut cluster = cluster(4);
    // Over this node's address, over an older node's, over its own.
    cluster.nodes[1].pod_cidrs = smallvec!["192.0.2.10/32".parse().unwrap()];
    cluster.nodes[3].pod_cidrs = smallvec!["192.0.2.12/31".parse().unwrap()];
    let plan = planned(&cluster);
    assert_eq!(ranges(&plan), ["10.244.2.0/24"]);
    assert_eq!(
        holds(&plan),
        [
            "node-1 holds 192.0.2.10: node-1",
            "node-3 holds 192.0.2.12: node-3"
        ]
    );
    // The younger node's address lies in the older one's range.
    cluster.nodes[3].pod_cidrs = smallvec!["10.244.3.0/24".parse().unwrap()];
    cluster.nodes[1].pod_cidrs = smallvec!["192.0.2.13/32".parse().unwrap()];
    assert_eq!(
        holds(&planned(&cluster)),
        ["node-1 holds 192.0.2.13: node-3"]
    );
    cluster.nodes[1].pod_cidrs.clear();
    cluster.nodes[0].pod_cidrs = smallvec!["192.0.2.0/28".parse().unwrap()];
    let plan = planned(&cluster);
    assert!(plan.tunnels[Family::Ip].is_none());
    assert_eq!(holds(&plan), ["node-0 holds 192.0.2.10: node-0"]);
}

#[test]
fn an_mtu_too_small_for_ipv6_is_named_and_ipv4_is_carried() {
    let mut cluster = cluster(2);
    cluster.surroundings.interfaces[0].mtu = 1349;
    let plan = planned(&cluster);
    assert_eq!(v4(&plan).device.mtu, 1299);
    assert!(plan.tunnels[Family::Ip6].is_none());
    let problems: Vec<String> = plan.problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        problems,
        [
            "MTU 1349 of eth0 leaves 1279 bytes for IPv6 pods, which need 1280: IPv6 pods are not carried; raise it to 1350"
        ]
    );
    cluster.surroundings.interfaces[0].mtu = 1350;
    assert_eq!(planned(&cluster).problems, []);
}

#[test]
fn the_device_and_gateways_of_pods_are_no_interface_below() {
    let mut cluster = cluster(2);
    let copy = |index, name: &str, tunnel, nets: &[&str]| Interface {
        index,
        name: name.to_owned(),
        mtu: 1400,
        up: true,
        tunnel,
        vrf: None,
        addresses: nets
            .iter()
            .map(|net| InterfaceAddress {
                net: net.parse().unwrap(),
                permanent: true,
                stable: true,
            })
            .collect(),
    };
    let overlay = Some((1, 8472));
    let inner = [
        copy(7, "flannel.1", None, &["192.0.2.10/24"]),
        copy(8, "other0", overlay, &["192.0.2.10/24"]),
        copy(9, "cni0", None, &["10.244.0.1/24", "192.0.2.10/24"]),
    ];
    cluster.surroundings.interfaces.splice(0..0, inner);
    let device = v4(&planned(&cluster)).device.clone();
    assert_eq!((device.parent, device.mtu), (2, 1450));
}

#[test]
fn a_peer_without_a_vtep_of_a_family_of_its_pods_is_named() {
    let mut cluster = cluster(2);
    let vtep = Vtep {
        mac: "12:c6:65:89:b4:e3".parse().unwrap(),
        public_ip: "198.51.100.9".parse().unwrap(),
    };
    cluster.nodes[1].parsed = ParsedAnnotations::Vteps(PerFamily::new(Some(vtep), None));
    let problems = planned(&cluster).problems;
    assert!(
        matches!(&problems[..], [Problem::NoVtep { node, family: "IPv6" }] if **node == *"node-1")
    );
}

#[test]
fn an_own_choice_is_withdrawn_and_an_inherited_one_stays() {
    let mut cluster = cluster(2);
    let other = InterfaceAddress {
        net: "192.0.2.20/24".parse().unwrap(),
        permanent: true,
        stable: true,
    };
    cluster.surroundings.interfaces[0].addresses.push(other);
    let (usual, asked): (IpAddr, IpAddr) = ("192.0.2.10".parse().unwrap(), other.net.addr());
    let publish = |cluster: &mut Cluster| {
        let tunnel = v4(&planned(cluster)).clone();
        let vtep = Vtep {
            mac: tunnel.device.mac,
            public_ip: tunnel.published,
        };
        let mut told = Names::default().write(1, &PerFamily::new(Some(vtep), None));
        if tunnel.chosen {
            Names::default().write_chosen(&mut told, Family::Ip, tunnel.published);
        }
        cluster.nodes[0].annotations = Arc::new(told);
        (tunnel.published, tunnel.chosen)
    };
    cluster.preferences.public_ip[Family::Ip] = Some(asked);
    assert_eq!(publish(&mut cluster), (asked, true));
    assert_eq!(publish(&mut cluster), (asked, true));
    cluster.preferences.public_ip = PerFamily::default();
    assert_eq!(publish(&mut cluster), (usual, true));
    // flannel published an address of its own choice.
    let vtep = Vtep {
        mac: "12:c6:65:89:b4:e3".parse().unwrap(),
        public_ip: asked,
    };
    let told = Names::default().write(1, &PerFamily::new(Some(vtep), None));
    cluster.nodes[0].annotations = Arc::new(told);
    assert_eq!(publish(&mut cluster), (asked, false));
    assert_eq!(publish(&mut cluster), (asked, false));
}

#[test]
fn a_device_of_an_uncarried_familys_name_gives_way() {
    use crate::difference::{Observed, ObservedDevice, ObservedVxlan, Operation, in_the_way};
    let mut cluster = cluster(2);
    cluster.config.ipv6 = false;
    let plan = planned(&cluster);
    let mut observed = Observed::default();
    let mut steps = |vni, remote: Option<&str>| {
        observed.tunnels[Family::Ip6].device = Some(ObservedDevice {
            index: 9,
            up: true,
            mac: Mac([2, 0, 0, 0, 0, 9]),
            mtu: 1450,
            vxlan: Some(ObservedVxlan {
                vni,
                port: 8472,
                remote: remote.map(|remote| remote.parse().unwrap()),
                ..ObservedVxlan::default()
            }),
        });
        in_the_way(&plan.tunnels, &observed.tunnels)
    };
    let gone = [Operation::DeleteDevice(9)];
    assert_eq!(steps(1, None), gone);
    assert_eq!(steps(1, Some("192.0.2.99")), gone);
    assert_eq!(
        steps(1, Some("2001:db8::99")),
        [],
        "of another outer family"
    );
    assert_eq!(steps(2, None), []);
}

#[test]
fn carriers_make_room_for_their_headers_and_take_their_peers() {
    let mut cluster = cluster(3);
    cluster.config.direct_routing = true;
    cluster.carriers = Carriers {
        overhead: PerFamily::new(60, 80),
        by_peer: [("node-1".into(), 7)].into(),
        otherwise: None,
        inputs: vec!["portolan-wg".to_owned()],
        sealed: false,
    };
    let plan_of = |cluster: &crate::samples::Cluster| planned(cluster);
    let plan = plan_of(&cluster);
    let tunnel = v4(&plan);
    assert_eq!(tunnel.device.mtu, 1500 - 50 - 60);
    let v6 = plan.tunnels[Family::Ip6].as_ref().unwrap();
    // Outer packets of both families travel to the peer's IPv4 address.
    assert_eq!(v6.device.mtu, 1500 - 70 - 60);
    let ways: Vec<_> = tunnel
        .peers
        .iter()
        .map(|peer| (peer.via, peer.direct))
        .collect();
    assert_eq!(ways, [(Some(7), None), (None, None)]);
    cluster.config.ipv4 = false;
    let alone = plan_of(&cluster);
    let v6 = alone.tunnels[Family::Ip6].as_ref().unwrap();
    assert_eq!(v6.device.mtu, 1500 - 70 - 80);
    cluster.config.ipv4 = true;
    cluster.carriers.otherwise = Some(7);
    cluster.carriers.sealed = true;
    let sealed = plan_of(&cluster);
    assert_eq!(v4(&sealed).inputs, ["portolan-wg"]);
    assert!(v4(&sealed).sealed && !tunnel.sealed);
    assert!(v4(&sealed).peers.iter().all(|peer| peer.via == Some(7)));
}
