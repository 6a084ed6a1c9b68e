//! A cluster as plain values, and as the manifests a real API server would hold.
//!
//! Owns a description of its own, on purpose different from the product's types: manifests are the only
//! thing the two share, so that a mistake in the product's decoding cannot hide here. [`generate`] makes
//! random clusters, [`read`] reads those written by hand.

mod change;
pub mod generate;
pub mod read;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Map, Value, json};

pub use generate::{Generator, Space};

/// Everything that decides what happens to a packet on any node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes; Portolan may run on any.
    pub nodes: Vec<Node>,
    /// Services.
    pub services: Vec<Service>,
    /// EndpointSlices.
    pub slices: Vec<Slice>,
    /// The operator's flags, alike on all nodes.
    pub settings: Settings,
}

/// The operator's flags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// `--detect-local-mode`
    pub detect: Detect,
    /// `--nodeport-addresses`; `None` means `primary`.
    pub nodeport_addresses: Option<Vec<IpNet>>,
    /// `--masquerade-all`
    pub masquerade_all: bool,
}

/// How the source of a local pod is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detect {
    /// `ClusterCIDR`, with at most one range of each family.
    ClusterCidr(Vec<IpNet>),
    /// `NodeCIDR`
    NodeCidr,
}

impl Default for Detect {
    fn default() -> Self {
        Detect::ClusterCidr(Vec::new())
    }
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`
    pub name: String,
    /// `status.addresses`: type and address, in order.
    pub addresses: Vec<(&'static str, IpAddr)>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<IpNet>,
    /// What its interfaces carry, loopback among them. Not part of any manifest.
    pub interfaces: Vec<IpAddr>,
}

/// `spec.type`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ClusterIP
    ClusterIp,
    /// NodePort
    NodePort,
    /// LoadBalancer
    LoadBalancer,
    /// ExternalName
    ExternalName,
}

/// A transport protocol of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Transport {
    /// All.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// As in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        }
    }
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.creationTimestamp`, seconds since 1970.
    pub created: i64,
    /// `metadata.labels`
    pub labels: Vec<(String, String)>,
    /// `spec.type`
    pub kind: Kind,
    /// `spec.clusterIPs`, empty when it has none.
    pub cluster_ips: Vec<IpAddr>,
    /// No cluster IP on purpose: `spec.clusterIP: None`.
    pub headless: bool,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
}

/// One of `spec.ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name, may be empty.
    pub name: String,
    /// Protocol.
    pub transport: Transport,
    /// Port.
    pub port: u16,
    /// Node port, 0 for none.
    pub node_port: u16,
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.labels` besides the Service's name.
    pub labels: Vec<(String, String)>,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<String>,
    /// `addressType`: `IPv4`, `IPv6` or `FQDN`.
    pub address_type: &'static str,
    /// `ports`
    pub ports: Vec<SlicePort>,
    /// `endpoints`
    pub endpoints: Vec<Endpoint>,
}

/// One of a slice's `ports`; every field may be missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name.
    pub name: Option<String>,
    /// Protocol.
    pub transport: Option<Transport>,
    /// Port.
    pub port: Option<u16>,
}

/// One of a slice's `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `addresses`
    pub addresses: Vec<String>,
    /// `nodeName`
    pub node: Option<String>,
    /// `conditions.ready`
    pub ready: Option<bool>,
    /// `conditions.serving`
    pub serving: Option<bool>,
    /// `conditions.terminating`
    pub terminating: Option<bool>,
}

impl Cluster {
    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// All objects as JSON documents: nodes, Services, slices.
    pub fn documents(&self) -> Vec<Value> {
        let nodes = self.nodes.iter().map(Node::document);
        let services = self.services.iter().map(Service::document);
        let slices = self.slices.iter().map(Slice::document);
        nodes.chain(services).chain(slices).collect()
    }

    /// All objects as one YAML stream (each document in YAML's JSON form), with the flags as comments.
    pub fn to_manifests(&self) -> String {
        let mut out = format!("# {:?}\n", self.settings);
        for document in self.documents() {
            let _ = writeln!(out, "---\n{document}");
        }
        out
    }
}

impl Node {
    /// As the API server holds it.
    pub fn document(&self) -> Value {
        let mut addresses = vec![json!({"type": "Hostname", "address": self.name})];
        addresses.extend(
            self.addresses
                .iter()
                .map(|(kind, a)| json!({"type": kind, "address": a})),
        );
        let mut spec = Map::new();
        if let Some(first) = self.pod_cidrs.first() {
            spec.insert("podCIDR".into(), json!(first));
            spec.insert("podCIDRs".into(), json!(self.pod_cidrs));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": format!("node-{}", self.name),
                "resourceVersion": "1",
                "labels": {"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"},
            },
            "spec": spec,
            "status": {"addresses": addresses, "nodeInfo": {"kernelVersion": "6.1.0"}},
        })
    }
}

impl Service {
    /// As the API server holds it.
    pub fn document(&self) -> Value {
        let mut spec = json!({
            "type": match self.kind {
                Kind::ClusterIp => "ClusterIP",
                Kind::NodePort => "NodePort",
                Kind::LoadBalancer => "LoadBalancer",
                Kind::ExternalName => "ExternalName",
            },
            "ports": self.ports.iter().map(ServicePort::document).collect::<Vec<_>>(),
            "selector": {"app": self.name},
            "sessionAffinity": "None",
        });
        if self.kind == Kind::ExternalName {
            spec["externalName"] = json!("db.example.org");
        } else {
            spec["internalTrafficPolicy"] = json!("Cluster");
            spec["ipFamilies"] = self.cluster_ips.iter().map(|a| family_name(*a)).collect();
            spec["ipFamilyPolicy"] = json!("PreferDualStack");
        }
        if matches!(self.kind, Kind::NodePort | Kind::LoadBalancer) {
            spec["externalTrafficPolicy"] = json!("Cluster");
        }
        if self.headless {
            spec["clusterIP"] = json!("None");
            spec["clusterIPs"] = json!(["None"]);
        } else if let Some(first) = self.cluster_ips.first() {
            spec["clusterIP"] = json!(first);
            spec["clusterIPs"] = json!(self.cluster_ips);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "uid": format!("service-{}-{}", self.namespace, self.name),
                "resourceVersion": "2",
                "creationTimestamp": timestamp(self.created),
                "labels": labels(&self.labels),
                "managedFields": [{"manager": "kubectl", "operation": "Update"}],
            },
            "spec": spec,
            "status": {"loadBalancer": {}},
        })
    }

    /// Whether it has that label, whatever its value.
    pub fn has_label(&self, key: &str) -> bool {
        self.labels.iter().any(|(k, _)| k == key)
    }
}

impl ServicePort {
    fn document(&self) -> Value {
        let mut port = json!({
            "port": self.port,
            "protocol": self.transport.name(),
            "targetPort": "target",
        });
        if !self.name.is_empty() {
            port["name"] = json!(self.name);
        }
        if self.node_port != 0 {
            port["nodePort"] = json!(self.node_port);
        }
        port
    }
}

impl Slice {
    /// As the API server holds it.
    pub fn document(&self) -> Value {
        let mut labels = labels(&self.labels);
        if let Some(service) = &self.service {
            labels["kubernetes.io/service-name"] = json!(service);
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": self.namespace,
                "name": self.name,
                "uid": format!("slice-{}-{}", self.namespace, self.name),
                "resourceVersion": "3",
                "generation": 1,
                "creationTimestamp": timestamp(1_700_000_000),
                "labels": labels,
            },
            "addressType": self.address_type,
            "ports": self.ports.iter().map(SlicePort::document).collect::<Vec<_>>(),
            "endpoints": self.endpoints.iter().map(Endpoint::document).collect::<Vec<_>>(),
        })
    }

    /// Whether it has that label, whatever its value.
    pub fn has_label(&self, key: &str) -> bool {
        self.labels.iter().any(|(k, _)| k == key)
    }
}

impl SlicePort {
    fn document(&self) -> Value {
        let mut port = Map::new();
        if let Some(name) = &self.name {
            port.insert("name".into(), json!(name));
        }
        if let Some(transport) = self.transport {
            port.insert("protocol".into(), json!(transport.name()));
        }
        if let Some(number) = self.port {
            port.insert("port".into(), json!(number));
        }
        Value::Object(port)
    }
}

impl Endpoint {
    fn document(&self) -> Value {
        let conditions: Map<String, Value> = [
            ("ready", self.ready),
            ("serving", self.serving),
            ("terminating", self.terminating),
        ]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), json!(value?))))
        .collect();
        let mut endpoint = json!({
            "addresses": self.addresses,
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "some-pod"},
        });
        if !conditions.is_empty() {
            endpoint["conditions"] = Value::Object(conditions);
        }
        if let Some(node) = &self.node {
            endpoint["nodeName"] = json!(node);
        }
        endpoint
    }
}

fn family_name(address: IpAddr) -> Value {
    json!(if address.is_ipv4() { "IPv4" } else { "IPv6" })
}

fn labels(labels: &[(String, String)]) -> Value {
    Value::Object(labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect())
}

/// RFC 3339 of a moment in November 2023, near `1_700_000_000` (22:13:20 on the 14th).
fn timestamp(seconds: i64) -> String {
    let past = seconds - 1_699_920_000;
    let (day, rest) = (14 + past.div_euclid(86_400), past.rem_euclid(86_400));
    format!(
        "2023-11-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Every address that a manifest of the cluster calls an endpoint.
pub fn endpoint_addresses(cluster: &Cluster) -> BTreeSet<IpAddr> {
    let endpoints = cluster.slices.iter().flat_map(|slice| &slice.endpoints);
    endpoints
        .flat_map(|e| &e.addresses)
        .filter_map(|a| a.parse().ok())
        .collect()
}
