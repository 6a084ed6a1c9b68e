//! Living with the real flanneld: clusters that have both, taking a node over, and the way back.
//!
//! `PORTOLAN_CONTROL_PLANE` names the folder with the program.

use anyhow::{Context, Result, ensure};
use lab::{Client, Daemon, program, scenario, wait_until};
use portolan_tests::encrypted::Encrypted;
use portolan_tests::flannel::{Firewall, start_flannel};
use portolan_tests::overlay::{OverlayStage, all_go_on, longest_echo, state, tool, worst};
use portolan_tests::stage::{PATIENCE, portolan};

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn flannel_nodes_and_portolan_nodes_reach_each_other() -> Result<()> {
    let program = program("flanneld")?;
    let stage = OverlayStage::new(4)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let mut daemons = Vec::new();
    for node in 0..4 {
        daemons.push(match node % 2 {
            0 => start_flannel(&stage, &program, node, &kubeconfig, Firewall::Nftables)?,
            _ => stage.start_with_api(
                node,
                &kubeconfig,
                &["--ip-masq", "--overlay-filter", "enforce"],
            )?,
        });
    }
    stage.wait_for_mesh()
}

/// What a node has of flannel's firewall, in any variant.
fn flannels_rules(stage: &OverlayStage, node: usize) -> Result<String> {
    let mut found = String::new();
    for (program, line) in [
        ("nft", "list tables"),
        ("iptables-nft-save", ""),
        ("ip6tables-nft-save", ""),
        ("iptables-legacy-save", ""),
        ("ip6tables-legacy-save", ""),
    ] {
        let all = tool(&stage.nodes[node], program, line)?;
        let theirs = all
            .lines()
            .filter(|line| line.contains("FLANNEL-") || line.contains("flannel-ipv"));
        theirs.for_each(|line| found.push_str(&format!("{program}: {line}\n")));
    }
    Ok(found)
}

fn wait_until_clean(stage: &OverlayStage, node: usize) -> Result<()> {
    wait_until("flannel's rules to be gone", PATIENCE, || {
        flannels_rules(stage, node).is_ok_and(|left| left.is_empty())
    })
}

/// Three nodes of flannel become ours one after the other, and flannel's again, while pods talk.
fn taken_over_and_given_back(firewall: Firewall) -> Result<()> {
    let program = program("flanneld")?;
    let stage = OverlayStage::new(3)?;
    let outside = stage.lab().client("outside")?;
    outside.serve(lab::Protocol::Tcp, 80)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let mut daemons: Vec<Option<Daemon>> = Vec::new();
    for node in 0..3 {
        let theirs = start_flannel(&stage, &program, node, &kubeconfig, firewall)?;
        daemons.push(Some(theirs));
    }
    stage.wait_for_mesh()?;
    for node in 0..3 {
        wait_until("flannel's rules", PATIENCE, || {
            flannels_rules(&stage, node).is_ok_and(|found| !found.is_empty())
        })?;
    }
    let others = "*nat\n:OTHERS - [0:0]\n-A POSTROUTING -d 198.51.100.7/32 -j OTHERS\nCOMMIT\n";
    let file = stage.file(0, "others");
    std::fs::write(&file, others)?;
    for variant in ["nft", "legacy"] {
        let program = format!("iptables-{variant}-restore");
        tool(&stage.nodes[0], &program, &format!("--noflush {file}"))?;
    }
    let before = state(&stage.nodes[0], "flannel.1")?;
    let beats = stage.beats()?;
    for (node, daemon) in daemons.iter_mut().enumerate() {
        daemon.take().map(|daemon| daemon.kill()).transpose()?;
        let ours = stage.start_with_api(
            node,
            &kubeconfig,
            // What flannel then replaces is another form of route.
            &["--ip-masq", "--nexthop-objects-above", "1"],
        )?;
        stage.wait_until_ready(node, &ours)?;
        wait_until_clean(&stage, node)?;
        *daemon = Some(ours);
    }
    let after = state(&stage.nodes[0], "flannel.1")?;
    ensure!(
        before["link"] == after["link"],
        "the device is another one: {before:?} {after:?}"
    );
    ensure!(
        before["neighbors"] == after["neighbors"] && before["fdb"] == after["fdb"],
        "{before:?} {after:?}"
    );
    ensure!(
        after["routes"]
            .iter()
            .all(|route| route.contains("proto 112")),
        "{after:?}"
    );
    for variant in ["nft", "legacy"] {
        let saved = tool(&stage.nodes[0], &format!("iptables-{variant}-save"), "")?;
        ensure!(
            saved.contains("-j OTHERS"),
            "somebody else's rules went: {saved}"
        );
    }
    stage.wait_for_mesh()?;
    masqueraded_outside(&stage, &outside)?;
    all_go_on(&beats)?;
    // And back.
    for (node, daemon) in daemons.iter_mut().enumerate() {
        daemon.take().map(|daemon| daemon.kill()).transpose()?;
        let theirs = start_flannel(&stage, &program, node, &kubeconfig, firewall)?;
        theirs.wait_for_line("Running backend", PATIENCE)?;
        wait_until("flannel's rules", PATIENCE, || {
            flannels_rules(&stage, node).is_ok_and(|found| !found.is_empty())
        })?;
        *daemon = Some(theirs);
        let program = portolan()?.display().to_string();
        tool(&stage.nodes[node], &program, "cleanup --overlay")?;
        let tables = tool(&stage.nodes[node], "nft", "list tables")?;
        ensure!(!tables.contains("portolan-overlay"), "{tables}");
    }
    stage.wait_for_mesh()?;
    masqueraded_outside(&stage, &outside)?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    println!("| three nodes taken over and given back, {firewall:?} | {lost} | {gap:.1?} | |");
    ensure!(lost == 0, "{lost} datagrams lost, longest gap {gap:?}");
    Ok(())
}

/// Waits until so many of the entries of a node lead to its encrypting device.
fn carries(nodes: &Encrypted, node: usize, carried: usize) -> Result<()> {
    let what = format!("{carried} entries of node-{node} lead by WireGuard");
    wait_until(&what, PATIENCE, || {
        nodes
            .entries(node, "portolan-wg")
            .is_ok_and(|found| found == (4, carried))
    })
    .with_context(|| nodes.situation(node))
}

#[scenario(Flanneld, Vxlan, Nft, Wireguard)]
#[ignore = "needs flanneld"]
fn flannel_nodes_become_encrypted_ones_and_return() -> Result<()> {
    let program = program("flanneld")?;
    let mut nodes = Encrypted::new(3)?;
    let flannel = |nodes: &Encrypted, node| {
        let (stage, kubeconfig) = (&nodes.stage, &nodes.kubeconfig);
        start_flannel(stage, &program, node, kubeconfig, Firewall::Nftables)
    };
    for node in 0..3 {
        nodes.daemons[node] = Some(flannel(&nodes, node)?);
    }
    nodes.stage.wait_for_mesh()?;
    let beats = nodes.stage.beats()?;
    let connections = nodes.stage.connections()?;
    all_go_on(&beats)?;
    for node in 0..3 {
        nodes.start(node, "prefer")?;
        // Those of flannel are reached in clear text, by both families each.
        (0..=node).try_for_each(|one| carries(&nodes, one, node * 2))?;
        nodes.stage.wait_for_mesh()?;
    }
    for node in 0..3 {
        nodes.start(node, "off")?;
    }
    (0..3).try_for_each(|node| carries(&nodes, node, 0))?;
    let portolan = portolan()?.display().to_string();
    for node in 0..3 {
        nodes.daemons[node]
            .take()
            .map(|ours| ours.kill())
            .transpose()?;
        let theirs = flannel(&nodes, node)?;
        theirs.wait_for_line("Running backend", PATIENCE)?;
        nodes.daemons[node] = Some(theirs);
        tool(&nodes.stage.nodes[node], &portolan, "cleanup --overlay")?;
        let links = nodes.stage.ip(node, "-o link show")?;
        let rules = nodes.stage.ip(node, "rule")?;
        ensure!(
            !links.contains("portolan-wg") && !rules.contains("518"),
            "{links}{rules}"
        );
    }
    nodes.stage.wait_for_mesh()?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    let echo = longest_echo(connections)?;
    println!("| flannel, encrypted, flannel, node by node | {lost} | {gap:.1?} | {echo:.1?} |");
    ensure!(lost <= 3, "{lost} datagrams lost, longest gap {gap:?}");
    Ok(())
}

/// What a pod sends out of the cluster comes from its node.
fn masqueraded_outside(stage: &OverlayStage, outside: &Client) -> Result<()> {
    for (family, address) in outside.addresses().into_iter().enumerate() {
        let seen = stage.pods[0].connect(lab::Protocol::Tcp, (address, 80))?;
        let node = stage.nodes[0].addresses()[family];
        ensure!(
            format!("{seen:?}").contains(&node.to_string()),
            "{seen:?} is not from {node}"
        );
    }
    Ok(())
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn flannel_nftables_take_over_and_return_lose_no_packet() -> Result<()> {
    taken_over_and_given_back(Firewall::Nftables)
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn flannel_iptables_nft_take_over_and_return_lose_no_packet() -> Result<()> {
    taken_over_and_given_back(Firewall::Iptables("nft"))
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn flannel_iptables_legacy_take_over_and_return_lose_no_packet() -> Result<()> {
    taken_over_and_given_back(Firewall::Iptables("legacy"))
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn flannel_forward_chain_stays_under_a_drop_policy() -> Result<()> {
    let program = program("flanneld")?;
    for variant in ["nft", "legacy"] {
        let stage = OverlayStage::new(2)?;
        let (_api, kubeconfig) = stage.serve_api()?;
        let firewall = Firewall::Iptables(variant);
        let flannels = (0..2)
            .map(|node| start_flannel(&stage, &program, node, &kubeconfig, firewall))
            .collect::<Result<Vec<_>>>()?;
        stage.wait_for_mesh()?;
        for family in ["iptables", "ip6tables"] {
            tool(
                &stage.nodes[0],
                &format!("{family}-{variant}"),
                "-P FORWARD DROP",
            )?;
        }
        wait_until("flannel's rules", PATIENCE, || {
            stage.wait_for_mesh().is_ok()
        })?;
        let beats = stage.beats()?;
        flannels
            .iter()
            .try_for_each(|daemon| daemon.kill().map(drop))?;
        let ours = (0..2)
            .map(|node| stage.start_with_api(node, &kubeconfig, &["--ip-masq"]))
            .collect::<Result<Vec<_>>>()?;
        wait_until_clean(&stage, 1)?;
        ours[0].wait_for_line("FLANNEL-FWD", PATIENCE)?;
        wait_until("the other chains to be gone", PATIENCE, || {
            flannels_rules(&stage, 0).is_ok_and(|left| !left.contains("FLANNEL-POSTRTG"))
        })?;
        let left = flannels_rules(&stage, 0)?;
        ensure!(left.contains("FLANNEL-FWD"), "{left}");
        stage.wait_for_mesh()?;
        all_go_on(&beats)?;
        let (lost, gap) = worst(beats)?;
        ensure!(lost == 0, "{lost} datagrams lost, longest gap {gap:?}");
    }
    Ok(())
}
