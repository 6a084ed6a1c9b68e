mod pending;
mod quarantine;
mod recreated;
mod work;

use std::time::Duration;

use nft::{Fake, Family};
use nix::errno::Errno;
use object_source::Subject;
use service_model::wire::{self, ConversionContext, Object};
use service_model::{
    DetectLocal, EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service,
};

use super::*;
use crate::metrics::Format;

fn control(backend: Fake) -> Control<Fake> {
    let node = NodeConfig {
        detect_local: DetectLocal::NodeCidr,
        ..NodeConfig::named("node-a")
    };
    let metrics: Arc<Metrics> = Arc::default();
    let observers: Vec<Box<dyn Observer>> = vec![Box::new(metrics.clone())];
    let reports = ControlReports {
        status: Arc::default(),
        metrics,
    };
    Control::new(node, backend, reports, observers, None)
}

fn object<W: Object + serde::de::DeserializeOwned>(value: serde_json::Value) -> W::Model {
    serde_json::from_value::<W>(value)
        .unwrap()
        .into_model(&mut ConversionContext::default())
        .unwrap()
        .object
}

fn service() -> Service {
    object::<wire::Service>(serde_json::json!({
        "metadata": { "name": "web", "namespace": "default" },
        "spec": { "type": "NodePort", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"],
                  "ports": [{ "port": 80, "protocol": "TCP", "nodePort": 30080 }] },
    }))
}

fn slice(address: &str) -> EndpointSlice {
    slice_changed_at(address, "2026-01-01T00:00:00Z")
}

fn slice_changed_at(address: &str, time: &str) -> EndpointSlice {
    object::<wire::EndpointSlice>(serde_json::json!({
        "metadata": { "name": "web-1", "namespace": "default", "labels": { "kubernetes.io/service-name": "web" },
                      "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": time } },
        "addressType": "IPv4",
        "ports": [{ "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address] }],
    }))
}

fn node() -> Node {
    object::<wire::Node>(serde_json::json!({
        "metadata": { "name": "node-a" },
        "spec": { "podCIDRs": ["10.244.0.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.77.10" }] },
    }))
}

/// A complete list.
fn all<T>(objects: Vec<T>) -> ObjectEvent<T> {
    ObjectEvent::list(objects)
}

fn lists() -> [SourceEvent; 4] {
    [
        SourceEvent::Service(all(vec![service()])),
        SourceEvent::EndpointSlice(all(vec![slice("10.244.0.5")])),
        SourceEvent::Node(all(vec![node()])),
        SourceEvent::ServiceCidr(all(vec![])),
    ]
}

/// A control loop whose first sync is complete.
fn synced() -> Control<Fake> {
    let mut control = control(Fake::new());
    lists().into_iter().for_each(|event| control.event(event));
    control.turn(&[]);
    control
}

/// Runs a turn without the batching interval.
fn turn_at_once(control: &mut Control<Fake>) {
    control.pace = Pace::default();
    control.turn(&[]);
}

/// The value in the scrape's line that begins with `name`.
fn metric(control: &Control<Fake>, name: &str) -> Option<usize> {
    let text = control.reports.metrics.encode(Format::Text);
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.map(|value| value.parse().unwrap())
}

/// Number of elements of a set that the backend holds.
fn elements(control: &Control<Fake>, set: &str) -> usize {
    let contents = control.dataplane.backend().contents(Family::Ip);
    contents
        .and_then(|contents| contents.elements.get(set).map(Vec::len))
        .unwrap_or(0)
}

#[test]
fn nothing_is_written_before_every_kind_is_listed() {
    for missing in 0..4 {
        let mut control = control(Fake::new());
        for (i, event) in lists().into_iter().enumerate() {
            if i != missing {
                control.event(event);
            }
        }
        control.turn(&[]);
        assert_eq!(
            control.dataplane.backend().counters(),
            nft::Counters::default()
        );
        assert_eq!(control.reports.status.load().waiting_for.len(), 1);
        control.event(lists().into_iter().nth(missing).unwrap());
        control.turn(&[]);
        assert!(control.reports.status.load().synced);
        assert_eq!(elements(&control, "frontends_1"), 1);
        assert_eq!(elements(&control, "node_addresses"), 1);
    }
}

#[test]
fn a_start_without_an_api_server_is_never_stuck() {
    let mut control = control(Fake::new());
    let outage = |kind| SourceEvent::Connection {
        kind,
        state: Err(object_source::Outage {
            reason: "connection refused".into(),
            retry_after: Duration::from_secs(1),
        }),
    };
    let late = Instant::now() + crate::status::STUCK_AFTER * 10;
    let health = |control: &Control<Fake>| control.reports.status.load().health(late);
    for event in [outage(ObjectKind::Node), outage(ObjectKind::Service)] {
        control.event(event);
        control.turn(&[]);
        assert_eq!(health(&control), crate::status::Health::Starting);
    }
    // The API server answers, and the kernel refuses the commit.
    lists().into_iter().for_each(|event| control.event(event));
    control.dataplane.backend_mut().fail_next(Errno::ENOBUFS);
    control.turn(&[]);
    assert_eq!(health(&control), crate::status::Health::Stuck);
}

#[test]
fn services_do_not_wait_for_service_cidrs() {
    let mut control = control(Fake::new());
    lists()
        .into_iter()
        .take(3)
        .for_each(|event| control.event(event));
    control.turn(&[]);
    assert!(!control.reports.status.load().synced);
    control.event(SourceEvent::Connection {
        kind: ObjectKind::ServiceCidr,
        state: Err(object_source::Outage {
            reason: "500".into(),
            retry_after: Duration::from_secs(1),
        }),
    });
    control.turn(&[]);
    assert!(control.reports.status.load().synced);
}

#[test]
fn a_cluster_without_services_gets_its_tables() {
    let mut control = control(Fake::new());
    control.event(SourceEvent::Service(all(vec![])));
    control.event(SourceEvent::EndpointSlice(all(vec![])));
    control.event(SourceEvent::Node(all(vec![])));
    control.event(SourceEvent::ServiceCidr(all(vec![])));
    control.turn(&[]);
    assert!(control.dataplane.backend().contents(Family::Ip6).is_some());
    assert!(control.reports.status.load().synced);
}

#[test]
fn a_deleted_node_object_removes_no_rules() {
    let mut control = synced();
    for event in [ObjectEvent::Delete(node().name), all(vec![])] {
        control.event(SourceEvent::Node(event));
        let before = control.dataplane.backend().counters();
        control.turn(&[]);
        assert_eq!(control.dataplane.backend().counters(), before);
    }
    assert_eq!(elements(&control, "node_addresses"), 1);
}

#[test]
fn a_node_is_eligible_while_it_exists_and_stays() {
    let mut control = control(Fake::new());
    let eligible = |control: &mut Control<Fake>, event: Option<ObjectEvent<Node>>| {
        if let Some(event) = event {
            control.event(SourceEvent::Node(event));
        }
        control.turn(&[]);
        control.reports.status.load().node_eligible
    };
    let leaving = Node {
        leaving: true,
        ..node()
    };
    let other = Node {
        name: ObjectName::new("", "node-b"),
        ..node()
    };
    assert!(!eligible(&mut control, None));
    assert!(eligible(&mut control, Some(all(vec![node()]))));
    assert!(!eligible(
        &mut control,
        Some(ObjectEvent::Apply(leaving.into()))
    ));
    assert!(eligible(
        &mut control,
        Some(ObjectEvent::Apply(node().into()))
    ));
    let others = ObjectEvent::Delete(other.name.clone());
    assert!(eligible(&mut control, Some(others)));
    let unreadable = ObjectEvent::Reset {
        objects: vec![],
        invalid: vec![node().name],
    };
    assert!(eligible(&mut control, Some(unreadable)));
    let gone = ObjectEvent::Delete(node().name);
    assert!(!eligible(&mut control, Some(gone)));
    assert!(!eligible(&mut control, Some(all(vec![other]))));
}

#[test]
fn a_file_that_does_not_parse_is_no_invalid_service() {
    let mut control = control(Fake::new());
    lists().into_iter().for_each(|event| control.event(event));
    let invalid_services = |control: &mut Control<Fake>, problem: Problem| {
        control.event(SourceEvent::Problem(problem));
        control.turn(&[]);
        metric(control, r#"portolan_invalid_objects{kind="Service"} "#)
    };
    let file = Problem::File {
        path: "web.yaml".into(),
        line: 3,
        reason: "cannot be parsed".into(),
    };
    assert_eq!(invalid_services(&mut control, file), Some(0));
    let object = Problem::Object {
        at: None,
        invalid: Invalid {
            kind: ObjectKind::Service,
            object: service().name,
            field: "spec.ports[0].port".into(),
            reason: "0 is outside 1-65535".into(),
        },
    };
    assert_eq!(invalid_services(&mut control, object), Some(1));
}

#[test]
fn ten_thousand_invalid_objects_are_nine_notes_and_no_commit() {
    let mut control = synced();
    let before = control.dataplane.backend().counters().transactions;
    let metric =
        |control: &Control<Fake>| metric(control, r#"portolan_invalid_objects{kind="Service"} "#);
    for n in 0..10_000 {
        let invalid = Invalid {
            kind: ObjectKind::Service,
            object: ObjectName::new("default", format!("invalid-{n}")),
            field: "spec.clusterIPs[0]".into(),
            reason: "no IP address".into(),
        };
        control.event(SourceEvent::Problem(Problem::Object { at: None, invalid }));
    }
    turn_at_once(&mut control);
    assert_eq!(metric(&control), Some(10_000));
    let status = control.reports.status.load_full();
    assert_eq!(status.notes.len(), 9);
    assert_eq!(status.notes[8], "9992 more objects are invalid");
    // Their lines hide no error of the kernel about another Service.
    let web = ObjectName::new("default", "web");
    assert!(!control.permits_about(Subject::Object(ObjectKind::Service, web.clone())));
    assert!(control.permits_about_quarantined(&web));
    // A list without them.
    control.event(SourceEvent::Service(all(vec![service()])));
    turn_at_once(&mut control);
    assert_eq!(metric(&control), Some(0));
    assert!(control.reports.status.load().notes.is_empty());
    let after = control.dataplane.backend().counters().transactions;
    assert_eq!(after, before, "commits");
}

#[test]
fn an_unchanged_object_causes_no_commit() {
    let mut control = synced();
    let before = control.dataplane.backend().counters();
    lists().into_iter().for_each(|event| control.event(event));
    control.turn(&[]);
    assert_eq!(control.dataplane.backend().counters(), before);
    assert_eq!(control.reports.status.load().pending_since, None);
}

#[test]
fn a_failed_commit_is_retried_until_it_succeeds() {
    let mut control = synced();
    control.pace = Pace::default();
    control.dataplane.backend_mut().fail_next(Errno::ENOBUFS);
    control.event(SourceEvent::EndpointSlice(all(vec![])));
    control.turn(&[]);
    assert!(control.reports.status.load().pending_since.is_some());
    assert_eq!(elements(&control, "no_endpoints"), 0);
    let retry = control.wake(Instant::now()).unwrap();
    assert!(retry <= Instant::now() + Duration::from_millis(100));
    turn_at_once(&mut control);
    assert_eq!(control.reports.status.load().pending_since, None);
    assert_eq!(elements(&control, "no_endpoints"), 1);
}

#[test]
fn a_foreign_change_is_repaired_at_once() {
    let mut control = synced();
    control
        .dataplane
        .backend_mut()
        .change_as_foreign(Family::Ip, |table| *table = None);
    let notice = Notice::Changed(control.dataplane.backend_mut().generation().unwrap());
    control.foreign_change(notice);
    let now = Instant::now();
    assert!(control.wake(now).is_some_and(|at| at <= Instant::now()));
    control.turn(&[]);
    assert_eq!(elements(&control, "frontends_1"), 1);
    assert_eq!(control.wake(Instant::now()), None);
    // A change that is repaired already must not cause a reading, which takes half a second at 10,000 Services.
    control.foreign_change(notice);
    assert_eq!(control.wake(Instant::now()), None);
    control.foreign_change(Notice::Overrun);
    assert!(control.wake(Instant::now()).is_some());
}

#[test]
fn changes_are_pending_until_they_are_in_the_kernel() {
    let mut control = control(Fake::new());
    let pending = |control: &Control<Fake>| {
        ["service", "endpoint"].map(|kind| {
            let name = format!("kubeproxy_sync_proxy_rules_{kind}_changes_pending ");
            metric(control, &name).unwrap()
        })
    };
    let [services, slices, nodes, cidrs] = lists();
    control.event(services);
    control.event(slices);
    control.event(cidrs);
    control.turn(&[]);
    assert_eq!(pending(&control), [1, 1], "the Node is not known yet");
    control.event(nodes);
    control.turn(&[]);
    assert_eq!(pending(&control), [0, 0]);
}

#[test]
fn programming_duration_counts_changes_since_the_start() {
    let mut control = control(Fake::new());
    let measured = |control: &Control<Fake>| {
        let name = "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"} ";
        metric(control, name).unwrap_or(0)
    };
    lists().into_iter().for_each(|event| control.event(event));
    control.turn(&[]);
    assert_eq!(measured(&control), 0, "older than the daemon");
    let mut apply = |address: &str, seconds: i64| {
        let now = k8s_openapi::jiff::Timestamp::now();
        let time = now + k8s_openapi::jiff::SignedDuration::from_secs(seconds);
        let slice = slice_changed_at(address, &time.to_string());
        let event = ObjectEvent::Apply(Arc::new(slice));
        control.event(SourceEvent::EndpointSlice(event));
        turn_at_once(&mut control);
        measured(&control)
    };
    assert_eq!(apply("10.244.0.6", 1), 1);
    assert_eq!(apply("10.244.0.6", 2), 1, "nothing but the time changed");
    assert_eq!(apply("10.244.0.7", 3), 2);
}

#[test]
fn a_process_that_stands_by_is_ready_and_alive() {
    let mut control = control(Fake::new());
    control.dataplane.backend_mut().own_elsewhere(true);
    lists().into_iter().for_each(|event| control.event(event));
    for _ in 0..3 {
        turn_at_once(&mut control);
        let status = control.reports.status.load();
        assert!(status.standby && !status.synced);
        assert_eq!(
            status.notes,
            ["standing by: another process owns the tables"]
        );
        let late = Instant::now() + crate::status::STUCK_AFTER * 10;
        assert_ne!(status.health(late), crate::status::Health::Stuck);
        let again = control.wake(Instant::now()).unwrap();
        assert!(again <= Instant::now() + Duration::from_millis(250));
    }
    let text = control.reports.metrics.encode(Format::Text);
    assert!(text.contains("\nportolan_standby 1\n"), "{text}");
    let failures = text
        .lines()
        .filter(|line| line.contains("sync_failures_total{"));
    assert!(
        failures.clone().count() > 0 && failures.clone().all(|line| line.ends_with(" 0")),
        "{text}"
    );
    control.dataplane.backend_mut().own_elsewhere(false);
    turn_at_once(&mut control);
    let status = control.reports.status.load();
    assert!(status.synced && !status.standby && status.notes.is_empty());
    assert_eq!(elements(&control, "frontends_1"), 1);
}

#[test]
fn node_ports_stay_after_a_restart_without_the_node_object() {
    let left = synced().dataplane.backend().contents(Family::Ip).unwrap();
    let mut control = control(Fake::holding(left));
    let [services, slices, _, cidrs] = lists();
    for event in [services, slices, cidrs, SourceEvent::Node(all(vec![]))] {
        control.event(event);
    }
    control.turn(&[]);
    assert_eq!(elements(&control, "node_addresses"), 1);
    let notes = control.reports.status.load().notes.clone();
    assert!(
        notes.iter().any(|note| note.contains("node-a")),
        "{notes:?}"
    );
    // The Node object's address replaces the adopted one.
    let mut moved = node();
    moved.addresses = vec!["192.168.77.11".parse().unwrap()];
    control.event(SourceEvent::Node(all(vec![moved])));
    turn_at_once(&mut control);
    assert_eq!(control.dataplane.facts().node_addresses.len(), 1);
    assert_eq!(elements(&control, "node_addresses"), 1);
    assert!(control.reports.status.load().notes.is_empty());
}

#[test]
fn a_repair_leaves_waiting_changes_pending() {
    let mut control = synced();
    control.event(SourceEvent::EndpointSlice(all(vec![])));
    control.foreign_change(Notice::Overrun);
    // The batch waits for its interval, the repair does not.
    control
        .pace
        .committed(Instant::now() + Duration::from_secs(60), Duration::ZERO);
    control.turn(&[]);
    assert_eq!(elements(&control, "no_endpoints"), 0);
    assert!(control.reports.status.load().pending_since.is_some());
}

#[test]
fn a_service_that_flaps_waits_and_others_do_not() {
    let mut control = synced();
    let mut changes = 0;
    let mut change = |control: &mut Control<Fake>| {
        changes += 1;
        let slice = slice(&format!("10.244.1.{changes}"));
        control.event(SourceEvent::EndpointSlice(all(vec![slice])));
        let before = control.dataplane.backend().counters().transactions;
        turn_at_once(control);
        control.dataplane.backend().counters().transactions - before
    };
    let made: usize = (0..100).map(|_| change(&mut control)).sum();
    assert!((9..100).contains(&made), "{made} of 100 changes at once");
    while change(&mut control) > 0 {}
    let now = Instant::now();
    let held = control.wake(now).unwrap();
    assert!(held <= now + Duration::from_millis(60), "{:?}", held - now);
    let mut other = service();
    other.name = ObjectName::new("default", "other");
    other.cluster_ips = vec!["10.96.0.2".parse().unwrap()].into();
    other
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = None);
    let event = ObjectEvent::Apply(Arc::new(other));
    control.event(SourceEvent::Service(event));
    control.turn(&[]);
    assert_eq!(elements(&control, "no_endpoints"), 1);
}

#[test]
fn a_service_over_its_budget_keeps_its_last_good_rules() {
    let mut control = synced();
    let good = service();
    let mut bad = good.clone();
    bad.service_type = service_model::ServiceType::LoadBalancer;
    let addresses = |network: u8, count: u32| {
        let first = std::net::Ipv4Addr::new(network, 0, 0, 0).to_bits();
        (0..count).map(move |n| IpAddr::from(std::net::Ipv4Addr::from_bits(first + 2 * n)))
    };
    bad.load_balancer_ips = addresses(5, 50).collect();
    bad.source_ranges = addresses(11, 1_000).map(Into::into).collect();
    let mut other = good.clone();
    other.name = ObjectName::new("default", "other");
    other.cluster_ips = vec!["10.96.0.2".parse().unwrap()].into();
    for port in &mut other.ports {
        port.node_port = None;
    }
    let apply = |control: &mut Control<Fake>, service: Service| {
        control.event(SourceEvent::Service(ObjectEvent::Apply(Arc::new(service))));
        turn_at_once(control);
    };
    for _ in 0..2 {
        apply(&mut control, bad.clone());
        apply(&mut control, other.clone());
        assert_eq!(elements(&control, "frontends_1"), 1);
        assert_eq!(elements(&control, "no_endpoints"), 1);
        assert_eq!(elements(&control, "guarded"), 0);
        assert_eq!(metric(&control, "portolan_quarantined_services "), Some(1));
        let status = control.reports.status.load();
        assert!(status.pending_since.is_none());
        assert!(status.notes.iter().any(|note| note.contains("default/web")));
        let last_good = status.quarantined[&good.name].last_good.as_ref().unwrap();
        assert_eq!(last_good.frontends.len(), 2);
        // Another version that is over the budget as well.
        bad.cluster_ips.push("fd00::1".parse().unwrap());
    }
    bad.source_ranges.truncate(10);
    apply(&mut control, bad);
    while elements(&control, "guarded") < 50 {
        turn_at_once(&mut control);
    }
    assert_eq!(metric(&control, "portolan_quarantined_services "), Some(0));
    assert!(control.reports.status.load().notes.is_empty());
    assert!(control.reports.status.load().quarantined.is_empty());
}

#[test]
fn changes_of_others_do_not_wait_for_a_large_service() {
    let mut control = synced();
    let mut large = service();
    let first = std::net::Ipv4Addr::new(5, 0, 0, 0).to_bits();
    let external = (0..2_000).map(|n| std::net::Ipv4Addr::from_bits(first + n).into());
    large.external_ips = external.collect();
    let event = |service: Service| SourceEvent::Service(ObjectEvent::Apply(Arc::new(service)));
    control.event(event(large));
    let mut other = service();
    other.name = ObjectName::new("default", "other");
    other
        .ports
        .iter_mut()
        .for_each(|port| port.node_port = None);
    for n in 1..=3u8 {
        other.cluster_ips = vec![IpAddr::from([10, 96, 1, n])].into();
        control.event(event(other.clone()));
        let before = control.dataplane.backend().counters();
        turn_at_once(&mut control);
        let after = control.dataplane.backend().counters();
        assert!(after.elements - before.elements < 2_048);
        assert_eq!(elements(&control, "no_endpoints"), 1);
        // Health does not wait for a Service whose steps have no end.
        assert!(control.reports.status.load().pending_since.is_none());
        assert!(control.wake(Instant::now()).is_some());
    }
    assert!(elements(&control, "external_ips") < 2_000);
    while !control.steps.is_empty() {
        turn_at_once(&mut control);
    }
    assert_eq!(elements(&control, "external_ips"), 2_000);
    // All at once where the tables are written whole anyway.
    control.event(event(service()));
    control.failed = true;
    turn_at_once(&mut control);
    assert!(control.steps.is_empty());
    assert_eq!(elements(&control, "external_ips"), 0);
}
