//! The overlay on real kernels: packets between pods of different nodes, and what disturbs them.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::wait_until;
use portolan_tests::overlay::{OverlayStage, all_go_on, can_run, state, worst};
use portolan_tests::slowness;
use portolan_tests::stage::PATIENCE;

/// Generous for a busy machine; what is measured is printed, and stated in `benches/`.
fn limit() -> Duration {
    Duration::from_secs(1) * slowness()
}

#[test]
fn pods_of_three_nodes_reach_each_other_in_both_families_with_nothing_but_node_objects()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(3)?;
    let _daemons = stage.start_all(&[])?;
    let found = state(&stage.nodes[0], "flannel.1")?;
    ensure!(
        found["addresses"].len() == 1 && found["addresses"][0].contains("10.244.0.0/32"),
        "{found:?}"
    );
    ensure!(
        found["routes"].len() == 2 && found["routes"][0].contains("10.244.1.0/24 via 10.244.1.0"),
        "{found:?}"
    );
    ensure!(
        found["routes"].iter().all(|route| route.contains("onlink")),
        "{found:?}"
    );
    ensure!(
        found["neighbours"].len() == 2 && found["fdb"].len() == 2,
        "{found:?}"
    );
    ensure!(
        found["link"][0].contains("mtu 1450") && found["link"][0].contains("nolearning"),
        "{found:?}"
    );
    let v6 = state(&stage.nodes[0], "flannel-v6.1")?;
    ensure!(
        v6["link"][0].contains("mtu 1430") && v6["routes6"].len() == 2,
        "{v6:?}"
    );
    Ok(())
}

/// Does something to a running mesh and waits until it is as before; the worst beat is reported and bounded.
fn survives(what: &str, lines: &[&str]) -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(3)?;
    let _daemons = stage.start_all(&[])?;
    let devices = ["flannel.1", "flannel-v6.1"];
    let before = devices.map(|device| state(&stage.nodes[0], device).map_err(|e| e.to_string()));
    let beats = stage.beats()?;
    all_go_on(&beats)?;
    for line in lines {
        stage.ip(0, line)?;
    }
    let settled = |a: &Result<_, String>| a.as_ref().ok().map(comparable);
    wait_until("everything is as before", PATIENCE, || {
        let now = devices.map(|device| state(&stage.nodes[0], device).map_err(|e| e.to_string()));
        now.iter()
            .zip(&before)
            .all(|(now, before)| settled(now) == settled(before))
    })?;
    all_go_on(&beats)?;
    stage.wait_for_mesh()?;
    let (lost, gap) = worst(beats)?;
    println!("{what}: {lost} datagrams lost at most, longest gap {gap:?}");
    ensure!(gap < limit(), "{what}: no answer for {gap:?}");
    Ok(())
}

/// A device made anew has another number, and its kernel reports other counters.
fn comparable(state: &std::collections::BTreeMap<&'static str, Vec<String>>) -> Vec<String> {
    let strip = |line: &String| {
        line.split_once(": ")
            .map_or(line.clone(), |(_, rest)| rest.to_owned())
    };
    state
        .iter()
        .flat_map(|(what, lines)| {
            let lines = lines.iter().map(move |line| {
                if matches!(*what, "link" | "addresses") {
                    strip(line)
                } else {
                    line.clone()
                }
            });
            lines.collect::<Vec<_>>()
        })
        .map(|line| {
            line.split(" numtxqueues")
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .collect()
}

#[test]
fn a_deleted_device_is_back_with_all_its_peers() -> Result<()> {
    survives(
        "device deleted",
        &["link del flannel.1", "link del flannel-v6.1"],
    )
}

#[test]
fn a_device_that_went_down_and_up_has_its_routes_and_neighbours_again() -> Result<()> {
    survives(
        "down and up",
        &[
            "link set flannel.1 down",
            "link set flannel.1 up",
            "link set flannel-v6.1 down",
        ],
    )
}

#[test]
fn flushed_routes_neighbours_and_fdb_are_back() -> Result<()> {
    survives(
        "routes flushed",
        &[
            "route flush dev flannel.1",
            "-6 route flush dev flannel-v6.1",
        ],
    )?;
    survives(
        "neighbours flushed",
        &[
            "neigh flush dev flannel.1 nud permanent",
            "neigh flush dev flannel-v6.1 nud permanent",
        ],
    )
}

#[test]
fn a_changed_hardware_address_mtu_or_address_is_put_back() -> Result<()> {
    survives(
        "hardware address",
        &[
            "link set flannel.1 address 02:00:00:00:00:99",
            "link set flannel-v6.1 address 02:00:00:00:00:98",
        ],
    )?;
    survives("MTU", &["link set flannel.1 mtu 1300"])?;
    survives("address", &["addr flush dev flannel.1"])
}

#[test]
fn nodes_on_one_link_reach_each_other_directly_when_asked_to() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(3)?;
    let conf = stage.file(0, "net-conf");
    let text = r#"{"Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/32", "EnableIPv6": true,
                   "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    std::fs::write(&conf, text)?;
    let _daemons = stage.start_all(&["--net-config-path", &conf])?;
    let routes = stage.ip(0, "route show proto 112")?;
    ensure!(
        routes.lines().count() == 2 && routes.lines().all(|route| route.contains("dev eth0")),
        "{routes}"
    );
    // The way through the tunnel stands by.
    let found = state(&stage.nodes[0], "flannel.1")?;
    ensure!(
        found["neighbours"].len() == 2 && found["fdb"].len() == 2,
        "{found:?}"
    );
    // Another link's prefix: the tunnel takes over without anybody asking.
    let beats = stage.beats()?;
    stage.ip(0, "addr add 192.168.77.10/32 dev eth0")?;
    stage.ip(0, "addr del 192.168.77.10/24 dev eth0")?;
    stage.ip(0, "route add 192.168.77.0/24 dev eth0 src 192.168.77.10")?;
    wait_until("the routes to lead through the tunnel", PATIENCE, || {
        state(&stage.nodes[0], "flannel.1").is_ok_and(|found| found["routes"].len() == 2)
    })?;
    stage.wait_for_mesh()?;
    let (lost, gap) = worst(beats)?;
    println!("from direct to tunnel: {lost} datagrams lost at most, longest gap {gap:?}");
    ensure!(gap < limit(), "no answer for {gap:?}");
    Ok(())
}

#[test]
fn a_killed_daemon_loses_nothing_and_its_successor_finds_nothing_to_do() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(3)?;
    let daemons = stage.start_all(&[])?;
    let beats = stage.beats()?;
    for daemon in &daemons {
        daemon.kill()?;
    }
    let before = state(&stage.nodes[0], "flannel.1")?;
    let again = stage.start_all(&[])?;
    again[0].wait_for_line("pods of other nodes can be reached", PATIENCE)?;
    ensure!(
        before == state(&stage.nodes[0], "flannel.1")?,
        "something was changed at the start"
    );
    let lines = again[0].lines();
    ensure!(
        !lines
            .iter()
            .any(|line| line.contains("changed the overlay ")),
        "{lines:?}"
    );
    let (lost, gap) = worst(beats)?;
    ensure!(lost == 0, "{lost} datagrams lost, longest gap {gap:?}");
    Ok(())
}

#[test]
fn leftovers_of_nodes_that_went_while_nobody_looked_are_cleaned_up() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let stage = OverlayStage::new(4)?;
    let mut daemons = stage.start_all(&[])?;
    daemons.remove(0).kill()?;
    stage.tell(0..3)?;
    let _again = stage.start(0, &[])?;
    wait_until("the entries of node-3 to go", PATIENCE, || {
        state(&stage.nodes[0], "flannel.1").is_ok_and(|found| {
            found["routes"].len() == 2 && found["neighbours"].len() == 2 && found["fdb"].len() == 2
        })
    })
}
