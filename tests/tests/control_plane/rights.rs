//! The ClusterRole that Portolan is shipped with: what it uses and what it may do are the same.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{PORTOLAN_RBAC, Protocol, Right, scenario, wait_for};
use portolan_tests::stage::PATIENCE;
use serde_json::{Value, json};

use crate::in_an_api_server;

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn portolan_uses_every_right_of_its_role_and_no_other() -> Result<()> {
    let (stage, plane, kubeconfig) = in_an_api_server()?;
    // A port that another process has: an Event has to be written.
    stage.node.serve(Protocol::Tcp, CHECK_PORT)?;
    plane.apply_all(&[checked_service()])?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    wait_for("an Event about the Service", PATIENCE, || {
        let events = plane.kubectl(&[
            "get",
            "events",
            "--namespace=default",
            "--field-selector=reason=FailedToStartServiceHealthcheck",
            "--output=jsonpath={.items[*].involvedObject.name}",
        ])?;
        ensure!(
            events.split(' ').any(|name| name == "checked"),
            "{events:?}"
        );
        Ok(())
    })?;
    let audit = plane.audit()?;
    ensure!(
        !audit.is_empty() && audit.iter().all(|event| event.code < 400),
        "something was refused: {audit:?}"
    );
    // After trouble it looks at versions, which is a list.
    plane.stop_api_server()?;
    plane.start_api_server()?;
    let given = rights_given(PORTOLAN_RBAC)?;
    wait_for("every right to be used", PATIENCE, || {
        let used = plane.rights_used()?;
        ensure!(used == given, "used: {used:?}, given: {given:?}");
        Ok(())
    })?;
    Ok(())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn missing_right_is_named_and_waited_for() -> Result<()> {
    let (stage, plane, kubeconfig) = in_an_api_server()?;
    let remove = r#"[{"op":"remove","path":"/rules/1"}]"#;
    let patch = ["patch", "clusterrole", "portolan", "--type=json", "--patch"];
    plane.kubectl(&[&patch[..], &[remove]].concat())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    // The API server's own words.
    daemon.wait_for_line("endpointslices.discovery.k8s.io is forbidden", PATIENCE)?;
    ensure!(
        stage.tables()? == [None, None],
        "half of what there is was written"
    );
    // Given it, it goes on by itself.
    plane.kubectl_stdin(&["apply", "-f", "-"], PORTOLAN_RBAC)?;
    stage.wait_until_ready(&daemon)?;
    stage.wait_for_backends(&stage.web, 4)
}

const CHECK_PORT: u16 = 31_998;

/// A Service whose health check has a port of the node.
fn checked_service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "checked", "namespace": "default" },
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": CHECK_PORT,
            "ports": [{ "port": 80 }],
        },
    })
}

/// Every group, resource and verb of the ClusterRole in a file of `deploy/`.
pub(crate) fn rights_given(manifest: &str) -> Result<BTreeSet<Right>> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(manifest)?;
    let role = documents
        .iter()
        .find(|document| document["kind"] == "ClusterRole")
        .context("no ClusterRole")?;
    let texts = |rule: &Value, field: &str| -> Vec<String> {
        let values = rule[field].as_array().into_iter().flatten();
        values
            .filter_map(|v| v.as_str().map(str::to_owned))
            .collect()
    };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().into_iter().flatten() {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                for verb in texts(rule, "verbs") {
                    rights.insert(Right {
                        group: group.clone(),
                        resource: resource.clone(),
                        verb,
                    });
                }
            }
        }
    }
    ensure!(!rights.is_empty(), "a ClusterRole without rules");
    Ok(rights)
}
