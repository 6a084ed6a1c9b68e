use service_model::{Disposition, Masquerade, Protocol};

use super::*;

const CLUSTER_IP: FrontendAddress =
    FrontendAddress::ClusterIp(IpAddr::V4(std::net::Ipv4Addr::new(10, 96, 0, 1)));
const VIP: [u8; 4] = [10, 96, 0, 1];
const NODE: [u8; 4] = [192, 168, 0, 1];

fn backends(hosts: &[u8]) -> Arc<[Backend]> {
    let backend = |host: &u8| Backend {
        address: [10, 244, 0, *host].into(),
        port: 8080,
        local: false,
    };
    hosts.iter().map(backend).collect()
}

fn frontend(serving: &[u8]) -> Frontend {
    Frontend {
        address: CLUSTER_IP,
        protocol: Protocol::Udp,
        port: 53,
        service_port: 53,
        disposition: Disposition::Refuse,
        outside: None,
        masquerade: Masquerade::OffCluster,
        allowed_sources: None,
        affinity: None,
        counted: false,
        serving: backends(serving),
    }
}

fn claim(address: FrontendAddress, protocol: Protocol) -> Claim {
    Claim {
        address,
        protocol,
        port: 53,
    }
}

fn check(
    address: FrontendAddress,
    protocol: Protocol,
    serving: Option<&[u8]>,
    reset: bool,
) -> FlowChecks {
    let check = FlowCheck {
        claim: claim(address, protocol),
        serving: serving.map(backends),
        allowed_sources: None,
        reset,
        only_if_pending: false,
    };
    let mut checks = FlowChecks::default();
    checks.add(vec![check], [IpAddr::from(NODE)].into());
    checks
}

/// A flow to port 53 of `to`, answered from host `from` (port 8080), or not translated.
fn flow(protocol: Protocol, to: [u8; 4], from: Option<u8>, answered: bool) -> Flow {
    let destination = SocketAddr::from((to, 53));
    Flow {
        protocol,
        source: ([10, 244, 0, 99], 40000).into(),
        destination,
        answers_from: from.map_or(destination, |host| ([10, 244, 0, host], 8080).into()),
        answered,
    }
}

#[test]
fn only_changes_that_can_leave_flows_behind_are_checked() {
    let check = |old: Option<&[u8]>, new: Option<&[u8]>| {
        let (old, new) = (old.map(frontend), new.map(frontend));
        let claim = claim(CLUSTER_IP, Protocol::Udp);
        FlowCheck::of_change(claim, old.as_ref(), new.as_ref(), false).map(|check| check.serving)
    };
    assert_eq!(check(Some(&[1, 2]), Some(&[1, 2])), None);
    // A scale-up heals flows that are not translated, whatever left them so.
    assert_eq!(
        check(Some(&[1]), Some(&[1, 2])),
        Some(Some(backends(&[1, 2])))
    );
    assert_eq!(check(Some(&[1, 2]), Some(&[2])), Some(Some(backends(&[2]))));
    assert_eq!(check(Some(&[1]), Some(&[])), Some(Some(backends(&[]))));
    assert_eq!(check(None, Some(&[1])), Some(Some(backends(&[1]))));
    assert_eq!(check(Some(&[]), None), Some(None));
    assert_eq!(check(None, None), None);
}

#[test]
fn udp_and_sctp_flows_go_unless_their_endpoint_serves() {
    for (of, protocol) in [
        (Protocol::Udp, Protocol::Udp),
        (Protocol::Sctp, Protocol::Sctp),
    ] {
        let checks = check(CLUSTER_IP, of, Some(&[1, 3]), false);
        for answered in [false, true] {
            assert!(!checks.is_stale(&flow(protocol, VIP, Some(1), answered)));
            assert!(!checks.is_stale(&flow(protocol, VIP, Some(3), answered)));
            assert!(checks.is_stale(&flow(protocol, VIP, Some(2), answered)));
            // It began before the frontend was there.
            assert!(checks.is_stale(&flow(protocol, VIP, None, answered)));
        }
        let none = check(CLUSTER_IP, of, Some(&[]), false);
        assert!(none.is_stale(&flow(protocol, VIP, Some(1), true)));
    }
}

#[test]
fn of_tcp_only_attempts_without_an_answer_go() {
    let checks = check(CLUSTER_IP, Protocol::Tcp, Some(&[1]), false);
    let tcp = Protocol::Tcp;
    assert!(checks.is_stale(&flow(tcp, VIP, None, false)));
    assert!(checks.is_stale(&flow(tcp, VIP, Some(2), false)));
    assert!(!checks.is_stale(&flow(tcp, VIP, Some(1), false)));
    assert!(!checks.is_stale(&flow(tcp, VIP, Some(2), true)));
    assert!(!checks.is_stale(&flow(tcp, VIP, None, true)));
}

#[test]
fn on_request_tcp_connections_to_removed_endpoints_go() {
    let tcp = Protocol::Tcp;
    for serving in [Some(&[1][..]), Some(&[]), None] {
        let checks = check(CLUSTER_IP, Protocol::Tcp, serving, true);
        assert!(checks.is_stale(&flow(tcp, VIP, Some(2), true)));
        // Somebody else's, from before the address was a Service's.
        assert!(!checks.is_stale(&flow(tcp, VIP, None, true)));
    }
    let checks = check(CLUSTER_IP, Protocol::Tcp, Some(&[1]), true);
    assert!(!checks.is_stale(&flow(tcp, VIP, Some(1), true)));
}

#[test]
fn a_removed_frontend_takes_its_translated_flows_along() {
    let checks = check(CLUSTER_IP, Protocol::Udp, None, false);
    assert!(checks.is_stale(&flow(Protocol::Udp, VIP, Some(1), true)));
    assert!(!checks.is_stale(&flow(Protocol::Udp, VIP, None, true)));
}

#[test]
fn flows_to_other_frontends_are_left_alone() {
    let checks = check(CLUSTER_IP, Protocol::Udp, Some(&[]), false);
    let udp = Protocol::Udp;
    assert!(!checks.is_stale(&flow(udp, [10, 96, 0, 2], Some(1), true)));
    assert!(!checks.is_stale(&flow(Protocol::Tcp, VIP, Some(1), false)));
    let other_port = Flow {
        destination: (VIP, 54).into(),
        ..flow(udp, VIP, Some(1), true)
    };
    assert!(!checks.is_stale(&other_port));
}

#[test]
fn node_ports_are_those_of_the_nodes_own_addresses() {
    let address = FrontendAddress::NodePort(Family::Ip);
    let checks = check(address, Protocol::Udp, Some(&[]), false);
    let udp = Protocol::Udp;
    assert!(checks.is_stale(&flow(udp, NODE, Some(1), true)));
    assert!(checks.is_stale(&flow(udp, NODE, None, true)));
    assert!(checks.is_stale(&flow(udp, [127, 0, 0, 1], Some(1), true)));
    assert!(!checks.is_stale(&flow(udp, [192, 168, 0, 2], Some(1), true)));
    assert!(!checks.is_stale(&flow(udp, VIP, Some(1), true)));
}

#[test]
fn narrowed_source_ranges_end_flows_of_excluded_clients() {
    let ranges = |list: &[&str]| -> Option<Arc<[IpNet]>> {
        Some(list.iter().map(|range| range.parse().unwrap()).collect())
    };
    let ranged = |allowed_sources| Frontend {
        allowed_sources,
        ..frontend(&[1])
    };
    let claim = claim(CLUSTER_IP, Protocol::Udp);
    let change = |old, new| {
        let (old, new) = (ranged(old), ranged(new));
        FlowCheck::of_change(claim, Some(&old), Some(&new), false)
    };
    let (wide, narrow) = (
        ranges(&["10.0.0.0/8"]),
        ranges(&["10.1.0.0/16", "10.2.0.0/16"]),
    );
    assert_eq!(change(wide.clone(), wide.clone()), None);
    for (old, new, widens) in [
        (wide.clone(), &None, true),
        (None, &wide, false),
        (wide.clone(), &narrow, false),
    ] {
        let check = change(old, new.clone());
        assert!(check.is_some_and(|check| check.only_if_pending == widens));
    }
    let stale = |allowed_sources, protocol, answered| {
        let check = FlowCheck {
            claim: Claim { protocol, ..claim },
            allowed_sources,
            ..FlowCheck::of(claim, Some(&frontend(&[1])))
        };
        let mut checks = FlowChecks::default();
        checks.add(vec![check], [].into());
        checks.is_stale(&flow(protocol, VIP, Some(1), answered))
    };
    for answered in [false, true] {
        assert!(!stale(None, Protocol::Udp, answered));
        assert!(!stale(wide.clone(), Protocol::Udp, answered));
        assert!(stale(narrow.clone(), Protocol::Udp, answered));
        assert!(stale(ranges(&[]), Protocol::Udp, answered));
        // Established connections go on, as with kube-proxy.
        assert_eq!(stale(narrow.clone(), Protocol::Tcp, answered), !answered);
    }
}

#[test]
fn every_stale_flow_passes_one_of_the_filters() {
    let address = |n: u8| match n % 3 {
        0 => FrontendAddress::NodePort(Family::Ip),
        1 => FrontendAddress::External([192, 0, 2, n].into()),
        _ => FrontendAddress::ClusterIp([10, 96, 0, n].into()),
    };
    for frontends in [1, 3, 20] {
        let mut checks = FlowChecks::default();
        for n in 0..frontends {
            let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp][usize::from(n / 3 % 3)];
            let check = FlowCheck {
                claim: claim(address(n), protocol),
                serving: Some(backends(&[1])),
                allowed_sources: None,
                reset: n % 2 == 0,
                only_if_pending: false,
            };
            checks.add(vec![check], [IpAddr::from(NODE)].into());
        }
        let filters = checks.filters();
        let mut condemned = 0;
        for to in (0..frontends).flat_map(|n| [[10, 96, 0, n], [192, 0, 2, n], NODE]) {
            for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
                for (from, answered) in [(None, false), (Some(2), false), (Some(2), true)] {
                    let flow = flow(protocol, to, from, answered);
                    let found = filters.iter().any(|filter| filter.matches(&flow));
                    condemned += usize::from(checks.is_stale(&flow));
                    assert!(!checks.is_stale(&flow) || found, "{flow:?}: {filters:?}");
                }
            }
        }
        assert!(condemned > 0);
    }
}

#[test]
fn many_frontends_take_one_filter_of_each_kind() {
    let mut checks = FlowChecks::default();
    for n in 0..100 {
        let check = |protocol| FlowCheck {
            claim: claim(FrontendAddress::ClusterIp([10, 96, 0, n].into()), protocol),
            serving: None,
            allowed_sources: None,
            reset: false,
            only_if_pending: false,
        };
        let both = vec![check(Protocol::Tcp), check(Protocol::Udp)];
        checks.add(both, [].into());
    }
    let filters = checks.filters();
    assert_eq!(filters.len(), 2);
    assert!(
        filters
            .iter()
            .all(|f| f.destination.is_none() && f.port.is_none())
    );
    assert!(
        filters
            .iter()
            .all(|f| f.unanswered == (f.protocol == Protocol::Tcp))
    );
}

#[test]
fn two_frontends_take_one_walk_for_unanswered_tcp() {
    for (protocol, walks) in [(Protocol::Tcp, 1), (Protocol::Udp, 2)] {
        let mut checks = FlowChecks::default();
        for address in [CLUSTER_IP, FrontendAddress::NodePort(Family::Ip)] {
            let check = FlowCheck {
                claim: claim(address, protocol),
                serving: None,
                allowed_sources: None,
                reset: false,
                only_if_pending: false,
            };
            checks.add(vec![check], [].into());
        }
        assert_eq!(checks.filters().len(), walks, "{protocol:?}");
    }
}

#[test]
fn a_later_check_of_the_same_frontend_replaces_an_earlier_one() {
    let mut checks = check(CLUSTER_IP, Protocol::Udp, Some(&[]), false);
    let later = check(CLUSTER_IP, Protocol::Udp, Some(&[1]), false);
    checks.add(later.checks.into_values().collect(), [].into());
    assert_eq!(checks.len(), 1);
    assert!(!checks.is_stale(&flow(Protocol::Udp, VIP, Some(1), true)));
}

#[test]
fn endpoints_added_before_the_look_keep_their_connections() {
    let tcp = |serving: &[u8]| Frontend {
        protocol: Protocol::Tcp,
        ..frontend(serving)
    };
    let claim = claim(CLUSTER_IP, Protocol::Tcp);
    for reset in [false, true] {
        let mut checks = FlowChecks::default();
        let mut change = |old: &[u8], new: &[u8]| {
            let check = FlowCheck::of_change(claim, Some(&tcp(old)), Some(&tcp(new)), reset);
            checks.add(check.into_iter().collect(), [].into());
            let stale =
                |host, answered| checks.is_stale(&flow(Protocol::Tcp, VIP, Some(host), answered));
            [2, 3].map(|host| (stale(host, false), stale(host, true)))
        };
        let (kept, gone) = ((false, false), (true, reset));
        assert_eq!(change(&[1, 3], &[1]), [gone, gone]);
        assert_eq!(change(&[1], &[1, 2]), [kept, gone]);
        // An endpoint that is ready again.
        assert_eq!(change(&[1, 2], &[1, 2, 3]), [kept, kept]);
    }
}

#[test]
fn a_change_that_only_adds_endpoints_leads_to_no_look() {
    let tcp = |serving: &[u8]| Frontend {
        protocol: Protocol::Tcp,
        ..frontend(serving)
    };
    let claim = claim(CLUSTER_IP, Protocol::Tcp);
    let check = FlowCheck::of_change(claim, Some(&tcp(&[1])), Some(&tcp(&[1, 2])), true);
    assert!(check.as_ref().is_some_and(FlowCheck::is_patient));
    let mut checks = FlowChecks::default();
    checks.add(check.into_iter().collect(), [].into());
    assert!(checks.is_empty());
}

#[test]
fn a_pending_reset_outlives_later_checks_without() {
    let mut checks = check(CLUSTER_IP, Protocol::Tcp, Some(&[1]), true);
    // All node ports are checked once more when the node gains an address, without resets.
    let later = check(CLUSTER_IP, Protocol::Tcp, Some(&[1, 3]), false);
    checks.add(later.checks.into_values().collect(), [].into());
    assert!(checks.is_stale(&flow(Protocol::Tcp, VIP, Some(2), true)));
    assert!(!checks.is_stale(&flow(Protocol::Tcp, VIP, Some(3), true)));
}

/// A Service with these endpoints on `CLUSTER_IP`, port 53 over UDP.
fn update(serving: &[u8]) -> crate::Update {
    service_model::ServiceIntent {
        service: crate::samples::name(1),
        created: None,
        frontends: vec![frontend(serving)],
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: true,
        health_check: None,
    }
    .into()
}

#[test]
fn checks_come_with_the_commit_they_belong_to() {
    let facts = crate::samples::facts();
    let mut dataplane = crate::Dataplane::new(nft::Fake::new(), facts);
    let claims = |checks: Vec<FlowCheck>| -> Vec<_> {
        let parts = |check: FlowCheck| (check.serving, check.reset);
        checks.into_iter().map(parts).collect()
    };
    let first = dataplane.commit(vec![update(&[1, 2])]).unwrap();
    assert_eq!(claims(first.flows), [(Some(backends(&[1, 2])), true)]);
    // UDP: also a scale-up heals what is wrong.
    let more = dataplane.commit(vec![update(&[1, 2, 3])]).unwrap();
    assert_eq!(claims(more.flows), [(Some(backends(&[1, 2, 3])), true)]);
    assert_eq!(
        dataplane.commit(vec![update(&[1, 2, 3])]).unwrap().flows,
        []
    );
    let fewer = dataplane.commit(vec![update(&[3])]).unwrap();
    assert_eq!(claims(fewer.flows), [(Some(backends(&[3])), true)]);
    let removal = crate::Update {
        service: crate::samples::name(1),
        intent: None,
    };
    dataplane.backend_mut().fail_next(nix::errno::Errno::ENOMEM);
    dataplane.commit(vec![removal]).unwrap_err();
    // Not before the rules are in.
    let repaired = dataplane.repair().unwrap();
    assert_eq!(claims(repaired.flows), [(None, true)]);
    assert_eq!(dataplane.repair().unwrap().flows, []);
}
