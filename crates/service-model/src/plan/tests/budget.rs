use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use super::*;
use crate::objects::{Endpoint, EndpointSlice};
use crate::select::MAX_USED;

const NO_SLICES: [EndpointSlice; 0] = [];

fn is_over(service: &Service, slices: &[EndpointSlice]) -> bool {
    let plan = plan(service, slices, &facts());
    assert_eq!(plan.over_budget.is_some(), plan.intent.frontends.is_empty());
    plan.over_budget.is_some()
}

/// Every second address from here, so that no two are one range.
fn addresses(from: [u8; 4], count: u32) -> impl Iterator<Item = Ipv4Addr> {
    let from = Ipv4Addr::from(from).to_bits();
    (0..count).map(move |n| Ipv4Addr::from_bits(from + 2 * n))
}

fn endpoints(count: u32) -> EndpointSlice {
    let mut slice = slice("shop/web-1", "web", "http/8080/TCP", "10.1.0.5:s");
    let unready = slice.endpoints[0].clone();
    let endpoint = |address: Ipv4Addr| Endpoint {
        address: address.into(),
        ..unready.clone()
    };
    slice.endpoints = addresses([11, 0, 0, 0], count).map(endpoint).collect();
    slice
}

#[test]
fn source_ranges_times_load_balancer_addresses_are_bounded() {
    let mut service = service("shop/web", "10.96.0.1", "http/80/TCP");
    service.service_type = ServiceType::LoadBalancer;
    service.load_balancer_ips = addresses([5, 0, 0, 0], 4).map(Into::into).collect();
    let mut with = |ranges: u32| {
        let range = |address| IpNet::from(Ipv4Net::from(address));
        service.source_ranges = addresses([11, 0, 0, 0], ranges).map(range).collect();
        is_over(&service, &NO_SLICES)
    };
    // 10 of the cluster IP, and 4 times 10 and 64 for each range.
    let cost = |ranges: usize| 10 + 4 * (10 + 64 * ranges);
    assert!(cost(1_023) <= MAX_ELEMENTS && cost(1_024) > MAX_ELEMENTS);
    assert!(!with(1_023));
    assert!(with(1_024));
}

#[test]
fn endpoints_times_frontends_are_bounded() {
    let mut service = service("shop/web", "10.96.0.1", "http/80/TCP");
    let ready = |count: u32| {
        let mut slice = endpoints(count);
        let all = slice.endpoints.iter_mut();
        all.for_each(|endpoint| endpoint.conditions.ready = true);
        slice
    };
    // Each endpoint once for the port, and for each frontend as many as a node uses.
    service.external_ips = addresses([5, 0, 0, 0], 47).map(Into::into).collect();
    assert_eq!(65_056 + 48 * (10 + MAX_USED), 262_144);
    assert!(!is_over(&service, &[ready(65_056)]));
    assert!(is_over(&service, &[ready(65_057)]));
    // Below that number all of them.
    service.external_ips = addresses([5, 0, 0, 0], 63).map(Into::into).collect();
    assert_eq!(4_021 + 64 * (10 + 4_021), 262_005);
    assert!(!is_over(&service, &[ready(4_021)]));
    assert!(is_over(&service, &[ready(4_024)]));
}

#[test]
fn endpoints_that_are_not_ready_count_as_well() {
    let mut service = service("shop/web", "10.96.0.1", "http/80/TCP");
    assert!(!is_over(&service, &[endpoints(60_000)]));
    // An address that several slices list counts once.
    assert!(!is_over(&service, &[endpoints(60_000), endpoints(60_000)]));
    // But not without end.
    let repeated = [0; 200].map(|_| endpoints(1_000));
    assert!(is_over(&service, &repeated));
    // Each port of a Service looks at all of them.
    let name = |n: u32| format!("p{n}/{}/TCP", 80 + n);
    let ports = |count: u32| (0..count).map(name).collect::<Vec<_>>().join(" ");
    let mut slice = endpoints(60_000);
    slice.ports = crate::samples::slice("shop/web-1", "web", &ports(5), "").ports;
    service.ports = crate::samples::service("shop/web", "10.96.0.1", &ports(4)).ports;
    assert!(!is_over(&service, &[slice.clone()]));
    service.ports = crate::samples::service("shop/web", "10.96.0.1", &ports(5)).ports;
    assert!(is_over(&service, &[slice]));
}

#[test]
fn endpoints_of_both_families_are_bounded_together() {
    let service = service("shop/web", "10.96.0.1 fd00::1", "http/80/TCP");
    let of_ipv6 = |count: u32| {
        let mut slice = endpoints(count);
        slice.family = Family::Ip6;
        let all = slice.endpoints.iter_mut().zip(0_u128..);
        all.for_each(|(one, n)| one.address = Ipv6Addr::from_bits((0xfd01 << 112) + n).into());
        slice
    };
    let half = u32::try_from(MAX_ENDPOINTS / 2).unwrap();
    assert!(!is_over(&service, &[endpoints(half), of_ipv6(half)]));
    let over = [endpoints(half), of_ipv6(half + 1)];
    assert!(is_over(&service, &over));
    let reason = plan(&service, &over, &facts()).over_budget.unwrap().reason;
    assert!(reason.contains("65536 endpoints"), "{reason}");
}
