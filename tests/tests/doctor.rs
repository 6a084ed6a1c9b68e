//! The overlay measured: networks broken in one way each, and what the daemon and `portolan doctor` make of them.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Host, Loss, wait_for, wait_until};
use portolan_tests::overlay::{OverlayStage, can_run};
use portolan_tests::stage::{PATIENCE, portolan};
use serde_json::Value;

const FAMILIES: [&str; 2] = ["IPv4", "IPv6"];
/// Rounds that follow each other as fast as they can.
const FAST: &[&str] = &[
    "--overlay-probe-interval",
    "20ms",
    "--metrics-bind-address",
    "127.0.0.1:10249",
    "--healthz-bind-address",
    "127.0.0.1:10256",
];

/// What `portolan doctor` says and how it ends.
fn doctor(host: &Host, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = host.command(portolan()?);
    command.arg("doctor").args(arguments);
    let output = host.output(command)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaints = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok((output.status.code(), text + &complaints))
}

/// The report about one peer in one family.
struct Told {
    code: Option<i32>,
    peer: Value,
}

impl Told {
    fn verdict(&self) -> &str {
        self.peer["verdict"].as_str().unwrap_or_default()
    }

    fn text(&self) -> &str {
        self.peer["text"].as_str().unwrap_or_default()
    }

    fn measured(&self, path: &str) -> &Value {
        self.peer["measured"].pointer(path).unwrap_or(&Value::Null)
    }

    fn is(&self, verdict: &str) -> Result<&Self> {
        let code = if verdict == "healthy" { 0 } else { 1 };
        ensure!(
            self.verdict() == verdict && self.code == Some(code),
            "{:?} {}",
            self.code,
            self.peer
        );
        println!("{}", self.text());
        Ok(self)
    }
}

fn ask(host: &Host, peer: &str, family: &str) -> Result<Told> {
    let (code, text) = doctor(host, &["--to", peer, "--output", "json"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| text.clone())?;
    let peers = report["peers"].as_array().context("no peers")?;
    let found = peers.iter().find(|entry| entry["family"] == family);
    let peer = found.with_context(|| text.clone())?.clone();
    Ok(Told { code, peer })
}

/// Nodes that measure each other, and whose answerers are up.
fn start(nodes: usize, more: &[&str]) -> Result<(OverlayStage, Vec<Daemon>)> {
    let stage = OverlayStage::new(nodes)?;
    let daemons = stage.start_all(&[FAST, more].concat())?;
    for from in &stage.nodes {
        for to in stage.nodes.iter().filter(|to| to.name() != from.name()) {
            for family in FAMILIES {
                let what = format!("{} to answer {} ({family})", to.name(), from.name());
                wait_for(&what, PATIENCE, || {
                    let told = ask(from, to.name(), family)?;
                    for path in ["/host/udp", "/host/tcp", "/tunnel/udp", "/tunnel/tcp"] {
                        ensure!(told.measured(path) == "answered", "{}", told.peer);
                    }
                    Ok(())
                })?;
            }
        }
    }
    Ok((stage, daemons))
}

fn get(host: &Host, port: u16, path: &str) -> Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    host.run(move || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(request.as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })?
}

/// The value of a metric, labels and all; 0 where there is none.
fn metric(host: &Host, name: &str) -> Result<u64> {
    let text = get(host, 10249, "/metrics")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(name));
    let value = lines.find_map(|rest| rest.trim().parse().ok());
    Ok(value.unwrap_or_default())
}

/// Waits for so many more rounds.
fn rounds(host: &Host, more: u64) -> Result<()> {
    const ROUNDS: &str = "portolan_overlay_probe_rounds_total ";
    let enough = metric(host, ROUNDS)? + more;
    wait_until("rounds of probes", 6 * PATIENCE, || {
        metric(host, ROUNDS).is_ok_and(|rounds| rounds >= enough)
    })
}

/// Waits until the daemon has this to say of a peer, or has not any more.
fn wait_for_trouble(host: &Host, peer: &str, verdict: &str, there: bool) -> Result<()> {
    for family in FAMILIES {
        let series = format!(
            "portolan_overlay_peer_trouble{{node=\"{peer}\",ip_family=\"{family}\",verdict=\"{verdict}\"}} "
        );
        let what = format!("{series} to be {there}");
        wait_until(&what, 2 * PATIENCE, || {
            metric(host, &series).is_ok_and(|value| (value == 1) == there)
        })?;
    }
    Ok(())
}

#[test]
fn a_healthy_mesh_is_healthy_in_every_row_and_a_thousand_rounds_raise_no_alarm() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, _daemons) = start(3, &[])?;
    let (code, text) = doctor(&stage.nodes[0], &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(0), "{code:?} {text}");
    for (family, mtu) in FAMILIES.into_iter().zip([1450, 1430]) {
        let told = ask(&stage.nodes[0], "node-1", family)?;
        told.is("healthy")?;
        for path in ["/sizes/full", "/sizes/forth", "/sizes/back"] {
            ensure!(told.measured(path) == mtu, "{}", told.peer);
        }
    }
    let (code, text) = doctor(&stage.nodes[0], &[])?;
    ensure!(
        code == Some(0) && text.lines().count() == 4,
        "{code:?} {text}"
    );
    let (code, text) = doctor(&stage.nodes[0], &["--to", "nobody"])?;
    ensure!(code == Some(2), "{code:?} {text}");
    for node in &stage.nodes {
        rounds(node, 334)?;
    }
    for node in &stage.nodes {
        ensure!(metric(node, "portolan_overlay_alarms_total ")? == 0);
        ensure!(metric(node, "portolan_overlay_peers_reachable ")? == 2);
        ensure!(
            metric(
                node,
                "portolan_overlay_probes_total{path=\"tunnel_tcp\",result=\"answered\"} "
            )? >= 334
        );
    }
    Ok(())
}

#[test]
fn a_path_that_loses_vxlan_packets_is_told_with_its_direction_and_everybody_else_is_well()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, _daemons) = start(3, &[])?;
    let [a, b, c] = [&stage.nodes[0], &stage.nodes[1], &stage.nodes[2]];
    let forth = a.lose(b, Loss::Udp(8472))?;
    for family in FAMILIES {
        for (from, to) in [(a, "node-1"), (b, "node-0")] {
            let told = ask(from, to, family)?;
            let expected = format!(
                "UDP 8472 from node-0 to node-1 is blocked (TCP to {to} works): open UDP 8472 between the nodes"
            );
            ensure!(told.is("blocked")?.text() == expected, "{}", told.peer);
        }
        ask(a, "node-2", family)?.is("healthy")?;
        ask(c, "node-1", family)?.is("healthy")?;
    }
    wait_for_trouble(a, "node-1", "blocked", true)?;
    ensure!(metric(a, "portolan_overlay_peers_unreachable ")? == 1);
    let ready = get(a, 10256, "/readyz")?;
    ensure!(
        ready.contains(" 200 ") && ready.contains("UDP 8472 from node-0 to node-1 is blocked"),
        "{ready}"
    );
    let back = b.lose(a, Loss::Udp(8472))?;
    let told = ask(a, "node-1", "IPv4")?;
    ensure!(
        told.is("blocked")?
            .text()
            .contains("blocked in both directions (TCP to node-1 works)"),
        "{}",
        told.peer
    );
    let (code, text) = doctor(a, &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(1), "{text}");
    drop((forth, back));
    wait_for_trouble(a, "node-1", "blocked", false)?;
    ask(a, "node-1", "IPv4")?.is("healthy")?;
    Ok(())
}

/// A table of somebody else's with one rule, and the words by which that rule is told.
fn block(node: &Host, chain: &str, rule: &str) -> Result<String> {
    let hook = format!("type filter hook {chain} priority 0; policy accept;");
    node.nft_stdin(&format!(
        "table inet firewall {{ chain {chain} {{ {hook} {rule} }}; }}"
    ))?;
    let listing = node.nft(&["-a", "list", "chain", "inet", "firewall", chain])?;
    let handle = listing
        .lines()
        .find(|line| line.contains("drop"))
        .and_then(|line| line.split("# handle ").nth(1))
        .context("no handle")?;
    let handle = handle.trim();
    Ok(format!(
        "table inet firewall, chain {chain}, rule handle {handle}"
    ))
}

#[test]
fn a_rule_that_drops_is_named_on_the_sender_and_on_the_receiver() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, _daemons) = start(2, &[])?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    let cases = [
        (
            a,
            "output",
            "udp dport 8472 drop",
            "blocked",
            "on node-0 they are dropped by",
        ),
        (
            b,
            "input",
            "udp dport 8472 drop",
            "dropped",
            "on node-1 they are dropped by",
        ),
        // VXLAN packets come in, and what is in them does not.
        (
            b,
            "input",
            "iifname { flannel.1, flannel-v6.1 } drop",
            "dropped",
            "on node-1 they are dropped by",
        ),
    ];
    for (node, chain, rule, verdict, place) in cases {
        let words = block(node, chain, rule)?;
        for family in FAMILIES {
            let told = ask(a, "node-1", family)?;
            let text = told.is(verdict)?.text();
            ensure!(text.contains(&format!("{place} {words}")), "{text}");
        }
        node.nft(&["delete", "table", "inet", "firewall"])?;
        ask(a, "node-1", "IPv4")?.is("healthy")?;
    }
    Ok(())
}

#[test]
fn a_path_for_smaller_packets_is_told_with_the_largest_that_passes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, _daemons) = start(2, &[])?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    let small = a.lose(b, Loss::LargerThan(1450))?;
    for (family, full, passes) in [("IPv4", 1450, 1400), ("IPv6", 1430, 1380)] {
        for (from, to, way) in [(a, "node-1", "at"), (b, "node-0", "from")] {
            let told = ask(from, to, family)?;
            let expected =
                format!("MTU: packets of {full} bytes do not arrive {way} {to}, {passes} do");
            ensure!(told.is("mtu")?.text() == expected, "{}", told.peer);
        }
    }
    wait_for_trouble(b, "node-0", "mtu", true)?;
    drop(small);
    ask(a, "node-1", "IPv6")?.is("healthy")?;
    Ok(())
}

#[test]
fn a_daemon_that_is_away_is_no_alarm_and_a_node_that_is_away_is_one() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, daemons) = start(2, &[])?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    daemons[1].kill()?;
    rounds(a, 50)?;
    ask(a, "node-1", "IPv4")?.is("healthy")?;
    ensure!(metric(a, "portolan_overlay_alarms_total ")? == 0);
    let (code, text) = doctor(b, &[])?;
    ensure!(code == Some(2), "{code:?} {text}");
    let _away = [a.lose(b, Loss::Everything)?, b.lose(a, Loss::Everything)?];
    for family in FAMILIES {
        let told = ask(a, "node-1", family)?;
        ensure!(
            told.is("silent")?.text() == "node-1 does not answer at all",
            "{}",
            told.peer
        );
    }
    wait_for_trouble(a, "node-1", "silent", true)
}

#[test]
fn an_alarm_and_its_end_are_events_of_the_node() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(2)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let _daemons = (0..2)
        .map(|node| stage.start_with_api(node, &kubeconfig, FAST))
        .collect::<Result<Vec<_>>>()?;
    stage.wait_for_mesh()?;
    rounds(&stage.nodes[0], 10)?;
    ensure!(api.events().is_empty(), "{:?}", api.events());
    let of = |node: &str, reason: &str| {
        api.events()
            .into_iter()
            .find(|event| event["regarding"]["name"] == node && event["reason"] == reason)
    };
    let path = stage.nodes[0].lose(&stage.nodes[1], Loss::Udp(8472))?;
    for node in ["node-0", "node-1"] {
        let what = format!("an event of {node}");
        let event = wait_for(&what, 2 * PATIENCE, || {
            of(node, "OverlayBlocked").with_context(|| format!("{:?}", api.events()))
        })?;
        let note = event["note"].as_str().unwrap_or_default();
        ensure!(
            event["type"] == "Warning"
                && note.starts_with("UDP 8472 from node-0 to node-1 is blocked"),
            "{event}"
        );
    }
    drop(path);
    wait_until("the end to be told", 2 * PATIENCE, || {
        of("node-0", "OverlayReachable").is_some()
    })
}
