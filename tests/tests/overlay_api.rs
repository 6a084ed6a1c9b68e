//! The overlay with an API server: what it publishes, and what it does when the server is away, short or wrong.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::fake_api::{FakeApi, Resource};
use lab::{Daemon, Node, scenario, wait_for, wait_until};
use portolan_tests::commands::{document, run};
use portolan_tests::overlay::{
    Beat, OverlayStage, all_go_on, mac_of, metric, metrics, tool, worst,
};
use portolan_tests::slowness;
use portolan_tests::stage::{PATIENCE, service};
use serde_json::{Value, json};

/// The daemon compares everything with the kernel every 30 s in any case.
const BEFORE_AUDIT: Duration = Duration::from_secs(15);
const PREFIX: &str = "flannel.alpha.coreos.com";

fn start(nodes: usize) -> Result<(OverlayStage, FakeApi, Vec<Daemon>, String)> {
    let stage = OverlayStage::new(nodes)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let daemons = (0..nodes)
        .map(|n| stage.start_with_api(n, &kubeconfig, &[]))
        .collect::<Result<Vec<_>>>()?;
    stage.wait_for_mesh()?;
    Ok((stage, api, daemons, kubeconfig))
}

fn annotation(api: &FakeApi, node: &str, name: &str) -> Option<String> {
    let node = api.node(node)?;
    Some(
        node["metadata"]["annotations"]
            .get(format!("{PREFIX}/{name}"))?
            .as_str()?
            .to_owned(),
    )
}

fn routes(stage: &OverlayStage, node: usize) -> Result<usize> {
    Ok(tool(&stage.nodes[node], "ip", "route show dev flannel.1")?
        .lines()
        .count())
}

#[scenario(Vxlan, Nft)]
fn nodes_find_each_other_by_flannel_annotations() -> Result<()> {
    let (stage, api, _daemons, _) = start(3)?;
    for node in &stage.nodes {
        let name = node.name();
        for (device, data) in [
            ("flannel.1", "backend-data"),
            ("flannel-v6.1", "backend-v6-data"),
        ] {
            let mac = mac_of(node, device)?
                .map(|byte| format!("{byte:02x}"))
                .join(":");
            let expected = format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#);
            ensure!(
                annotation(&api, name, data).as_deref() == Some(&expected),
                "{data} of {name}"
            );
        }
        ensure!(annotation(&api, name, "backend-type").as_deref() == Some("vxlan"));
        ensure!(annotation(&api, name, "kube-subnet-manager").as_deref() == Some("true"));
        ensure!(annotation(&api, name, "public-ip") == Some(node.ipv4().to_string()));
        ensure!(annotation(&api, name, "public-ipv6") == Some(node.ipv6().to_string()));
        let condition = |node: &Value| {
            let all = node["status"]["conditions"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            all.iter()
                .any(|c| c["type"] == "NetworkUnavailable" && c["status"] == "False")
        };
        wait_until("the condition", PATIENCE, || {
            api.node(name).is_some_and(|node| condition(&node))
        })?;
    }
    let env = std::fs::read_to_string(stage.file(1, "env"))?;
    ensure!(
        env == "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_IPV6_NETWORK=fd00:244::/32\n\
                FLANNEL_IPV6_SUBNET=fd00:244:1::1/64\nFLANNEL_MTU=1430\nFLANNEL_IPMASQ=false\n",
        "{env}"
    );
    Ok(())
}

/// Spoiled again before the watch shows the repair, the Node looks as if nothing had been written.
#[scenario(Vxlan, Nft)]
fn own_annotations_spoiled_again_and_again_are_restored() -> Result<()> {
    let (stage, api, _daemons, _) = start(2)?;
    let good = annotation(&api, "node-0", "backend-data").context("published")?;
    let is_restored = || annotation(&api, "node-0", "backend-data").as_ref() == Some(&good);
    let spoil = || -> Result<()> {
        let mut object = api.node("node-0").context("there is a node-0")?;
        object["metadata"]["annotations"][format!("{PREFIX}/backend-data")] = "null".into();
        api.apply(object)?;
        Ok(())
    };
    for _ in 0..4 {
        spoil()?;
        let limit = Instant::now() + PATIENCE;
        while !is_restored() {
            ensure!(Instant::now() < limit, "the annotation stays spoiled");
            // The daemon takes milliseconds to read the Node after its change: the next spoiling comes first.
            std::thread::sleep(Duration::from_micros(100));
        }
    }
    stage.wait_for_mesh()
}

/// A kubelet reports its Node again and again, without a change that matters here. What another program changes next is seen
/// all the same, and not only by the audit 30 s later.
#[scenario(Vxlan, Nft)]
fn deleted_routes_return_at_once_after_reports_of_a_kubelet() -> Result<()> {
    let (stage, api, _daemons, _) = start(2)?;
    let asked = || {
        let seen = api.seen();
        let nodes = seen.iter().filter(|seen| seen.resource == Resource::Nodes);
        nodes.count()
    };
    for report in 0..5 {
        let before = asked();
        let mut object = api.node("node-0").context("there is a node-0")?;
        object["status"]["conditions"] =
            json!([{ "type": "DiskPressure", "status": "False", "message": report.to_string() }]);
        api.apply(object)?;
        // The own Node is read at each change.
        wait_until("the report to be read", PATIENCE, || asked() > before)?;
        ensure!(routes(&stage, 0)? == 1);
        stage.ip(0, "route flush dev flannel.1")?;
        wait_until("the route to return", BEFORE_AUDIT * slowness(), || {
            routes(&stage, 0).is_ok_and(|routes| routes == 1)
        })?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn a_conflict_of_two_nodes_is_an_event_of_both() -> Result<()> {
    let (stage, api, _daemons, _) = start(3)?;
    let of = |node: &str| {
        let about = |event: &Value| event["regarding"]["name"] == node;
        let mut events = api.events().into_iter().filter(about);
        events.find(|event| event["reason"] == "OverlayConflict")
    };
    ensure!(of("node-1").is_none(), "{:?}", api.events());
    let first = api.node("node-1").context("there is a node-1")?;
    let mut second = api.node("node-2").context("there is a node-2")?;
    second["spec"] = first["spec"].clone();
    // Pod CIDRs never change: it is another Node of the name.
    ensure!(api.delete(Resource::Nodes, "", "node-2"));
    wait_until("node-2 to be forgotten", PATIENCE, || {
        routes(&stage, 1).is_ok_and(|n| n == 1)
    })?;
    api.apply(second)?;
    for node in ["node-1", "node-2"] {
        wait_until(&format!("an Event of {node}"), PATIENCE, || {
            of(node).is_some_and(|event| {
                let note = event["note"].as_str().unwrap_or_default();
                event["type"] == "Warning" && note.contains("node-1") && note.contains("node-2")
            })
        })?;
    }
    ensure!(of("node-0").is_none(), "it is no conflict of node-0");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn deleted_node_is_removed_and_reached_again_when_recreated() -> Result<()> {
    let (stage, api, _daemons, _) = start(3)?;
    let object = api.node("node-2").context("there is a node-2")?;
    // A Service that asks for the address of node-2, which it gets only while there is no such Node.
    let address = stage.nodes[2].ipv4().to_string();
    let mut taker = service("taker", 90).object();
    taker["spec"]["externalIPs"] = json!([address]);
    api.apply(taker)?;
    let serves = |address: &str| -> Result<bool> {
        let table = stage.nodes[0].nft(&["list", "table", "ip", "portolan"])?;
        Ok(table.contains(address))
    };
    wait_until("the Service's rules", PATIENCE, || {
        serves("10.96.0.90").is_ok_and(|is| is)
    })?;
    ensure!(!serves(&address)?, "a Service took a Node's address");
    ensure!(api.delete(Resource::Nodes, "", "node-2"));
    wait_until("node-2 to be forgotten", PATIENCE, || {
        routes(&stage, 0).is_ok_and(|n| n == 1)
    })?;
    wait_until("the free address", PATIENCE, || {
        serves(&address).is_ok_and(|is| is)
    })?;
    api.apply(object)?;
    wait_until("the Node's address", PATIENCE, || {
        serves(&address).is_ok_and(|is| !is)
    })?;
    stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft)]
fn node_list_without_most_nodes_deletes_nothing() -> Result<()> {
    let (stage, api, _daemons, _) = start(5)?;
    let beats = stage.beats()?;
    api.set_reachable(false);
    for node in 1..5 {
        api.delete(Resource::Nodes, "", &format!("node-{node}"));
    }
    api.compact();
    let asked = || {
        api.seen()
            .iter()
            .filter(|seen| seen.resource == Resource::Nodes)
            .count()
    };
    let before = asked();
    api.set_reachable(true);
    // A version to compare, a watch that is refused, a list: of each node.
    wait_until("every node to have listed anew", PATIENCE, || {
        asked() >= before + 15
    })?;
    // Having taken the list in, it has had its chance to delete.
    wait_until("node-0 to have read the list", PATIENCE, || {
        metric(&stage.nodes[0], "portolan_overlay_held_nodes ").is_ok_and(|held| held == 4)
    })?;
    all_go_on(&beats)?;
    ensure!(
        routes(&stage, 0)? == 4,
        "routes were deleted for a list that cannot be true"
    );
    let (lost, gap) = worst(beats)?;
    println!("| a list without most Nodes | {lost} | {gap:.1?} | |");
    ensure!(lost == 0, "{lost} datagrams lost, gap {gap:?}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn restart_without_api_server_loses_nothing_and_repairs() -> Result<()> {
    let (stage, api, daemons, kubeconfig) = start(3)?;
    let beats = stage.beats()?;
    wait_until("the peers to be remembered", PATIENCE, || {
        std::path::Path::new(&stage.file(0, "peers")).exists()
    })?;
    daemons[0].kill()?;
    api.set_reachable(false);
    all_go_on(&beats)?;
    let _restarted = stage.start_with_api(0, &kubeconfig, &[])?;
    // It has asked in vain, and has had its chance to take the peers for gone.
    wait_until("a request without an answer", PATIENCE, || {
        metrics(&stage.nodes[0])
            .is_ok_and(|text| text.contains("portolan_source_connected{kind=\"Node\"} 0"))
    })?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    println!("| daemon killed, and started without an API server | {lost} | {gap:.1?} | |");
    ensure!(lost == 0, "{lost} datagrams lost, gap {gap:?}");
    stage.ip(0, "link del flannel.1")?;
    wait_until(
        "the device with its routes, from what was remembered",
        PATIENCE,
        || routes(&stage, 0).is_ok_and(|n| n == 2),
    )?;
    stage.wait_for_mesh()
}

/// A peer's Node that does not decode is logged, counted and listed, each time that it becomes invalid, until it is valid.
fn invalid_peers_are_named(node: &Node, api: &FakeApi, daemon: &Daemon) -> Result<()> {
    let object = |pod_cidrs: Value| json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "node-9" }, "spec": { "podCIDRs": pod_cidrs } });
    let listed = |count: u64| {
        wait_for("the list of ignored objects", PATIENCE, || {
            let (status, _) = document(node, &["status"])?;
            ensure!(status["ignored_count"] == count, "{status:#}");
            Ok(())
        })
    };
    for times in 1..=2 {
        api.apply(object("none".into()))?;
        listed(1)?;
        let text = run(node, &["status"])?.stdout;
        ensure!(text.contains("node-9"), "{text}");
        let problems = metric(node, "portolan_object_problems_total{kind=\"Node\"} ")?;
        ensure!(problems == times, "{problems} problems");
        wait_until("a line in the log", PATIENCE, || {
            let lines = daemon.lines();
            let named = lines
                .iter()
                .filter(|line| line.contains("node-9: spec.podCIDRs"));
            named.count() as u64 == times
        })?;
        api.apply(object(json!([])))?;
        listed(0)?;
    }
    ensure!(api.delete(Resource::Nodes, "", "node-9"));
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn an_outage_is_reported_without_a_service_proxy() -> Result<()> {
    let stage = OverlayStage::new(1)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let daemon = stage.start_with_api(0, &kubeconfig, &["--service-proxy=off"])?;
    let node = &stage.nodes[0];
    stage.wait_until_ready(0, &daemon)?;
    let is_connected = |connected: u64| {
        metric(node, "portolan_source_connected{kind=\"Node\"} ").is_ok_and(|is| is == connected)
    };
    wait_until("the connection in the metrics", PATIENCE, || {
        is_connected(1)
    })?;
    invalid_peers_are_named(node, &api, &daemon)?;
    let waited = run(node, &["status", "--wait", "--timeout=60"])?;
    ensure!(waited.code == 0, "{waited:?}");
    for arguments in [
        &["services"][..],
        &["services", "web"],
        &["flows"],
        &["trace", "--from=node", "--to=10.96.0.1:443"],
        &["verify"],
    ] {
        let ran = run(node, arguments)?;
        let is_told = ran.stderr.contains("serves no Services");
        ensure!(ran.code == 2 && is_told, "{arguments:?}: {ran:?}");
    }
    let ran = run(node, &["support", "--to", &stage.file(0, "tar.gz")])?;
    ensure!(ran.code == 0, "{ran:?}");
    api.set_reachable(false);
    wait_for("the outage in the status", PATIENCE, || {
        let (status, code) = document(node, &["status"])?;
        let reasons = status["reasons"].to_string();
        ensure!(
            code == 1 && reasons.contains("not watching Node"),
            "{code} {status:#}"
        );
        Ok(())
    })?;
    wait_until("the outage in the metrics", PATIENCE, || is_connected(0))?;
    daemon.wait_for_line("existing tunnels keep working", PATIENCE)?;
    api.set_reachable(true);
    let waited = run(node, &["status", "--wait", "--timeout=60"])?;
    ensure!(waited.code == 0, "{waited:?}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn changed_node_address_is_followed_and_pods_keep_theirs() -> Result<()> {
    let (stage, api, _daemons, _) = start(3)?;
    let others = Beat::start(&stage.pods[0], stage.pods[1].ipv4().into())?;
    let moved = Beat::start(&stage.pods[0], stage.pods[2].ipv4().into())?;
    tool(
        &stage.nodes[2],
        "sysctl",
        "-qw net.ipv4.conf.eth0.promote_secondaries=1",
    )?;
    stage.ip(2, "addr add 192.168.77.150/24 dev eth0")?;
    stage.ip(
        2,
        &format!("addr del {}/24 dev eth0", stage.nodes[2].ipv4()),
    )?;
    wait_until("the new address to be published", PATIENCE, || {
        annotation(&api, "node-2", "public-ip").as_deref() == Some("192.168.77.150")
    })?;
    stage.wait_for_mesh()?;
    let (moved, others) = (moved.stop()?, others.stop()?);
    println!(
        "| address of a node replaced without notice | {} | {:.1?} | |",
        moved.sent - moved.answered,
        moved.longest_gap
    );
    ensure!(
        others.answered == others.sent,
        "traffic of other nodes was disturbed"
    );
    ensure!(
        // Less than a request waits that goes by a connection from the old address.
        moved.longest_gap < Duration::from_secs(3) * slowness(),
        "no answer for {:?}",
        moved.longest_gap
    );
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn announced_address_change_of_a_node_loses_no_packet() -> Result<()> {
    let (stage, api, _daemons, _) = start(3)?;
    let (old, new) = (stage.nodes[2].ipv4(), "192.168.77.152");
    let beats = stage.beats()?;
    all_go_on(&beats)?;
    tool(
        &stage.nodes[2],
        "sysctl",
        "-qw net.ipv4.conf.eth0.promote_secondaries=1",
    )?;
    stage.ip(2, &format!("addr add {new}/24 dev eth0"))?;
    let mut object = api.node("node-2").context("there is a node-2")?;
    object["metadata"]["annotations"][format!("{PREFIX}/node-public-ip")] = new.into();
    api.apply(object)?;
    let device = "-d -o link show dev flannel.1";
    wait_until("the device to have the new address", PATIENCE, || {
        stage
            .ip(2, device)
            .is_ok_and(|link| link.contains(&format!("local {new}")))
    })?;
    for node in 0..2 {
        wait_until("the others to know it", PATIENCE, || {
            tool(&stage.nodes[node], "bridge", "fdb show dev flannel.1")
                .is_ok_and(|fdb| fdb.contains(new) && !fdb.contains(&old.to_string()))
        })?;
    }
    // What was sent to the old address before they knew the new one may still be on its way: a datagram that arrives
    // once the address is gone is lost, whatever the overlay does. Later ones have been answered when this returns.
    all_go_on(&beats)?;
    stage.ip(2, &format!("addr del {old}/24 dev eth0"))?;
    all_go_on(&beats)?;
    stage.wait_for_mesh()?;
    let (lost, gap) = worst(beats)?;
    println!("| address of a node changed by annotation | {lost} | {gap:.1?} | |");
    ensure!(lost == 0, "{lost} datagrams lost, gap {gap:?}");
    Ok(())
}

/// What flannel published at its own choice is kept; what the operator of Portolan chose goes with the choice.
#[scenario(Vxlan, Nft)]
fn a_withdrawn_choice_of_the_address_is_withdrawn() -> Result<()> {
    let (stage, api, mut daemons, kubeconfig) = start(2)?;
    let (usual, other) = (stage.nodes[1].ipv4().to_string(), "192.168.77.153");
    stage.ip(1, &format!("addr add {other}/24 dev eth0"))?;
    let mut restart = |flags: &[&str], address: &str| -> Result<()> {
        daemons.pop().context("a daemon")?.kill()?;
        daemons.push(stage.start_with_api(1, &kubeconfig, flags)?);
        wait_until(address, PATIENCE, || {
            annotation(&api, "node-1", "public-ip").as_deref() == Some(address)
        })?;
        stage.wait_until_ready(1, daemons.last().context("a daemon")?)?;
        stage.wait_for_mesh()
    };
    restart(&["--public-ip", other], other)?;
    restart(&[], &usual)?;
    let mut object = api.node("node-1").context("there is a node-1")?;
    object["metadata"]["annotations"][format!("{PREFIX}/public-ip")] = other.into();
    api.apply(object)?;
    restart(&[], other)
}

/// A machine that was replaced under another name left its Node object behind, with the pod CIDR that the new one has.
#[scenario(Vxlan, Nft)]
fn a_live_node_takes_the_pod_cidr_of_a_stale_older_one() -> Result<()> {
    let (stage, api, _daemons, _) = start(2)?;
    let mut old = api.node("node-1").context("there is a node-1")?;
    old["metadata"] = serde_json::json!({
        "name": "a-replaced", "creationTimestamp": "2020-01-01T00:00:00Z",
        "annotations": old["metadata"]["annotations"],
    });
    let annotations = &mut old["metadata"]["annotations"];
    annotations[format!("{PREFIX}/backend-data")] =
        r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:99"}"#.into();
    annotations[format!("{PREFIX}/public-ip")] = "192.168.77.99".into();
    let condition = |status: &str| serde_json::json!([{ "type": "Ready", "status": status, "lastTransitionTime": "2020-01-01T00:00:00Z" }]);
    old["status"]["conditions"] = condition("True");
    api.apply(old.clone())?;
    let leads_to = |address: &str| {
        wait_until(address, PATIENCE, || {
            tool(&stage.nodes[0], "bridge", "fdb show dev flannel.1")
                .is_ok_and(|fdb| fdb.contains(address))
        })
    };
    leads_to("192.168.77.99")?;
    old["status"]["conditions"] = condition("Unknown");
    api.apply(old)?;
    leads_to("192.168.77.11")?;
    stage.wait_for_mesh()
}
