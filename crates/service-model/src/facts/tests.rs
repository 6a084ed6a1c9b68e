use super::*;
use crate::objects::ObjectName;

fn config(detect_local: DetectLocal, nodeport_addresses: Vec<NodePortAddress>) -> NodeConfig {
    NodeConfig {
        detect_local,
        nodeport_addresses,
        ..NodeConfig::named("node-1")
    }
}

fn cidrs(texts: &[&str]) -> Vec<NodePortAddress> {
    let cidrs = parsed(texts).into_iter();
    cidrs.map(NodePortAddress::Cidr).collect()
}

fn node(addresses: &[&str], pod_cidrs: &[&str]) -> Node {
    Node {
        name: ObjectName::new("", "node-1"),
        zone: Some("a".into()),
        addresses: parsed(addresses),
        pod_cidrs: parsed(pod_cidrs),
        leaving: false,
        not_ready_since: None,
        created: None,
        annotations: Default::default(),
    }
}

fn parsed<T: std::str::FromStr<Err: std::fmt::Debug>>(texts: &[&str]) -> Vec<T> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[track_caller]
fn serves_node_ports(
    mode: Vec<NodePortAddress>,
    node_has: &[&str],
    interfaces: &[&str],
    expected: &[&str],
) {
    let config = config(DetectLocal::NodeCidr, mode);
    let node = node(node_has, &[]);
    let mut interfaces: Vec<IpAddr> = parsed(interfaces);
    for _ in 0..2 {
        let facts = NodeFacts::resolve(&config, &node, &interfaces, &[]);
        assert_eq!(facts.node_addresses, parsed::<IpAddr>(expected));
        interfaces.reverse();
    }
}

#[track_caller]
fn has_local_sources(mode: DetectLocal, pod_cidrs: &[&str], expected: &[&str]) {
    let facts = NodeFacts::resolve(
        &config(mode, vec![NodePortAddress::Primary]),
        &node(&[], pod_cidrs),
        &[],
        &[],
    );
    assert_eq!(facts.local_sources, parsed::<IpNet>(expected));
}

#[test]
fn primary_addresses_are_the_first_of_each_family() {
    let primary = || vec![NodePortAddress::Primary];
    let interfaces = &["192.0.2.9", "127.0.0.1"];
    serves_node_ports(primary(), &["192.0.2.1"], interfaces, &["192.0.2.1"]);
    serves_node_ports(
        primary(),
        &["2001:db8::1", "192.0.2.2", "192.0.2.1", "2001:db8::2"],
        interfaces,
        &["192.0.2.2", "2001:db8::1"],
    );
    serves_node_ports(primary(), &[], interfaces, &[]);
}

#[test]
fn a_configured_node_ip_comes_before_the_nodes_own() {
    let config = NodeConfig {
        node_ip: Some("192.0.2.7".parse().unwrap()),
        ..NodeConfig::named("node-1")
    };
    let node = node(&["192.0.2.1", "2001:db8::1"], &[]);
    let facts = NodeFacts::resolve(&config, &node, &[], &[]);
    let expected = parsed::<IpAddr>(&["192.0.2.7", "2001:db8::1"]);
    assert_eq!(facts.own_addresses, expected);
    assert_eq!(facts.node_addresses, expected);
}

#[test]
fn loopback_of_one_family_leaves_the_other_alone() {
    let covers = |family| NodePortAddress::LocalhostIpv4.covers_loopback(family);
    assert!(covers(Family::Ip) && !covers(Family::Ip6));
}

#[test]
fn ranges_choose_among_interface_addresses_in_any_order() {
    let interfaces = &[
        "203.0.113.5",
        "192.0.2.1",
        "2001:db8::1",
        "127.0.0.1",
        "192.0.2.1",
        "192.0.2.77",
    ];
    serves_node_ports(
        cidrs(&["192.0.2.0/24"]),
        &["198.51.100.1"],
        interfaces,
        &["192.0.2.1", "192.0.2.77", "2001:db8::1"],
    );
    serves_node_ports(
        cidrs(&["2001:db8::/32", "192.0.2.0/26"]),
        &[],
        interfaces,
        &["192.0.2.1", "2001:db8::1"],
    );
    serves_node_ports(
        cidrs(&["198.51.100.0/24"]),
        &["198.51.100.1"],
        interfaces,
        &["2001:db8::1"],
    );
}

#[test]
fn loopback_addresses_never_serve_node_ports() {
    let interfaces = &["127.0.0.1", "127.0.0.53", "::1", "192.0.2.1"];
    let everything = cidrs(&["0.0.0.0/0", "::/0"]);
    serves_node_ports(everything, &[], interfaces, &["192.0.2.1"]);
    let all = vec![NodePortAddress::All];
    serves_node_ports(all, &[], interfaces, &["192.0.2.1"]);
    // Ranges of one family leave the other open.
    let of_ipv4 = cidrs(&["127.0.0.0/8"]);
    let both = &["127.0.0.1", "192.0.2.1", "2001:db8::1"];
    serves_node_ports(of_ipv4, &[], both, &["2001:db8::1"]);
    let localhost = vec![NodePortAddress::Localhost];
    serves_node_ports(localhost, &["192.0.2.1"], interfaces, &[]);
    let primary = vec![NodePortAddress::Primary];
    serves_node_ports(primary, &["127.0.0.1", "::1"], &[], &[]);
}

#[test]
fn key_words_and_ranges_mix() {
    let mut mixed = cidrs(&["198.51.100.0/24"]);
    mixed.extend([NodePortAddress::Primary, NodePortAddress::Localhost]);
    serves_node_ports(
        mixed,
        &["192.0.2.1"],
        &["198.51.100.7", "203.0.113.1"],
        &["192.0.2.1", "198.51.100.7"],
    );
}

#[test]
fn an_interface_detector_has_no_ranges() {
    let bridge = LocalInterface::Named("cni0".into());
    let config = config(DetectLocal::Interface(bridge.clone()), Vec::new());
    let facts = NodeFacts::resolve(&config, &node(&[], &["10.1.0.0/24"]), &[], &[]);
    assert_eq!(facts.local_interface, Some(bridge));
    assert!(facts.local_sources.is_empty());
}

#[test]
fn ranges_of_cluster_ips_come_sorted_and_once() {
    let config = config(DetectLocal::NodeCidr, Vec::new());
    let ranges = parsed::<IpNet>(&["fd00::/108", "10.96.0.0/16", "fd00::/108"]);
    let facts = NodeFacts::resolve(&config, &node(&[], &[]), &[], &ranges);
    let expected = parsed::<IpNet>(&["10.96.0.0/16", "fd00::/108"]);
    assert_eq!(facts.service_cidrs, expected);
}

#[test]
fn of_the_cluster_ranges_the_first_of_each_family_counts() {
    let ranges = |texts: &[&str]| DetectLocal::ClusterCidr(parsed(texts));
    has_local_sources(
        ranges(&["10.244.0.0/16"]),
        &["10.1.0.0/24"],
        &["10.244.0.0/16"],
    );
    has_local_sources(
        ranges(&["fd00::/48", "10.244.0.0/16", "10.0.0.0/16", "fd01::/48"]),
        &[],
        &["10.244.0.0/16", "fd00::/48"],
    );
    has_local_sources(ranges(&["10.244.3.7/16"]), &[], &["10.244.0.0/16"]);
    has_local_sources(ranges(&[]), &["10.1.0.0/24"], &[]);
}

#[test]
fn with_node_ranges_the_pod_ranges_of_the_node_object_count() {
    has_local_sources(
        DetectLocal::NodeCidr,
        &["fd00:1::/64", "10.1.0.0/24", "fd00:1::/64"],
        &["10.1.0.0/24", "fd00:1::/64"],
    );
    has_local_sources(DetectLocal::NodeCidr, &[], &[]);
}

#[test]
fn name_zone_and_masquerade_all_are_carried_over() {
    let mut config = config(DetectLocal::NodeCidr, vec![NodePortAddress::Primary]);
    config.masquerade_all = true;
    let facts = NodeFacts::resolve(&config, &node(&[], &[]), &[], &[]);
    assert_eq!(&*facts.node_name, "node-1");
    assert_eq!(facts.zone.as_deref(), Some("a"));
    assert!(facts.masquerade_all);
}

#[test]
fn sockets_beside_node_ports_listen_where_node_ports_are_served() {
    let listens = |mode: Vec<NodePortAddress>, expected: &[&str]| {
        let config = config(DetectLocal::NodeCidr, mode);
        let node_addresses: Vec<IpAddr> = parsed(&["192.0.2.1", "2001:db8::1"]);
        assert_eq!(
            config.listening_addresses(&node_addresses),
            parsed::<IpAddr>(expected)
        );
    };
    let (primary, localhost) = (NodePortAddress::Primary, NodePortAddress::Localhost);
    listens(vec![primary], &["192.0.2.1", "2001:db8::1"]);
    listens(vec![NodePortAddress::All], &["0.0.0.0", "::"]);
    listens(cidrs(&["192.0.2.0/24"]), &["192.0.2.1", "::"]);
    listens(cidrs(&["::/0"]), &["0.0.0.0", "::"]);
    listens(
        cidrs(&["127.0.1.0/24", "::1/128"]),
        &["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"],
    );
    listens(cidrs(&["0.0.0.0/1"]), &["127.0.0.1", "192.0.2.1", "::"]);
    listens(vec![], &["192.0.2.1", "2001:db8::1"]);
    listens(
        vec![primary, localhost],
        &["127.0.0.1", "192.0.2.1", "::1", "2001:db8::1"],
    );
}

#[test]
fn a_range_that_overlaps_loopback_covers_it() {
    let covers = |text: &str| {
        let item = NodePortAddress::Cidr(text.parse().unwrap());
        Family::ALL.map(|family| item.covers_loopback(family))
    };
    for range in ["127.0.0.0/8", "127.0.1.0/24", "127.0.0.1/32", "0.0.0.0/1"] {
        assert_eq!(covers(range), [true, false], "{range}");
    }
    assert_eq!(covers("::1/128"), [false, true]);
    assert_eq!(covers("::/1"), [false, true]);
    for range in ["0.0.0.0/0", "::/0", "128.0.0.0/1", "126.0.0.0/8"] {
        assert_eq!(covers(range), [false, false], "{range}");
    }
    for family in Family::ALL {
        assert!(NodePortAddress::Localhost.covers_loopback(family));
        assert!(!NodePortAddress::All.covers_loopback(family));
        assert!(!NodePortAddress::Primary.covers_loopback(family));
    }
}

#[test]
fn api_servers_are_the_configured_one_and_its_endpoints() {
    let server = |text: &str| -> SocketAddr { text.parse().unwrap() };
    let config = NodeConfig {
        api_server: Some(server("192.0.2.100:6443")),
        ..NodeConfig::named("node-1")
    };
    let facts = NodeFacts::resolve(&config, &node(&[], &[]), &[], &[]);
    let facts = facts.with_api_servers(vec![server("192.0.2.1:6443"), server("192.0.2.100:6443")]);
    assert_eq!(
        facts.api_servers,
        [server("192.0.2.1:6443"), server("192.0.2.100:6443")]
    );
}
