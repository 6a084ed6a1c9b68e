//! Random changes to a random cluster, for sequences of events.

use std::collections::BTreeMap;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::{IndexedMutRandom, IndexedRandom, SliceRandom};

use super::generate::{Generator, unique_ports};
use super::{Cluster, Kind};

impl Generator {
    pub fn mutate(&mut self, cluster: &mut Cluster) {
        match self.rng.random_range(0..15) {
            0 => self.add_service(cluster),
            1 => remove_random(&mut self.rng, &mut cluster.services),
            2 => remove_random(&mut self.rng, &mut cluster.slices),
            3 => self.add_slice_somewhere(cluster),
            4 => self.change_ports(cluster),
            5 => self.change_service(cluster),
            6 => self.move_slice(cluster),
            7 => self.change_node(cluster),
            8 => cluster.service_cidrs = self.service_cidrs(),
            9 => self.change_service(cluster),
            10 => cluster.suspects = self.suspects(),
            _ => self.change_endpoints(cluster),
        }
        self.settle(cluster);
    }

    fn add_slice_somewhere(&mut self, cluster: &mut Cluster) {
        let Some(service) = cluster.services.choose(&mut self.rng).cloned() else {
            return;
        };
        let known: Vec<_> = cluster
            .slices
            .iter()
            .filter(|s| s.service.as_ref() == Some(&service.name))
            .flat_map(|s| s.endpoints.iter().cloned())
            .collect();
        let ipv4 = self.chance(50);
        let owner = Some(service.name.clone());
        let slice = self.slice(&service.namespace, owner, ipv4, &service.ports, &known);
        cluster.slices.push(slice);
    }

    fn change_ports(&mut self, cluster: &mut Cluster) {
        let Some(index) = self.index(cluster.services.len()) else {
            return;
        };
        let mut service = cluster.services.remove(index);
        match self.rng.random_range(0..4) {
            0 => service.ports = self.service_ports(cluster, service.kind),
            1 if service.ports.len() > 1 => remove_random(&mut self.rng, &mut service.ports),
            2 => service.ports.shuffle(&mut self.rng),
            _ => {
                for port in &mut service.ports {
                    port.port = *[80, 443, 53, 8080].choose(&mut self.rng).unwrap_or(&80);
                }
                unique_ports(&mut service.ports);
            }
        }
        cluster.services.insert(index, service);
    }

    fn change_service(&mut self, cluster: &mut Cluster) {
        let labels = self.labels();
        let Some(index) = self.index(cluster.services.len()) else {
            return;
        };
        let mut service = cluster.services.remove(index);
        match self.rng.random_range(0..8) {
            0 => service.labels = labels,
            1 => service.cluster_ips.reverse(),
            2 => service.external_local = !service.external_local,
            3 => service.internal_local = !service.internal_local,
            4 => {
                let timeouts = [None, Some(60), Some(10_800)];
                service.affinity = *timeouts.choose(&mut self.rng).unwrap_or(&None);
            }
            5 | 6 => self.add_external_addresses(cluster, &mut service),
            _ if service.kind == Kind::ExternalName => service.kind = Kind::ClusterIp,
            _ => service.kind = Kind::ExternalName,
        }
        // A type change to ClusterIP without an address is what a headless Service looks like.
        service.headless = service.kind == Kind::ClusterIp && service.cluster_ips.is_empty();
        cluster.services.insert(index, service);
    }

    fn move_slice(&mut self, cluster: &mut Cluster) {
        let names: Vec<_> = cluster.services.iter().map(|s| s.name.clone()).collect();
        let name = names.choose(&mut self.rng).cloned();
        let Some(slice) = cluster.slices.choose_mut(&mut self.rng) else {
            return;
        };
        slice.service = name;
    }

    fn change_node(&mut self, cluster: &mut Cluster) {
        let Some(index) = self.index(cluster.nodes.len()) else {
            return;
        };
        cluster.nodes[index] = self.node(index as u8 + 1);
    }

    fn change_endpoints(&mut self, cluster: &mut Cluster) {
        let Some(index) = self.index(cluster.slices.len()) else {
            return;
        };
        let mut slice = cluster.slices.remove(index);
        let ipv4 = slice.address_type == "IPv4";
        match self.rng.random_range(0..4) {
            0 => slice.endpoints.push(self.endpoint(ipv4)),
            1 => remove_random(&mut self.rng, &mut slice.endpoints),
            2 => {
                for endpoint in &mut slice.endpoints {
                    (endpoint.ready, endpoint.serving, endpoint.terminating) = self.conditions();
                }
            }
            _ => {
                if let Some(endpoint) = slice.endpoints.choose_mut(&mut self.rng) {
                    (endpoint.ready, endpoint.serving, endpoint.terminating) = self.conditions();
                }
            }
        }
        cluster.slices.insert(index, slice);
    }

    fn index(&mut self, len: usize) -> Option<usize> {
        (len > 0).then(|| self.rng.random_range(0..len))
    }

    /// Gives all occurrences of an address the same node, and within a Service all terminating
    /// (respectively all other) ones the same conditions and hints.
    pub(super) fn settle(&self, cluster: &mut Cluster) {
        if self.contradictory {
            return;
        }
        let mut nodes = BTreeMap::new();
        let mut conditions = BTreeMap::new();
        for slice in &mut cluster.slices {
            for endpoint in &mut slice.endpoints {
                let Some(address) = endpoint.addresses.first() else {
                    continue;
                };
                endpoint.node = nodes
                    .entry(address.clone())
                    .or_insert_with(|| endpoint.node.clone())
                    .clone();
                let key = (
                    slice.namespace.clone(),
                    slice.service.clone(),
                    address.clone(),
                    endpoint.terminating == Some(true),
                );
                let (ready, serving, zones, nodes) = conditions.entry(key).or_insert_with(|| {
                    let (zones, nodes) = (&endpoint.zone_hints, &endpoint.node_hints);
                    (
                        endpoint.ready,
                        endpoint.serving,
                        zones.clone(),
                        nodes.clone(),
                    )
                });
                (endpoint.ready, endpoint.serving) = (*ready, *serving);
                (endpoint.zone_hints, endpoint.node_hints) = (zones.clone(), nodes.clone());
            }
        }
    }
}

fn remove_random<T>(rng: &mut SmallRng, items: &mut Vec<T>) {
    if !items.is_empty() {
        let index = rng.random_range(0..items.len());
        items.remove(index);
    }
}
