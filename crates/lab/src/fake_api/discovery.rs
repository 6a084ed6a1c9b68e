//! The few documents kubectl wants to see before it lists anything.

use serde_json::{Value, json};

use super::store::Resource;

/// The discovery document at a path.
pub(super) fn document(path: &str) -> Option<Value> {
    let group = |name: &str| {
        let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
        json!({ "name": name, "versions": [version], "preferredVersion": version })
    };
    Some(match path {
        "/version" => json!({ "major": "1", "minor": "33", "gitVersion": "v1.33.0-fake" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"] }),
        "/apis" => json!({
            "kind": "APIGroupList", "apiVersion": "v1",
            "groups": [group("discovery.k8s.io"), group("networking.k8s.io")],
        }),
        "/api/v1" => resources("v1"),
        "/apis/discovery.k8s.io/v1" => resources("discovery.k8s.io/v1"),
        "/apis/networking.k8s.io/v1" => resources("networking.k8s.io/v1"),
        _ => return None,
    })
}

fn resources(group_version: &str) -> Value {
    let resources: Vec<Value> = Resource::ALL
        .into_iter()
        .filter(|resource| resource.api_version() == group_version)
        .map(|resource| {
            let plural = resource.path().rsplit('/').next();
            json!({
                "name": plural, "singularName": resource.kind().to_lowercase(), "kind": resource.kind(),
                "namespaced": matches!(resource, Resource::Services | Resource::EndpointSlices),
                "verbs": ["list", "watch"],
            })
        })
        .collect();
    json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources })
}
