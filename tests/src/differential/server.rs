//! The API server of one side: the lab's fake one, which takes everything, or a real one.
//!
//! Owns how an object is brought into the form that the server has or wants. The fake one keeps what it is given, so
//! it is given what a real one would have made of it; the real one is given what a person would write.

use std::net::{IpAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Result;
use ipnet::IpNet;
use lab::ControlPlane;
use lab::fake_api::{FakeApi, Resource};
use serde_json::{Map, Value, json};

use crate::cluster::space::service_cidr;
use crate::cluster::write::service_cidr as service_cidr_document;
use crate::field::Field;

/// Which API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The lab's, on the node's loopback.
    Fake,
    /// etcd and kube-apiserver on a machine of the lab.
    Real,
}

pub(super) enum Server {
    Fake(Box<FakeApi>),
    Real(Box<ControlPlane>),
}

/// ServiceCIDRs that clusters have.
const SERVICE_CIDRS: [&str; 2] = ["kubernetes", "more"];
/// The ServiceCIDRs of a real API server.
pub fn its_service_cidrs() -> Vec<(String, Vec<IpNet>)> {
    let ranges = [true, false].map(service_cidr);
    vec![("kubernetes".into(), ranges.to_vec())]
}

/// Namespaces in use besides `default`.
const NAMESPACES: [&str; 2] = ["shop", "sentinel"];

impl Server {
    pub(super) fn start(kind: Kind, field: &Field, node: &lab::Node) -> Result<Server> {
        match kind {
            Kind::Fake => {
                let listener = node.run(|| TcpListener::bind(("127.0.0.1", 0)))??;
                Ok(Server::Fake(Box::new(FakeApi::serve(listener)?)))
            }
            Kind::Real => {
                let plane = ControlPlane::without_controllers(field.lab())?;
                for name in NAMESPACES {
                    plane.apply(&json!({
                        "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name},
                    }))?;
                }
                Ok(Server::Real(Box::new(plane)))
            }
        }
    }

    /// The form of the objects on the wire that kube-proxy asks for.
    pub(super) fn content_type(&self) -> &'static str {
        match self {
            Server::Fake(_) => "application/json",
            Server::Real(_) => "application/vnd.kubernetes.protobuf",
        }
    }

    pub(super) fn kubeconfig_for_kube_proxy(&self, folder: &Path) -> Result<PathBuf> {
        match self {
            Server::Fake(api) => fake_kubeconfig(api, folder),
            Server::Real(plane) => plane.kubeconfig_for_user("system:kube-proxy", None),
        }
    }

    pub(super) fn kubeconfig_for_portolan(&self, folder: &Path) -> Result<PathBuf> {
        match self {
            Server::Fake(api) => fake_kubeconfig(api, folder),
            Server::Real(plane) => plane.kubeconfig_for_portolan(),
        }
    }

    /// A Node as it is here, in place of an earlier one: pod ranges do not change in a Node's life.
    pub(super) fn set_node(&self, node: &Value) -> Result<()> {
        match self {
            Server::Fake(api) => api.apply(node.clone()).map(drop),
            Server::Real(plane) => {
                let node = as_written(node);
                plane.delete_and_forget(&node)?;
                plane.apply(&node)?;
                plane.apply_status(&node)
            }
        }
    }

    /// These in place of others. A real one has its own, [`its_service_cidrs`].
    pub(super) fn set_service_cidrs(&self, wanted: &[(String, Vec<IpNet>)]) -> Result<()> {
        let Server::Fake(api) = self else {
            return Ok(());
        };
        for name in SERVICE_CIDRS {
            if !wanted.iter().any(|(wanted, _)| wanted == name) {
                api.delete(Resource::ServiceCidrs, "", name);
            }
        }
        api.apply_all(wanted.iter().map(service_cidr_document))
    }

    pub(super) fn apply(&self, object: &Value) -> Result<()> {
        match self {
            Server::Fake(api) => api.apply(object.clone()).map(drop),
            Server::Real(plane) => {
                let written = as_written(object);
                plane.apply(&written)?;
                // To the end of an ingress point, it must be named.
                match written["spec"]["type"] == "LoadBalancer" {
                    true => plane.apply_status(&written),
                    false => Ok(()),
                }
            }
        }
    }

    pub(super) fn delete(&self, resource: Resource, namespace: &str, name: &str) -> Result<()> {
        match self {
            Server::Fake(api) => {
                api.delete(resource, namespace, name);
                Ok(())
            }
            Server::Real(plane) => plane.delete_and_forget(&json!({
                "apiVersion": resource.api_version(), "kind": resource.kind(),
                "metadata": {"namespace": namespace, "name": name},
            })),
        }
    }
}

fn fake_kubeconfig(api: &FakeApi, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("kubeconfig");
    api.kubeconfig(&path)?;
    Ok(path)
}

/// What a real API server fills in when an EndpointSlice is written (`SetDefaults_EndpointPort`); kube-proxy ends in a
/// panic without.
pub(super) fn set_defaults(object: &mut Value) {
    if object["kind"] != "EndpointSlice" {
        return;
    }
    for port in object["ports"].as_array_mut().into_iter().flatten() {
        for (field, default) in [("name", ""), ("protocol", "TCP")] {
            if port[field].is_null() {
                port[field] = default.into();
            }
        }
    }
}

/// What a person would write to get this object, as far as a real API server accepts it.
fn as_written(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| matches!(key.as_str(), "namespace" | "name" | "labels"));
    }
    match object["kind"].as_str() {
        Some("Service") => {
            let spec = object["spec"].as_object_mut();
            let external = spec.as_ref().is_some_and(|s| s["type"] == "ExternalName");
            if let Some(spec) = spec {
                if spec["type"] == "LoadBalancer" {
                    spec.insert("allocateLoadBalancerNodePorts".into(), false.into());
                }
                if spec["type"] == "NodePort" {
                    set_node_ports(spec);
                }
                if spec["type"] == "LoadBalancer" && spec["externalTrafficPolicy"] == "Local" {
                    // That of another type is 0.
                    let port = own_ports(spec).map(|first| first + HEALTH_CHECK);
                    spec.insert("healthCheckNodePort".into(), json!(port));
                }
                spell_properly(spec);
                let addresses = spec.get("clusterIPs").and_then(Value::as_array);
                let policy = match addresses.map(Vec::len) {
                    Some(2) => "RequireDualStack",
                    _ => "SingleStack",
                };
                spec.insert("ipFamilyPolicy".into(), policy.into());
                // Of an earlier type, which the server takes away with that.
                let leftovers = ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"];
                spec.retain(|key, value| {
                    let is_leftover = external && leftovers.contains(&key.as_str());
                    !is_leftover && *value != json!([])
                });
            }
            let ingress = object.pointer("/status/loadBalancer/ingress");
            let ingress = ingress.map(|ingress| ingress.as_array().into_iter().flatten());
            let ingress = ingress.map(|ingress| ingress.map(proper_ingress).collect::<Vec<_>>());
            object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        }
        Some("EndpointSlice") => {
            // No two ports of one name.
            let mut names = Vec::new();
            if let Some(ports) = object["ports"].as_array_mut() {
                ports.retain(|port| {
                    let is_new = !names.contains(&port["name"]);
                    names.push(port["name"].clone());
                    is_new
                });
            }
        }
        _ => {}
    }
    object
}

/// Gives ports of a NodePort Service that have no node port one that only its cluster IP leads to: the server would
/// give one by chance, perhaps that of a Service to come.
fn set_node_ports(spec: &mut Map<String, Value>) {
    let Some(first) = own_ports(spec) else {
        return;
    };
    let ports = spec.get_mut("ports").and_then(Value::as_array_mut);
    for (port, free) in ports.into_iter().flatten().zip(first..) {
        if port["nodePort"].is_null() {
            port["nodePort"] = free.into();
        }
    }
}

/// Beyond the node ports among a Service's own.
const HEALTH_CHECK: u16 = 500;

/// The first of four node ports that no other Service has, by its cluster IP.
fn own_ports(spec: &Map<String, Value>) -> Option<u16> {
    match spec["clusterIP"].as_str()?.parse().ok()? {
        IpAddr::V4(address) => Some(31_000 + 4 * u16::from(address.octets()[3])),
        IpAddr::V6(address) => Some(32_000 + 4 * (address.segments()[7] & 0x7f)),
    }
}

/// Addresses and ranges as they must be written today; old objects may hold others (KEP-4858).
fn spell_properly(spec: &mut Map<String, Value>) {
    for (field, properly) in [
        ("externalIPs", proper_address as fn(&str) -> String),
        ("loadBalancerSourceRanges", proper_range),
    ] {
        let texts = spec.get_mut(field).and_then(Value::as_array_mut);
        for text in texts.into_iter().flatten() {
            *text = properly(text.as_str().unwrap_or_default()).into();
        }
    }
}

fn proper_address(text: &str) -> String {
    let number = |octet: &str| {
        octet
            .parse()
            .map_or(octet.to_owned(), |n: u8| n.to_string())
    };
    let octets: Vec<String> = text.split('.').map(number).collect();
    octets.join(".")
}

fn proper_range(text: &str) -> String {
    let (address, length) = text.trim().split_once('/').unwrap_or_default();
    let range: Option<IpNet> = format!(
        "{}/{}",
        proper_address(address),
        length.trim_start_matches('0')
    )
    .parse()
    .ok();
    range.map_or(text.trim().to_owned(), |range| range.trunc().to_string())
}

/// Only an address has a mode.
fn proper_ingress(ingress: &Value) -> Value {
    let mut ingress = ingress.clone();
    if let Some(fields) = ingress.as_object_mut()
        && !fields.contains_key("ip")
    {
        fields.remove("ipMode");
    }
    ingress
}
