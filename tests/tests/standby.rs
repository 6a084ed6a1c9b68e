//! Two daemons on one node, and a node without its Node object.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use lab::{Outcome, Protocol, node_object, scenario, wait_until};
use nft::Feature;
use portolan_tests::stage::{PATIENCE, Stage, has, service};
use portolan_tests::traffic::Traffic;

const SECOND_PORT: u16 = 10_356;
const SECOND: [&str; 2] = [
    "--healthz-bind-address=0.0.0.0:10356",
    "--metrics-bind-address=127.0.0.1:10349",
];

#[scenario(Nft)]
fn a_second_daemon_stands_by_and_takes_over() -> Result<()> {
    // Without owned tables no daemon knows of the other.
    if !has(Feature::TablePersist)? {
        return Ok(());
    }
    let stage = Stage::new()?;
    let first = stage.start_synced(&[])?;
    let traffic = Traffic::start(&stage)?;
    let second = stage.start(&SECOND)?;
    // What `maxSurge` waits for.
    stage
        .node
        .wait_until_ready(&second, SECOND_PORT, PATIENCE)?;
    let readiness = SocketAddr::new(stage.node.ipv4().into(), SECOND_PORT);
    let (_, text) = stage
        .client
        .http_get(readiness, "/readyz")?
        .context("no answer")?;
    ensure!(text.contains("standing by"), "{text}");
    let late = service("late", 91);
    stage.add(&late, 0..2)?;
    stage.wait_for_backends(&late, 2)?;
    first.kill()?;
    stage.add(&late, 0..4)?;
    stage.wait_for_backends(&late, 4)?;
    wait_until("readiness without a remark", PATIENCE, || {
        let answer = stage.client.http_get(readiness, "/readyz").ok().flatten();
        answer.is_some_and(|(code, text)| code == 200 && !text.contains("standing by"))
    })?;
    traffic.lost_nothing()?;
    Ok(())
}

#[scenario(Nft)]
fn node_ports_survive_a_restart_without_the_node_object() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&[])?;
    let outside = stage.lab().client("outside")?;
    let port = stage.web.node_port.context("it has one")?;
    let nodes = stage.node.addresses().map(|ip| SocketAddr::new(ip, port));
    let is_served = |to: SocketAddr| {
        let outcome = outside.connect(Protocol::Tcp, to);
        matches!(outcome, Ok(Outcome::Answered { .. }))
    };
    for to in nodes {
        wait_until("the node port", PATIENCE, || is_served(to))?;
    }
    daemon.kill()?;
    // Another name than the one that `--hostname-override` gives.
    let mut other = node_object(&stage.node);
    other["metadata"]["name"] = "node-z".into();
    stage.manifests.write_objects("nodes.yaml", &[other])?;
    let _daemon = stage.start_synced(&[])?;
    let gone = service("gone", 92);
    stage.add(&gone, 0..4)?;
    stage.wait_for_backends(&gone, 4)?;
    for to in nodes {
        ensure!(is_served(to), "{to} is not served any more");
    }
    let health = SocketAddr::new(stage.node.ipv4().into(), lab::HEALTH_PORT);
    let (_, text) = outside.http_get(health, "/readyz")?.context("no answer")?;
    ensure!(text.contains("node-a"), "{text}");
    Ok(())
}
