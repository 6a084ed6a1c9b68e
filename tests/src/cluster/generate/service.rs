//! Services of random clusters, with their slices.

use std::collections::BTreeSet;

use rand::Rng;
use rand::seq::IndexedRandom;

use super::{Generator, OTHER_PROXY};
use crate::cluster::space::{cluster_address, external_address, node_address, pod_address};
use crate::cluster::{Cluster, Ingress, Kind, Service, ServicePort, Transport};

/// Ranges with the lab's client, pods and nodes inside and outside, and spellings that old objects may have.
const SOURCE_RANGES: [&str; 12] = [
    "192.168.77.0/24",
    "192.168.77.200/32",
    "192.168.077.200/032",
    "192.168.77.8/29",
    "10.244.1.0/24",
    " 10.244.0.0/16",
    "10.244.2.77/23",
    "198.51.100.0/24",
    "0.0.0.0/0",
    "fd00:77::/64",
    "fd00:244:1::/64",
    "2001:db8::/32",
];

impl Generator {
    pub(in crate::cluster) fn add_service(&mut self, cluster: &mut Cluster) {
        let number = self.next_service;
        self.next_service += 1;
        let kind = match self.rng.random_range(0..100) {
            0..36 => Kind::ClusterIp,
            36..64 => Kind::NodePort,
            64..94 => Kind::LoadBalancer,
            _ => Kind::ExternalName,
        };
        let mut families = vec![
            vec![true],
            vec![false],
            vec![true, false],
            vec![false, true],
        ];
        let families = families.swap_remove(self.rng.random_range(0..4));
        let headless = kind == Kind::ClusterIp && self.chance(12);
        // An ExternalName normally has no cluster IP, but may have kept one from an earlier type.
        let has_address = !headless && (kind != Kind::ExternalName || self.chance(40));
        let addresses = families.iter().map(|v4| cluster_address(number, *v4));
        let mut service = Service {
            namespace: ["default", "shop"]
                .choose(&mut self.rng)
                .copied()
                .unwrap_or("default")
                .into(),
            // The same names in both namespaces, now and then.
            name: format!("svc-{}", if self.chance(20) { number / 2 } else { number }),
            created: 1_700_000_000 + self.rng.random_range(0..5),
            labels: self.labels(),
            kind,
            cluster_ips: if has_address {
                addresses.collect()
            } else {
                Vec::new()
            },
            headless,
            ports: self.service_ports(cluster, kind),
            external_ips: Vec::new(),
            ingress: Vec::new(),
            source_ranges: Vec::new(),
            external_local: self.chance(35),
            internal_local: self.chance(15),
            affinity: *[None, None, None, Some(10_800), Some(600), Some(60)]
                .choose(&mut self.rng)
                .unwrap_or(&None),
        };
        self.add_external_addresses(cluster, &mut service);
        let taken = cluster
            .services
            .iter()
            .any(|s| (&s.namespace, &s.name) == (&service.namespace, &service.name));
        if !taken {
            self.add_slices(cluster, &service);
            cluster.services.push(service);
            if self.space.odd && self.chance(3) {
                self.steal_address(cluster);
            }
        }
    }

    /// Makes the last Service claim what another has, which the API server normally prevents.
    fn steal_address(&mut self, cluster: &mut Cluster) {
        let Some((last, others)) = cluster.services.split_last_mut() else {
            return;
        };
        let Some(victim) = others.choose(&mut self.rng) else {
            return;
        };
        last.cluster_ips = victim.cluster_ips.clone();
        for (mine, theirs) in last.ports.iter_mut().zip(&victim.ports) {
            (mine.transport, mine.port, mine.node_port) =
                (theirs.transport, theirs.port, theirs.node_port);
        }
        unique_ports(&mut last.ports);
    }

    pub(in crate::cluster) fn labels(&mut self) -> Vec<(String, String)> {
        let mut labels = vec![("app".to_owned(), "web".to_owned())];
        let usual = self.proxy_name.clone();
        if self.chance(if usual.is_some() { 70 } else { 5 }) {
            let key = "service.kubernetes.io/service-proxy-name".into();
            labels.push((key, usual.unwrap_or_else(|| OTHER_PROXY.into())));
        }
        if self.chance(4) {
            labels.push(("service.kubernetes.io/headless".into(), String::new()));
        }
        labels
    }

    pub(in crate::cluster) fn service_ports(
        &mut self,
        cluster: &Cluster,
        kind: Kind,
    ) -> Vec<ServicePort> {
        let count = *[1, 1, 1, 2, 2, 3, 4].choose(&mut self.rng).unwrap_or(&1);
        let node_ports: BTreeSet<(u16, Transport)> = cluster
            .services
            .iter()
            .flat_map(|s| s.ports.iter().map(|p| (p.node_port, p.transport)))
            .collect();
        let mut ports: Vec<ServicePort> = Vec::new();
        for index in 0..count {
            let transport = *Transport::ALL
                .choose_weighted(&mut self.rng, |t| match t {
                    Transport::Tcp => 5,
                    Transport::Udp => 3,
                    Transport::Sctp => 1,
                })
                .unwrap_or(&Transport::Tcp);
            let node_port = match kind {
                Kind::NodePort => self.rng.random_range(30_000..30_040),
                Kind::LoadBalancer if self.chance(50) => self.rng.random_range(30_000..30_040),
                _ => 0,
            };
            let free = !node_ports.contains(&(node_port, transport));
            ports.push(ServicePort {
                name: if count == 1 && self.chance(50) {
                    String::new()
                } else {
                    format!("port-{index}")
                },
                transport,
                port: *[80, 443, 53, 8080].choose(&mut self.rng).unwrap_or(&80),
                node_port: if free { node_port } else { 0 },
            });
        }
        unique_ports(&mut ports);
        ports
    }

    fn add_slices(&mut self, cluster: &mut Cluster, service: &Service) {
        for ipv4 in [true, false] {
            let wanted = service.cluster_ips.iter().any(|a| a.is_ipv4() == ipv4) || self.chance(20);
            let count = if wanted {
                *[0, 1, 1, 1, 2, 2, 3].choose(&mut self.rng).unwrap_or(&1)
            } else {
                0
            };
            let mut known = Vec::new();
            for _ in 0..count {
                let owner = Some(service.name.clone());
                let mut slice = self.slice(&service.namespace, owner, ipv4, &service.ports, &known);
                // The controller copies the two labels that matter; sometimes it has not yet.
                if self.chance(90) {
                    slice.labels = service.labels.clone();
                }
                known.extend(slice.endpoints.iter().cloned());
                cluster.slices.push(slice);
            }
        }
    }

    /// External IPs, addresses of a load balancer, and who may use those. They are few, so that Services meet there.
    pub(in crate::cluster) fn add_external_addresses(
        &mut self,
        cluster: &Cluster,
        service: &mut Service,
    ) {
        service.external_ips.clear();
        service.ingress.clear();
        service.source_ranges.clear();
        if service.kind != Kind::ExternalName && self.chance(25) {
            for _ in 0..self.rng.random_range(1..=3) {
                let address = self.external_ip(cluster);
                service.external_ips.push(address);
            }
        }
        if service.kind != Kind::LoadBalancer {
            return;
        }
        for _ in 0..self.rng.random_range(0..=3) {
            let number = self.rng.random_range(5..12);
            let ipv4 = self.chance(60);
            let ip = external_address(number, ipv4).to_string();
            let ip = (!self.chance(5)).then_some(ip);
            service.ingress.push(Ingress {
                hostname: (ip.is_none() || self.chance(5)).then(|| "lb.example.org".into()),
                ip,
                ip_mode: match self.rng.random_range(0..8) {
                    0 => Some("Proxy".into()),
                    1..=3 => Some("VIP".into()),
                    _ => None,
                },
            });
        }
        if self.chance(35) {
            let count = self.rng.random_range(1..=4);
            let ranges = SOURCE_RANGES.choose_multiple(&mut self.rng, count);
            service.source_ranges = ranges.map(|range| (*range).to_owned()).collect();
        }
    }

    /// An address somewhere outside; or, as nothing forbids, one that is someone else's.
    fn external_ip(&mut self, cluster: &Cluster) -> String {
        let (number, ipv4) = (self.rng.random_range(1..8), self.chance(60));
        let cluster_ips = cluster.services.iter().flat_map(|s| &s.cluster_ips);
        let cluster_ips: Vec<_> = cluster_ips.collect();
        match self.rng.random_range(0..30) {
            0 if ipv4 => format!("203.0.113.00{number}"),
            1 if !cluster_ips.is_empty() && self.space.odd => cluster_ips
                .choose(&mut self.rng)
                .map_or_else(String::new, ToString::to_string),
            2 if self.space.odd => {
                node_address(self.space.node_number(&mut self.rng), ipv4).to_string()
            }
            3 if self.space.odd => {
                let (node, x) = self.space.pod(&mut self.rng);
                pod_address(node, x, ipv4).to_string()
            }
            4 if self.space.odd => cluster_address(number.into(), ipv4).to_string(),
            _ => external_address(number, ipv4).to_string(),
        }
    }
}

/// Drops ports that repeat a number and protocol, and node ports that repeat one.
pub(in crate::cluster) fn unique_ports(ports: &mut Vec<ServicePort>) {
    let mut seen = BTreeSet::new();
    ports.retain(|port| seen.insert((port.port, port.transport)));
    let mut node_ports = BTreeSet::new();
    for port in ports {
        if !node_ports.insert((port.node_port, port.transport)) {
            port.node_port = 0;
        }
    }
}
