//! Nodes that break the overlay by their own NIC or firewall: Portolan finds and names the fault, and works around a
//! NIC's.

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Loss, Node, Protocol, scenario, wait_for, wait_until};
use portolan_tests::doctor::{Diagnosis, FAMILIES, FAST, ask, doctor, wait_until_healthy};
use portolan_tests::overlay::{OverlayStage, reaches, tool};
use portolan_tests::stage::PATIENCE;
use serde_json::json;

const VXLAN: u16 = 8472;

/// The handle of the only rule with a counter.
fn handle(node: &Node) -> Result<String> {
    let listing = node.nft(&["-a", "list", "table", "inet", "firewall"])?;
    let line = listing.lines().find(|line| line.contains("counter"));
    let handle = line.and_then(|line| line.rsplit("# handle ").next());
    Ok(handle.context("no rule")?.to_owned())
}

/// A firewall of the node's own that drops VXLAN packets on a hook. What names its rule in full.
fn raise_firewall(node: &Node, hook: &str) -> Result<[String; 3]> {
    node.nft_stdin(&format!(
        "table inet firewall {{
            chain zone {{ udp dport {VXLAN} counter drop; }}
            chain base {{ type filter hook {hook} priority 0; jump zone; }}
        }}"
    ))?;
    Ok([
        "table inet firewall".into(),
        "chain zone".into(),
        format!("handle {}", handle(node)?),
    ])
}

fn names(found: &Diagnosis, field: &str, rule: &[String; 3]) -> bool {
    let said = found.peer["measured"][field].as_str().unwrap_or_default();
    rule.iter()
        .all(|part| said.contains(part.as_str()) && found.text().contains(part.as_str()))
}

/// Raises a firewall on a node, and waits until the doctor on node-0 has named its rule in this field, in both
/// families; then takes the rule away by that name, and waits until all is well.
fn firewall_is_named(at: usize, hook: &str, field: &str) -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(&[])?;
    wait_until_healthy(&stage)?;
    let node = &stage.nodes[at];
    let rule = raise_firewall(node, hook)?;
    for family in FAMILIES {
        let found = wait_for("the rule", PATIENCE, || {
            let found = ask(&stage.nodes[0], "node-1", family)?;
            ensure!(names(&found, field, &rule), "{}", found.peer);
            Ok(found)
        })?;
        println!("{}", found.text());
        ensure!(
            found.code == Some(1) && found.peer["healthy"] == false,
            "{}",
            found.peer
        );
    }
    let handle = handle(node)?;
    node.nft(&[
        "delete", "rule", "inet", "firewall", "zone", "handle", &handle,
    ])?;
    wait_until_healthy(&stage)
}

#[scenario(Vxlan, Nft)]
fn receiver_firewall_dropping_vxlan_is_named_at_the_sender() -> Result<()> {
    firewall_is_named(1, "input", "rule_there")
}

#[scenario(Vxlan, Nft)]
fn a_firewall_of_the_sender_that_drops_vxlan_packets_is_named() -> Result<()> {
    firewall_is_named(0, "output", "rule_here")
}

#[scenario(Vxlan, Nft)]
fn nic_corrupting_tunnel_checksums_is_found_and_worked_around() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    let nic = stage.nodes[0].break_nic(VXLAN)?;
    for (family, address) in FAMILIES.into_iter().zip(stage.pods[1].addresses()) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let what = format!("{protocol} between pods ({family})");
            wait_until(&what, PATIENCE, || {
                reaches(&stage.pods[0], protocol, address)
            })?;
        }
    }
    ensure!(nic.spoilt() > 0, "the NIC did nothing");
    wait_until_healthy(&stage)?;
    let spoilt = nic.spoilt();
    let found = ask(&stage.nodes[0], "node-1", "IPv4")?;
    let remedies = found.report["remedies"].to_string();
    println!("{remedies}");
    ensure!(remedies.contains("eth0"), "{}", found.report);
    for address in stage.pods[1].addresses() {
        ensure!(reaches(&stage.pods[0], Protocol::Tcp, address), "{address}");
    }
    ensure!(
        nic.spoilt() == spoilt,
        "it is given unfinished checksums still"
    );
    let other = ask(&stage.nodes[1], "node-0", "IPv4")?;
    ensure!(
        other.report["remedies"] == json!([]),
        "the other node's NIC is well: {}",
        other.report
    );
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn offload_stays_on_when_connections_fail_for_another_reason() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    let _path = stage.nodes[0].lose(&stage.nodes[1], Loss::LargerThan(1000))?;
    let found = wait_for("a verdict", PATIENCE, || {
        let found = ask(&stage.nodes[0], "node-1", "IPv4")?;
        ensure!(found.peer["healthy"] == false, "{}", found.peer);
        Ok(found)
    })?;
    ensure!(found.verdict() == "mtu", "{}", found.peer);
    ensure!(found.report["remedies"] == json!([]), "{}", found.report);
    Ok(())
}

/// Packets of the peer arrive by eth0. Packets to it leave there too, since all of the node's own are marked, but the
/// kernel would send packets without a mark another way, and drops what comes against it.
#[scenario(Vxlan, Nft)]
fn strict_reverse_path_filter_on_an_asymmetric_way_is_named() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    let (node, peer) = (&stage.nodes[0], &stage.nodes[1]);
    for line in [
        "link add away type veth peer name away-end",
        "link set away up",
        "link set away-end up",
        "rule add fwmark 5 lookup 55",
        "route add 192.168.77.0/24 dev eth0 table 55",
        &format!("route add {}/32 dev away", peer.ipv4()),
    ] {
        stage.ip(0, line)?;
    }
    node.nft_stdin(
        "table inet asymmetric { chain marked { type route hook output priority mangle; meta mark set 5; }; }",
    )?;
    wait_until_healthy(&stage)?;
    tool(node, "sysctl", "-qw net.ipv4.conf.eth0.rp_filter=1")?;
    let found = wait_for("the filter", 2 * PATIENCE, || {
        let found = ask(node, "node-1", "IPv4")?;
        let notes = found.report["notes"].to_string();
        ensure!(notes.contains("rp_filter dropped"), "{}", found.report);
        Ok(found)
    })?;
    ensure!(found.code == Some(1), "{}", found.report);
    let other = ask(node, "node-1", "IPv6")?;
    ensure!(other.verdict() == "healthy", "{}", other.peer);
    tool(node, "sysctl", "-qw net.ipv4.conf.eth0.rp_filter=2")?;
    wait_until_healthy(&stage)
}

#[scenario(Vxlan, Nft)]
fn drop_policy_forward_chains_are_named_though_probes_pass() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let node = &stage.nodes[0];
    node.nft_stdin(
        "table ip docker {
            chain fence { type filter hook forward priority 0; policy drop; ip saddr 10.244.0.0/16 accept; }
        }",
    )?;
    let mut chains = vec![["table ip docker", "chain fence"]];
    match tool(node, "iptables-legacy", "-P FORWARD DROP") {
        Ok(_) => {
            tool(
                node,
                "iptables-legacy",
                "-A FORWARD -s 10.244.0.0/16 -j ACCEPT",
            )?;
            chains.push(["iptables-legacy", "chain FORWARD"]);
        }
        result => println!("SKIPPED: no legacy iptables: {result:?}"),
    }
    let daemons = [stage.start(0, FAST)?, stage.start(1, FAST)?];
    wait_until_healthy(&stage)?;
    let (code, text) = doctor(node, &[])?;
    println!("{text}");
    ensure!(code == Some(0), "{text}");
    for [table, chain] in chains {
        let is_named = |line: &str| line.contains(table) && line.contains(chain);
        ensure!(text.lines().any(is_named), "{chain} of {table} in {text}");
        let is_logged = |daemon: &Daemon| daemon.lines().iter().any(|line| is_named(line));
        wait_until("a line in the log", PATIENCE, || is_logged(&daemons[0]))?;
        ensure!(!is_logged(&daemons[1]), "the other node has no such chain");
    }
    Ok(())
}
