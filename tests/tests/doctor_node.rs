//! `portolan doctor` on a node without an overlay, or without its probes: what settings and other programs do to the traffic of
//! Services.

use anyhow::{Result, ensure};
use lab::{Protocol, scenario, wait_for};
use portolan_tests::commands::document;
use portolan_tests::doctor::doctor;
use portolan_tests::overlay::{OverlayStage, tool};
use portolan_tests::stage::{PATIENCE, Stage};

/// What stops packets to endpoints, what ends it, and part of the fault.
const FAULTS: [[&str; 3]; 2] = [
    [
        "sysctl -w net.ipv4.ip_forward=0",
        "sysctl -w net.ipv4.ip_forward=1",
        "net.ipv4.ip_forward is 0",
    ],
    [
        "nft add table inet walls; add chain inet walls outer { type filter hook forward priority 0; policy drop; }",
        "nft delete table inet walls",
        "table inet walls, chain outer on forward lets no packet pass",
    ],
];

/// Whether packets reach the endpoints of the Service, which are in pods.
fn is_served(stage: &Stage) -> Result<bool> {
    let to = Stage::address(&stage.web)?;
    Ok(stage.client.connect_many(Protocol::Tcp, to, 4)?.failed() == 0)
}

/// Runs a line on the node; what is nft's is one argument.
fn run_line(stage: &Stage, line: &str) -> Result<()> {
    match line.strip_prefix("nft ") {
        Some(commands) => stage.node.nft(&[commands])?,
        None => {
            let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
            tool(&stage.node, program, arguments)?
        }
    };
    Ok(())
}

#[scenario(Nft)]
fn the_doctor_names_what_keeps_packets_from_endpoints() -> Result<()> {
    let stage = Stage::new()?;
    let (code, text) = doctor(&stage.node, &[])?;
    ensure!(code == Some(2), "without a daemon: {code:?} {text}");
    let _daemon = stage.start_synced(&[])?;
    let well =
        |text: &str| text.lines().count() == 1 && text.starts_with("ok     node-a: forwarding");
    wait_for("a verdict without a fault", PATIENCE, || {
        let (code, text) = doctor(&stage.node, &[])?;
        ensure!(code == Some(0) && well(&text), "{code:?} {text}");
        Ok(())
    })?;
    let (code, text) = doctor(&stage.node, &["--to", "node-b"])?;
    ensure!(code == Some(2), "without an overlay: {code:?} {text}");
    for [begin, end, words] in FAULTS {
        ensure!(is_served(&stage)?, "before {begin}");
        run_line(&stage, begin)?;
        ensure!(!is_served(&stage)?, "{begin} stops nothing");
        let (code, text) = doctor(&stage.node, &[])?;
        let is_named = |line: &str| line.starts_with("BROKEN node-a: ") && line.contains(words);
        ensure!(
            code == Some(1) && text.lines().any(is_named),
            "{begin}: {code:?} {text}"
        );
        run_line(&stage, end)?;
        let (code, text) = doctor(&stage.node, &[])?;
        ensure!(code == Some(0) && well(&text), "{end}: {code:?} {text}");
    }
    Ok(())
}

#[scenario(Nft)]
fn the_doctor_names_other_proxies_and_local_cluster_ips() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&["--take-over-kube-proxy=false"])?;
    for line in [
        "nft add table ip kube-proxy",
        "ip link add kube-ipvs0 type bridge",
        "ip link add cilium_host type bridge",
        "ip link add nodelocaldns type bridge",
        "ip addr add 10.96.0.80/32 dev nodelocaldns",
        "ip addr add 169.254.20.10/32 dev nodelocaldns",
    ] {
        run_line(&stage, line)?;
    }
    let (report, code) = document(&stage.node, &["doctor"])?;
    ensure!(code == 1, "{code} {report:#}");
    let found = |check: &str, kind: &str| -> Vec<String> {
        let checks = report["checks"].as_array().into_iter().flatten();
        let of_it = checks.filter(|one| one["check"] == check);
        let lines = of_it.flat_map(|one| one[kind].as_array().into_iter().flatten());
        lines
            .filter_map(|line| line.as_str().map(str::to_owned))
            .collect()
    };
    let faults = found("other proxies", "faults");
    ensure!(
        faults.len() == 1 && faults[0].contains("kube-proxy"),
        "{report:#}"
    );
    let notes = found("other proxies", "notes");
    let all = ["kube-ipvs0", "cilium_host"];
    let are_named = notes.len() == all.len()
        && all
            .iter()
            .all(|name| notes.iter().any(|note| note.contains(name)));
    ensure!(are_named, "{report:#}");
    let local = found("local cluster IPs", "notes");
    ensure!(
        local.len() == 1 && local[0].contains("10.96.0.80") && local[0].contains("default/web"),
        "{report:#}"
    );
    // The interface of a cache takes no packet away from the Service.
    ensure!(is_served(&stage)?, "the Service is not served");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn the_doctor_prints_its_checks_when_the_probes_are_off() -> Result<()> {
    let stage = OverlayStage::new(1)?;
    let daemon = stage.start(0, &["--overlay-probe-port=0"])?;
    stage.wait_until_ready(0, &daemon)?;
    let node = &stage.nodes[0];
    let trouble =
        "the overlay is not measured: the overlay's probes are off (--overlay-probe-port=0)";
    let (code, text) = doctor(node, &[])?;
    let is_checked = text.contains("ok     node-0: forwarding");
    ensure!(
        code == Some(2) && is_checked && text.contains(trouble),
        "{code:?} {text}"
    );
    // No probe examines forwarding.
    tool(node, "sysctl", "-w net.ipv4.ip_forward=0")?;
    let (code, text) = doctor(node, &[])?;
    let is_named = |line: &str| line.starts_with("BROKEN node-0: ") && line.contains("ip_forward");
    // A fault that was found outranks what could not be tested.
    ensure!(
        code == Some(1) && text.lines().any(is_named) && text.contains(trouble),
        "{code:?} {text}"
    );
    let (report, code) = document(node, &["doctor"])?;
    let has_checks = report["checks"]
        .as_array()
        .is_some_and(|all| !all.is_empty());
    ensure!(
        code == 1 && has_checks && report["trouble"].is_string(),
        "{report:#}"
    );
    Ok(())
}
