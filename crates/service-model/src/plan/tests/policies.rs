//! External addresses, traffic policies and source ranges.

use super::*;
use crate::objects::Protocol;

const NO_SLICES: [EndpointSlice; 0] = [];

/// `10.96.0.1 80/TCP/30080` with external IP 198.51.100.1 and load balancer address 203.0.113.1.
fn exposed() -> Service {
    let mut service = service("shop/web", "10.96.0.1", "http/80/TCP/30080");
    service.external_ips = vec!["198.51.100.1".parse().unwrap()];
    service.load_balancer_ips = vec!["203.0.113.1".parse().unwrap()];
    service
}

#[test]
fn source_ranges_guard_addresses_of_their_family_only() {
    let mut service = exposed();
    service.cluster_ips.push("fd00::1".parse().unwrap());
    service
        .load_balancer_ips
        .push("2001:db8::7".parse().unwrap());
    service.source_ranges = vec![
        "172.16.0.0/13".parse().unwrap(),
        "172.24.0.0/13".parse().unwrap(),
    ];
    let guarded = |service: &Service| -> Vec<String> {
        let lines = lines(&plan(service, &NO_SLICES, &facts()).intent).into_iter();
        lines.filter(|line| line.starts_with("external")).collect()
    };
    assert_eq!(
        guarded(&service),
        [
            "external 198.51.100.1 80/TCP always: refuse",
            "external 203.0.113.1 80/TCP always: refuse from: 172.16.0.0/12",
            "external 2001:db8::7 80/TCP always: refuse",
        ]
    );
    // The node's own address is among them: it may send from the load balancer's.
    service.source_ranges = vec!["192.0.2.0/24".parse().unwrap()];
    assert!(guarded(&service)[1].ends_with(" from: 192.0.2.0/24,203.0.113.1/32"));
    service.source_ranges = vec!["0.0.0.0/0".parse().unwrap()];
    assert!(guarded(&service)[1].ends_with("refuse"));
}

#[test]
fn an_address_that_is_external_twice_keeps_source_ranges() {
    let mut service = exposed();
    service.load_balancer_ips = service.external_ips.clone();
    service.source_ranges = vec!["172.16.0.0/12".parse().unwrap()];
    let lines = lines(&plan(&service, &NO_SLICES, &facts()).intent);
    assert_eq!(
        lines[1],
        "external 198.51.100.1 80/TCP always: refuse from: 172.16.0.0/12"
    );
    assert_eq!(lines.len(), 3);
}

#[test]
fn external_ips_outside_the_allowed_ranges_are_ignored() {
    let mut service = exposed();
    service.external_ips.push("8.8.8.8".parse().unwrap());
    service.external_ips.push("10.96.0.1".parse().unwrap());
    let mut facts = facts();
    facts.allowed_external_ips = Some(vec!["198.51.100.0/24".parse().unwrap()]);
    let external = |facts: &NodeFacts| -> Vec<FrontendAddress> {
        let frontends = plan(&service, &NO_SLICES, facts)
            .intent
            .frontends
            .into_iter();
        let addresses = frontends.map(|f| f.address);
        addresses
            .filter(|p| matches!(p, FrontendAddress::External(_)))
            .collect()
    };
    let at = |text: &str| FrontendAddress::External(text.parse().unwrap());
    assert_eq!(external(&facts), [at("198.51.100.1"), at("203.0.113.1")]);
    let named: Vec<String> = plan(&service, &NO_SLICES, &facts)
        .ignored
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(named.len(), 2);
    assert!(
        named[0].contains("8.8.8.8") && named[1].contains("10.96.0.1"),
        "{named:?}"
    );
    facts.allowed_external_ips = None;
    assert_eq!(external(&facts).len(), 3);
}

#[test]
fn external_frontends_of_the_api_server_are_ignored() {
    let mut service = service(
        "shop/web",
        "10.96.0.1",
        "https/6443/TCP dns/6443/UDP other/443/TCP",
    );
    service.external_ips = vec!["192.0.2.100".parse().unwrap()];
    service.load_balancer_ips = vec!["192.0.2.101".parse().unwrap()];
    let servers = ["192.0.2.100:6443", "192.0.2.101:6443"].map(|text| text.parse().unwrap());
    let facts = facts().with_api_servers(servers.into());
    let external: Vec<String> = lines(&plan(&service, &NO_SLICES, &facts).intent)
        .into_iter()
        .filter(|line| line.starts_with("external"))
        .collect();
    assert_eq!(
        external,
        [
            "external 192.0.2.100 443/TCP always: refuse",
            "external 192.0.2.100 6443/UDP always: refuse",
            "external 192.0.2.101 443/TCP always: refuse",
            "external 192.0.2.101 6443/UDP always: refuse",
        ]
    );
    assert_eq!(plan(&service, &NO_SLICES, &facts).ignored.len(), 2);
}

#[test]
fn external_frontends_of_local_listeners_are_ignored() {
    let mut service = service("shop/git", "10.96.0.1", "ssh/22/TCP/30022 mosh/22/UDP");
    service.external_ips = vec!["192.0.2.10".parse().unwrap()];
    let ssh = (Protocol::Tcp, "192.0.2.10:22".parse().unwrap());
    let surroundings = Surroundings {
        listeners: Arc::new([ssh].into()),
        ..Surroundings::default()
    };
    let plan = crate::plan::plan(&service, &NO_SLICES, &facts(), &surroundings);
    assert_eq!(
        lines(&plan.intent),
        [
            "10.96.0.1 22/TCP off-cluster: refuse",
            "10.96.0.1 22/UDP off-cluster: refuse",
            "external 192.0.2.10 22/UDP always: refuse",
            "node-ip 30022/TCP always: refuse",
        ]
    );
    let named = plan.ignored;
    assert_eq!(named.len(), 1);
    assert_eq!(named[0].field, "spec.externalIPs");
}

#[test]
fn health_checks_count_ready_local_addresses_once() {
    let mut service = service("shop/web", "10.96.0.1 fd00::1", "http/80/TCP admin/81/TCP");
    service.health_check_node_port = Some(30999);
    let told = |service: &Service, slices: &[EndpointSlice]| {
        let check = plan(service, slices, &facts()).intent.health_check?;
        assert_eq!(check.port, 30999);
        let counts = check.local_endpoints.into_iter();
        Some(counts.collect::<Vec<(Family, usize)>>())
    };
    let slices = [
        slice(
            "shop/web-1",
            "web",
            "http/8080/TCP admin/9090/TCP",
            "10.1.0.5@node-1 10.1.0.6@node-2 10.1.0.7:s@node-1 10.1.0.8:st@node-1 10.1.0.9:rst@node-1",
        ),
        // The same pod for another port, and one more.
        slice(
            "shop/web-2",
            "web",
            "admin/9091/TCP",
            "10.1.0.5@node-1 10.1.0.10@node-1",
        ),
        slice("shop/web-3", "web", "http/8080/TCP", "fd00:1::5:st@node-1"),
    ];
    let both = vec![(Family::Ip, 3), (Family::Ip6, 0)];
    assert_eq!(told(&service, &slices), Some(both));
    service.cluster_ips.truncate(1);
    assert_eq!(told(&service, &[]), Some(vec![(Family::Ip, 0)]));
    service.health_check_node_port = None;
    assert_eq!(told(&service, &slices), None);
}

#[test]
fn names_alone_do_not_decide_an_affinity_group() {
    // A tenant can find a name with the same 32-bit hash in seconds, but cannot choose its Service's UID.
    let group = |service: &Service| {
        let intent = plan(service, &NO_SLICES, &facts()).intent;
        intent
            .frontends
            .iter()
            .find_map(|f| f.affinity)
            .unwrap()
            .group
    };
    let mut service = exposed();
    service.affinity = Some(60);
    service.uid = Some("5c4e8f0a-0000-4000-8000-000000000001".into());
    let first = group(&service);
    assert_eq!(group(&service), first);
    for port in &mut service.ports {
        port.name = "chosen".into();
    }
    assert_eq!(group(&service), first);
    service.uid = Some("5c4e8f0a-0000-4000-8000-000000000002".into());
    assert_ne!(group(&service), first);
}

#[test]
fn thousands_of_refused_external_ips_are_a_few_problems() {
    let mut service = exposed();
    service.external_ips = (0..=255).map(|n| [10, 244, 8, n].into()).collect();
    let mut facts = facts();
    facts.allowed_external_ips = Some(vec!["203.0.113.0/24".parse().unwrap()]);
    let ignored = plan(&service, &NO_SLICES, &facts).ignored;
    assert!((2..10).contains(&ignored.len()), "{}", ignored.len());
    assert!(ignored.iter().all(|i| i.field == "spec.externalIPs"));
}
