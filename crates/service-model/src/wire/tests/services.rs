use super::*;
use std::net::IpAddr;

use crate::objects::{self, ServiceType, TrafficPolicy};

/// A Service with this spec.
fn service(spec: Value) -> Value {
    json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec})
}

/// A Service with these ports.
fn with_ports(ports: Value) -> Value {
    service(json!({"clusterIP": "10.96.0.1", "ports": ports}))
}

/// Cluster IPs as text, of a Service without warnings.
#[track_caller]
fn cluster_ips(spec: Value) -> Vec<String> {
    let service = clean::<Service>(service(spec));
    service
        .cluster_ips
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// `name/port/protocol/node port` of each port.
fn ports(service: &objects::Service) -> Vec<String> {
    let port = |p: &objects::ServicePort| {
        format!(
            "{}/{}/{}/{}",
            p.name,
            p.port,
            p.protocol,
            p.node_port.unwrap_or(0)
        )
    };
    service.ports.iter().map(port).collect()
}

#[test]
fn a_whole_service_is_converted() {
    let service = clean::<Service>(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                     "creationTimestamp": "2026-07-01T00:30:00Z", "managedFields": [{"manager": "x"}]},
        "spec": {"type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"],
                 "selector": {"app": "web"}, "sessionAffinity": "None",
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": "web", "nodePort": 30080},
                           {"name": "dns", "protocol": "UDP", "port": 53, "targetPort": 53},
                           {"name": "sig", "protocol": "SCTP", "port": 80, "nodePort": 0}]},
        "status": {"loadBalancer": {}},
    }));
    assert_eq!(service.name, ObjectName::new("shop", "web"));
    assert_eq!(service.created, Some(1_782_865_800));
    assert_eq!(service.service_type, ServiceType::NodePort);
    assert_eq!(
        ports(&service),
        ["http/80/TCP/30080", "dns/53/UDP/0", "sig/80/SCTP/0"]
    );
    assert_eq!(service.cluster_ips.len(), 2);
    assert!(!service.excluded);
}

#[test]
fn either_label_excludes_a_service_with_any_value() {
    for label in [LABEL_SERVICE_PROXY_NAME, LABEL_HEADLESS] {
        for value in [json!(""), json!("other-proxy"), json!(null)] {
            let excluded = clean::<Service>(json!({
                "metadata": {"name": "a", "labels": {label: value, "app": "a"}},
                "spec": {"clusterIP": "not even looked at"},
            }));
            assert!(excluded.excluded);
            assert!(label_selector(None).contains(&format!("!{label}")));
        }
    }
}

#[test]
fn external_names_and_headless_services_have_no_address() {
    let headless = clean::<Service>(service(
        json!({"clusterIP": "None", "ports": [{"port": 80}]}),
    ));
    assert!(headless.cluster_ips.is_empty());
    assert!(cluster_ips(json!({"clusterIPs": ["None"]})).is_empty());
    let external = json!({"type": "ExternalName", "externalName": "example.com", "clusterIP": "10.96.0.1",
                          "ports": [{"port": 0}]});
    let external = clean::<Service>(service(external));
    assert_eq!(external.service_type, ServiceType::ExternalName);
    assert!(external.cluster_ips.is_empty() && external.ports.is_empty());
}

#[test]
fn a_service_without_cluster_ip_leads_to_a_warning() {
    for spec in [
        json!({}),
        json!({"clusterIP": ""}),
        json!({"clusterIPs": [""]}),
        json!({"clusterIPs": []}),
    ] {
        let (service, skipped) = skipping::<Service>(service(spec));
        assert!(service.cluster_ips.is_empty());
        assert_eq!(skipped, ["spec.clusterIP"]);
    }
}

#[test]
fn the_list_of_cluster_ips_counts_before_the_single_one() {
    assert_eq!(
        cluster_ips(json!({"clusterIP": "10.96.0.1"})),
        ["10.96.0.1"]
    );
    assert_eq!(
        cluster_ips(json!({"clusterIP": "10.96.0.1", "clusterIPs": null})),
        ["10.96.0.1"]
    );
    let both = json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.96.0.1"]});
    assert_eq!(cluster_ips(both), ["fd00::1", "10.96.0.1"]);
}

#[test]
fn of_two_cluster_ips_of_one_family_the_first_counts() {
    let two = json!({"clusterIPs": ["10.96.0.1", "10.96.0.2", "fd00::1"]});
    let (service, skipped) = skipping::<Service>(service(two));
    assert_eq!(service.cluster_ips.len(), 2);
    assert_eq!(skipped, ["spec.clusterIPs[1]"]);
}

#[test]
fn cluster_ips_are_canonical_unicast_addresses() {
    assert_eq!(
        cluster_ips(json!({"clusterIP": "010.096.0.041"})),
        ["10.96.0.41"]
    );
    for text in [
        "10.96.0",
        "10.96.0.1/32",
        "::ffff:10.96.0.1",
        "fe80::1%eth0",
        "0.0.0.0",
        "::",
        "127.0.0.1",
        "::1",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "none",
    ] {
        let (field, reason) =
            refused::<Service>(service(json!({"clusterIPs": ["10.96.0.1", text]})));
        assert_eq!(field, "spec.clusterIPs[1]");
        assert!(reason.contains(text), "{reason}");
    }
}

#[test]
fn ports_out_of_range_refuse_the_service_and_name_the_field() {
    for number in [
        json!(0),
        json!(-1),
        json!(65_536),
        json!(i64::MAX),
        json!(null),
    ] {
        let (field, _) = refused::<Service>(with_ports(
            json!([{"name": "a", "port": 1}, {"name": "b", "port": number}]),
        ));
        assert_eq!(field, "spec.ports[1].port");
    }
    for number in [-1, 65_536] {
        let (field, reason) =
            refused::<Service>(with_ports(json!([{"port": 80, "nodePort": number}])));
        assert_eq!(field, "spec.ports[0].nodePort");
        assert_eq!(reason, format!("{number} is outside 1-65535"));
    }
}

#[test]
fn an_absent_protocol_is_tcp_an_unknown_one_skips_its_port() {
    let (service, skipped) = skipping::<Service>(with_ports(json!([
        {"name": "a", "port": 80},
        {"name": "b", "port": 81, "protocol": "tcp"},
        {"name": "c", "port": 82, "protocol": "UDP"},
        {"name": "d", "port": 83, "protocol": ""},
    ])));
    assert_eq!(ports(&service), ["a/80/TCP/0", "c/82/UDP/0", "d/83/TCP/0"]);
    assert_eq!(skipped, ["spec.ports[1].protocol"]);
}

#[test]
fn of_ports_that_collide_within_a_service_the_first_wins() {
    for (written, kept, skipped) in [
        (
            json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}, {"name": "c", "port": 81}]),
            &["a/80/TCP/0", "c/81/TCP/0"] as &[_],
            &["spec.ports[1].port"] as &[&str],
        ),
        (
            json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}]),
            &["a/80/TCP/0"],
            &["spec.ports[1].name"],
        ),
        (
            json!([{"port": 80}, {"port": 81}]),
            &["/80/TCP/0"],
            &["spec.ports[1].name"],
        ),
        (
            json!([{"name": "a", "port": 80, "nodePort": 30000}, {"name": "b", "port": 81, "nodePort": 30000}]),
            &["a/80/TCP/30000", "b/81/TCP/0"],
            &["spec.ports[1].nodePort"],
        ),
        // Another protocol does not collide: a port is known by name and protocol (row 10).
        (
            json!([{"name": "dns", "port": 53, "nodePort": 30053},
                   {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"}]),
            &["dns/53/TCP/30053", "dns/53/UDP/30053"],
            &[],
        ),
    ] {
        let (service, names) = skipping::<Service>(with_ports(written));
        assert_eq!(ports(&service), kept);
        assert_eq!(names, skipped);
    }
}

#[test]
fn types_are_known_ones_and_an_absent_type_is_cluster_ip() {
    let with_type = |text: Value| service(json!({"type": text, "clusterIP": "10.96.0.1"}));
    for (text, expected) in [
        (json!(null), ServiceType::ClusterIp),
        (json!(""), ServiceType::ClusterIp),
        (json!("ClusterIP"), ServiceType::ClusterIp),
        (json!("NodePort"), ServiceType::NodePort),
        (json!("LoadBalancer"), ServiceType::LoadBalancer),
    ] {
        assert_eq!(clean::<Service>(with_type(text)).service_type, expected);
    }
    assert_eq!(
        refused::<Service>(with_type(json!("clusterip"))).0,
        "spec.type"
    );
}

#[test]
fn node_ports_outside_the_given_range_are_refused() {
    let check = |node_port: i64| {
        let value = with_ports(
            json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": node_port}]),
        );
        let service: Service = serde_json::from_value(value).unwrap();
        service.check_node_ports(&(30_000..=32_767))
    };
    for inside in [0, 30_000, 32_767] {
        assert_eq!(check(inside), Ok(()));
    }
    for outside in [80, 29_999, 32_768, 70_000, -1] {
        let invalid = check(outside).unwrap_err();
        assert_eq!(
            invalid.to_string(),
            format!(
                "Service shop/web: spec.ports[1].nodePort: {outside} is outside the node port range 30000-32767"
            )
        );
    }
}

#[test]
fn a_proxy_with_a_name_serves_only_services_of_that_name() {
    let excluded = |label: Option<&str>, proxy_name: Option<&str>| {
        let labels = match label {
            Some(value) => json!({LABEL_SERVICE_PROXY_NAME: value}),
            None => json!({}),
        };
        let value = json!({"metadata": {"name": "a", "labels": labels}, "spec": {"clusterIP": "10.96.0.1"}});
        let object: Service = serde_json::from_value(value).unwrap();
        let mut context = ConversionContext::new(proxy_name.map(Into::into));
        object.into_model(&mut context).unwrap().object.excluded
    };
    assert!(!excluded(None, None));
    assert!(excluded(Some("ours"), None));
    assert!(excluded(None, Some("ours")));
    assert!(!excluded(Some("ours"), Some("ours")));
    assert!(excluded(Some("theirs"), Some("ours")));
    let selector = label_selector(Some("ours"));
    assert!(selector.contains("service-proxy-name=ours,!"), "{selector}");
}

#[test]
fn unusable_external_addresses_are_skipped() {
    let value = json!({
        "metadata": {"name": "a"},
        "spec": {"clusterIP": "10.96.0.1", "externalIPs": ["192.0.2.08", "192.0.2.8", "127.0.0.1", "nonsense"]},
        "status": {"loadBalancer": {"ingress": [
            {"ip": "203.0.113.1"}, {"ip": "203.0.113.2", "ipMode": "VIP"}, {"ip": "203.0.113.3", "ipMode": "Proxy"},
            {"hostname": "lb.example.com"}, {"ip": ""}, {"ip": "169.254.169.254"},
        ]}},
    });
    let (service, skipped) = skipping::<Service>(value);
    let texts = |list: &[IpAddr]| list.iter().map(IpAddr::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&service.external_ips), ["192.0.2.8"]);
    assert_eq!(
        texts(&service.load_balancer_ips),
        ["203.0.113.1", "203.0.113.2"]
    );
    let expected = [
        "spec.externalIPs[2]",
        "spec.externalIPs[3]",
        "status.loadBalancer.ingress[5].ip",
    ];
    assert_eq!(skipped, expected);
}

#[test]
fn source_ranges_are_canonical_a_bad_one_is_fatal() {
    let with = |ranges: Value| {
        service(json!({"clusterIP": "10.96.0.1", "loadBalancerSourceRanges": ranges}))
    };
    let good = clean::<Service>(with(json!([" 203.0.113.000/025 ", "fd00::1/64"])));
    let texts: Vec<String> = good.source_ranges.iter().map(|r| r.to_string()).collect();
    assert_eq!(texts, ["203.0.113.0/25", "fd00::/64"]);
    let (field, _) = refused::<Service>(with(json!(["203.0.113.0/24", "everyone"])));
    assert_eq!(field, "spec.loadBalancerSourceRanges[1]");
}

#[test]
fn affinity_times_out_after_three_hours_by_default() {
    let with = |affinity: Value, config: Value| {
        service(
            json!({"clusterIP": "10.96.0.1", "sessionAffinity": affinity, "sessionAffinityConfig": config}),
        )
    };
    let seconds = |affinity, config| clean::<Service>(with(affinity, config)).affinity;
    assert_eq!(seconds(json!(null), json!(null)), None);
    assert_eq!(
        seconds(json!("None"), json!({"clientIP": {"timeoutSeconds": 5}})),
        None
    );
    assert_eq!(seconds(json!("ClientIP"), json!(null)), Some(10800));
    assert_eq!(
        seconds(
            json!("ClientIP"),
            json!({"clientIP": {"timeoutSeconds": 5}})
        ),
        Some(5)
    );
    let (service, skipped) = skipping::<Service>(with(
        json!("ClientIP"),
        json!({"clientIP": {"timeoutSeconds": 0}}),
    ));
    assert_eq!((service.affinity, skipped.len()), (Some(10800), 1));
    let (field, _) = refused::<Service>(with(json!("Cookie"), json!(null)));
    assert_eq!(field, "spec.sessionAffinity");
}

#[test]
fn only_policy_local_load_balancers_have_a_health_port() {
    let with = |kind: &str, external: Value| {
        clean::<Service>(service(
            json!({"clusterIP": "10.96.0.1", "type": kind, "externalTrafficPolicy": external,
                                        "internalTrafficPolicy": "Local", "healthCheckNodePort": 30999}),
        ))
    };
    let local = with("LoadBalancer", json!("Local"));
    assert_eq!(local.external_policy, TrafficPolicy::Local);
    assert_eq!(local.internal_policy, TrafficPolicy::Local);
    assert_eq!(local.health_check_node_port, Some(30999));
    assert_eq!(
        with("NodePort", json!("Local")).health_check_node_port,
        None
    );
    let cluster = with("LoadBalancer", json!(null));
    assert_eq!(cluster.external_policy, TrafficPolicy::Cluster);
    assert_eq!(cluster.health_check_node_port, None);
    let odd = service(json!({"clusterIP": "10.96.0.1", "externalTrafficPolicy": "Near"}));
    assert_eq!(refused::<Service>(odd).0, "spec.externalTrafficPolicy");
}

#[test]
fn annotations_count_only_when_true() {
    let wishes = |value: Value| {
        let annotations = json!({ANNOTATION_RESET: value, ANNOTATION_COUNT: "true"});
        let value = json!({"metadata": {"name": "a", "annotations": annotations}, "spec": {"clusterIP": "10.96.0.1"}});
        clean::<Service>(value).options
    };
    assert_eq!(
        wishes(json!("true")),
        ServiceOptions {
            reset_removed: true,
            count: true,
            failover: false,
        }
    );
    assert_eq!(
        wishes(json!("yes")),
        ServiceOptions {
            reset_removed: false,
            count: true,
            failover: false,
        }
    );
}

#[test]
fn a_service_over_its_budget_is_refused_before_it_costs() {
    let many = |count: u32| -> Vec<String> {
        let address = |i| std::net::Ipv4Addr::from_bits(0x0506_0000 + i).to_string();
        (0..count).map(address).collect()
    };
    let ports = |count: u32| -> Vec<Value> {
        let port = |i| json!({"name": format!("p{i}"), "port": 1 + i});
        (0..count).map(port).collect()
    };
    let with = |addresses, count| {
        let spec = json!({"clusterIP": "10.96.0.1", "externalIPs": many(addresses), "ports": ports(count)});
        service(spec)
    };
    let fits = clean::<Service>(with(60, 64));
    assert_eq!((fits.external_ips.len(), fits.ports.len()), (60, 64));
    for (addresses, count, field) in [
        (800, 800, "spec.externalIPs"),
        (80_000, 0, "spec.externalIPs"),
        (0, 20_000, "spec.ports"),
    ] {
        assert_eq!(refused::<Service>(with(addresses, count)).0, field);
    }
    let ranges = json!({"clusterIP": "10.96.0.1", "loadBalancerSourceRanges": many(5_000)});
    assert_eq!(
        refused::<Service>(service(ranges)).0,
        "spec.loadBalancerSourceRanges"
    );
}
