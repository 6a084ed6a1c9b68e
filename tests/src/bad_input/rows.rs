//! The rows.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{Find, MARK, Row, SERVICE, SLICE, SLICE_V6, Source, Victim, endpoint, put};
use crate::stage::{Stage, service};

/// What an API server could hold, and a folder of manifests as well.
pub fn rows(stage: &Stage) -> Vec<Row> {
    let victim = Victim::new(stage);
    let mut rows = addresses(&victim);
    rows.extend(slices(&victim));
    rows.extend(services(&victim));
    rows.extend(texts(&victim));
    rows.extend(others(&victim));
    rows.extend(several(&victim));
    rows
}

/// F37, F41-F43.
fn addresses(victim: &Victim<'_>) -> Vec<Row> {
    let skipped = |what, slice, addresses: &[Value]| {
        let mut row = victim.row(what);
        for (i, bad) in (3..).zip(addresses) {
            row = row
                .put(slice, "/endpoints/-", endpoint(bad.clone()))
                .names(slice, &[&format!("endpoints[{i}].addresses[0]")]);
        }
        row
    };
    let texts = |texts: &[&str]| -> Vec<Value> { texts.iter().map(|text| json!([text])).collect() };
    let last = &victim.stage.pods[2];
    let zeros = last.ipv4().octets().map(|octet| format!("{octet:03}"));
    let own = [0, 1].map(|family| victim.service.cluster_ips[family].clone());
    vec![
        skipped(
            "F42, CVE-2021-25737: IPv4 addresses nobody may lead traffic to",
            SLICE,
            &texts(&[
                "127.0.0.1",
                "127.8.8.8",
                "169.254.169.254",
                "224.0.0.1",
                "239.1.1.1",
                "255.255.255.255",
                "0.0.0.0",
            ]),
        ),
        skipped(
            "F37, F41, F43: what is no IPv4 address",
            SLICE,
            &[
                texts(&[
                    "fd00::5",
                    "::ffff:10.244.1.2",
                    "10.244.1.256",
                    "10.244.1.2%eth0",
                ]),
                texts(&["10.244.1.2\n", &format!("{MARK}.example.com")]),
                vec![json!([]), json!(null)],
            ]
            .concat(),
        ),
        skipped(
            "F37, F42, F43: IPv6 addresses nobody may lead traffic to, and what is none",
            SLICE_V6,
            &texts(&[
                "::1",
                "::",
                "fe80::1",
                "ff02::1",
                "::ffff:10.244.1.2",
                "fd00:244:1::2%eth0",
                "10.244.1.2",
                "example.com",
            ]),
        )
        .at(victim.address(1, 80)),
        victim
            .row("F42: the Service's own cluster IP")
            .put(SLICE, "/endpoints/-", endpoint(json!([own[0]])))
            .says(&["EndpointSlice default/victim-ipv4: endpoints: 10.96.0.90 "])
            .put(SLICE_V6, "/endpoints/-", endpoint(json!([own[1]])))
            .says(&["EndpointSlice default/victim-ipv6: endpoints: fd00:96::90 "]),
        victim
            .row("F42: the node's own address is a good one")
            .put(
                SLICE,
                "/endpoints/-",
                endpoint(json!([victim.stage.node.ipv4()])),
            )
            .finds(Find::Servers(4)),
        victim
            .row("F43, CVE-2021-29923: leading zeros are decimal")
            .put(SLICE, "/endpoints/2/addresses/0", json!(zeros.join(".")))
            .put(SERVICE, "/spec/clusterIPs/0", json!("010.096.000.090"))
            .put(SERVICE, "/spec/clusterIP", json!("010.096.000.090")),
        victim
            .row("F41: of several addresses the first is taken")
            .put(SLICE, "/endpoints/2/addresses/-", json!("127.0.0.1"))
            .put(SLICE, "/endpoints/2/addresses/-", json!(MARK)),
    ]
}

/// F37-F41.
fn slices(victim: &Victim<'_>) -> Vec<Row> {
    let null = Value::Null;
    // Each would bring in the fourth pod.
    let refused = [
        ("/addressType", json!("IPv5"), "addressType"),
        ("/addressType", json!(null), "addressType"),
        (
            "/metadata/labels/kubernetes.io~1service-name",
            json!(7),
            "metadata.labels.kubernetes.io/service-name",
        ),
        ("/metadata/labels", json!("x"), "metadata.labels"),
        ("/ports/0/port", json!("http"), "ports[0].port"),
        ("/ports/0/port", json!(80.5), "ports[0].port"),
        ("/ports/0", json!(8080), "ports[0]"),
        ("/ports", json!({}), "ports"),
        ("/endpoints", json!(MARK), "endpoints"),
        (
            "/endpoints/0/addresses",
            json!("10.244.1.2"),
            "endpoints[0].addresses",
        ),
        (
            "/endpoints/0/addresses/0",
            json!(167_772_161),
            "endpoints[0].addresses[0]",
        ),
        (
            "/endpoints/0/conditions/ready",
            json!("yes"),
            "endpoints[0].conditions.ready",
        ),
    ];
    let mut whole = victim.row("slices that cannot be decoded, or be of no family");
    for (i, (pointer, value, field)) in refused.into_iter().enumerate() {
        let mut slice = victim.stage.objects(&victim.service, 3..4)[SLICE].clone();
        put(&mut slice, "/metadata/name", json!(format!("bad-{i}")));
        put(&mut slice, pointer, value);
        whole = whole.with_bad(slice, field);
    }
    let port = |name: &str, port: Value| json!({ "name": name, "port": port, "protocol": "TCP" });
    vec![
        whole,
        victim
            .row("a slice that goes bad keeps its last good version")
            .put(SLICE, "/addressType", json!(format!("IPv4; {MARK}")))
            .names(SLICE, &["addressType"])
            .finds(Find::Servers(2))
            .keeps_last_good(),
        victim
            .row("a slice that asks for a Service with a name that is none")
            .put(
                SLICE,
                "/metadata/labels/kubernetes.io~1service-name",
                json!(format!("../{MARK}")),
            )
            .names(SLICE, &["metadata.labels[kubernetes.io/service-name]"])
            .finds(Find::Servers(2))
            .keeps_last_good(),
        victim
            .row("F37: a slice of domain names")
            .put(SLICE, "/addressType", json!("FQDN"))
            .put(
                SLICE,
                "/endpoints",
                json!([endpoint(json!(["example.com"]))]),
            )
            .names(SLICE, &["addressType"])
            .finds(Find::Refusal),
        victim
            .row("F38, F39: ports of a slice that are none")
            .put(SLICE, "/ports/-", port("a", json!(0)))
            .put(SLICE, "/ports/-", port("b", json!(65_536)))
            .put(SLICE, "/ports/-", port("c", json!(-1)))
            .put(SLICE, "/ports/-", port("d", json!(i64::MAX)))
            .put(SLICE, "/ports/-", json!({ "name": "e" }))
            .put(
                SLICE,
                "/ports/-",
                json!({ "name": "f", "port": 80, "protocol": format!("ICMP\n{MARK}") }),
            )
            .names(
                SLICE,
                &[
                    "ports[1].port",
                    "ports[2].port",
                    "ports[3].port",
                    "ports[4].port",
                    "ports[5].port",
                ],
            )
            .names(SLICE, &["ports[6].protocol"]),
        victim
            .row("F38, F39, F40: what is absent has its default")
            .put(
                SERVICE,
                "/spec/ports/0",
                json!({ "name": null, "protocol": null, "port": 80, "nodePort": null }),
            )
            .put(SERVICE, "/spec/type", null.clone())
            .put(SERVICE, "/metadata/labels", null.clone())
            .put(SERVICE, "/metadata/annotations", null.clone())
            .put(
                SLICE,
                "/ports/0",
                json!({ "name": null, "protocol": null, "port": 8080 }),
            )
            .put(SLICE, "/endpoints/0/conditions", null.clone())
            .put(
                SLICE,
                "/endpoints/1/conditions",
                json!({ "ready": null, "serving": null, "terminating": null }),
            )
            .put(SLICE, "/endpoints/2/nodeName", null.clone())
            .put(SLICE, "/metadata/annotations", null.clone()),
        victim
            .row("a slice without ports has no endpoints")
            .put(SLICE, "/ports", null.clone())
            .finds(Find::Refusal),
        victim
            .row("nor has one without any")
            .put(SLICE, "/endpoints", null)
            .finds(Find::Refusal),
    ]
}

/// F48, F51, and what only an API server could keep out.
fn services(victim: &Victim<'_>) -> Vec<Row> {
    let nowhere = service("nowhere", 91);
    let refused = [
        ("/spec/ports/0/port", json!(0), "spec.ports[0].port"),
        ("/spec/ports/0/port", json!(65_536), "spec.ports[0].port"),
        ("/spec/ports/0/port", json!(-1), "spec.ports[0].port"),
        ("/spec/ports/0/port", json!(null), "spec.ports[0].port"),
        ("/spec/ports/0/port", json!("80"), "spec.ports[0].port"),
        ("/spec/ports/0/port", json!(1e300), "spec.ports[0].port"),
        (
            "/spec/ports/0/nodePort",
            json!(70_000),
            "spec.ports[0].nodePort",
        ),
        (
            "/spec/ports/0/nodePort",
            json!(-1),
            "spec.ports[0].nodePort",
        ),
        ("/spec/ports/0", json!(80), "spec.ports[0]"),
        ("/spec/ports", json!({}), "spec.ports"),
        (
            "/spec/type",
            json!(format!("ClusterIP; {MARK}")),
            "spec.type",
        ),
        ("/spec/clusterIPs", json!("10.96.0.91"), "spec.clusterIPs"),
        (
            "/spec/clusterIPs/0",
            json!("127.0.0.1"),
            "spec.clusterIPs[0]",
        ),
        ("/spec/clusterIPs/0", json!("0.0.0.0"), "spec.clusterIPs[0]"),
        (
            "/spec/clusterIPs/0",
            json!("224.0.0.1"),
            "spec.clusterIPs[0]",
        ),
        (
            "/spec/clusterIPs/0",
            json!("255.255.255.255"),
            "spec.clusterIPs[0]",
        ),
        (
            "/spec/clusterIPs/0",
            json!("::ffff:10.96.0.91"),
            "spec.clusterIPs[0]",
        ),
        (
            "/spec/clusterIPs/0",
            json!("10.96.0.256"),
            "spec.clusterIPs[0]",
        ),
        (
            "/spec/clusterIPs/1",
            json!("fd00:96::91%eth0"),
            "spec.clusterIPs[1]",
        ),
        (
            "/spec/clusterIPs/0",
            json!(format!("10.96.0.91 {MARK}")),
            "spec.clusterIPs[0]",
        ),
        ("/spec", json!(MARK), "spec"),
        ("/metadata/annotations", json!(MARK), "metadata.annotations"),
        (
            "/metadata/creationTimestamp",
            json!(7),
            "metadata.creationTimestamp",
        ),
    ];
    let whole = victim
        .row("Services that cannot be used")
        .at(at(&nowhere.cluster_ips[0], 80));
    let mut whole = whole.finds(Find::Nothing);
    for (i, (pointer, value, field)) in refused.into_iter().enumerate() {
        let mut bad = nowhere.object();
        put(&mut bad, "/metadata/name", json!(format!("bad-{i}")));
        put(&mut bad, pointer, value);
        whole = whole.with_bad(bad, field);
    }
    let node = victim.stage.node.ipv4();
    let out_of_range = victim.row("F48: a node port out of range").put(
        SERVICE,
        "/spec/ports/0/nodePort",
        json!(80),
    );
    vec![
        whole,
        victim
            .row("a Service that goes bad keeps its last good version")
            .put(SERVICE, "/spec/ports/0/port", json!(0))
            .put(SERVICE, "/spec/clusterIPs/0", json!("10.96.0.91"))
            .names(SERVICE, &["spec.ports[0].port"])
            .keeps_last_good(),
        out_of_range
            .clone()
            .only(Source::Manifests)
            .names(SERVICE, &["spec.ports[0].nodePort"])
            .keeps_last_good()
            .at((node, 30090).into()),
        out_of_range.only(Source::Api).at((node, 80).into()),
        victim
            .row("F39, F51: ports that contradict those before them")
            .put(SERVICE, "/spec/ports/-", json!({ "name": "a", "port": 80 }))
            .put(
                SERVICE,
                "/spec/ports/-",
                json!({ "name": "main", "port": 82 }),
            )
            .put(
                SERVICE,
                "/spec/ports/-",
                json!({ "name": "c", "port": 83, "nodePort": 30090 }),
            )
            .put(
                SERVICE,
                "/spec/ports/-",
                json!({ "name": "d", "port": 84, "protocol": format!("QUIC {MARK}") }),
            )
            .names(
                SERVICE,
                &[
                    "spec.ports[1].port",
                    "spec.ports[2].name",
                    "spec.ports[3].nodePort",
                ],
            )
            .names(SERVICE, &["spec.ports[4].protocol"]),
        victim
            .row("more addresses than families, and a time that is none")
            .put(SERVICE, "/spec/clusterIPs/-", json!("10.96.0.91"))
            .put(
                SERVICE,
                "/metadata/creationTimestamp",
                json!(format!("yesterday {MARK}")),
            )
            .names(
                SERVICE,
                &["spec.clusterIPs[2]", "metadata.creationTimestamp"],
            ),
        victim
            .row("F50: a Service with nothing in it")
            .put(SERVICE, "/spec", Value::Null)
            .put(SERVICE, "/status", Value::Null)
            .put(SERVICE, "/metadata/uid", json!(""))
            .names(SERVICE, &["spec.clusterIP"])
            .finds(Find::Nothing),
        victim
            .row("F47, F48: fields of issues to come change nothing yet")
            .put(
                SERVICE,
                "/spec/externalIPs",
                json!([victim.stage.web.cluster_ips[0], node, "127.0.0.1", MARK]),
            )
            .put(
                SERVICE,
                "/status/loadBalancer/ingress",
                json!([{ "ip": victim.stage.web.cluster_ips[0] }, { "ip": MARK }]),
            )
            .put(SERVICE, "/spec/sessionAffinity", json!("ClientIP"))
            .put(
                SERVICE,
                "/spec/sessionAffinityConfig",
                json!({ "clientIP": { "timeoutSeconds": -86_401 } }),
            )
            .put(SERVICE, "/spec/healthCheckNodePort", json!(30090))
            .put(
                SERVICE,
                "/spec/loadBalancerSourceRanges",
                json!([MARK, "0.0.0.0/0"]),
            ),
    ]
}

/// F44-F46.
fn texts(victim: &Victim<'_>) -> Vec<Row> {
    let nowhere = service("nowhere", 91);
    let named = |field: &str, value: &str| {
        let mut object = nowhere.object();
        put(&mut object, field, json!(value));
        object
    };
    let mut names = victim
        .row("F44, F45: names that are none")
        .at(at(&nowhere.cluster_ips[0], 80))
        .finds(Find::Nothing);
    for (name, shown) in [
        ("a\" planted", "a\\\" planted"),
        ("}; add table ip planted { }", "}; add table ip planted { }"),
        ("line\nERROR planted", "line\\nERROR planted"),
        ("\u{1b}[31mplanted", "\\u{1b}[31mplanted"),
        ("back\\planted", "back\\\\planted"),
        ("\u{202e}detnalp", "\\u{202e}detnalp"),
        ("plänted", "plänted"),
        ("#planted", "#planted"),
        ("$(planted)", "$(planted)"),
        ("../planted", "../planted"),
        ("Planted", "Planted"),
        ("", ""),
    ] {
        names = names
            .with(named("/metadata/name", name))
            .names_line(&[&format!("Service default/{shown}: metadata.name: ")]);
    }
    let row = |what| victim.row(what);
    let mut long = service(&"l".repeat(253), 92);
    long.node_port = None;
    let mut long_objects = victim.stage.objects(&long, 0..2);
    for (i, object) in long_objects.iter_mut().enumerate() {
        put(object, "/metadata/namespace", json!("n".repeat(63)));
        put(
            object,
            "/metadata/name",
            json!(if i == 0 { "l" } else { ["m", "s"][i - 1] }.repeat(253)),
        );
    }
    let long_row = long_objects
        .into_iter()
        .fold(row("F44: names as long as may be"), Row::with);
    let port_name = format!("\"}}; add table ip {MARK} {{ }}\n{}", "x".repeat(10_000));
    let annotation = format!("{MARK} $(reboot) \"; }}\n\u{1b}").repeat(256 * 1024 / 26);
    vec![
        names
            .with(named("/metadata/name", &"b".repeat(300)))
            .names_line(&["Service default/bbbbbbbb", "…: metadata.name: "])
            .with(named("/metadata/namespace", "x;planted"))
            .names_line(&["Service x;planted/nowhere: metadata.namespace: "])
            .with(named("/metadata/namespace", &"n".repeat(64)))
            .names_line(&["Service nnnn", "/nowhere: metadata.namespace: "]),
        long_row
            .at(at(&long.cluster_ips[0], 80))
            .finds(Find::Servers(2)),
        row("F44, F45: port names of any text")
            .put(SERVICE, "/spec/ports/0/name", json!(port_name))
            .put(SLICE, "/ports/0/name", json!(port_name)),
        row("F46: annotations of any text and length")
            .put(SERVICE, "/metadata/annotations", json!({ "x": annotation }))
            .put(
                SLICE,
                "/metadata/annotations",
                json!({ (MARK): annotation }),
            )
            .put(
                SLICE,
                "/metadata/annotations/endpoints.kubernetes.io~1last-change-trigger-time",
                json!(format!("99999999-{MARK}")),
            ),
    ]
}

/// The kinds without packets of their own: node ports are what a broken Node would cost.
fn others(victim: &Victim<'_>) -> Vec<Row> {
    let node_port = (victim.stage.node.ipv4(), 30090).into();
    let node = |pointer: &str, value: Value| {
        let mut node = victim.node();
        put(&mut node, pointer, value);
        node
    };
    let cidr = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": "bad" },
        "spec": { "cidrs": ["10.96.0.0/99", format!("{MARK}/8")] },
    });
    vec![
        victim
            .row("a Node's address that is none")
            .with_bad(
                node(
                    "/status/addresses/-",
                    json!({ "type": "InternalIP", "address": format!("1.2.3.4; {MARK}") }),
                ),
                "status.addresses[2].address",
            )
            .at(node_port),
        victim
            .row("everything goes bad and keeps its last good version")
            .put(SERVICE, "/spec/ports/0/port", json!(0))
            .names(SERVICE, &["spec.ports[0].port"])
            .put(SLICE, "/endpoints", json!(MARK))
            .names(SLICE, &["endpoints"])
            .with_bad(node("/status", json!(MARK)), "status")
            .keeps_last_good()
            .finds(Find::Servers(2))
            .at(node_port),
        victim
            .row("a Node's pod ranges that are none, and a ServiceCIDR's")
            .with_bad(
                node("/spec/podCIDRs", json!(["10.244.0.0/33"])),
                "spec.podCIDRs[0]",
            )
            .with(cidr)
            .names(4, &["spec.cidrs[0]", "spec.cidrs[1]"])
            .at(node_port),
    ]
}

/// F49, F51: more than one Service, and more than one can have.
fn several(victim: &Victim<'_>) -> Vec<Row> {
    let (elder, younger) = (service("elder", 92), service("a-younger", 92));
    let made = |of, pods, year: u16| {
        let mut objects = victim.stage.objects(of, pods);
        put(
            &mut objects[SERVICE],
            "/metadata/creationTimestamp",
            json!(format!("{year}-01-01T00:00:00Z")),
        );
        objects
    };
    let contested = [made(&younger, 0..3, 2026), made(&elder, 0..1, 2025)].concat();
    let contested = |what| {
        contested
            .iter()
            .cloned()
            .fold(victim.row(what), Row::with)
            .finds(Find::Servers(1))
    };
    let verdict = ["winner=default/elder", "loser=default/a-younger"];

    let big = service("big", 93);
    let mut objects = victim.stage.objects(&big, 0..0);
    let ports = 0..10;
    let service_ports = ports
        .clone()
        .map(|i| json!({ "name": format!("p{i}"), "port": 8000 + i }));
    let slice_ports = ports.map(|i| json!({ "name": format!("p{i}"), "port": 9000 + i }));
    let endpoints =
        (0..1000).map(|i| endpoint(json!([format!("10.244.{}.{}", 200 + i / 250, 1 + i % 250)])));
    put(
        &mut objects[SERVICE],
        "/spec/ports",
        service_ports.collect(),
    );
    put(&mut objects[SLICE], "/ports", slice_ports.collect());
    put(&mut objects[SLICE], "/endpoints", endpoints.collect());
    let big_row = objects.into_iter().fold(
        victim.row("F49: 1,000 endpoints with 10 ports each"),
        Row::with,
    );
    vec![
        contested("F51: one cluster IP, two Services")
            .says(&[&verdict[..], &["10.96.0.92"]].concat())
            .at(at(&elder.cluster_ips[0], 80)),
        contested("F51: one node port, two Services")
            .says(&[&verdict[..], &["NodePort(V4)"]].concat())
            .at((victim.stage.node.ipv4(), 30092).into()),
        big_row
            .at(at(&big.cluster_ips[0], 8009))
            .finds(Find::Servers(1)),
    ]
}

fn at(address: &str, port: u16) -> std::net::SocketAddr {
    let address: IpAddr = address.parse().expect("an address");
    (address, port).into()
}
