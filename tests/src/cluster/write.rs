//! A [`Cluster`] as the manifests a real API server would hold.

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::{Cluster, Endpoint, Ingress, Kind, Node, Service, ServicePort, Slice, SlicePort};

impl Cluster {
    /// All objects as JSON documents: nodes, ServiceCIDRs, Services, slices.
    pub fn documents(&self) -> Vec<Value> {
        let nodes = self.nodes.iter().map(Node::document);
        let service_cidrs = self.service_cidrs.iter().map(service_cidr);
        let services = self.services.iter().map(Service::document);
        let slices = self.slices.iter().map(Slice::document);
        nodes
            .chain(service_cidrs)
            .chain(services)
            .chain(slices)
            .collect()
    }

    /// All objects as one YAML stream (each document in YAML's JSON form), with the flags as comments.
    pub fn to_manifests(&self) -> String {
        let mut out = format!("# {:?}, suspects {:?}\n", self.settings, self.suspects);
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
        let mut labels = json!({"kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux"});
        if let Some(zone) = &self.zone {
            labels["topology.kubernetes.io/zone"] = json!(zone);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": self.name,
                "uid": format!("node-{}", self.name),
                "resourceVersion": "1",
                "labels": labels,
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
            "sessionAffinity": if self.affinity.is_some() { "ClientIP" } else { "None" },
        });
        if let Some(seconds) = self.affinity {
            spec["sessionAffinityConfig"] = json!({"clientIP": {"timeoutSeconds": seconds}});
        }
        for (field, values) in [
            ("externalIPs", &self.external_ips),
            ("loadBalancerSourceRanges", &self.source_ranges),
        ] {
            if !values.is_empty() {
                spec[field] = json!(values);
            }
        }
        if self.kind == Kind::ExternalName {
            spec["externalName"] = json!("db.example.org");
        } else {
            spec["internalTrafficPolicy"] = json!(policy(self.internal_local));
            spec["ipFamilies"] = self.cluster_ips.iter().map(|a| family_name(*a)).collect();
            spec["ipFamilyPolicy"] = json!("PreferDualStack");
        }
        let has_node_port = self.ports.iter().any(|port| port.node_port != 0);
        let is_external = matches!(self.kind, Kind::NodePort | Kind::LoadBalancer);
        if is_external || has_node_port || !self.external_ips.is_empty() {
            spec["externalTrafficPolicy"] = json!(policy(self.external_local));
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
            "status": {"loadBalancer": self.load_balancer()},
        })
    }

    fn load_balancer(&self) -> Value {
        match self.ingress.is_empty() {
            true => json!({}),
            false => {
                json!({"ingress": self.ingress.iter().map(Ingress::document).collect::<Vec<_>>()})
            }
        }
    }
}

impl Ingress {
    fn document(&self) -> Value {
        object([
            ("ip", self.ip.as_ref().map(|ip| json!(ip))),
            ("hostname", self.hostname.as_ref().map(|name| json!(name))),
            ("ipMode", self.ip_mode.as_ref().map(|mode| json!(mode))),
        ])
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
}

impl SlicePort {
    fn document(&self) -> Value {
        object([
            ("name", self.name.as_ref().map(|name| json!(name))),
            ("protocol", self.transport.map(|t| json!(t.name()))),
            ("port", self.port.map(|number| json!(number))),
        ])
    }
}

impl Endpoint {
    fn document(&self) -> Value {
        let conditions = object([
            ("ready", self.ready.map(Value::from)),
            ("serving", self.serving.map(Value::from)),
            ("terminating", self.terminating.map(Value::from)),
        ]);
        let hints = object([
            ("forZones", named(&self.zone_hints)),
            ("forNodes", named(&self.node_hints)),
        ]);
        let mut endpoint = json!({
            "addresses": self.addresses,
            "targetRef": {"kind": "Pod", "namespace": "default", "name": "some-pod"},
        });
        for (field, value) in [("conditions", conditions), ("hints", hints)] {
            if value != json!({}) {
                endpoint[field] = value;
            }
        }
        if let Some(node) = &self.node {
            endpoint["nodeName"] = json!(node);
        }
        endpoint
    }
}

/// A ServiceCIDR as the API server holds it.
pub fn service_cidr((name, ranges): &(String, Vec<ipnet::IpNet>)) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name, "uid": format!("service-cidr-{name}"), "resourceVersion": "4"},
        "spec": {"cidrs": ranges},
    })
}

/// An object of the fields that there are.
fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let present = fields
        .into_iter()
        .filter_map(|(k, v)| Some((k.to_owned(), v?)));
    Value::Object(present.collect::<Map<_, _>>())
}

/// A list of hints, if there are any.
fn named(hints: &[String]) -> Option<Value> {
    let list = || hints.iter().map(|name| json!({"name": name})).collect();
    (!hints.is_empty()).then(list)
}

fn policy(is_local: bool) -> &'static str {
    if is_local { "Local" } else { "Cluster" }
}

fn family_name(address: IpAddr) -> Value {
    json!(if address.is_ipv4() { "IPv4" } else { "IPv6" })
}

fn labels(labels: &[(String, String)]) -> Value {
    Value::Object(labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect())
}

/// RFC 3339 of a moment since 1970, in UTC.
fn timestamp(seconds: i64) -> String {
    let (mut day, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let mut year = 1970;
    while day >= days_of_year(year) {
        day -= days_of_year(year);
        year += 1;
    }
    let mut month = 1;
    while day >= days_of_month(year, month) {
        day -= days_of_month(year, month);
        month += 1;
    }
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    let day = day + 1;
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

pub(super) fn days_of_year(year: i64) -> i64 {
    (1..=12).map(|month| days_of_month(year, month)).sum()
}

pub(super) fn days_of_month(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}
