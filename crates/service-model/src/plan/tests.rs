//! Numbers such as row 34 and F42 are the catalogues' of kube-proxy's behaviour and of bad input.

mod policies;

use std::sync::Arc;

use super::*;
use crate::intent::Frontend;
use crate::objects::{ObjectName, ServiceType};
use crate::samples::{facts, lines, service, slice};

/// The Service's frontends on node-1, as text.
#[track_caller]
fn plans(service: &Service, slices: &[EndpointSlice], expected: &[&str]) {
    assert_eq!(lines(&plan(service, slices, &facts()).intent), expected);
}

fn backends(frontend: &Frontend) -> &Arc<[Backend]> {
    match &frontend.disposition {
        Disposition::Balance(backends) => backends,
        Disposition::Refuse | Disposition::Drop => panic!("no backends"),
    }
}

#[test]
fn a_cluster_ip_port_is_balanced_over_its_endpoints_sorted_by_address() {
    let intent = plan(
        &service("shop/web", "10.96.0.1", "http/80/TCP"),
        &[slice(
            "shop/web-1",
            "web",
            "http/8080/TCP",
            "10.1.10.1 10.1.9.1@node-1 10.1.2.1@node-2",
        )],
        &facts(),
    )
    .intent;
    assert_eq!(
        lines(&intent),
        ["10.96.0.1 80/TCP off-cluster: 10.1.2.1:8080 10.1.9.1:8080* 10.1.10.1:8080"]
    );
    assert_eq!(intent.service, ObjectName::new("shop", "web"));
    assert_eq!(intent.created, Some(7));
}

#[test]
fn row_12_a_node_port_is_served_whatever_the_type_and_shares_its_backends() {
    for service_type in [
        ServiceType::ClusterIp,
        ServiceType::NodePort,
        ServiceType::LoadBalancer,
    ] {
        let mut service = service("shop/web", "10.96.0.1", "http/80/TCP/30080");
        service.service_type = service_type;
        let slices = [slice("shop/web-1", "web", "http/8080/TCP", "10.1.0.5")];
        plans(
            &service,
            &slices,
            &[
                "10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080",
                "node-ip 30080/TCP always: 10.1.0.5:8080",
            ],
        );
        let intent = plan(&service, &slices, &facts()).intent;
        assert!(Arc::ptr_eq(
            backends(&intent.frontends[0]),
            backends(&intent.frontends[1])
        ));
    }
}

#[test]
fn rows_11_and_27_each_family_has_its_own_address_node_port_and_endpoints() {
    let slices = [
        slice("shop/web-1", "web", "http/8080/TCP", "fd00:1::5"),
        slice("shop/web-2", "web", "http/8080/TCP", "10.1.0.5"),
    ];
    plans(
        &service("shop/web", "fd00::1 10.96.0.1", "http/80/TCP/30080"),
        &slices,
        &[
            "10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080",
            "fd00::1 80/TCP off-cluster: fd00:1::5:8080",
            "node-ip 30080/TCP always: 10.1.0.5:8080",
            "node-ip6 30080/TCP always: fd00:1::5:8080",
        ],
    );
    plans(
        &service("shop/web", "fd00::1", "http/80/TCP/30080"),
        &slices,
        &[
            "fd00::1 80/TCP off-cluster: fd00:1::5:8080",
            "node-ip6 30080/TCP always: fd00:1::5:8080",
        ],
    );
}

#[test]
fn rows_10_and_26_ports_of_one_address_are_independent_and_protocols_do_not_mix() {
    plans(
        &service(
            "kube-system/dns",
            "10.96.0.10",
            "dns/53/UDP dns/53/TCP metrics/9153/TCP sig/53/SCTP",
        ),
        &[slice(
            "kube-system/dns-1",
            "dns",
            "dns/5353/UDP dns/5354/TCP metrics/9153/TCP",
            "10.1.0.5",
        )],
        &[
            "10.96.0.10 53/TCP off-cluster: 10.1.0.5:5354",
            "10.96.0.10 9153/TCP off-cluster: 10.1.0.5:9153",
            "10.96.0.10 53/UDP off-cluster: 10.1.0.5:5353",
            "10.96.0.10 53/SCTP off-cluster: refuse",
        ],
    );
}

#[test]
fn rows_22_and_29_endpoint_ports_are_found_by_name_not_by_number() {
    let slices = [
        slice(
            "shop/web-1",
            "web",
            "https/443/TCP http/8080/TCP",
            "10.1.0.5",
        ),
        slice("shop/web-2", "web", "http/9090/TCP", "10.1.0.6"),
        slice("shop/web-3", "web", "/80/TCP", "10.1.0.7"),
    ];
    plans(
        &service("shop/web", "10.96.0.1", "http/80/TCP other/81/TCP"),
        &slices,
        &[
            "10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080 10.1.0.6:9090",
            "10.96.0.1 81/TCP off-cluster: refuse",
        ],
    );
    plans(
        &service("shop/web", "10.96.0.1", "/80/TCP"),
        &slices,
        &["10.96.0.1 80/TCP off-cluster: 10.1.0.7:80"],
    );
}

#[test]
fn f41_two_slice_ports_of_one_name_are_two_endpoints() {
    plans(
        &service("shop/web", "10.96.0.1", "http/80/TCP"),
        &[slice(
            "shop/web-1",
            "web",
            "http/8080/TCP http/8081/TCP",
            "10.1.0.5",
        )],
        &["10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080 10.1.0.5:8081"],
    );
}

#[test]
fn without_endpoints_a_frontend_refuses() {
    let service = service("shop/web", "10.96.0.1", "http/80/TCP/30080");
    let refuse = &[
        "10.96.0.1 80/TCP off-cluster: refuse",
        "node-ip 30080/TCP always: refuse",
    ];
    plans(&service, &[], refuse);
    plans(
        &service,
        &[slice("shop/web-1", "web", "http/8080/TCP", "")],
        refuse,
    );
    plans(
        &service,
        &[slice(
            "shop/web-1",
            "web",
            "http/8080/TCP",
            "10.1.0.5:s 10.1.0.6:t",
        )],
        refuse,
    );
    plans(
        &service,
        &[slice("shop/web-1", "web", "", "10.1.0.5")],
        refuse,
    );
}

#[test]
fn terminating_endpoints_serve_only_when_none_is_ready_in_that_family() {
    let slices = [
        slice("shop/web-1", "web", "http/8080/TCP", "10.1.0.5:st 10.1.0.6"),
        slice(
            "shop/web-2",
            "web",
            "http/8080/TCP",
            "fd00:1::5:st fd00:1::6:t",
        ),
    ];
    plans(
        &service("shop/web", "10.96.0.1 fd00::1", "http/80/TCP"),
        &slices,
        &[
            "10.96.0.1 80/TCP off-cluster: 10.1.0.6:8080",
            "fd00::1 80/TCP off-cluster: fd00:1::5:8080",
        ],
    );
}

#[test]
fn rows_34_f35_of_duplicates_the_first_slice_counts_unless_it_is_terminating() {
    let service = service("shop/web", "10.96.0.1", "http/80/TCP");
    let twice = |first: &str, second: &str, expected: &str| {
        let slices = [
            slice("shop/web-1", "web", "http/8080/TCP", first),
            slice("shop/web-2", "web", "http/8080/TCP", second),
        ];
        plans(
            &service,
            &slices,
            &[&format!("10.96.0.1 80/TCP off-cluster: {expected}")],
        );
        // The same within one slice.
        let slices = [slice(
            "shop/web-1",
            "web",
            "http/8080/TCP",
            &format!("{first} {second}"),
        )];
        plans(
            &service,
            &slices,
            &[&format!("10.96.0.1 80/TCP off-cluster: {expected}")],
        );
    };
    twice("10.1.0.5@node-1", "10.1.0.5@node-2", "10.1.0.5:8080*");
    twice("10.1.0.5@node-2", "10.1.0.5@node-1", "10.1.0.5:8080");
    twice("10.1.0.5:@node-1", "10.1.0.5@node-2", "refuse");
    twice("10.1.0.5:st@node-2", "10.1.0.5@node-1", "10.1.0.5:8080*");
    twice("10.1.0.5@node-1", "10.1.0.5:st@node-2", "10.1.0.5:8080*");
    twice("10.1.0.5:st@node-1", "10.1.0.5:t@node-2", "10.1.0.5:8080*");
    twice("10.1.0.5:st", "10.1.0.5:s@node-1", "refuse");
}

#[test]
fn one_address_with_two_ports_is_no_duplicate() {
    let slices = [
        slice("shop/web-1", "web", "http/8080/TCP", "10.1.0.5"),
        slice("shop/web-2", "web", "http/8081/TCP", "10.1.0.5 10.1.0.6"),
    ];
    plans(
        &service("shop/web", "10.96.0.1", "http/80/TCP"),
        &slices,
        &["10.96.0.1 80/TCP off-cluster: 10.1.0.5:8080 10.1.0.5:8081 10.1.0.6:8081"],
    );
}

#[test]
fn f42_a_cluster_ip_of_the_service_is_no_endpoint_of_it() {
    let service = service("shop/web", "10.96.0.1", "http/80/TCP");
    plans(
        &service,
        &[slice(
            "shop/web-1",
            "web",
            "http/80/TCP",
            "10.96.0.1 10.1.0.5 192.0.2.1",
        )],
        &["10.96.0.1 80/TCP off-cluster: 10.1.0.5:80 192.0.2.1:80"],
    );
    plans(
        &service,
        &[slice("shop/web-1", "web", "http/80/TCP", "10.96.0.1")],
        &["10.96.0.1 80/TCP off-cluster: refuse"],
    );
}

#[test]
fn f42_a_slice_that_leads_to_its_own_service_is_named() {
    let service = service("shop/web", "10.96.0.1", "http/80/TCP");
    let slices = [
        slice("shop/web-1", "web", "http/80/TCP", "10.1.0.5"),
        slice("shop/web-2", "web", "http/80/TCP", "10.1.0.6 10.96.0.1"),
    ];
    let named = plan(&service, &slices, &facts()).ignored;
    let named: Vec<String> = named.iter().map(ToString::to_string).collect();
    assert_eq!(
        named,
        ["EndpointSlice shop/web-2: endpoints: 10.96.0.1 is the cluster IP of the Service itself"]
    );
}

#[test]
fn f51_frontends_are_unique_and_the_first_port_wins() {
    let slices = [slice(
        "shop/web-1",
        "web",
        "a/8080/TCP b/8081/TCP",
        "10.1.0.5",
    )];
    plans(
        &service(
            "shop/web",
            "10.96.0.1 10.96.0.2",
            "b/80/TCP/30080 a/80/TCP/30080",
        ),
        &slices,
        &[
            "10.96.0.1 80/TCP off-cluster: 10.1.0.5:8081",
            "node-ip 30080/TCP always: 10.1.0.5:8081",
        ],
    );
}

#[test]
fn row_32_local_is_what_runs_on_the_node_that_plans() {
    let service = service("shop/web", "10.96.0.1", "http/80/TCP");
    let slices = [slice(
        "shop/web-1",
        "web",
        "http/80/TCP",
        "10.1.0.5@node-1 10.1.0.6@node-2 10.1.0.7",
    )];
    let mut facts = facts();
    for (node, expected) in [
        ("node-1", [true, false, false]),
        ("node-2", [false, true, false]),
        ("", [false; 3]),
    ] {
        facts.node_name = node.into();
        let intent = plan(&service, &slices, &facts).intent;
        let local: Vec<bool> = backends(&intent.frontends[0])
            .iter()
            .map(|b| b.local)
            .collect();
        assert_eq!(local, expected, "{node}");
    }
}
