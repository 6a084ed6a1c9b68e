mod any_order;

use super::*;
use crate::identities::Identities;
use crate::samples::{facts, lines, name, service, slice};

fn suspects(names: &[&str]) -> Suspects {
    Suspects::new(names.iter().map(|name| (*name).into()))
}

const WEB: &str = "shop/web";

/// Service `shop/web` with one HTTP port.
fn web() -> Service {
    service(WEB, "10.96.0.1", "http/80/TCP")
}

/// A slice with one HTTP port.
fn http(name: &str, service: &str, endpoints: &str) -> EndpointSlice {
    slice(name, service, "http/8080/TCP", endpoints)
}

#[test]
fn pods_are_found_by_address_unless_several_share_it() {
    let mut index = Index::new();
    let named = |slice: EndpointSlice, pods: &[&str]| EndpointSlice {
        identities: Identities::new(pods.iter().map(|pod| (Some(*pod), Some("zone-a")))),
        ..slice
    };
    index.apply_one(&named(
        http("shop/web-1", "web", "10.1.0.5 10.1.0.6"),
        &["web-1", "web-2"],
    ));
    // The same pod behind two Services; and a pod that has the address of another one.
    index.apply_one(&named(http("shop/api-1", "api", "10.1.0.5"), &["web-1"]));
    index.apply_one(&named(http("kube/dns-1", "dns", "10.1.0.6"), &["dns-1"]));
    let asked = ["10.1.0.5", "10.1.0.6", "10.1.0.7"].map(|a| a.parse().unwrap());
    let found = index.pods(&asked.into());
    assert_eq!(found, [(asked[0], name("shop/web-1"))].into());
    let addresses = index.addresses_of_pod(&name("shop/web-2"));
    assert_eq!(addresses, [asked[1]].into());
    let identities = index.identities(&name(WEB));
    assert_eq!(identities[&asked[1]].pod.as_deref(), Some("web-2"));
    assert_eq!(identities[&asked[1]].zone.as_deref(), Some("zone-a"));
}

impl Index {
    fn apply(&mut self, service: &Service) {
        self.service_event(ObjectEvent::Apply(Arc::new(service.clone())));
    }

    fn apply_one(&mut self, slice: &EndpointSlice) {
        self.slice_event(ObjectEvent::Apply(Arc::new(slice.clone())));
    }

    fn delete_one(&mut self, slice: &str) {
        self.slice_event(ObjectEvent::Delete(name(slice)));
    }

    /// Dirty Services as text.
    fn dirty(&mut self) -> Vec<String> {
        self.take_dirty().iter().map(ToString::to_string).collect()
    }

    /// Outcome of the HTTP port, or that the Service is not programmed.
    fn outcome(&self, service: &str) -> String {
        let Some(Plan { intent, .. }) = self.plan(&name(service), &facts()) else {
            return "none".to_owned();
        };
        lines(&intent)[0].split_once(": ").unwrap().1.to_owned()
    }
}

#[test]
fn requested_sockets_follow_the_services() {
    let mut index = Index::new();
    let address = "192.0.2.10".parse().unwrap();
    index.set_node_addresses(&[address]);
    let asked = |index: &Index| {
        let sockets = index.external_sockets();
        let shown = sockets
            .iter()
            .map(|((protocol, socket), _)| format!("{socket}/{protocol}"));
        shown.collect::<Vec<_>>()
    };
    let mut first = service("shop/a", "10.96.0.1", "http/80/TCP dns/53/UDP");
    first.external_ips = vec![address];
    first.load_balancer_ips = vec![address];
    let mut second = web();
    second.load_balancer_ips = vec![address, "192.0.2.11".parse().unwrap()];
    index.apply(&first);
    index.apply(&second);
    assert_eq!(asked(&index), ["192.0.2.10:80/TCP", "192.0.2.10:53/UDP"]);
    first.external_ips.clear();
    index.apply(&first);
    first.load_balancer_ips.clear();
    index.apply(&first);
    assert_eq!(asked(&index), ["192.0.2.10:80/TCP"]);
    index.service_event(ObjectEvent::Delete(name(WEB)));
    assert_eq!(asked(&index), [] as [String; 0]);
    assert!(index.external.is_empty());
}

#[test]
fn only_services_that_ask_for_what_others_have_are_dirty() {
    let mut index = Index::new();
    let here: IpAddr = "192.0.2.10".parse().unwrap();
    index.set_node_addresses(&[here]);
    let asks = |service: &str, port: &str, address: &str| {
        let mut service = self::service(service, "10.96.0.1", port);
        service.external_ips = vec![address.parse().unwrap()];
        service
    };
    index.apply(&asks("shop/ssh", "ssh/22/TCP", "192.0.2.10"));
    index.apply(&asks("shop/web", "web/80/TCP", "192.0.2.10"));
    index.apply(&asks("shop/other", "web/80/TCP", "198.51.100.1"));
    index.apply(&asks("shop/pod", "web/80/TCP", "10.244.1.9"));
    index.apply(&asks("shop/none", "web/80/TCP", "203.0.113.1"));
    index.take_dirty();
    let dirty = |index: &mut Index| {
        let dirty = index.take_dirty();
        dirty.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let ssh = (Protocol::Tcp, SocketAddr::new(here, 22));
    let listeners = Arc::new(BTreeSet::from([ssh]));
    index.set_listeners(listeners.clone());
    assert_eq!(dirty(&mut index), ["shop/ssh"]);
    index.set_listeners(listeners);
    assert_eq!(dirty(&mut index), Vec::<&str>::new());
    index.set_listeners(Arc::default());
    assert_eq!(dirty(&mut index), ["shop/ssh"]);
    let mut node = Node::unknown("node-2");
    node.addresses = vec!["198.51.100.1".parse().unwrap()];
    index.node_event(&ObjectEvent::Apply(Arc::new(node.clone())));
    assert_eq!(dirty(&mut index), ["shop/other"]);
    node.zone = Some("b".into());
    index.node_event(&ObjectEvent::Apply(Arc::new(node.clone())));
    assert_eq!(dirty(&mut index), Vec::<&str>::new());
    node.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap()];
    index.node_event(&ObjectEvent::Apply(Arc::new(node)));
    assert_eq!(dirty(&mut index), ["shop/pod"]);
    index.node_event(&ObjectEvent::list([]));
    assert_eq!(dirty(&mut index), ["shop/other", "shop/pod"]);
}

#[test]
fn an_equal_object_makes_nothing_dirty() {
    let mut index = Index::new();
    let slice = http("shop/web-1", "web", "10.1.0.5");
    index.apply(&web());
    index.apply_one(&slice);
    index.take_dirty();
    index.apply(&web());
    index.apply_one(&slice);
    index.service_event(ObjectEvent::list(vec![web()]));
    index.slice_event(ObjectEvent::list(vec![slice]));
    assert!(index.take_dirty().is_empty());
}

#[test]
fn deleting_an_unknown_object_makes_nothing_dirty() {
    let mut index = Index::new();
    index.service_event(ObjectEvent::Delete(name(WEB)));
    index.delete_one("shop/web-1");
    assert!(index.take_dirty().is_empty());
    index.apply_one(&http("shop/web-1", "web", "10.1.0.5"));
    index.take_dirty();
    index.service_event(ObjectEvent::Delete(name(WEB)));
    assert!(index.take_dirty().is_empty());
}

#[test]
fn suspects_make_services_dirty_with_endpoints_on_their_nodes() {
    let mut index = Index::new();
    index.apply(&web());
    index.apply(&service("shop/api", "10.96.0.2", "http/80/TCP"));
    index.apply_one(&http(
        "shop/web-1",
        "web",
        "10.1.0.5@node-2 10.1.0.6@node-3",
    ));
    index.apply_one(&http("shop/api-1", "api", "10.1.0.7@node-3 10.1.0.8"));
    index.apply_one(&http("shop/gone-1", "gone", "10.1.0.9@node-2"));
    index.take_dirty();
    index.set_suspects(suspects(&["node-2"]));
    assert_eq!(index.dirty(), ["shop/web"]);
    assert_eq!(index.outcome("shop/web"), "10.1.0.6:8080");
    index.set_suspects(suspects(&["node-2"]));
    index.set_suspects(suspects(&["node-2", "node-9"]));
    assert!(index.take_dirty().is_empty());
    index.set_suspects(suspects(&["node-3"]));
    assert_eq!(index.dirty(), ["shop/api", "shop/web"]);
    assert_eq!(index.outcome("shop/web"), "10.1.0.5:8080");
    assert_eq!(index.outcome("shop/api"), "10.1.0.8:8080");
    index.set_suspects(Suspects::default());
    assert_eq!(index.dirty(), ["shop/api", "shop/web"]);
    assert_eq!(index.outcome("shop/web"), "10.1.0.5:8080 10.1.0.6:8080");
}

#[test]
fn dirty_services_come_once_and_sorted() {
    let mut index = Index::new();
    for (service, slice) in [
        ("b", "shop/z"),
        ("a", "shop/y"),
        ("b", "shop/x"),
        ("c", "shop/w"),
    ] {
        index.apply_one(&http(slice, service, "10.1.0.5"));
    }
    index.apply(&service("prod/a", "10.96.0.9", ""));
    assert_eq!(index.dirty(), ["prod/a", "shop/a", "shop/b", "shop/c"]);
    assert!(index.take_dirty().is_empty());
}

#[test]
fn a_slice_that_moves_to_another_service_changes_both() {
    let mut index = Index::new();
    index.apply(&web());
    index.apply(&service("shop/api", "10.96.0.2", "http/80/TCP"));
    index.apply_one(&http("shop/s", "web", "10.1.0.5"));
    index.take_dirty();
    index.apply_one(&http("shop/s", "api", "10.1.0.5"));
    assert_eq!(index.dirty(), ["shop/api", WEB]);
    assert_eq!(
        (index.outcome(WEB), index.outcome("shop/api")),
        ("refuse".into(), "10.1.0.5:8080".into())
    );
    index.delete_one("shop/s");
    assert_eq!(index.dirty(), ["shop/api"]);
    assert_eq!(index.outcome("shop/api"), "refuse");
}

#[test]
fn a_reset_deletes_the_unlisted_and_keeps_the_invalid() {
    let mut index = Index::new();
    for (service_name, ip) in [
        ("shop/a", "10.96.0.1"),
        ("shop/b", "10.96.0.2"),
        ("shop/c", "10.96.0.3"),
    ] {
        index.apply(&service(service_name, ip, "http/80/TCP"));
        let (_, short) = service_name.split_once('/').unwrap();
        index.apply_one(&http(&format!("{service_name}-1"), short, "10.1.0.5"));
    }
    index.take_dirty();
    index.service_event(ObjectEvent::Reset {
        objects: vec![Arc::new(service("shop/a", "10.96.0.1", "http/81/TCP"))],
        invalid: vec![name("shop/b"), name("shop/unknown")],
    });
    assert_eq!(index.dirty(), ["shop/a", "shop/c"]);
    assert_eq!(
        (index.outcome("shop/b"), index.outcome("shop/c")),
        ("10.1.0.5:8080".into(), "none".into())
    );
    let names: Vec<String> = index.service_names().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/a", "shop/b"]);

    index.slice_event(ObjectEvent::Reset {
        objects: vec![],
        invalid: vec![name("shop/b-1")],
    });
    assert_eq!(index.dirty(), ["shop/a", "shop/c"]);
    assert_eq!(
        (index.outcome("shop/a"), index.outcome("shop/b")),
        ("refuse".into(), "10.1.0.5:8080".into())
    );
}

#[test]
fn an_invalid_service_yields_its_cluster_ip_to_a_later_one() {
    let reset = |objects: Vec<Service>, invalid: &[&str]| ObjectEvent::Reset {
        objects: objects.into_iter().map(Arc::new).collect(),
        invalid: invalid.iter().map(|text| name(text)).collect(),
    };
    let later = service("shop/later", "fd00::1 10.96.0.1", "http/80/TCP");
    // In the same list, and after it.
    for events in [
        vec![reset(vec![later.clone()], &[WEB])],
        vec![
            reset(vec![], &[WEB]),
            ObjectEvent::Apply(Arc::new(later.clone())),
        ],
    ] {
        let mut index = Index::new();
        index.apply(&web());
        index.take_dirty();
        for event in events {
            assert_eq!(index.outcome(WEB), "refuse");
            index.service_event(event);
        }
        assert_eq!(index.dirty(), ["shop/later", WEB]);
        assert_eq!(
            (index.outcome(WEB), index.outcome("shop/later")),
            ("none".into(), "refuse".into())
        );
        assert!(index.unconfirmed.is_empty());
    }
    // A valid version of the Service shows what has the address.
    let mut index = Index::new();
    index.apply(&web());
    index.service_event(reset(vec![], &[WEB]));
    index.apply(&web());
    index.apply(&later);
    assert_eq!(index.outcome(WEB), "refuse");
}

#[test]
fn times_of_changes_are_bounded_while_no_commit_takes_them() {
    let mut index = Index::new();
    let times = (1..=10_000).map(|n| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(n));
    for (at, endpoint) in times.zip(["10.1.0.5", "10.1.0.6"].into_iter().cycle()) {
        index.apply_one(&EndpointSlice {
            trigger: TriggerTime(Some(at)),
            ..http("shop/web-1", "web", endpoint)
        });
    }
    assert_eq!(index.triggers.len(), MAX_TRIGGERS);
    index.take_dirty();
    let first = index.take_triggers().into_iter().next();
    let oldest = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1);
    assert_eq!(first, Some((Family::Ip, oldest)));
    assert!(index.triggers.is_empty());
}

#[test]
fn a_service_without_objects_takes_no_memory() {
    let mut index = Index::new();
    for i in 0..100 {
        let service_name = format!("shop/s{i}");
        index.apply(&service(&service_name, "10.96.0.1", "http/80/TCP"));
        index.apply_one(&http("shop/moving", &format!("s{i}"), "10.1.0.5"));
        index.service_event(ObjectEvent::Delete(name(&service_name)));
    }
    assert_eq!(index.entries.len(), 1);
    index.delete_one("shop/moving");
    assert_eq!((index.entries.len(), index.owners.len()), (0, 0));
}

#[test]
fn the_slices_of_a_service_take_no_more_room_than_they_need() {
    let mut index = Index::new();
    for i in 0..5 {
        index.apply_one(&http(&format!("shop/web-{i}"), "web", "10.1.0.5"));
    }
    index.delete_one("shop/web-3");
    let slices = &index.entries[&name(WEB)].slices;
    assert_eq!((slices.len(), slices.capacity()), (4, 4));
}

#[test]
fn counts_follow_services_and_endpoints_that_come_change_and_go() {
    let mut index = Index::new();
    let slice = http("shop/web-1", "web", "10.244.0.5 10.244.0.6");
    index.apply_one(&slice);
    index.apply_one(&slice);
    index.apply(&web());
    index.apply(&web());
    assert_eq!((index.service_count(), index.endpoint_count()), (1, 2));
    let mut emptied = slice.clone();
    emptied.endpoints.pop();
    index.apply_one(&emptied);
    assert_eq!((index.service_count(), index.endpoint_count()), (1, 1));
    index.slice_event(ObjectEvent::Delete(slice.name));
    index.service_event(ObjectEvent::list(vec![]));
    assert_eq!((index.service_count(), index.endpoint_count()), (0, 0));
}
