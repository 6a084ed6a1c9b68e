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
/// Class of the load balancers: no controller knows it, so the test itself gives the addresses.
const CLASS: &str = "portolan.io/selftest";
/// Services with addresses of a load balancer, and these addresses: of documentation (RFC 5737, RFC 3849).
pub(super) const LOAD_BALANCERS: [(&str, [&str; 2]); 2] = [
    ("ranges", ["203.0.113.80", "2001:db8::80"]),
    ("external", ["203.0.113.81", "2001:db8::81"]),
];
/// Pods end by themselves after this time.
const LIFETIME_SECONDS: u32 = 600;

/// A node of the test, and the image of its pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) node: String,
    pub(super) image: String,
}

/// The Services: name, what else their spec has, and the pods that they select. `ranges` are the first node's pod CIDRs.
fn services(ranges: &[String]) -> [(&'static str, Value, Value); 7] {
    let servers = json!({ "role": "server" });
    let first = json!({ "pod": "server-1" });
    [
        ("all", json!({ "type": "NodePort" }), servers.clone()),
        (
            "affinity",
            json!({ "sessionAffinity": "ClientIP" }),
            servers.clone(),
        ),
        (
            "ranges",
            json!({
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "loadBalancerSourceRanges": ranges,
            }),
            servers,
        ),
        (
            "external",
            json!({
                "type": "LoadBalancer", "loadBalancerClass": CLASS, "externalTrafficPolicy": "Local",
            }),
            first.clone(),
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

/// The status of a Service whose load balancer has these addresses.
pub(super) fn load_balancer_status(addresses: &[&str]) -> Value {
    let ingress: Vec<Value> = addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    json!({ "status": { "loadBalancer": { "ingress": ingress } } })
}

/// The pod CIDRs of a node.
pub(super) fn pod_cidrs(nodes: &[Value], name: &str) -> Vec<String> {
    let node = nodes.iter().find(|node| node["metadata"]["name"] == name);
    let ranges = node.and_then(|node| node.pointer("/spec/podCIDRs")?.as_array());
    let texts = ranges.into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// All objects, as one list. `ranges` are the pod CIDRs of the first node.
pub(super) fn all(places: &[Place], ranges: &[String]) -> Value {
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
        services(ranges)
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
