//! The overlay in a real API server: what is written there, by which rights, and what becomes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    ControlPlane, Daemon, Loss, PORTOLAN_OVERLAY_RBAC, PORTOLAN_RBAC, Right, scenario, wait_for,
    wait_until,
};
use portolan_tests::doctor::FAST;
use portolan_tests::overlay::{OverlayStage, mac_of, tool};
use portolan_tests::stage::PATIENCE;
use serde_json::{Value, json};

use crate::rights::rights_given;

const PREFIX: &str = "flannel.alpha.coreos.com/";

fn start(nodes: usize, more: &[&str]) -> Result<(OverlayStage, ControlPlane, Vec<Daemon>)> {
    let stage = OverlayStage::new(nodes)?;
    let (plane, kubeconfig) = stage.serve_real_api()?;
    let daemons = (0..nodes)
        .map(|n| stage.start_with_api(n, &kubeconfig, more))
        .collect::<Result<Vec<_>>>()?;
    Ok((stage, plane, daemons))
}

fn node(plane: &ControlPlane, name: &str) -> Result<Value> {
    let text = plane.kubectl(&["get", "node", name, "--output=json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// flannel's annotations of a Node, without their prefix.
fn annotations(plane: &ControlPlane, name: &str) -> Result<BTreeMap<String, String>> {
    let node = node(plane, name)?;
    let all = node["metadata"]["annotations"].as_object();
    let flannels = all.into_iter().flatten().filter_map(|(name, value)| {
        let name = name.strip_prefix(PREFIX)?;
        Some((name.to_owned(), value.as_str()?.to_owned()))
    });
    Ok(flannels.collect())
}

/// What a node should say of itself.
fn expected(
    stage: &OverlayStage,
    number: usize,
    public_ip: &str,
) -> Result<BTreeMap<String, String>> {
    let host = &stage.nodes[number];
    let data = |device: &str| -> Result<String> {
        let mac = mac_of(host, device)?.map(|byte| format!("{byte:02x}"));
        Ok(format!(r#"{{"VNI":1,"VtepMAC":"{}"}}"#, mac.join(":")))
    };
    let pairs = [
        ("backend-data", data("flannel.1")?),
        ("backend-type", "vxlan".to_owned()),
        ("backend-v6-data", data("flannel-v6.1")?),
        ("kube-subnet-manager", "true".to_owned()),
        ("public-ip", public_ip.to_owned()),
        ("public-ipv6", host.ipv6().to_string()),
        ("portolan-public-ip", public_ip.to_owned()),
        ("portolan-public-ipv6", host.ipv6().to_string()),
        ("portolan-probes", "true".to_owned()),
    ];
    Ok(pairs.map(|(name, value)| (name.to_owned(), value)).into())
}

/// Status and reason of `NetworkUnavailable`.
fn condition(plane: &ControlPlane, name: &str) -> Result<Option<(String, String)>> {
    let node = node(plane, name)?;
    let all = node["status"]["conditions"].as_array();
    let found = all
        .into_iter()
        .flatten()
        .find(|c| c["type"] == "NetworkUnavailable");
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    Ok(found.map(|c| (text(c, "status"), text(c, "reason"))))
}

fn wait_for_condition(
    plane: &ControlPlane,
    name: &str,
    status: &str,
    reason: &str,
    patience: Duration,
) -> Result<()> {
    wait_for("the condition NetworkUnavailable", patience, || {
        let found = condition(plane, name)?;
        let wanted = Some((status.to_owned(), reason.to_owned()));
        ensure!(found == wanted, "{name} has {found:?}");
        Ok(())
    })
}

fn routes(stage: &OverlayStage, node: usize) -> Result<usize> {
    let routes = tool(&stage.nodes[node], "ip", "route show dev flannel.1")?;
    Ok(routes.lines().count())
}

#[scenario(ControlPlane, Nft, Vxlan)]
#[ignore = "needs a control plane"]
fn nodes_join_leave_and_move_with_the_rights_of_both_roles() -> Result<()> {
    let (stage, plane, _daemons) = start(3, &[])?;
    stage.wait_for_mesh()?;
    for (number, host) in stage.nodes.iter().enumerate() {
        let expected = expected(&stage, number, &host.ipv4().to_string())?;
        ensure!(
            annotations(&plane, host.name())? == expected,
            "{expected:?}"
        );
        wait_for_condition(&plane, host.name(), "False", "PortolanIsUp", PATIENCE)?;
    }

    plane.kubectl(&["delete", "node", "node-2"])?;
    wait_until("node-2 to be forgotten", PATIENCE, || {
        routes(&stage, 0).is_ok_and(|routes| routes == 1)
    })?;
    plane.register(&stage.nodes[2])?;
    stage.wait_for_mesh()?;
    wait_for_condition(&plane, "node-2", "False", "PortolanIsUp", PATIENCE)?;

    let (old, new) = (stage.nodes[1].ipv4(), "192.168.77.151");
    stage.ip(1, &format!("addr add {new}/24 dev eth0"))?;
    stage.ip(1, &format!("addr del {old}/24 dev eth0"))?;
    stage.ip(1, &format!("addr replace {new}/24 dev eth0"))?;
    wait_for("the new address", PATIENCE, || {
        let found = annotations(&plane, "node-1")?;
        ensure!(found == expected(&stage, 1, new)?, "{found:?}");
        Ok(())
    })?;
    stage.wait_for_mesh()?;

    // Before the restart: a server that has just started knows no roles yet, and refuses everything for a moment.
    let refused: Vec<_> = plane
        .audit()?
        .into_iter()
        .filter(|e| matches!(e.code, 401 | 403))
        .collect();
    ensure!(refused.is_empty(), "{refused:?}");
    // After trouble versions are looked at, which is a list.
    plane.stop_api_server()?;
    plane.start_api_server()?;
    let mut given = rights_given(PORTOLAN_RBAC)?;
    given.extend(rights_given(PORTOLAN_OVERLAY_RBAC)?);
    // Reports come only when something is wrong.
    let of_reports = |right: &Right| right.resource == "events";
    wait_for("every right to be used", PATIENCE, || {
        let used = plane.rights_used()?;
        let unused: BTreeSet<_> = given.difference(&used).filter(|r| !of_reports(r)).collect();
        ensure!(unused.is_empty(), "not used: {unused:?}");
        let more: BTreeSet<_> = used.difference(&given).collect();
        ensure!(more.is_empty(), "used without being given: {more:?}");
        Ok(())
    })?;
    Ok(())
}

#[scenario(ControlPlane, Vxlan, Nft)]
#[ignore = "needs a control plane"]
fn node_is_read_when_it_moves_and_not_at_kubelet_reports() -> Result<()> {
    const REPORTS: usize = 20;
    let (stage, plane, daemons) = start(2, &[])?;
    stage.wait_for_mesh()?;
    let spare = |address: &str| {
        let annotations = [
            ("backend-data", r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:63"}"#),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", address),
        ];
        let annotations: BTreeMap<String, &str> = annotations
            .map(|(name, value)| (format!("{PREFIX}{name}"), value))
            .into();
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": "spare", "annotations": annotations },
            "spec": { "podCIDR": "10.244.99.0/24", "podCIDRs": ["10.244.99.0/24"] },
        })
    };
    let is_known_at = |address: &str| {
        wait_for("all nodes to know it", PATIENCE, || {
            for node in &stage.nodes {
                let entries = tool(node, "bridge", "fdb show dev flannel.1")?;
                ensure!(entries.contains(address), "{entries}");
            }
            Ok(())
        })
    };
    plane.apply(&spare("192.168.77.98"))?;
    is_known_at("192.168.77.98")?;
    for report in 0..REPORTS {
        let time = format!("2026-01-01T00:00:{report:02}Z");
        plane.apply_status(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": "spare" },
            "status": { "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": time,
            }] },
        }))?;
    }
    // Events arrive in order: after this one, all reports have arrived.
    plane.apply(&spare("192.168.77.99"))?;
    is_known_at("192.168.77.99")?;
    let audit = plane.audit()?;
    let read = audit
        .iter()
        .filter(|event| event.uri == "/api/v1/nodes/spare");
    let read = read.count();
    // Once as it joins, once as it moves, and a first report may come between the two looks at one that joins.
    let expected = 2 * daemons.len()..=3 * daemons.len();
    ensure!(
        expected.contains(&read),
        "read {read} times in {REPORTS} reports"
    );
    Ok(())
}

/// What people look at when pods cannot talk.
#[scenario(ControlPlane, Nft, Vxlan)]
#[ignore = "needs a control plane"]
fn an_alarm_and_its_end_are_seen_by_who_describes_the_node() -> Result<()> {
    let (stage, plane, _daemons) = start(2, FAST)?;
    stage.wait_for_mesh()?;
    let tells = |reason: &'static str, words: &'static str| {
        wait_for("an event of node-0", 2 * PATIENCE, || {
            let told = plane.kubectl(&["describe", "node", "node-0"])?;
            let events = told.split("Events:").nth(1).unwrap_or_default();
            let is_told = |line: &str| line.contains(reason) && line.contains(words);
            ensure!(events.lines().any(is_told), "{events}");
            Ok(())
        })
    };
    let blocked = stage.nodes[0].lose(&stage.nodes[1], Loss::Udp(8472))?;
    tells(
        "OverlayBlocked",
        "UDP 8472 from node-0 to node-1 is blocked",
    )?;
    drop(blocked);
    tells("OverlayReachable", "node-1")
}

#[scenario(ControlPlane, Nft, Vxlan)]
#[ignore = "needs a control plane"]
fn network_unavailable_is_set_once_a_fault_of_the_node_lasts() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let plane = ControlPlane::without_controllers(stage.lab())?;
    for node in &stage.nodes[..2] {
        plane.register(node)?;
    }
    // One node without a pod CIDR, and one whose condition another component owns.
    plane.apply(&json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-2" }
    }))?;
    let foreign = json!({ "status": { "conditions": [{
        "type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated", "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z", "lastHeartbeatTime": "2026-01-01T00:00:00Z",
    }] } });
    let patch = [
        "patch",
        "node",
        "node-1",
        "--subresource=status",
        "--type=strategic",
        "--patch",
    ];
    plane.kubectl(&[&patch[..], &[&foreign.to_string()]].concat())?;
    let kubeconfig = plane.kubeconfig_for_overlay()?.display().to_string();
    let began = Instant::now();
    let daemons = (0..3)
        .map(|n| stage.start_with_api(n, &kubeconfig, &[]))
        .collect::<Result<Vec<_>>>()?;
    wait_for_condition(&plane, "node-0", "False", "PortolanIsUp", PATIENCE)?;
    ensure!(
        condition(&plane, "node-2")?.is_none(),
        "it says so too early"
    );
    wait_for_condition(
        &plane,
        "node-2",
        "True",
        "PortolanNoPodCIDR",
        Duration::from_secs(60),
    )?;
    ensure!(
        began.elapsed() > Duration::from_secs(29),
        "it says so too early"
    );
    // A peer without a pod CIDR affects no other node, and a foreign condition stays.
    wait_for_condition(&plane, "node-0", "False", "PortolanIsUp", PATIENCE)?;
    wait_for_condition(&plane, "node-1", "True", "NoRouteCreated", PATIENCE)?;
    daemons[1].wait_for_line("NoRouteCreated", PATIENCE)?;
    let ranges = [
        stage.nodes[2].pod_cidr_v4().to_string(),
        stage.nodes[2].pod_cidr_v6().to_string(),
    ];
    let spec = json!({ "spec": { "podCIDR": ranges[0], "podCIDRs": ranges } }).to_string();
    plane
        .kubectl(&[
            "patch",
            "node",
            "node-2",
            "--type=strategic",
            "--patch",
            &spec,
        ])
        .context("giving node-2 its ranges")?;
    wait_for_condition(&plane, "node-2", "False", "PortolanIsUp", PATIENCE)?;
    // Without InternalIPs in its status it has found its own address.
    stage.wait_for_mesh()
}
