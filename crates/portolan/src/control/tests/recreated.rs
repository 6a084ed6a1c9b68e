//! A Service that is deleted and created again is another Service, though it has the name of the first.

use service_model::{ServicePort, ServiceType};

use super::*;

fn apply(service: Service) -> SourceEvent {
    SourceEvent::Service(ObjectEvent::Apply(Arc::new(service)))
}

/// `web`, created then, at this cluster IP, and over its budget.
pub(super) fn over_budget(created: Option<i64>, cluster_ip: &str) -> Service {
    let address = |network: u8, n: u32| {
        let first = std::net::Ipv4Addr::new(network, 0, 0, 0).to_bits();
        IpAddr::from(std::net::Ipv4Addr::from_bits(first + n))
    };
    let mut bad = service();
    bad.created = created;
    bad.cluster_ips = vec![cluster_ip.parse().unwrap()].into();
    bad.service_type = ServiceType::LoadBalancer;
    bad.load_balancer_ips = (0..50).map(|n| address(5, n)).collect();
    bad.source_ranges = (0..1_000).map(|n| address(11, 2 * n).into()).collect();
    bad
}

#[test]
fn a_recreated_service_over_its_budget_frees_its_cluster_ip() {
    for (created, cluster_ip) in [
        (Some(2_000), "10.96.0.9"),
        (Some(2_000), "10.96.0.1"),
        (service().created, "10.96.0.9"),
    ] {
        let mut control = synced();
        let web = service().name;
        assert_eq!(elements(&control, "cluster_ips"), 1);
        // Both in one batch.
        control.event(SourceEvent::Service(ObjectEvent::Delete(web.clone())));
        control.event(apply(over_budget(created, cluster_ip)));
        turn_at_once(&mut control);
        assert!(control.view.is_over_budget(&web));
        assert_eq!(control.dataplane.intent(&web), None);
        assert_eq!(elements(&control, "cluster_ips"), 0);
        let mut younger = service();
        younger.name = ObjectName::new("default", "younger");
        younger.created = Some(3_000);
        control.event(apply(younger));
        turn_at_once(&mut control);
        assert_eq!(elements(&control, "cluster_ips"), 1);
        assert_eq!(elements(&control, "no_endpoints"), 1);
        // The node port is free as well.
        assert_eq!(elements(&control, "nodeports_no_endpoints"), 1);
    }
}

/// `web`, created then, at this cluster IP, with 800 ports: it is committed in steps.
fn large(created: i64, cluster_ip: &str) -> Service {
    let mut large = service();
    large.created = Some(created);
    large.cluster_ips = vec![cluster_ip.parse().unwrap()].into();
    let ports = (1..=800).map(|port| ServicePort {
        name: "".into(),
        protocol: service_model::Protocol::Tcp,
        port,
        node_port: Some(30_000 + port),
    });
    large.ports = ports.collect();
    large
}

#[test]
fn a_large_recreated_service_frees_its_frontends_at_once() {
    let mut control = synced();
    let web = service().name;
    control.event(apply(large(1_000, "10.96.0.1")));
    turn_at_once(&mut control);
    while !control.steps.is_empty() {
        turn_at_once(&mut control);
    }
    assert_eq!(elements(&control, "frontends_1"), 800);
    // In one batch, with a younger Service that gets the cluster IP and a node port of the first.
    control.event(SourceEvent::Service(ObjectEvent::Delete(web)));
    let mut second = large(2_000, "10.96.0.9");
    second.ports.retain(|port| port.port != 80);
    control.event(apply(second));
    let mut younger = service();
    younger.name = ObjectName::new("default", "younger");
    younger.created = Some(3_000);
    control.event(apply(younger));
    turn_at_once(&mut control);
    assert!(!control.steps.is_empty());
    assert_eq!(elements(&control, "no_endpoints"), 1);
    assert_eq!(elements(&control, "nodeports_no_endpoints"), 1);
    let contents = control.dataplane.backend().contents(Family::Ip).unwrap();
    let old = IpAddr::from([10, 96, 0, 1]);
    let mut balanced = contents.elements["frontends_1"].iter();
    assert!(balanced.all(|one| one.key.address_at(0, Family::Ip) != Some(old)));
    while !control.steps.is_empty() {
        turn_at_once(&mut control);
    }
    assert_eq!(elements(&control, "frontends_1"), 799);
    assert_eq!(elements(&control, "nodeports_1"), 799);
}
