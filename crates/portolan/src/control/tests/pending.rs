//! Changes that wait: what counts as pending, and what waiting costs.

use super::recreated::over_budget;
use super::*;

fn pending(control: &Control<Fake>) -> Option<Instant> {
    control.reports.status.load().pending_since
}

/// Another Service, at this cluster IP.
fn other(host: u8) -> SourceEvent {
    let mut other = service();
    other.name = ObjectName::new("default", "other");
    other.cluster_ips = vec![IpAddr::from([10, 96, 0, host])].into();
    for port in &mut other.ports {
        port.node_port = None;
    }
    SourceEvent::Service(ObjectEvent::Apply(Arc::new(other)))
}

#[test]
fn health_does_not_wait_for_a_flapping_service() {
    let mut control = synced();
    let web = service().name;
    // As if it had changed for a minute.
    let later = Instant::now() + Duration::from_secs(60);
    control.flapping.committed([&web].into_iter(), later);
    let event = ObjectEvent::Apply(Arc::new(slice("10.244.0.6")));
    control.event(SourceEvent::EndpointSlice(event));
    turn_at_once(&mut control);
    assert_eq!(pending(&control), None);
    control.event(other(2));
    turn_at_once(&mut control);
    assert_eq!(elements(&control, "no_endpoints"), 1);
    assert!(control.view.dirty().contains(&web));
    assert_eq!(pending(&control), None);
    let name = "kubeproxy_sync_proxy_rules_endpoint_changes_pending ";
    assert_eq!(metric(&control, name), Some(0));
    // A change of another Service that cannot be committed counts from its arrival.
    let mut since = None;
    for host in 3..6 {
        control.dataplane.backend_mut().fail_next(Errno::ENOBUFS);
        control.event(other(host));
        turn_at_once(&mut control);
        since = since.or(pending(&control));
        assert!(since.is_some() && pending(&control) == since);
    }
    turn_at_once(&mut control);
    assert!(control.view.dirty().contains(&web));
    assert_eq!(pending(&control), None);
}

#[test]
fn services_over_their_budget_are_charged_for_each_plan() {
    let mut control = synced();
    // More of them than a batch whose Services are not charged has.
    let bad = |n: u8| {
        let mut bad = over_budget(service().created, &format!("10.96.1.{n}"));
        bad.name = ObjectName::new("default", format!("bad-{n}"));
        bad.ports.iter_mut().for_each(|port| port.node_port = None);
        bad
    };
    let all: Vec<Service> = (1..=70).map(bad).collect();
    let start = Instant::now();
    for bad in &all {
        let event = ObjectEvent::Apply(Arc::new(bad.clone()));
        control.event(SourceEvent::Service(event));
    }
    turn_at_once(&mut control);
    // A second before, a Service with a debt had to wait.
    let before = start - Duration::from_secs(1);
    for bad in &all {
        assert!(control.view.is_over_budget(&bad.name));
        assert!(control.flapping.due(&bad.name, before).is_some());
    }
}

#[test]
fn times_of_changes_are_bounded_while_nothing_is_committed() {
    let mut control = synced();
    control.triggers = vec![(Family::Ip, SystemTime::now()); 2 * MAX_TRIGGERS];
    control.dataplane.backend_mut().fail_next(Errno::ENOBUFS);
    control.event(SourceEvent::EndpointSlice(all(vec![])));
    turn_at_once(&mut control);
    assert!(control.failed);
    assert_eq!(control.triggers.len(), MAX_TRIGGERS);
    control.dataplane.backend_mut().own_elsewhere(true);
    turn_at_once(&mut control);
    assert!(control.standby);
    assert!(control.triggers.is_empty());
}
