//! A Service that is deleted and created again is another Service, though it has the name of the first.

use service_model::ServiceType;

use super::*;

fn apply(service: Service) -> SourceEvent {
    SourceEvent::Service(ObjectEvent::Apply(Arc::new(service)))
}

/// `web`, created then, at this cluster IP, and over its budget.
fn over_budget(created: Option<i64>, cluster_ip: &str) -> Service {
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
