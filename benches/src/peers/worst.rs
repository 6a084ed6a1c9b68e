//! The Services and EndpointSlices that cost a node most within the limits of an API server, and how they are touched.
//!
//! Invariant: an object has at most 1.5 MB, a slice at most 1,000 endpoints and 100 ports, an endpoint at most 100 addresses.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use crate::shape::{PORT, TARGET_PORT};

pub(super) const CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 111, 254, 1);
const FIRST_EXTERNAL: u32 = u32::from_be_bytes([203, 0, 0, 1]);
const FIRST_LOAD_BALANCER: u32 = u32::from_be_bytes([198, 18, 0, 1]);
const FIRST_RANGE: u32 = u32::from_be_bytes([100, 64, 0, 0]);
/// Endpoints are taken from here, which no pod of a shape is in.
pub(super) const PODS: &str = "10.124.0.0/14";
const FIRST_POD: u32 = u32::from_be_bytes([10, 124, 0, 1]);
/// Addresses of an endpoint after the first, which Portolan ignores.
const FURTHER_ADDRESS: u32 = u32::from_be_bytes([10, 224, 100, 100]);
const LONGEST_NAME: usize = 253;
const PORTS_A_SLICE: u32 = 100;

/// One Service with its EndpointSlices.
#[derive(Clone, Copy, Debug)]
pub struct Worst {
    /// Name of the kind.
    pub name: &'static str,
    /// What the objects are, for the table of results.
    pub description: &'static str,
    /// Whether the Service is within its budget, so that Portolan serves it.
    is_served: bool,
    touch: Touch,
    ports: u16,
    external_ips: u32,
    load_balancer_ips: u32,
    source_ranges: u32,
    has_affinity: bool,
    slices: u32,
    /// In each slice.
    endpoints: u32,
    /// Of each endpoint.
    addresses: u32,
    /// Whether each slice lacks one port more than the slice before it, so that no two ports have as many endpoints.
    has_steps: bool,
}

/// What a touch changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    /// The first endpoint of the first slice is replaced by one behind all others.
    Endpoint,
    /// The first slice has one endpoint more, or one less.
    Count,
    /// In the Service, an annotation, the affinity timeout, and the first external IP and source range.
    Service,
}

/// One port with one endpoint.
const SMALLEST: Worst = Worst {
    name: "",
    description: "",
    is_served: true,
    touch: Touch::Endpoint,
    ports: 1,
    external_ips: 0,
    load_balancer_ips: 0,
    source_ranges: 0,
    has_affinity: false,
    slices: 1,
    endpoints: 1,
    addresses: 1,
    has_steps: false,
};

/// 4,096 frontends by the rule of the budget, and as many endpoints as the budget of elements then permits.
const FRONTENDS: Worst = Worst {
    name: "frontends",
    description: "64 ports at 61 addresses, 56 endpoints",
    ports: 64,
    external_ips: 60,
    endpoints: 56,
    ..SMALLEST
};

impl Worst {
    /// Every kind. Those that are served are just within the budget of elements, or as large as one object may be.
    pub const ALL: [Worst; 8] = [
        FRONTENDS,
        Worst {
            name: "affinity",
            description: "the same with session affinity, of which the timeout changes",
            touch: Touch::Service,
            has_affinity: true,
            ..FRONTENDS
        },
        Worst {
            name: "slice",
            description: "one slice of 1,000 endpoints and 100 ports, 1.4 MB",
            ports: 100,
            endpoints: 1_000,
            addresses: 60,
            ..SMALLEST
        },
        Worst {
            name: "endpoints",
            description: "65 slices of 1,000 endpoints, one port",
            slices: 65,
            endpoints: 1_000,
            ..SMALLEST
        },
        Worst {
            name: "counts",
            description: "100 ports of 20, 40, ... 2,000 endpoints, each of which gets or loses one",
            touch: Touch::Count,
            ports: 100,
            slices: 100,
            endpoints: 20,
            has_steps: true,
            ..SMALLEST
        },
        Worst {
            name: "ranges",
            description: "1,023 source ranges at 4 load balancer addresses",
            touch: Touch::Service,
            load_balancer_ips: 4,
            source_ranges: 1_023,
            ..SMALLEST
        },
        Worst {
            name: "refused",
            description: "10,000 ports and 45,000 external IPs, 1.4 MB: over the budget of frontends",
            is_served: false,
            touch: Touch::Service,
            ports: 10_000,
            external_ips: 45_000,
            ..SMALLEST
        },
        Worst {
            name: "quarantined",
            description: "131 slices of 1,000 endpoints and 100 ports: over the budget of elements",
            is_served: false,
            ports: 100,
            slices: 131,
            endpoints: 1_000,
            ..SMALLEST
        },
    ];

    pub(super) fn is_served(&self) -> bool {
        self.is_served
    }

    /// The Service and its slices, as they are at first.
    pub(super) fn objects(self) -> impl Iterator<Item = Value> {
        let slices = (0..self.slices).map(move |slice| self.slice(slice, 0));
        std::iter::once(self.service(0)).chain(slices)
    }

    /// The object that the `n`th touch changes.
    pub(super) fn touched(self, n: u32) -> Value {
        match self.touch {
            Touch::Endpoint | Touch::Count => self.slice(0, n),
            Touch::Service => self.service(n),
        }
    }

    fn service(self, n: u32) -> Value {
        let ports: Vec<Value> = (0..self.ports)
            .map(|port| {
                let number = if port == 0 { PORT } else { 1_000 + port };
                json!({ "name": format!("p{port}"), "protocol": "TCP", "port": number, "targetPort": TARGET_PORT })
            })
            .collect();
        // Every second one, so that no two are one range.
        let ranges: Vec<String> = (n..n + self.source_ranges)
            .map(|range| format!("{}/32", Ipv4Addr::from_bits(FIRST_RANGE + 2 * range)))
            .collect();
        let ingress: Vec<Value> = (0..self.load_balancer_ips)
            .map(|address| json!({ "ip": Ipv4Addr::from_bits(FIRST_LOAD_BALANCER + address) }))
            .collect();
        let has_load_balancer = self.load_balancer_ips > 0;
        let mut service = json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": "worst", "namespace": "default", "annotations": { "touched": n.to_string() },
            },
            "spec": {
                "type": if has_load_balancer { "LoadBalancer" } else { "ClusterIP" },
                "clusterIP": CLUSTER_IP,
                "clusterIPs": [CLUSTER_IP],
                "ipFamilies": ["IPv4"],
                "externalIPs": addresses(FIRST_EXTERNAL + n, self.external_ips),
                "loadBalancerSourceRanges": ranges,
                "ports": ports,
            },
            "status": { "loadBalancer": { "ingress": ingress } },
        });
        let spec = &mut service["spec"];
        if has_load_balancer {
            spec["allocateLoadBalancerNodePorts"] = false.into();
        }
        if self.has_affinity {
            spec["sessionAffinity"] = "ClientIP".into();
            spec["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": 3_600 + n } });
        }
        service
    }

    fn slice(self, slice: u32, n: u32) -> Value {
        let first_port = if self.has_steps { slice } else { 0 };
        let ports: Vec<Value> = (first_port..u32::from(self.ports).min(PORTS_A_SLICE))
            .map(|port| json!({ "name": format!("p{port}"), "protocol": "TCP", "port": TARGET_PORT }))
            .collect();
        let numbers = match (slice, self.touch) {
            (0, Touch::Endpoint) => n..n + self.endpoints,
            (0, Touch::Count) => 0..self.endpoints + n % 2,
            _ => 0..self.endpoints,
        };
        let endpoints: Vec<Value> = numbers
            .map(|number| {
                // What is new in the first slice comes behind all other slices.
                let is_new = number >= self.endpoints;
                let others = if is_new { self.slices - 1 } else { slice };
                self.endpoint(number + others * self.endpoints)
            })
            .collect();
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("worst-{slice}"), "namespace": "default",
                "labels": { "kubernetes.io/service-name": "worst" },
            },
            "addressType": "IPv4",
            "ports": ports,
            "endpoints": endpoints,
        })
    }

    fn endpoint(self, number: u32) -> Value {
        let mut all = vec![Ipv4Addr::from_bits(FIRST_POD + number)];
        all.extend(addresses(FURTHER_ADDRESS, self.addresses - 1));
        let mut pod = format!("worst-7c9f6d8b5-{number:05}");
        if self.addresses > 1 {
            pod = format!("{pod:x<LONGEST_NAME$}");
        }
        json!({
            "addresses": all,
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": format!("node-{}", 1 + number % 999),
            "targetRef": { "kind": "Pod", "namespace": "default", "name": pod },
        })
    }
}

fn addresses(first: u32, count: u32) -> Vec<Ipv4Addr> {
    (first..first + count).map(Ipv4Addr::from_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_within_the_limits_of_an_api_server() {
        for kind in Worst::ALL {
            for object in kind.objects().chain([kind.touched(60)]) {
                assert!(object.to_string().len() <= 1_500_000, "{}", kind.name);
                let count = |field: &str| object[field].as_array().map_or(0, Vec::len);
                assert!(count("endpoints") <= 1_000 && count("ports") <= 100);
            }
            assert!(kind.addresses <= 100);
        }
    }

    #[test]
    fn a_touch_replaces_one_endpoint() {
        let first = |n| FRONTENDS.slice(0, n)["endpoints"][0]["addresses"][0].clone();
        let last = |n| FRONTENDS.slice(0, n)["endpoints"][55]["addresses"][0].clone();
        assert_eq!(
            (first(0), last(0)),
            ("10.124.0.1".into(), "10.124.0.56".into())
        );
        assert_eq!(
            (first(1), last(1)),
            ("10.124.0.2".into(), "10.124.0.57".into())
        );
    }
}
