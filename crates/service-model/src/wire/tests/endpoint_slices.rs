use super::*;
use crate::objects::{self, Conditions, Family};

/// An IPv4 slice of Service `shop/web` with these ports and endpoints.
fn slice(ports: Value, endpoints: Value) -> Value {
    json!({
        "metadata": {"name": "web-1", "namespace": "shop", "labels": {LABEL_SERVICE_NAME: "web"}},
        "addressType": "IPv4", "ports": ports, "endpoints": endpoints,
    })
}

/// The addresses that serve, as text.
fn addresses(slice: &objects::EndpointSlice) -> Vec<String> {
    slice
        .endpoints
        .iter()
        .map(|e| e.address.to_string())
        .collect()
}

#[test]
fn a_whole_slice_is_converted() {
    let slice = clean::<EndpointSlice>(slice(
        json!([{"name": "http", "protocol": "TCP", "port": 8080, "appProtocol": "h2"}, {"name": "dns", "protocol": "UDP", "port": 53}]),
        json!([{"addresses": ["10.1.0.5"], "nodeName": "node-1", "zone": "a", "targetRef": {"kind": "Pod"},
                "conditions": {"ready": true, "serving": true, "terminating": false}}]),
    ));
    assert_eq!(slice.name, ObjectName::new("shop", "web-1"));
    assert_eq!(slice.service, ObjectName::new("shop", "web"));
    assert_eq!(slice.family, Family::Ip);
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|p| format!("{}/{}/{}", p.name, p.port, p.protocol))
        .collect();
    assert_eq!(ports, ["http/8080/TCP", "dns/53/UDP"]);
    assert_eq!(addresses(&slice), ["10.1.0.5"]);
    assert_eq!(slice.endpoints[0].node.as_deref(), Some("node-1"));
    assert!(!slice.excluded);
}

#[test]
fn endpoints_keep_their_pods_and_zones() {
    let endpoints = json!([
        {"addresses": ["10.1.0.5"], "zone": "Zone_A", "targetRef": {"kind": "Pod", "name": "web-1", "namespace": "shop"}},
        {"addresses": ["not an address"], "zone": "lost", "targetRef": {"kind": "Pod", "name": "lost"}},
        {"addresses": ["10.1.0.6"], "zone": "two\nlines", "targetRef": {"kind": "Pod", "name": "Two\tWords"}},
        {"addresses": ["10.1.0.7"], "zone": "", "targetRef": {"kind": "Node", "name": "node-1"}},
        {"addresses": ["10.1.0.8"], "targetRef": {"kind": "Pod", "name": "web-2"}},
    ]);
    let (found, _) = skipping::<EndpointSlice>(slice(json!([]), endpoints));
    let found = found.identities.iter().map(|is| (is.pod, is.zone));
    let text = |text: &str| Some(text.to_owned());
    let expected = [
        (text("web-1"), text("Zone_A")),
        (None, None),
        (None, None),
        (text("web-2"), None),
    ];
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

#[test]
fn slices_of_no_served_service_are_empty_and_excluded() {
    let mut labeled = slice(json!([{"port": 80}]), json!([{"addresses": ["10.1.0.5"]}]));
    labeled["metadata"]["labels"][LABEL_SERVICE_PROXY_NAME] = json!("x");
    let mut headless = slice(json!([{"port": 80}]), json!([{"addresses": ["10.1.0.5"]}]));
    headless["metadata"]["labels"][LABEL_HEADLESS] = json!("");
    let mut ownerless = slice(json!([{"port": 80}]), json!([{"addresses": ["10.1.0.5"]}]));
    ownerless["metadata"]["labels"] = json!({"app": "web"});
    let mut nameless = slice(json!([{"port": 80}]), json!([{"addresses": ["10.1.0.5"]}]));
    nameless["metadata"]["labels"][LABEL_SERVICE_NAME] = json!("");
    for value in [labeled, headless, ownerless, nameless] {
        let slice = clean::<EndpointSlice>(value);
        assert!(slice.excluded && slice.ports.is_empty() && slice.endpoints.is_empty());
    }
}

#[test]
fn a_slice_of_domain_names_is_excluded_with_a_warning() {
    let mut value = slice(
        json!([{"port": 80}]),
        json!([{"addresses": ["example.com"]}]),
    );
    value["addressType"] = json!("FQDN");
    let (fqdn, skipped) = skipping::<EndpointSlice>(value.clone());
    assert!(fqdn.excluded && fqdn.ports.is_empty() && fqdn.endpoints.is_empty());
    assert_eq!(skipped, ["addressType"]);
    value["metadata"]["labels"] = json!({});
    assert!(clean::<EndpointSlice>(value).excluded);
}

#[test]
fn a_slice_of_no_known_address_type_or_owner_name_is_refused() {
    for bad in [json!(null), json!("IP"), json!("ipv4")] {
        let mut value = slice(json!([]), json!([]));
        value["addressType"] = bad;
        assert_eq!(refused::<EndpointSlice>(value).0, "addressType");
    }
    let mut value = slice(json!([]), json!([]));
    value["metadata"]["labels"][LABEL_SERVICE_NAME] = json!("../web");
    assert_eq!(
        refused::<EndpointSlice>(value).0,
        "metadata.labels[kubernetes.io/service-name]"
    );
}

#[test]
fn a_bad_port_is_skipped_and_the_others_are_used() {
    let (slice, skipped) = skipping::<EndpointSlice>(slice(
        json!([
            {"port": 80},
            {"name": "a"},
            {"name": "b", "port": 0},
            {"name": "c", "port": -5},
            {"name": "d", "port": 65_536},
            {"name": "e", "port": 81, "protocol": "ICMP"},
            {"name": null, "port": 82, "protocol": null},
            {"name": "f", "port": 65_535, "protocol": "SCTP"},
        ]),
        json!([]),
    ));
    let ports: Vec<_> = slice
        .ports
        .iter()
        .map(|p| format!("{}/{}/{}", p.name, p.port, p.protocol))
        .collect();
    assert_eq!(ports, ["/80/TCP", "/82/TCP", "f/65535/SCTP"]);
    assert_eq!(
        skipped,
        [
            "ports[1].port",
            "ports[2].port",
            "ports[3].port",
            "ports[4].port",
            "ports[5].protocol"
        ]
    );
}

#[test]
fn absent_conditions_mean_ready_and_not_terminating() {
    let conditions = |ready, serving, terminating| Conditions {
        ready,
        serving,
        terminating,
    };
    for (written, expected) in [
        (json!(null), conditions(true, true, false)),
        (json!({}), conditions(true, true, false)),
        (
            json!({"ready": null, "serving": null, "terminating": null}),
            conditions(true, true, false),
        ),
        (json!({"ready": false}), conditions(false, true, false)),
        (
            json!({"ready": false, "terminating": true}),
            conditions(false, true, true),
        ),
        (json!({"serving": false}), conditions(true, false, false)),
        (
            json!({"ready": false, "serving": false, "terminating": true}),
            conditions(false, false, true),
        ),
    ] {
        let endpoints = json!([{"addresses": ["10.1.0.5"], "conditions": written}]);
        let slice = clean::<EndpointSlice>(slice(json!([]), endpoints));
        assert_eq!(slice.endpoints[0].conditions, expected, "{written}");
    }
}

#[test]
fn only_the_first_address_of_an_endpoint_counts() {
    let endpoints = json!([{"addresses": ["10.1.0.5", "10.1.0.6", "nonsense"]}]);
    assert_eq!(
        addresses(&clean::<EndpointSlice>(slice(json!([]), endpoints))),
        ["10.1.0.5"]
    );
    let endpoints =
        json!([{"addresses": []}, {"addresses": null}, {}, {"addresses": ["10.1.0.7"]}]);
    let (slice, skipped) = skipping::<EndpointSlice>(slice(json!([]), endpoints));
    assert_eq!(addresses(&slice), ["10.1.0.7"]);
    assert_eq!(skipped.len(), 3);
}

#[test]
fn an_address_of_the_other_family_is_skipped() {
    let endpoints = json!([{"addresses": ["fd00::5"]}, {"addresses": ["10.1.0.5"]}]);
    let mut value = slice(json!([]), endpoints);
    let (v4, skipped) = skipping::<EndpointSlice>(value.clone());
    assert_eq!(
        (addresses(&v4), skipped),
        (
            vec!["10.1.0.5".into()],
            vec!["endpoints[0].addresses[0]".into()]
        )
    );
    value["addressType"] = json!("IPv6");
    let (v6, skipped) = skipping::<EndpointSlice>(value);
    assert_eq!(
        (addresses(&v6), skipped),
        (
            vec!["fd00::5".into()],
            vec!["endpoints[1].addresses[0]".into()]
        )
    );
}

#[test]
fn special_addresses_are_skipped_cve_2021_25737() {
    let v4 = [
        "127.0.0.1",
        "127.9.9.9",
        "169.254.169.254",
        "224.0.0.1",
        "239.1.1.1",
        "0.0.0.0",
        "255.255.255.255",
        "0127.0.0.1",
        "10.1.0",
        "10.1.0.5 ",
        "example.com",
        "",
    ];
    let v6 = [
        "::1",
        "::",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "::ffff:10.1.0.5",
        "::ffff:127.0.0.1",
        "fd00::5%eth0",
    ];
    for (family, good, bad) in [
        ("IPv4", "010.1.0.05", &v4 as &[_]),
        ("IPv6", "FD00:0::5", &v6),
    ] {
        for bad in bad {
            let mut value = slice(
                json!([]),
                json!([{"addresses": [bad]}, {"addresses": [good]}]),
            );
            value["addressType"] = json!(family);
            let (slice, skipped) = skipping::<EndpointSlice>(value);
            let canonical = if family == "IPv4" {
                "10.1.0.5"
            } else {
                "fd00::5"
            };
            assert_eq!(addresses(&slice), [canonical]);
            assert_eq!(skipped, ["endpoints[0].addresses[0]"]);
        }
    }
}

#[test]
fn of_a_thousand_warnings_a_handful_is_kept() {
    let endpoints: Vec<Value> = (0..1000)
        .map(|_| json!({"addresses": ["127.0.0.1"]}))
        .collect();
    let converted = convert::<EndpointSlice>(slice(json!([]), json!(endpoints))).unwrap();
    assert_eq!(converted.warnings.len(), 8);
    let last = converted.warnings.last().unwrap();
    assert_eq!(
        last.to_string(),
        "EndpointSlice shop/web-1: endpoints[7].addresses[0]: \"127.0.0.1\" is a loopback address (and 992 more like it)"
    );
}

#[test]
fn repeated_texts_are_shared_between_objects() {
    let mut context = ConversionContext::default();
    let mut convert = || {
        let endpoints = json!([{"addresses": ["10.1.0.5"], "nodeName": "node-1"}]);
        let value = slice(json!([{"name": "http", "port": 80}]), endpoints);
        let object: EndpointSlice = serde_json::from_value(value).unwrap();
        object.into_model(&mut context).unwrap().object
    };
    let (a, b) = (convert(), convert());
    assert!(std::ptr::eq(&*a.name.namespace, &*b.service.namespace));
    assert!(std::ptr::eq(&*a.ports[0].name, &*b.ports[0].name));
    assert!(std::ptr::eq(
        a.endpoints[0].node.as_deref().unwrap(),
        b.endpoints[0].node.as_deref().unwrap()
    ));
    assert!(
        size_of::<objects::Endpoint>() <= 48,
        "100,000 endpoints must stay small"
    );
    assert_eq!(a.endpoints.capacity(), a.endpoints.len());
}

#[test]
fn hints_are_sets_of_zones_and_nodes() {
    let value = json!({
        "metadata": {"name": "a", "labels": {"kubernetes.io/service-name": "a"}}, "addressType": "IPv4",
        "endpoints": [
            {"addresses": ["10.1.0.1"], "hints": {"forZones": [{"name": "b"}, {"name": "a"}]}},
            {"addresses": ["10.1.0.2"], "hints": {"forNodes": [{"name": "node-1"}], "forZones": null}},
            {"addresses": ["10.1.0.3"], "hints": {"forZones": []}},
            {"addresses": ["10.1.0.4"], "hints": null},
        ],
    });
    let slice = clean::<EndpointSlice>(value);
    let hints: Vec<String> = slice
        .endpoints
        .iter()
        .map(|e| {
            e.hints
                .as_ref()
                .map_or("none".into(), |h| format!("{:?} {:?}", h.zones, h.nodes))
        })
        .collect();
    assert_eq!(
        hints,
        [r#"["b", "a"] []"#, r#"[] ["node-1"]"#, "none", "none"]
    );
}
