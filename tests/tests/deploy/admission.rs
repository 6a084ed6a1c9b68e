//! The admission policy: a pod's token changes the Node that the pod runs on, and no other.

use anyhow::{Result, bail, ensure};
use lab::{ControlPlane, Lab, scenario, wait_for};
use portolan_tests::overlay::OverlayStage;
use portolan_tests::stage::PATIENCE;
use serde_json::{Value, json};

/// Role, bindings and policy as they are applied.
const MANIFESTS: &str = include_str!("../../../deploy/proxy-and-overlay/portolan.yaml");

/// The token that kubelet would give to a pod of Portolan on this node.
fn token_of_a_pod_on(plane: &ControlPlane, node: &str) -> Result<String> {
    let pod = format!("portolan-{node}");
    plane.apply(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": pod, "namespace": "kube-system" },
        "spec": {
            "serviceAccountName": "portolan", "nodeName": node,
            "containers": [{ "name": "portolan", "image": "portolan" }],
        },
    }))?;
    let bound = ["--bound-object-kind=Pod", "--bound-object-name", &pod];
    let create = ["--namespace=kube-system", "create", "token", "portolan"];
    Ok(plane
        .kubectl(&[&create[..], &bound].concat())?
        .trim()
        .to_owned())
}

/// The patch is refused, for this reason.
fn refused(outcome: Result<()>, reason: &str) -> Result<()> {
    match outcome {
        Ok(()) => bail!("was accepted, not refused: {reason}"),
        Err(error) => {
            let error = format!("{error:#}");
            ensure!(error.contains(reason), "{error}");
            Ok(())
        }
    }
}

#[scenario(ControlPlane)]
#[ignore = "needs a control plane"]
fn a_pod_changes_its_own_node_and_no_other() -> Result<()> {
    let lab = Lab::new()?;
    let plane = ControlPlane::without_controllers(&lab)?;
    let nodes = [lab.node("node-a")?, lab.node("node-b")?];
    nodes.iter().try_for_each(|node| plane.register(node))?;
    plane.kubectl_stdin(&["apply", "-f", "-"], MANIFESTS)?;
    let own = token_of_a_pod_on(&plane, "node-a")?;
    let patch = |node: &str, change: &Value| plane.patch_node_status(&own, node, change);
    let annotations = json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": "192.0.2.1" } } });
    let condition = |kind: &str| {
        let condition = json!({
            "type": kind, "status": "False", "reason": "PortolanIsUp", "message": "",
            "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
        });
        json!({ "status": { "conditions": [condition] } })
    };

    // A new policy takes effect a little later.
    let foreign = "which may not change Node node-b";
    wait_for("the policy to take effect", PATIENCE, || {
        refused(patch("node-b", &annotations), foreign)
    })?;
    refused(patch("node-b", &condition("NetworkUnavailable")), foreign)?;

    patch("node-a", &annotations)?;
    patch("node-a", &condition("NetworkUnavailable"))?;
    let labels =
        json!({ "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } });
    for (change, reason) in [
        (labels, "only annotations of its Node"),
        (
            json!({ "status": { "capacity": { "cpu": "1k" } } }),
            "only annotations of its Node",
        ),
        (condition("Ready"), "only NetworkUnavailable"),
    ] {
        refused(patch("node-a", &change), reason)?;
    }

    // A token of no pod belongs to no node; other users are not concerned.
    let unbound = plane.token("kube-system", "portolan")?;
    let unbound = plane.patch_node_status(&unbound, "node-a", &annotations);
    refused(unbound, "(none)")?;
    plane
        .kubectl(&["label", "node", "node-b", "zone=a"])
        .map(drop)
}

#[scenario(ControlPlane, Nft, Vxlan)]
#[ignore = "needs a control plane"]
fn nodes_form_a_mesh_with_the_rights_of_their_own_pods() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let (plane, _) = stage.serve_real_api()?;
    plane.kubectl_stdin(&["apply", "-f", "-"], MANIFESTS)?;
    let unbound = plane.token("kube-system", "portolan")?;
    let probe = json!({ "metadata": { "annotations": { "probe": "" } } });
    wait_for("the policy to take effect", PATIENCE, || {
        let outcome = plane.patch_node_status(&unbound, stage.nodes[0].name(), &probe);
        refused(outcome, "(none)")
    })?;
    let start = |number: usize| {
        let token = token_of_a_pod_on(&plane, stage.nodes[number].name())?;
        let kubeconfig = plane.kubeconfig_with_token(&token)?;
        stage.start_with_api(number, &kubeconfig.display().to_string(), &[])
    };
    let _daemons = [start(0)?, start(1)?];
    stage.wait_for_mesh()?;
    for node in &stage.nodes {
        let reason = r#"jsonpath={.status.conditions[?(@.type=="NetworkUnavailable")].reason}"#;
        wait_for("the condition", PATIENCE, || {
            let output = format!("--output={reason}");
            let found = plane.kubectl(&["get", "node", node.name(), &output])?;
            ensure!(found == "PortolanIsUp", "{found:?}");
            Ok(())
        })?;
    }
    Ok(())
}
