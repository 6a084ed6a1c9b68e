//! Nodes that come and go, in the shared cluster.

use anyhow::{Result, ensure};
use lab::{scenario, wait_until};
use portolan_tests::live::{CLUSTER_PATIENCE, Scene, wait_for_servers};

use crate::GRACE;

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn draining_and_recreating_a_node_fails_no_connection() -> Result<()> {
    let scene = Scene::new("nodes")?;
    let cluster = &scene.cluster;
    // No pod of other scenarios may run here: only pods with this toleration.
    let node = &cluster.reserved_node("node-d", "nodes")?;
    scene.deploy("web", 0, GRACE)?;
    let tolerate =
        r#"{"spec":{"template":{"spec":{"tolerations":[{"key":"nodes","operator":"Exists"}]}}}}"#;
    scene.kubectl(&["patch", "deployment", "web", "--patch", tolerate])?;
    scene.scale("web", 8)?;
    scene.expose("web", &[])?;
    let addresses = scene.addresses("web")?;
    for to in addresses {
        wait_for_servers(&cluster.client, to, 8)?;
        wait_for_servers(node, to, 8)?;
    }
    ensure!(cluster.pods_on(node) > 0, "the new node has no pods");
    let streams = scene.stream(&cluster.client, &addresses)?;
    streams.go_on(20)?;

    cluster.plane.kubectl(&["cordon", node.name()])?;
    let here = format!("--field-selector=spec.nodeName={}", node.name());
    scene.kubectl(&["delete", "pods", &here, "--wait=true"])?;
    ensure!(cluster.pods_on(node) == 0, "a pod was left behind");
    cluster.plane.kubectl(&["delete", "node", node.name()])?;
    cluster.stop_kubelet(node);
    scene.rolled_out("web")?;
    for to in addresses {
        wait_for_servers(&cluster.client, to, 8)?;
        // The node's own Portolan no longer sees this Node object; its rules keep working and other events arrive.
        wait_for_servers(node, to, 8)?;
    }

    let range = node.pod_cidr_v4();
    cluster.start_reserved_kubelet(node, "nodes")?;
    ensure!(
        node.pod_cidr_v4() != range,
        "the controller manager was expected to choose another range than {range}"
    );
    scene.scale("web", 24)?;
    wait_until("pods on the node", CLUSTER_PATIENCE, || {
        cluster.pods_on(node) > 0
    })?;
    let client = node.pod("client-on-the-node")?;
    for to in addresses {
        wait_for_servers(&cluster.client, to, 24)?;
        // The source address tells that its Portolan knows the new range (`--detect-local-mode=NodeCIDR`): what
        // comes from it is not masqueraded.
        wait_for_servers(&client, to, 24)?;
        let tally = client.connect_many(lab::Protocol::Tcp, to, 60)?;
        ensure!(
            tally
                .peers
                .iter()
                .all(|peer| client.addresses().contains(peer)),
            "masqueraded: {tally:?}"
        );
    }
    streams.lost_nothing().map(drop)
}
