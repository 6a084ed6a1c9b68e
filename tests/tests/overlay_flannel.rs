//! Living with the real flanneld: clusters that have both, taking a node over, and the way back.
//!
//! `PORTOLAN_CONTROL_PLANE` names the folder with the program.

use anyhow::{Result, ensure};
use lab::{Daemon, wait_until};
use portolan_tests::overlay::{OverlayStage, all_go_on, flanneld, state, tool, worst};
use portolan_tests::stage::{PATIENCE, portolan};

#[test]
fn nodes_with_flannel_and_nodes_with_portolan_reach_each_other_whoever_comes_first() -> Result<()> {
    let Some(program) = flanneld() else {
        return Ok(());
    };
    let stage = OverlayStage::new(4)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let mut daemons = Vec::new();
    for node in 0..4 {
        daemons.push(match node % 2 {
            0 => stage.start_flannel(&program, node, &kubeconfig)?,
            _ => stage.start_with_api(
                node,
                &kubeconfig,
                &["--ip-masq", "--overlay-filter", "enforce"],
            )?,
        });
    }
    stage.wait_for_mesh()
}

#[test]
fn a_node_is_taken_over_from_flannel_and_given_back_without_a_lost_packet() -> Result<()> {
    let Some(program) = flanneld() else {
        return Ok(());
    };
    let stage = OverlayStage::new(3)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let mut daemons: Vec<Option<Daemon>> = Vec::new();
    for node in 0..3 {
        daemons.push(Some(stage.start_flannel(&program, node, &kubeconfig)?));
    }
    stage.wait_for_mesh()?;
    let before = state(&stage.nodes[0], "flannel.1")?;
    let beats = stage.beats()?;
    for (node, daemon) in daemons.iter_mut().enumerate() {
        daemon.take().map(|daemon| daemon.kill()).transpose()?;
        let ours = stage.start_with_api(
            node,
            &kubeconfig,
            &["--ip-masq", "--overlay-filter", "monitor"],
        )?;
        ours.wait_for_line("pods of other nodes can be reached", PATIENCE)?;
        *daemon = Some(ours);
    }
    let after = state(&stage.nodes[0], "flannel.1")?;
    ensure!(
        before["link"] == after["link"],
        "the device is another one: {before:?} {after:?}"
    );
    ensure!(
        before["neighbours"] == after["neighbours"] && before["fdb"] == after["fdb"],
        "{before:?} {after:?}"
    );
    ensure!(
        after["routes"]
            .iter()
            .all(|route| route.contains("proto 112")),
        "{after:?}"
    );
    wait_until("flannel's table to be gone", PATIENCE, || {
        tool(&stage.nodes[0], "nft", "list tables")
            .is_ok_and(|tables| !tables.contains("flannel-ipv4"))
    })?;
    stage.wait_for_mesh()?;
    all_go_on(&beats)?;
    // And back.
    for (node, daemon) in daemons.iter_mut().enumerate() {
        daemon.take().map(|daemon| daemon.kill()).transpose()?;
        let theirs = stage.start_flannel(&program, node, &kubeconfig)?;
        theirs.wait_for_line("Running backend", PATIENCE)?;
        *daemon = Some(theirs);
        let program = portolan()?.display().to_string();
        tool(&stage.nodes[node], &program, "cleanup --overlay")?;
        let tables = tool(&stage.nodes[node], "nft", "list tables")?;
        ensure!(
            !tables.contains("portolan-overlay") && tables.contains("flannel-ipv4"),
            "{tables}"
        );
    }
    stage.wait_for_mesh()?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    println!(
        "take-over of three nodes and back: {lost} datagrams lost at most, longest gap {gap:?}"
    );
    ensure!(lost == 0, "{lost} datagrams lost, longest gap {gap:?}");
    Ok(())
}
