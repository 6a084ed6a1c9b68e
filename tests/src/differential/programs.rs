//! The two programs, and the same settings as flags and files of each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cluster::{Cluster, Detect, Node, NodePortAddresses};

/// A kube-proxy program of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubeProxy {
    /// Its minor version: 36 of 1.36.
    pub minor: u32,
    pub program: PathBuf,
}

/// Names the folder with the control plane's programs.
const FOLDER: &str = "PORTOLAN_CONTROL_PLANE";
const PREFIX: &str = "kube-proxy-1.";

/// All kube-proxies of the control plane, oldest first.
pub fn kube_proxies() -> Result<Vec<KubeProxy>> {
    let folder = lab::programs().with_context(|| format!("{FOLDER} is not set"))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("{FOLDER}={folder:?}"))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(minor) = name.strip_prefix(PREFIX).and_then(|m| m.parse().ok()) {
            found.push(KubeProxy {
                minor,
                program: path,
            });
        }
    }
    found.sort_by_key(|kube_proxy| kube_proxy.minor);
    found
        .first()
        .context("the control plane has no kube-proxy")?;
    Ok(found)
}

/// The settings as a file for kube-proxy. Whatever reaches beyond a network namespace is switched off: it shall
/// set no limit for all of the machine, and be killed for want of memory like any other process.
pub(super) fn kube_proxy_config(
    cluster: &Cluster,
    node: &Node,
    kubeconfig: &Path,
    content_type: &str,
) -> Value {
    let settings = &cluster.settings;
    let none = (&[][..], "", "");
    let (mode, (ranges, bridge, prefix)) = match &settings.detect {
        Detect::ClusterCidr(ranges) => ("ClusterCIDR", (ranges.as_slice(), "", "")),
        Detect::NodeCidr => ("NodeCIDR", none),
        Detect::Interface(name) => ("BridgeInterface", (none.0, name.as_str(), "")),
        Detect::InterfacePrefix(prefix) => ("InterfaceNamePrefix", (none.0, "", prefix.as_str())),
    };
    let node_port_addresses: Vec<String> = match settings.nodeport_addresses.as_slice() {
        [] => vec!["primary".into()],
        items => items.iter().flat_map(item_for_kube_proxy).collect(),
    };
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": kubeconfig,
            "contentType": content_type,
            "acceptContentTypes": content_type,
            "qps": 1000.0,
            "burst": 1000,
        },
        "hostnameOverride": node.name,
        "mode": "nftables",
        // Not 0, which means its default of a second.
        "nftables": {"minSyncPeriod": "1ms", "masqueradeAll": settings.masquerade_all},
        "detectLocalMode": mode,
        "detectLocal": {"bridgeInterface": bridge, "interfaceNamePrefix": prefix},
        "clusterCIDR": texts(ranges),
        "nodePortAddresses": node_port_addresses,
        "conntrack": {
            "maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
        },
        "oomScoreAdj": 0,
    })
}

/// The settings as flags of `portolan run`.
pub fn portolan_flags(cluster: &Cluster, node: &Node) -> Vec<String> {
    let settings = &cluster.settings;
    let mut flags = vec![
        format!("--hostname-override={}", node.name),
        format!("--masquerade-all={}", settings.masquerade_all),
    ];
    match &settings.detect {
        Detect::ClusterCidr(ranges) => flags.push(format!("--cluster-cidr={}", texts(ranges))),
        Detect::NodeCidr => flags.push("--detect-local-mode=NodeCIDR".into()),
        Detect::Interface(name) => {
            flags.push("--detect-local-mode=BridgeInterface".into());
            flags.push(format!("--pod-bridge-interface={name}"));
        }
        Detect::InterfacePrefix(prefix) => {
            flags.push("--detect-local-mode=InterfaceNamePrefix".into());
            flags.push(format!("--pod-interface-name-prefix={prefix}"));
        }
    }
    if !settings.nodeport_addresses.is_empty() {
        let items = texts(&settings.nodeport_addresses);
        flags.push(format!("--nodeport-addresses={items}"));
    }
    if let Some(ranges) = &settings.allowed_external_ips {
        flags.push(format!("--allowed-external-ips={}", texts(ranges)));
    }
    if let Some(name) = &settings.service_proxy_name {
        flags.push(format!("--service-proxy-name={name}"));
    }
    flags
}

/// kube-proxy has no keyword for all addresses, only ranges.
fn item_for_kube_proxy(item: &NodePortAddresses) -> Vec<String> {
    match item {
        NodePortAddresses::All => vec!["0.0.0.0/0".into(), "::/0".into()],
        other => vec![other.to_string()],
    }
}

fn texts(items: &[impl ToString]) -> String {
    let texts: Vec<String> = items.iter().map(ToString::to_string).collect();
    texts.join(",")
}
