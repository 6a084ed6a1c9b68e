//! Manifests of a lab's objects, as the API server would hold them, and a folder that `portolan run --manifests` can
//! watch.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::topology::{Node, Pod};

/// A folder of manifests; it goes when this is dropped.
#[derive(Debug)]
pub struct Manifests {
    folder: TempDir,
}

impl Manifests {
    /// An empty folder.
    pub fn new() -> Result<Manifests> {
        Ok(Manifests {
            folder: tempfile::tempdir().context("could not make a folder for manifests")?,
        })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file as editors do: a new one, renamed over the old one.
    pub fn write(&self, name: &str, text: &str) -> Result<()> {
        let new = self.path().join(format!(".{name}.new"));
        fs::write(&new, text).with_context(|| format!("could not write {name}"))?;
        fs::rename(&new, self.path().join(name))
            .with_context(|| format!("could not replace {name}"))
    }

    /// Writes a file of these objects.
    pub fn write_objects<'a>(
        &self,
        name: &str,
        objects: impl IntoIterator<Item = &'a Value>,
    ) -> Result<()> {
        let documents: Vec<String> = objects
            .into_iter()
            .map(|object| format!("{object:#}\n"))
            .collect();
        self.write(name, &documents.join("---\n"))
    }

    pub fn remove(&self, name: &str) -> Result<()> {
        fs::remove_file(self.path().join(name)).with_context(|| format!("could not remove {name}"))
    }
}

/// The Node object of a lab's node.
pub fn node_object(node: &Node) -> Value {
    let address = |address: String| json!({ "type": "InternalIP", "address": address });
    let ranges = [
        node.pod_cidr_v4().to_string(),
        node.pod_cidr_v6().to_string(),
    ];
    json!({
        "apiVersion": "v1", "kind": "Node",
        // Every Node of a cluster has it, and flannel ends with a panic where there is no annotation at all.
        "metadata": { "name": node.name(), "annotations": { "node.alpha.kubernetes.io/ttl": "0" } },
        "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
        "status": { "addresses": [address(node.ipv4().to_string()), address(node.ipv6().to_string())] },
    })
}

/// A Service with one TCP port, of both families, and its endpoints.
#[derive(Clone, Debug)]
pub struct TcpService {
    /// Name, in the namespace `default`.
    pub name: String,
    /// IPv4 and IPv6 cluster IP.
    pub cluster_ips: [String; 2],
    /// Port on the cluster IPs.
    pub port: u16,
    /// Port on the pods.
    pub target_port: u16,
    /// Node port, if it has one.
    pub node_port: Option<u16>,
}

impl TcpService {
    pub fn object(&self) -> Value {
        let mut port = json!({ "name": "main", "protocol": "TCP", "port": self.port, "targetPort": self.target_port });
        if let Some(node_port) = self.node_port {
            port["nodePort"] = node_port.into();
        }
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": self.name, "namespace": "default" },
            "spec": {
                "type": if self.node_port.is_some() { "NodePort" } else { "ClusterIP" },
                "ipFamilyPolicy": "RequireDualStack",
                "clusterIP": self.cluster_ips[0], "clusterIPs": self.cluster_ips,
                "ports": [port],
            },
        })
    }

    /// The EndpointSlices, one a family, with these pods ready: each with the name of its node.
    pub fn slices(&self, pods: &[(&Pod, &str)]) -> [Value; 2] {
        ["IPv4", "IPv6"].map(|family| {
            let endpoints: Vec<Value> = pods
                .iter()
                .map(|(pod, node)| {
                    let address = if family == "IPv4" { pod.ipv4().to_string() } else { pod.ipv6().to_string() };
                    json!({
                        "addresses": [address], "nodeName": node, "conditions": { "ready": true },
                        "targetRef": { "kind": "Pod", "name": pod.name(), "namespace": "default" }, "zone": format!("zone-of-{node}"),
                    })
                })
                .collect();
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {
                    "name": format!("{}-{}", self.name, family.to_lowercase()), "namespace": "default",
                    "labels": { "kubernetes.io/service-name": self.name },
                },
                "addressType": family,
                "ports": [{ "name": "main", "protocol": "TCP", "port": self.target_port }],
                "endpoints": endpoints,
            })
        })
    }
}
