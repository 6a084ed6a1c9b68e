//! Reads of one Node, and patches of its annotations and conditions, as kubelets and overlays send them.
//! Off by default: a service proxy does not need them.

use serde_json::{Value, json};

use super::state::{Refusal, Server};
use super::store::Resource;

/// Path of Events about cluster-scoped objects.
pub(super) const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// The node of a path `/api/v1/nodes/NAME` or `/api/v1/nodes/NAME/status`.
pub(super) fn node_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/api/v1/nodes/")?;
    let name = rest.strip_suffix("/status").unwrap_or(rest);
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// The pod of a path `/api/v1/namespaces/NAMESPACE/pods/NAME`, if the test has set its node.
pub(super) fn pod_of(server: &Server, path: &str) -> Option<Value> {
    let rest = path.strip_prefix("/api/v1/namespaces/")?;
    let (namespace, name) = rest.split_once("/pods/")?;
    let node = server
        .settings()
        .pods
        .get(&format!("{namespace}/{name}"))?
        .clone();
    Some(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "namespace": namespace, "name": name },
        "spec": { "nodeName": node, "containers": [] },
    }))
}

/// The Node as it is.
pub(super) fn get(server: &Server, name: &str) -> Result<Value, Refusal> {
    let found = server.store().list(Resource::Nodes);
    let node = found.iter().find(|node| node.key.1 == name);
    node.and_then(|node| serde_json::from_slice(&node.json).ok())
        .ok_or_else(|| Refusal::new(404, format!("nodes {name:?} not found")))
}

/// Merges a patch: maps by key, conditions by type. `null` removes.
pub(super) fn patch(server: &Server, name: &str, patch: &Value) -> Result<Value, Refusal> {
    let mut node = get(server, name)?;
    let conditions = patch
        .pointer("/status/conditions")
        .and_then(Value::as_array);
    for condition in conditions.into_iter().flatten() {
        let status = &mut node["status"];
        if !status["conditions"].is_array() {
            status["conditions"] = json!([]);
        }
        if let Some(all) = status["conditions"].as_array_mut() {
            all.retain(|old| old["type"] != condition["type"]);
            all.push(condition.clone());
        }
    }
    let annotations = patch
        .pointer("/metadata/annotations")
        .and_then(Value::as_object);
    for (key, value) in annotations.into_iter().flatten() {
        let all = &mut node["metadata"]["annotations"];
        if !all.is_object() {
            *all = json!({});
        }
        if let Some(all) = all.as_object_mut() {
            match value {
                Value::Null => drop(all.remove(key)),
                value => drop(all.insert(key.clone(), value.clone())),
            }
        }
    }
    server.change(|store| store.apply(Resource::Nodes, (String::new(), name.to_owned()), node));
    get(server, name)
}
