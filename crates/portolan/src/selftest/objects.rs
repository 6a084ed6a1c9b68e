//! The objects of the test, as they are applied.

use serde_json::{Value, json};

use super::text_of;

/// Namespace of the test.
pub(super) const NAMESPACE: &str = "portolan-selftest";
/// Label and value that mark what belongs to the test.
pub(super) const LABEL: &str = "app.kubernetes.io/managed-by";
pub(super) const OWNER: &str = "portolan-selftest";
/// Port of the servers.
pub(super) const PORT: u16 = 8080;
/// Port of the Services.
pub(super) const SERVICE_PORT: u16 = 80;
/// Pods end by themselves after this time.
const LIFETIME_SECONDS: u32 = 600;

/// A node of the test, and the image of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: String,
    pub(super) image: String,
}

/// The Services: name, what else their spec has, and the pods that they select.
fn services() -> [(&'static str, Value, Value); 5] {
    let servers = json!({ "role": "server" });
    let first = json!({ "pod": "server-1" });
    [
        ("all", json!({ "type": "NodePort" }), servers.clone()),
        (
            "affinity",
            json!({ "sessionAffinity": "ClientIP" }),
            servers,
        ),
        (
            "local",
            json!({ "internalTrafficPolicy": "Local" }),
            first.clone(),
        ),
        ("lone", json!({}), first),
        ("empty", json!({}), json!({ "role": "none" })),
    ]
}

/// All objects, as one list.
pub(super) fn all(places: &[Place]) -> Value {
    let mut items = vec![json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": NAMESPACE, "labels": { LABEL: OWNER } },
    })];
    for (number, place) in (1..).zip(places) {
        for role in ["server", "client"] {
            items.push(pod(role, number, place));
        }
    }
    items.extend(
        services()
            .into_iter()
            .map(|(name, spec, selector)| service(name, spec, selector)),
    );
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// A pod that serves. Clients do so as well, since a pod has to run something.
fn pod(role: &str, number: usize, place: &Place) -> Value {
    let name = format!("{role}-{number}");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { LABEL: OWNER, "role": role, "pod": name } },
        "spec": {
            "nodeName": place.node,
            "activeDeadlineSeconds": LIFETIME_SECONDS,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "tolerations": [{ "operator": "Exists" }],
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 65532, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "selftest",
                "image": place.image,
                "command": [crate::kubectl::PROGRAM],
                "args": ["selftest", "serve", "--name", name, "--port", PORT.to_string()],
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
                },
            }],
        },
    })
}

fn service(name: &str, spec: Value, selector: Value) -> Value {
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": SERVICE_PORT, "targetPort": PORT });
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name, "namespace": NAMESPACE, "labels": { LABEL: OWNER } },
        "spec": {
            "ipFamilyPolicy": "PreferDualStack", "selector": selector, "ports": [port("TCP"), port("UDP")],
        },
    });
    if let (Some(to), Value::Object(more)) = (service["spec"].as_object_mut(), spec) {
        to.extend(more);
    }
    service
}

/// Which pod does not run yet, and why; `None` if all run and have an address.
pub(super) fn waiting(pods: &[Value], places: &[Place]) -> Option<String> {
    let names = (1..)
        .zip(places)
        .flat_map(|(number, _)| ["server", "client"].map(|role| format!("{role}-{number}")));
    for name in names {
        let Some(pod) = pods.iter().find(|pod| pod["metadata"]["name"] == *name) else {
            return Some(format!("pod {name} is not there"));
        };
        let phase = text_of(pod, "/status/phase").unwrap_or_default();
        if phase == "Running" && text_of(pod, "/status/podIP").is_some() {
            continue;
        }
        let reasons = pod.pointer("/status/containerStatuses/0/state/waiting/reason");
        let reason = reasons
            .and_then(Value::as_str)
            .map(|reason| format!(" ({reason})"));
        return Some(format!(
            "pod {name} does not run: {phase}{}",
            reason.unwrap_or_default()
        ));
    }
    None
}
