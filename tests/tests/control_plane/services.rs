//! What people do to Services and deployments, in the shared cluster, while clients connect without a pause.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use lab::{Outcome, Protocol, scenario, wait_for, wait_until};
use portolan_tests::live::{CLUSTER_PATIENCE, Scene, wait_for_outcome, wait_for_servers};

use crate::{GRACE, SHORT_GRACE};

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn a_deployment_scales_up_and_down_and_its_service_follows() -> Result<()> {
    let scene = Scene::new("scales")?;
    let client = &scene.cluster.client;
    scene.deploy("web", 0, SHORT_GRACE)?;
    scene.expose("web", &[])?;
    let addresses = scene.addresses("web")?;
    for to in addresses {
        wait_for_outcome(client, to, &Outcome::Refused)?;
    }
    for replicas in [3, 10] {
        scene.scale("web", replicas)?;
        for to in addresses {
            wait_for_servers(client, to, replicas)?;
        }
        // No connection is lost while a server exists, also while their number grows.
        let streams = scene.stream(client, &addresses)?;
        streams.go_on(100)?;
        scene.scale("web", replicas + 2)?;
        wait_for_servers(client, addresses[0], replicas + 2)?;
        streams.go_on(100)?;
        streams.lost_nothing()?;
    }
    scene.scale("web", 0)?;
    for to in addresses {
        wait_for_outcome(client, to, &Outcome::Refused)?;
    }
    scene.kubectl(&["delete", "service", "web"])?;
    // An address of a ServiceCIDR that no Service has: dropped (KEP-1880).
    for to in addresses {
        wait_for_outcome(client, to, &Outcome::TimedOut)?;
    }
    Ok(())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn rolling_twenty_pods_during_restarts_fails_no_connection() -> Result<()> {
    let scene = Scene::new("rolls")?;
    let cluster = &scene.cluster;
    scene.deploy("web", 20, GRACE)?;
    scene.expose("web", &["--type=NodePort"])?;
    let addresses = scene.addresses("web")?;
    let node_ports = scene.node_port("web", &cluster.nodes[1])?;
    wait_for_servers(&cluster.client, addresses[0], 20)?;
    wait_for_servers(&cluster.client, addresses[1], 20)?;
    wait_for_servers(&cluster.outside, node_ports[0], 20)?;
    wait_for_servers(&cluster.outside, node_ports[1], 20)?;
    let before = servers(&scene, addresses[0])?;
    let streams = scene
        .stream(&cluster.client, &addresses)?
        .and(scene.stream(&cluster.outside, &node_ports)?);
    streams.go_on(50)?;
    scene.kubectl(&["rollout", "restart", "deployment/web"])?;
    // In the middle of it, on both nodes that the clients go through.
    for node in [0, 1, 0, 1] {
        streams.go_on(200)?;
        cluster.start_portolan(&cluster.nodes[node], "ClusterCIDR")?;
    }
    scene.rolled_out("web")?;
    wait_for("twenty other pods", CLUSTER_PATIENCE, || {
        wait_for_servers(&cluster.client, addresses[0], 20)?;
        let after = servers(&scene, addresses[0])?;
        ensure!(
            after.iter().all(|server| !before.contains(server)),
            "an old pod answers"
        );
        Ok(())
    })?;
    // The old ones have come to their end as well.
    wait_until("the old pods to be gone", CLUSTER_PATIENCE, || {
        let pods = scene.kubectl(&["get", "pods", "--output=name"]);
        pods.is_ok_and(|pods| pods.lines().count() == 20)
    })?;
    streams.go_on(100)?;
    let connections = streams.lost_nothing()?;
    println!("{connections} connections during the rollout");
    Ok(())
}

fn servers(scene: &Scene, to: SocketAddr) -> Result<Vec<String>> {
    let client = &scene.cluster.client;
    let tally = client.connect_many(Protocol::Tcp, to, 300)?;
    Ok(tally.servers.into_keys().collect())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn a_service_changes_its_type_and_back() -> Result<()> {
    let scene = Scene::new("types")?;
    let (client, node) = (&scene.cluster.client, &scene.cluster.nodes[2]);
    let outside = &scene.cluster.outside;
    scene.deploy("web", 2, SHORT_GRACE)?;
    scene.expose("web", &[])?;
    let patch = |spec: &str| {
        let patch = format!(r#"{{"spec":{spec}}}"#);
        scene.kubectl(&["patch", "service", "web", "--patch", &patch])
    };
    for _round in 0..2 {
        let addresses = scene.addresses("web")?;
        wait_for_servers(client, addresses[0], 2)?;
        wait_for_servers(client, addresses[1], 2)?;
        // It keeps its addresses, and serves on them all the while.
        let streams = scene.stream(client, &addresses)?;
        patch(r#"{"type":"NodePort"}"#)?;
        let node_ports = scene.node_port("web", node)?;
        wait_for_servers(outside, node_ports[0], 2)?;
        wait_for_servers(outside, node_ports[1], 2)?;
        streams.go_on(50)?;
        streams.lost_nothing()?;
        patch(r#"{"type":"ExternalName","externalName":"example.com"}"#)?;
        for to in addresses {
            wait_for_outcome(client, to, &Outcome::TimedOut)?;
        }
        for to in node_ports {
            wait_for_outcome(outside, to, &Outcome::Refused)?;
        }
        patch(r#"{"type":"ClusterIP","externalName":null,"ipFamilyPolicy":"RequireDualStack"}"#)?;
    }
    Ok(())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn services_without_a_cluster_ip_leave_no_trace() -> Result<()> {
    let scene = Scene::new("headless")?;
    let (client, node) = (&scene.cluster.client, &scene.cluster.nodes[0]);
    scene.deploy("web", 2, SHORT_GRACE)?;
    // Ports that no other scenario has.
    let create = |arguments: &[&str]| {
        let create = ["create", "service"];
        scene.kubectl(&[&create[..], arguments].concat())
    };
    create(&["clusterip", "nobody", "--clusterip=None", "--tcp=4242:4242"])?;
    create(&[
        "externalname",
        "web-out",
        "--external-name=example.com",
        "--tcp=4343:4343",
    ])?;
    let expose = [
        "expose",
        "deployment",
        "web",
        "--name=headless",
        "--cluster-ip=None",
    ];
    scene.kubectl(&[&expose[..], &["--port=4444", "--target-port=8080"]].concat())?;
    // What comes after them is served, so they have been seen.
    scene.expose("web", &[])?;
    wait_for_servers(client, scene.addresses("web")?[0], 2)?;
    for family in ["ip", "ip6"] {
        let table = node.nft(&["list", "table", family, "portolan"])?;
        for port in ["4242", "4343", "4444"] {
            ensure!(
                !table.contains(&format!(" {port} ")),
                "port {port} is in the table: {table}"
            );
        }
    }
    Ok(())
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn unready_pod_gets_no_connection_until_ready_again() -> Result<()> {
    let scene = Scene::new("readiness")?;
    let client = &scene.cluster.client;
    scene.deploy("web", 3, SHORT_GRACE)?;
    scene.expose("web", &[])?;
    let addresses = scene.addresses("web")?;
    wait_for_servers(client, addresses[0], 3)?;
    wait_for_servers(client, addresses[1], 3)?;
    let streams = scene.stream(client, &addresses)?;
    streams.go_on(20)?;
    let pods = scene.kubectl(&["get", "pods", "--output=name"])?;
    let pod = pods.lines().next().unwrap_or_default();
    let ready = |value: &str| {
        let annotation = format!("{}={value}", lab::READY_ANNOTATION);
        scene.kubectl(&["annotate", "--overwrite", pod, &annotation])
    };
    ready("false")?;
    for to in addresses {
        wait_for_servers(client, to, 2)?;
        let name = format!("{}:8080", pod.trim_start_matches("pod/"));
        let tally = client.connect_many(Protocol::Tcp, to, 60)?;
        ensure!(!tally.servers.contains_key(&name), "{name} still answers");
    }
    ready("true")?;
    for to in addresses {
        wait_for_servers(client, to, 3)?;
    }
    streams.lost_nothing().map(drop)
}

#[scenario(ControlPlane, Nft)]
#[ignore = "needs a control plane"]
fn the_api_server_is_reached_through_its_own_service() -> Result<()> {
    let scene = Scene::new("own")?;
    let cluster = &scene.cluster;
    let mut command = cluster.client.command(lab::program("kubectl")?);
    command
        .arg(format!(
            "--kubeconfig={}",
            cluster.plane.admin_kubeconfig().display()
        ))
        .args(["--server=https://10.96.0.1", "get", "--raw", "/readyz"])
        .env("HOME", cluster.plane.folder());
    let output = cluster.client.output(command)?;
    ensure!(output.stdout == b"ok", "{output:?}");
    Ok(())
}
