//! What a change may cost, in Services planned.

use std::net::TcpListener;

use super::*;

/// Services that no change concerns.
const BYSTANDERS: u8 = 200;

/// A control loop that serves the bystanders beside two Nodes, in this thread's network namespace.
fn crowd() -> Control<Fake> {
    let mut other = node();
    other.name = ObjectName::new("", "node-b");
    other.addresses = vec![[192, 168, 77, 11].into()];
    other.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    let mut control = control(Fake::new());
    let bystanders = (1..=BYSTANDERS).map(|n| tenant(n, &[]));
    let lists = [
        SourceEvent::Service(all(bystanders.collect())),
        SourceEvent::EndpointSlice(all(vec![])),
        SourceEvent::Node(all(vec![node(), other])),
        SourceEvent::ServiceCidr(all(vec![])),
    ];
    lists.into_iter().for_each(|event| control.event(event));
    control.turn(&[]);
    assert_eq!(planned(&control), usize::from(BYSTANDERS));
    control
}

/// A Service of port 80 that asks for these external IPs.
fn tenant(n: u8, external_ips: &[&str]) -> Service {
    let mut service = service();
    service.name = ObjectName::new("default", format!("tenant-{n}"));
    service.cluster_ips = vec![IpAddr::from([10, 96, 1, n])].into();
    service
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = None);
    service.external_ips = external_ips.iter().map(|ip| ip.parse().unwrap()).collect();
    service
}

fn planned(control: &Control<Fake>) -> usize {
    metric(control, "portolan_services_planned_total ").unwrap()
}

/// Services planned for one event.
fn plans(control: &mut Control<Fake>, event: SourceEvent) -> usize {
    let before = planned(control);
    control.event(event);
    turn_at_once(control);
    // What the turn has made dirty.
    turn_at_once(control);
    planned(control) - before
}

fn apply(service: Service) -> SourceEvent {
    SourceEvent::Service(ObjectEvent::Apply(Arc::new(service)))
}

#[test]
fn asking_for_other_nodes_addresses_plans_one_service() {
    let mut control = crowd();
    for _ in 0..5 {
        let taken = tenant(0, &["192.168.77.11", "10.244.1.7"]);
        assert_eq!(plans(&mut control, apply(taken)), 1);
        assert_eq!(elements(&control, "external_ips"), 0);
        let free = tenant(0, &["203.0.113.7"]);
        assert_eq!(plans(&mut control, apply(free)), 1);
        assert_eq!(elements(&control, "external_ips"), 1);
    }
}

#[test]
fn a_node_that_takes_an_address_plans_its_askers_alone() {
    let mut control = crowd();
    control.event(apply(tenant(0, &["203.0.113.7"])));
    turn_at_once(&mut control);
    let mut third = node();
    third.name = ObjectName::new("", "node-c");
    third.pod_cidrs = Vec::new();
    for _ in 0..5 {
        for (address, served) in [("203.0.113.7", 0), ("203.0.113.8", 1)] {
            third.addresses = vec![address.parse().unwrap()];
            let event = SourceEvent::Node(ObjectEvent::Apply(Arc::new(third.clone())));
            assert!(plans(&mut control, event) <= 1);
            assert_eq!(elements(&control, "external_ips"), served);
        }
    }
}

/// In a network namespace of its own, where nobody else listens.
#[test]
fn asking_for_a_listeners_port_plans_one_service() {
    let test = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        let mut control = crowd();
        for _ in 0..5 {
            let taken = tenant(0, &["192.168.77.10"]);
            // Once for the change, once more if the listener is found after that.
            assert!(plans(&mut control, apply(taken)) <= 2);
            assert_eq!(elements(&control, "external_ips"), 0);
            assert!(plans(&mut control, apply(tenant(0, &[]))) <= 2);
        }
        drop(listener);
    });
    test.join().unwrap();
}

/// The slice of `web` with 400 endpoints from this one on.
fn large(first: u16) -> SourceEvent {
    let mut large = slice("10.244.0.5");
    let one = large.endpoints[0].clone();
    let endpoint = |n: u16| {
        let [high, low] = n.to_be_bytes();
        let mut endpoint = one.clone();
        endpoint.address = [10, 244, high, low].into();
        endpoint
    };
    large.endpoints = (first..first + 400).map(endpoint).collect();
    SourceEvent::EndpointSlice(ObjectEvent::Apply(Arc::new(large)))
}

#[test]
fn a_replaced_endpoint_of_a_large_service_moves_few_others() {
    let mut control = synced();
    control.event(large(256));
    turn_at_once(&mut control);
    let written = |control: &Control<Fake>| {
        metric(control, "portolan_elements_written_total ").expect("the metric")
    };
    let contents = |control: &Control<Fake>, map: &str| {
        let table = control.dataplane.backend().contents(Family::Ip).unwrap();
        let elements = table.elements[map].iter();
        elements
            .map(|element| element.data.clone())
            .collect::<Vec<_>>()
    };
    for first in 257..262 {
        let before = (written(&control), contents(&control, "backends_400"));
        control.event(large(first));
        turn_at_once(&mut control);
        // For cluster IP and node port one deleted and one added of each that moves; of sorted ones nearly 400 would.
        let elements = written(&control) - before.0;
        assert!((4..=240).contains(&elements), "{elements}");
        let after = contents(&control, "backends_400");
        assert_eq!(after.len(), 400);
        let gone = before.1.iter().filter(|data| !after.contains(data));
        let new = after.iter().filter(|data| !before.1.contains(data));
        assert_eq!((gone.count(), new.count()), (1, 1));
    }
}
