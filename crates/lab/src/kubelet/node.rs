//! The Node object, its lease, and the routes to other nodes' pods.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::IpNet;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::follow::Change;
use super::{Shared, blocking, now, objects};
use crate::topology::Node;

/// Field manager in the `managedFields` of objects.
const MANAGER: &str = "kubelet";
/// As kubelets do by default (`nodeLeaseDurationSeconds` and a quarter of it).
const LEASE_SECONDS: i32 = 40;
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// Pause between two reads of the pod ranges.
const LOOK: Duration = Duration::from_millis(50);

/// Makes the Node object, and waits for its pod ranges, which the lab's node is then given.
pub(super) async fn register(shared: &Shared, object: Value) -> Result<()> {
    let nodes = Api::<objects::Node>::all(shared.client.clone());
    let how = PatchParams::apply(MANAGER).force();
    let (name, status) = (shared.node.name(), status(&shared.node));
    nodes.patch(name, &how, &Patch::Apply(object)).await?;
    // Server-side apply cannot hold two addresses of one type.
    nodes
        .patch_status(name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    renew_lease(shared).await?;
    loop {
        let ranges = pod_ranges(&nodes.get(name).await?);
        if let [IpNet::V4(v4), IpNet::V6(v6)] = ranges[..] {
            let node = shared.node.clone();
            return blocking(move || node.set_pod_cidrs(v4, v6)).await;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A Node object as it is registered.
pub(super) fn object(name: &str, zone: &str, taint: Option<&str>) -> Value {
    let taints = taint.map(|key| json!({ "key": key, "effect": "NoSchedule" }));
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": zone,
        } },
        "spec": { "taints": taints.into_iter().collect::<Vec<_>>() },
    })
}

fn status(node: &Node) -> Value {
    let room = json!({ "cpu": "64", "memory": "64Gi", "ephemeral-storage": "64Gi", "pods": "250" });
    let condition = |kind: &str, status: &str, reason: &str| {
        let now = objects::Time(now());
        json!({ "type": kind, "status": status, "reason": reason, "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": now })
    };
    let address = |kind: &str, address: String| json!({ "type": kind, "address": address });
    json!({
        "status": {
            "capacity": room, "allocatable": room,
            "addresses": [
                address("InternalIP", node.ipv4().to_string()),
                address("InternalIP", node.ipv6().to_string()),
                address("Hostname", node.name().to_owned()),
            ],
            "conditions": [
                condition("Ready", "True", "KubeletReady"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
            ],
        },
    })
}

/// Renews the lease, for ever. The next renewal makes up for a failed one.
pub(super) async fn heartbeats(shared: Shared) {
    loop {
        tokio::time::sleep(LEASE_EVERY).await;
        let _ = renew_lease(&shared).await;
    }
}

async fn renew_lease(shared: &Shared) -> Result<()> {
    let leases = Api::<objects::Lease>::namespaced(shared.client.clone(), "kube-node-lease");
    let name = shared.node.name();
    let spec = objects::LeaseSpec {
        holder_identity: Some(name.to_owned()),
        lease_duration_seconds: Some(LEASE_SECONDS),
        renew_time: Some(objects::MicroTime(now())),
        ..objects::LeaseSpec::default()
    };
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": { "name": name, "namespace": "kube-node-lease" },
        "spec": spec,
    });
    let how = PatchParams::apply(MANAGER).force();
    leases.patch(name, &how, &Patch::Apply(lease)).await?;
    Ok(())
}

/// The ranges of a Node object that can be read: an IPv4 and an IPv6 one, in this order.
fn pod_ranges(node: &objects::Node) -> Vec<IpNet> {
    let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    let mut ranges: Vec<IpNet> = ranges
        .into_iter()
        .flatten()
        .filter_map(|range| range.parse().ok())
        .collect();
    ranges.sort_by_key(|range| matches!(range, IpNet::V6(_)));
    ranges
}

/// Where other nodes' pods are, as this node's routing table has it. A route stays until another node gets the
/// range: nothing is sent there meanwhile.
#[derive(Default)]
pub(super) struct Routes {
    made: BTreeMap<IpNet, IpAddr>,
}

impl Routes {
    /// Applies a change of Nodes to the routes.
    pub(super) async fn change(&mut self, shared: &Shared, change: Change<objects::Node>) {
        let nodes = match change {
            Change::All(nodes) => nodes,
            Change::Applied(node) => vec![node],
            Change::Deleted(_) => return,
        };
        let own = shared.node.name();
        for node in nodes {
            if node.metadata.name.as_deref() == Some(own) {
                continue;
            }
            if let Err(error) = self.lead_to(shared, &node).await {
                eprintln!("kubelet {own}: no route to another node's pods: {error:#}");
            }
        }
    }

    async fn lead_to(&mut self, shared: &Shared, other: &objects::Node) -> Result<()> {
        let addresses = other.status.as_ref().and_then(|s| s.addresses.as_ref());
        let addresses: Vec<IpAddr> = addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect();
        for range in pod_ranges(other) {
            let v4 = matches!(range, IpNet::V4(_));
            let Some(&via) = addresses.iter().find(|address| address.is_ipv4() == v4) else {
                continue;
            };
            if self.made.get(&range) == Some(&via) {
                continue;
            }
            let node = shared.node.clone();
            blocking(move || node.route_to_pods(range, via))
                .await
                .with_context(|| format!("{range}"))?;
            self.made.insert(range, via);
        }
        Ok(())
    }
}
