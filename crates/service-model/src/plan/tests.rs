mod budget;
mod policies;

use std::sync::Arc;

use super::*;
use crate::intent::Frontend;
use crate::objects::{ObjectName, ServiceType};
use crate::samples::{facts, lines, service, slice};

/// The plan without surroundings.
fn plan(service: &Service, slices: &[EndpointSlice], facts: &NodeFacts) -> Plan {
    super::plan(service, slices, facts, &Surroundings::default())
}

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
fn backends_are_sorted_by_address() {
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
fn a_node_port_is_served_for_every_service_type() {
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
fn two_slice_ports_of_one_name_are_two_endpoints() {
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
fn of_duplicates_the_first_that_is_not_terminating_counts() {
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
fn an_endpoint_at_the_own_cluster_ip_is_ignored() {
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
fn a_slice_that_leads_to_its_own_service_is_reported() {
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
fn frontends_are_unique_and_the_first_port_wins() {
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
