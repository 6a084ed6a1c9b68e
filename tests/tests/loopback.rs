//! Node ports on loopback addresses are Services like others: affinity, counters, resets, and flows that follow endpoints.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Outcome, Probe, Protocol, scenario, wait_until};
use portolan_tests::stage::{PATIENCE, Stage};
use serde_json::{Value, json};

const FLAGS: [&str; 2] = ["--nodeport-addresses", "primary,localhost"];
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// Writes `web` with these of the pods and this change of the Service.
fn write(stage: &Stage, pods: std::ops::Range<usize>, change: impl Fn(&mut Value)) -> Result<()> {
    let mut objects = stage.objects(&stage.web, pods);
    change(objects.first_mut().context("no Service")?);
    stage.manifests.write_objects("web.yaml", &objects)
}

fn server(outcome: &Outcome) -> Option<String> {
    Some(outcome.server()?.split(':').next()?.to_owned())
}

fn wait_for_node_port(stage: &Stage, to: SocketAddr) -> Result<()> {
    wait_until("the node port on loopback", PATIENCE, || {
        let outcome = stage.node.connect(Protocol::Tcp, to);
        outcome.is_ok_and(|o| server(&o).is_some())
    })
}

#[scenario(Nft)]
fn affinity_and_counters_include_node_ports_on_loopback() -> Result<()> {
    let stage = Stage::new()?;
    write(&stage, 0..4, |service| {
        service["spec"]["sessionAffinity"] = json!("ClientIP");
        service["metadata"]["annotations"] = json!({ "portolan/count-connections": "true" });
    })?;
    let _daemon = stage.start_synced(&FLAGS)?;
    let port = stage.web.node_port.context("it has one")?;
    for address in LOOPBACK {
        let to = SocketAddr::new(address, port);
        wait_for_node_port(&stage, to)?;
        let tally = stage.node.connect_many(Protocol::Tcp, to, 12)?;
        ensure!(tally.failed() == 0 && tally.servers.len() == 1, "{tally:?}");
    }
    let (_, metrics) = stage
        .node
        .http_get(([127, 0, 0, 1], 10_249).into(), "/metrics")?
        .context("no metrics")?;
    let name = "portolan_service_connections_total{namespace=\"default\",service=\"web\"";
    let counts = metrics.lines().filter(|line| line.starts_with(name));
    let counts = counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    ensure!(counts.sum::<u64>() >= 24, "{metrics}");
    Ok(())
}

#[scenario(Nft)]
fn connections_on_loopback_are_reset_when_asked_for() -> Result<()> {
    let stage = Stage::new()?;
    let with_request = |pods| {
        write(&stage, pods, |service| {
            service["metadata"]["annotations"] =
                json!({ "portolan/reset-removed-endpoints": "true" });
        })
    };
    with_request(0..4)?;
    let _daemon = stage.start_synced(&FLAGS)?;
    let to = SocketAddr::new(LOOPBACK[0], stage.web.node_port.context("it has one")?);
    wait_for_node_port(&stage, to)?;
    let held = stage.node.hold(to, 40, Duration::from_millis(20))?;
    let servers = held.report().servers;
    let to_last = servers.get("web-3:8080").copied().unwrap_or(0);
    ensure!(to_last > 0, "{servers:?}");
    with_request(0..3)?;
    wait_until("connections to end", PATIENCE, || {
        held.report().lost.len() >= to_last
    })?;
    let held = held.stop();
    ensure!(held.lost.len() == to_last, "{:?}", held.lost);
    Ok(())
}

#[scenario(Nft)]
fn a_udp_flow_on_loopback_follows_its_endpoints() -> Result<()> {
    const PORT: u16 = 53;
    let stage = Stage::new()?;
    for pod in &stage.pods {
        pod.serve(Protocol::Udp, PORT)?;
    }
    let only = |pod: usize| -> Result<()> {
        let mut objects = stage.objects(&stage.web, pod..pod + 1);
        for object in &mut objects {
            let ports = match object["kind"] == "Service" {
                true => &mut object["spec"]["ports"],
                false => &mut object["ports"],
            };
            ports[0]["protocol"] = json!("UDP");
            if object["kind"] != "Service" {
                object["ports"][0]["port"] = json!(PORT);
            }
        }
        stage.manifests.write_objects("web.yaml", &objects)
    };
    only(0)?;
    let _daemon = stage.start_synced(&FLAGS)?;
    for address in LOOPBACK {
        let to = SocketAddr::new(address, stage.web.node_port.context("it has one")?);
        for pod in [0, 1, 2, 3, 0] {
            only(pod)?;
            let name = format!("web-{pod}");
            wait_until(&format!("the flow to reach {name}"), PATIENCE, || {
                let probe = Probe::new(Protocol::Udp, to).from_port(40_153);
                let outcome = stage.node.probe(probe.within(Duration::from_millis(500)));
                outcome.is_ok_and(|o| server(&o).as_deref() == Some(name.as_str()))
            })?;
        }
    }
    Ok(())
}
