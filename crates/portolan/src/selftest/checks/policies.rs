//! Checks of policies for external traffic: source ranges of load balancers, and externalTrafficPolicy Local.
//!
//! A pod counts as a client in the cluster, so no pod shows that clients outside are dropped where a node has no endpoint. What load
//! balancers are told of each node is checked instead.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Expected, Known, Place, Plan, SERVICE_PORT, SPREAD, WAYS, Way, attempt, family};

/// Name of the Service with source ranges.
const RANGES: &str = "ranges";
/// Name of the Service with externalTrafficPolicy Local, whose endpoint is server-1.
const EXTERNAL: &str = "external";
const NO_ADDRESS: &str = "no right to patch services/status";

impl Known {
    /// Addresses of a Service's load balancer, of the families that the Service has.
    fn load_balancer(&self, name: &str) -> Vec<IpAddr> {
        let families: Vec<&str> = self.service(name).into_iter().map(family).collect();
        let mut all = Known::addresses(&self.services, name, "/status/loadBalancer/ingress");
        all.retain(|address| families.contains(&family(*address)));
        all
    }

    /// Whether source ranges of the Service have all addresses of a pod, or none.
    fn is_allowed(&self, pod: &str) -> Option<bool> {
        let named = |service: &&serde_json::Value| service["metadata"]["name"] == RANGES;
        let service = self.services.iter().find(named)?;
        let ranges = service
            .pointer("/spec/loadBalancerSourceRanges")?
            .as_array()?;
        let texts = ranges.iter().filter_map(|range| range.as_str());
        let ranges: Vec<IpNet> = texts.filter_map(|text| text.parse().ok()).collect();
        let allowed = |address: &IpAddr| ranges.iter().any(|range| range.contains(address));
        let addresses = self.pod(pod);
        match addresses.iter().filter(|address| allowed(address)).count() {
            0 => Some(false),
            count if count == addresses.len() => Some(true),
            _ => None,
        }
    }
}

impl Plan {
    /// A client to a load balancer's address, which only pods of the first node may use.
    pub(super) fn source_ranges(&mut self, known: &Known, client: &str, servers: &[String]) {
        const WHAT: &str = "loadBalancerSourceRanges";
        let addresses = known.load_balancer(RANGES);
        let is_allowed = known.is_allowed(client);
        let expected = match (client == "client-1", is_allowed) {
            _ if addresses.is_empty() => return self.skip(WHAT, NO_ADDRESS),
            (true, Some(true)) => Expected::By(servers.to_vec()),
            (false, Some(false)) => Expected::Failure("no answer"),
            _ => return self.skip(WHAT, "pods are not in the pod CIDR of their node"),
        };
        let count = if client == "client-1" { SPREAD } else { 1 };
        for to in addresses {
            for (way, protocol) in WAYS {
                let name = format!("{WHAT}, {} {protocol}", family(to));
                let attempt = attempt(way, to, SERVICE_PORT, count, 0);
                self.add(name, client, attempt, expected.clone());
            }
        }
    }

    /// A client to a Service with externalTrafficPolicy Local: by its load balancer's address, by the node port of the node that has
    /// the endpoint, and what each node tells load balancers.
    pub(super) fn external_policy(&mut self, known: &Known, client: &str, places: &[Place]) {
        const WHAT: &str = "externalTrafficPolicy Local";
        let answered = Expected::By(vec!["server-1".to_owned()]);
        let addresses = known.load_balancer(EXTERNAL);
        if addresses.is_empty() {
            self.skip(&format!("{WHAT}, load balancer IP"), NO_ADDRESS);
        }
        for to in addresses {
            for (way, protocol) in WAYS {
                let name = format!("{WHAT}, load balancer IP, {} {protocol}", family(to));
                let attempt = attempt(way, to, SERVICE_PORT, 8, 0);
                self.add(name, client, attempt, answered.clone());
            }
        }
        let families: Vec<&str> = known.service(EXTERNAL).into_iter().map(family).collect();
        for (n, place) in places.iter().enumerate() {
            let node = &place.node;
            let mut at = Known::addresses(&known.nodes, node, "/status/addresses");
            at.retain(|address| families.contains(&family(*address)));
            for to in at {
                for (way, protocol) in WAYS.into_iter().filter(|_| n == 0) {
                    if let Some(port) = known.node_port(EXTERNAL, protocol) {
                        let name =
                            format!("{WHAT}, node port of {node}, {} {protocol}", family(to));
                        self.add(name, client, attempt(way, to, port, 8, 0), answered.clone());
                    }
                }
                if let Some(port) = known.health_check_node_port(EXTERNAL) {
                    let name = format!("{WHAT}, health check of {node}, {}", family(to));
                    let state = if n == 0 { "ready" } else { "not ready" };
                    let expected = Expected::By(vec![state.to_owned()]);
                    self.add(name, client, attempt(Way::Health, to, port, 1, 0), expected);
                }
            }
        }
    }
}
