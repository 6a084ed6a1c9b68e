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
fn a_tunnel_is_flannels_scheme_device_address_route_neighbour_and_fdb() {
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
    assert_eq!(entries.neighbours[&gateway], mac);
    assert_eq!(entries.fdb[&mac], "192.0.2.12".parse::<IpAddr>().unwrap());
    let v6 = plan.tunnels[Family::Ip6].as_ref().unwrap();
    assert_eq!(v6.device.name, "flannel-v6.1");
    assert_eq!(v6.device.address.to_string(), "fd00:244::/128");
    assert_eq!(v6.device.mtu, 1430);
}

#[test]
fn an_annotated_peer_goes_by_what_it_says_and_one_without_counts_only_where_it_is_inferred() {
    let mut cluster = cluster(3);
    let vtep = Vtep {
        mac: "12:c6:65:89:b4:e3".parse().unwrap(),
        public_ip: "198.51.100.9".parse().unwrap(),
    };
    cluster.nodes[1].parsed = ParsedAnnotations::Vteps(PerFamily::new(Some(vtep), None));
    let plan = planned(&cluster);
    assert_eq!(v4(&plan).entries().fdb[&vtep.mac], vtep.public_ip);
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
fn the_own_hardware_address_is_what_peers_hold_then_what_is_there_then_the_names() {
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

#[test]
fn overlapping_ranges_and_double_addresses_leave_the_later_name_out_and_say_so() {
    let mut cluster = cluster(5);
    cluster.nodes[2].pod_cidrs = smallvec!["10.244.1.128/25".parse().unwrap()];
    cluster.nodes[3].pod_cidrs = smallvec!["10.244.0.0/24".parse().unwrap()];
    cluster.nodes[4].addresses = cluster.nodes[1].addresses.clone();
    let plan = planned(&cluster);
    assert_eq!(
        v4(&plan)
            .entries()
            .routes
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.244.1.0/24"]
    );
    let left_out: Vec<String> = plan
        .problems
        .iter()
        .map(|problem| match problem {
            Problem::DuplicateRange { kept, left_out, .. }
            | Problem::DuplicateEnd { kept, left_out, .. } => format!("{left_out} for {kept}"),
            other => panic!("{other}"),
        })
        .collect();
    assert_eq!(
        left_out,
        [
            "node-3 for node-0",
            "node-2 for node-1",
            "node-4 for node-1",
            "node-4 for node-1"
        ]
    );
}

#[test]
fn peers_on_the_link_are_reached_directly_while_they_are_and_keep_their_way_through_the_tunnel() {
    let mut cluster = cluster(3);
    cluster.config.direct_routing = true;
    cluster.nodes[2].addresses = smallvec!["198.51.100.12".parse().unwrap()];
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
    assert_eq!(v4(&plan).entries().neighbours.len(), 2);
    cluster.surroundings.interfaces[0].addresses[0].net = "192.0.2.10/32".parse().unwrap();
    assert!(
        v4(&planned(&cluster))
            .entries()
            .routes
            .values()
            .all(|way| matches!(way, Way::Tunnel(_)))
    );
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
