//! Clusters of a shape: the same objects at every run, as the model's types and as API objects.
//!
//! Every Service has one TCP port on a cluster IP and one slice. Endpoints are spread over [`NODES`] nodes, of
//! which [`OWN_NODE`] is ours: few are local, as on any node of a big cluster.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net};
use serde_json::{Value, json};
use service_model::{
    Conditions, Endpoint, EndpointSlice, Family, Identities, NodeFacts, ObjectName, Protocol,
    Service, ServicePort, SlicePort, TriggerTime,
};
use smallvec::smallvec;

/// Nodes of the cluster: 100 endpoints each at 10,000 x 10.
const NODES: usize = 1_000;
/// Name of the node the benches run as.
pub(crate) const OWN_NODE: &str = "node-0";
/// Address of that node.
const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 10);
/// Cluster IPs are taken from here on: 10.96.0.0/12.
const FIRST_CLUSTER_IP: u32 = u32::from_be_bytes([10, 96, 0, 1]);
/// Pods are scattered from here on, so that the endpoints of a Service are no neighbors: 10.128.0.0/9.
const FIRST_POD_IP: u32 = u32::from_be_bytes([10, 128, 0, 0]);
const POD_IPS: u32 = 1 << 23;
/// Holds all pods.
pub(crate) const CLUSTER_CIDR: &str = "10.128.0.0/9";
const SERVICES_A_NAMESPACE: u32 = 100;
pub(crate) const PORT: u16 = 80;
pub(crate) const TARGET_PORT: u16 = 8080;
const PORT_NAME: &str = "http";

/// This number of Services, each with this number of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Services.
    pub services: u32,
    /// Endpoints of each.
    pub endpoints: u32,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}", self.services, self.endpoints)
    }
}

impl Shape {
    /// This number of Services, each with this number of endpoints.
    pub const fn new(services: u32, endpoints: u32) -> Self {
        Shape {
            services,
            endpoints,
        }
    }

    /// All Services.
    pub fn services(self) -> Vec<Service> {
        let port_name: Arc<str> = PORT_NAME.into();
        (0..self.services)
            .map(|i| Service {
                created: Some(1_700_000_000 + i64::from(i)),
                cluster_ips: smallvec![self.cluster_ip(i).into()],
                ports: smallvec![ServicePort {
                    name: port_name.clone(),
                    protocol: Protocol::Tcp,
                    port: PORT,
                    node_port: None,
                }],
                ..Service::named(self.service_name(i))
            })
            .collect()
    }

    /// All slices, one for each Service.
    pub fn slices(self) -> Vec<EndpointSlice> {
        let nodes: Vec<Arc<str>> = (0..NODES)
            .map(|node| format!("node-{node}").into())
            .collect();
        let port_name: Arc<str> = PORT_NAME.into();
        (0..self.services)
            .map(|i| EndpointSlice {
                name: ObjectName::new(namespace_of(i), slice_name(i)),
                service: self.service_name(i),
                family: Family::Ip,
                ports: smallvec![SlicePort {
                    name: port_name.clone(),
                    protocol: Protocol::Tcp,
                    port: TARGET_PORT
                }],
                endpoints: (0..self.endpoints)
                    .map(|e| Endpoint {
                        address: self.endpoint(i, e).into(),
                        node: nodes.get(self.node_of(i, e)).cloned(),
                        conditions: Conditions {
                            ready: true,
                            serving: true,
                            terminating: false,
                        },
                        hints: None,
                    })
                    .collect(),
                identities: Identities::default(),
                excluded: false,
                trigger: TriggerTime::default(),
            })
            .collect()
    }

    /// The facts of our node.
    pub fn facts(self) -> NodeFacts {
        let pods = Ipv4Net::new_assert(Ipv4Addr::new(10, 128, 0, 0), 9);
        NodeFacts {
            node_name: OWN_NODE.into(),
            zone: None,
            own_addresses: vec![OWN_ADDRESS.into()],
            node_addresses: vec![OWN_ADDRESS.into()],
            local_sources: vec![IpNet::V4(pods)],
            local_interface: None,
            masquerade_all: false,
            service_cidrs: Vec::new(),
            api_servers: Vec::new(),
            allowed_external_ips: None,
            pod_ranges: Vec::new(),
        }
    }

    /// The cluster IP of a Service.
    pub fn cluster_ip(self, service: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(FIRST_CLUSTER_IP + service)
    }

    /// The address of an endpoint.
    pub fn endpoint(self, service: u32, endpoint: u32) -> Ipv4Addr {
        pod_address(service * self.endpoints + endpoint)
    }

    /// The name of a Service.
    pub fn service_name(self, service: u32) -> ObjectName {
        ObjectName::new(namespace_of(service), format!("service-{service}"))
    }

    /// The `n`th change of a run: which Service, which of its endpoints, and the address of the new pod that takes
    /// its place. Visits Services and endpoints as if at random.
    pub fn change(self, n: u32) -> (u32, u32, Ipv4Addr) {
        let mixed = mix(u64::from(n));
        let service = (mixed >> 32) as u32 % self.services;
        let endpoint = mixed as u32 % self.endpoints;
        (
            service,
            endpoint,
            pod_address(self.services * self.endpoints + n),
        )
    }

    fn node_of(self, service: u32, endpoint: u32) -> usize {
        (service * self.endpoints + endpoint) as usize % NODES
    }

    /// A Service as the API server has it.
    pub fn service_object(self, service: u32) -> Value {
        let name = self.service_name(service);
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(&name.namespace, &name.name, service, json!({ "app": &*name.name })),
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.cluster_ip(service),
                "clusterIPs": [self.cluster_ip(service)],
                "ipFamilies": ["IPv4"],
                "ipFamilyPolicy": "SingleStack",
                "internalTrafficPolicy": "Cluster",
                "sessionAffinity": "None",
                "selector": { "app": &*name.name },
                "ports": [{ "name": PORT_NAME, "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
            },
            "status": { "loadBalancer": {} },
        })
    }

    /// Its EndpointSlice as the API server has it, with the pod of `changed` in the place of another.
    pub fn slice_object(self, service: u32, changed: Option<(u32, Ipv4Addr)>) -> Value {
        let owner = self.service_name(service);
        let endpoints: Vec<Value> = (0..self.endpoints)
            .map(|e| {
                let address = changed.filter(|(at, _)| *at == e).map_or(self.endpoint(service, e), |(_, to)| to);
                json!({
                    "addresses": [address],
                    "conditions": { "ready": true, "serving": true, "terminating": false },
                    "nodeName": format!("node-{}", self.node_of(service, e)),
                    "targetRef": {
                        "kind": "Pod", "namespace": &*owner.namespace, "name": format!("{}-{e}", owner.name),
                        "uid": uid(service * self.endpoints + e),
                    },
                })
            })
            .collect();
        let labels = json!({
            "kubernetes.io/service-name": &*owner.name,
            "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        });
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata(&owner.namespace, &slice_name(service), service, labels),
            "addressType": "IPv4",
            "ports": [{ "name": PORT_NAME, "protocol": "TCP", "port": TARGET_PORT }],
            "endpoints": endpoints,
        })
    }

    /// Our Node as the API server has it.
    pub fn node_object(self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": OWN_NODE, "labels": { "kubernetes.io/hostname": OWN_NODE } },
            "spec": { "podCIDR": "10.128.0.0/24", "podCIDRs": ["10.128.0.0/24"] },
            "status": { "addresses": [{ "type": "InternalIP", "address": OWN_ADDRESS }] },
        })
    }

    /// All objects.
    pub fn objects(self) -> impl Iterator<Item = Value> {
        (0..self.services)
            .flat_map(move |i| [self.service_object(i), self.slice_object(i, None)])
            .chain([self.node_object()])
    }

    /// Writes a folder of manifests: a file for each so many Services, and one for the Node.
    pub fn write_manifests(self, folder: &Path, services_a_file: u32) -> Result<()> {
        for first in (0..self.services).step_by(services_a_file as usize) {
            self.write_manifest(folder, services_a_file, first, |_| None)?;
        }
        write_documents(&folder.join("node.yaml"), [self.node_object()])?;
        Ok(())
    }

    /// Writes the file that holds a Service anew, with the pods of `changed`. Returns when it was put in place.
    pub fn write_manifest(
        self,
        folder: &Path,
        services_a_file: u32,
        service: u32,
        changed: impl Fn(u32) -> Option<(u32, Ipv4Addr)>,
    ) -> Result<Instant> {
        let first = service - service % services_a_file;
        let last = (first + services_a_file).min(self.services);
        let objects =
            (first..last).flat_map(|i| [self.service_object(i), self.slice_object(i, changed(i))]);
        write_documents(&folder.join(format!("services-{first}.yaml")), objects)
    }
}

/// A different address for each number below [`POD_IPS`]: multiplying by an odd number loses none.
fn pod_address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_POD_IP + number.wrapping_mul(0x9e37_79b1) % POD_IPS)
}

/// SplitMix64 (Steele, Lea, Flood 2014): numbers that look like chance and are the same at each run.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn namespace_of(service: u32) -> String {
    format!("team-{}", service / SERVICES_A_NAMESPACE)
}

fn slice_name(service: u32) -> String {
    format!("service-{service}-x7k2p")
}

fn uid(number: u32) -> String {
    format!("{number:08x}-5c1e-4a6b-9d3f-0242ac120002")
}

/// With what servers add: much of an object is of no use to us, and has to be read past.
fn metadata(namespace: &str, name: &str, number: u32, labels: Value) -> Value {
    json!({
        "name": name,
        "namespace": namespace,
        "uid": uid(number),
        "resourceVersion": format!("{}", 100_000 + number),
        "creationTimestamp": "2026-01-05T10:00:00Z",
        "labels": labels,
        "annotations": { "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-05T10:00:00Z" },
        "managedFields": [{
            "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1",
            "time": "2026-01-05T10:00:00Z", "fieldsType": "FieldsV1",
            "fieldsV1": { "f:metadata": { "f:labels": { ".": {}, "f:app": {} } }, "f:spec": { "f:ports": {} } },
        }],
    })
}

/// As one file, put in place at once, without `managedFields`, as `kubectl get` leaves them out. Returns when.
fn write_documents(path: &Path, documents: impl IntoIterator<Item = Value>) -> Result<Instant> {
    let write = || -> Result<Instant> {
        let mut text = String::new();
        for mut document in documents {
            if let Some(metadata) = document["metadata"].as_object_mut() {
                metadata.remove("managedFields");
            }
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(&document)?);
        }
        let draft = path.with_extension("draft");
        fs::write(&draft, text)?;
        let now = Instant::now();
        fs::rename(&draft, path)?;
        Ok(now)
    };
    write().with_context(|| format!("write {path:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;
    use service_model::wire::{ConversionContext, Object};

    #[test]
    fn api_objects_mean_the_same_as_the_models() -> Result<()> {
        let shape = Shape::new(3, 4);
        let mut context = ConversionContext::default();
        for i in 0..3 {
            let index = i as usize;
            let service: service_model::wire::Service =
                serde_json::from_value(shape.service_object(i))?;
            let slice: service_model::wire::EndpointSlice =
                serde_json::from_value(shape.slice_object(i, None))?;
            let mut service = service.into_model(&mut context)?.object;
            service.created = shape.services()[index].created;
            assert_eq!(service, shape.services()[index]);
            let mut slice = slice.into_model(&mut context)?.object;
            ensure!(slice.identities.iter().count() == slice.endpoints.len());
            slice.identities = shape.slices()[index].identities.clone();
            assert_eq!(slice, shape.slices()[index]);
        }
        Ok(())
    }

    #[test]
    fn no_two_endpoints_or_services_have_one_address() {
        let shape = Shape::new(50, 7);
        let pods = (0..50).flat_map(|i| (0..7).map(move |e| shape.endpoint(i, e)));
        let new = (0..100).map(|n| shape.change(n).2);
        let all: Vec<Ipv4Addr> = pods
            .chain(new)
            .chain((0..50).map(|i| shape.cluster_ip(i)))
            .collect();
        let distinct: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
    }
}
