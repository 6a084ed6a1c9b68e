//! The Service that costs a node most within its budget, and how it is touched.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::shape::TARGET_PORT;

/// With the external IPs below, 4,096 frontends: the budget of one Service.
const PORTS: u16 = 64;
const EXTERNAL_IPS: u32 = 60;
/// So many endpoints at each frontend are just within the budget of elements.
const ENDPOINTS: u32 = 56;
const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 111, 254, 1);
const FIRST_EXTERNAL: u32 = u32::from_be_bytes([203, 0, 113, 1]);
const FIRST_POD: u32 = u32::from_be_bytes([10, 126, 0, 1]);

/// The Service and its slice.
pub(super) fn objects() -> Vec<Value> {
    let ports = (0..PORTS).map(|n| {
        json!({ "name": format!("p{n}"), "protocol": "TCP", "port": 1000 + n, "targetPort": TARGET_PORT })
    });
    let external = (0..EXTERNAL_IPS).map(|n| Ipv4Addr::from_bits(FIRST_EXTERNAL + n));
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "worst", "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": CLUSTER_IP,
            "clusterIPs": [CLUSTER_IP],
            "ipFamilies": ["IPv4"],
            "externalIPs": external.collect::<Vec<_>>(),
            "ports": ports.collect::<Vec<_>>(),
        },
        "status": { "loadBalancer": {} },
    });
    vec![service, slice(0)]
}

/// The slice after `n` touches: each replaces the first endpoint, so that the slots of all endpoints move at each frontend.
pub(super) fn slice(n: u32) -> Value {
    let ports = (0..PORTS)
        .map(|n| json!({ "name": format!("p{n}"), "protocol": "TCP", "port": TARGET_PORT }));
    let endpoints = (n..n + ENDPOINTS).map(|pod| {
        json!({
            "addresses": [Ipv4Addr::from_bits(FIRST_POD + pod)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
        })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "worst-1", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "worst" },
        },
        "addressType": "IPv4",
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}
