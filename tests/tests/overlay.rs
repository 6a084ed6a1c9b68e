//! The overlay on real kernels: packets between pods of different nodes, and what disturbs them.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{node_object, scenario, wait_for, wait_until};
use nft::Feature;
use nix::sys::signal::Signal;
use portolan_tests::doctor::doctor;
use portolan_tests::overlay::{OverlayStage, all_go_on, longest_echo, metrics, state, tool, worst};
use portolan_tests::slowness;
use portolan_tests::stage::{PATIENCE, features};
use serde_json::json;

/// What is longer hangs. How long a gap is depends on the machine's load: it is printed, and docs/overlay.md has what was
/// measured.
const LIMIT: Duration = Duration::from_secs(20);

#[scenario(Vxlan, Nft)]
fn three_nodes_form_a_dual_stack_mesh_from_node_objects_alone() -> Result<()> {
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
        found["neighbors"].len() == 2 && found["fdb"].len() == 2,
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

/// Does something to the first node of a running mesh and waits until it is as before; the worst beat is reported and
/// bounded, and connections that were open go on.
fn survives(
    what: &str,
    flags: &[&str],
    meddle: impl Fn(&OverlayStage) -> Result<()>,
) -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let _daemons = stage.start_all(flags)?;
    let devices = ["flannel.1", "flannel-v6.1"];
    let before = devices.map(|device| state(&stage.nodes[0], device).map_err(|e| e.to_string()));
    let beats = stage.beats()?;
    let connections = stage.connections()?;
    all_go_on(&beats)?;
    meddle(&stage)?;
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
    let echo = longest_echo(connections)?;
    println!("| {what} | {lost} | {gap:.1?} | {echo:.1?} |");
    ensure!(gap < LIMIT * slowness(), "{what}: no answer for {gap:?}");
    Ok(())
}

/// The same with lines of programs.
fn survives_lines(what: &str, lines: &[&str]) -> Result<()> {
    survives(what, &[], |stage| run_lines(stage, lines))
}

fn run_lines(stage: &OverlayStage, lines: &[&str]) -> Result<()> {
    for line in lines {
        let (program, arguments) = line.split_once(' ').unwrap_or((line, ""));
        tool(&stage.nodes[0], program, arguments)?;
    }
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

#[scenario(Vxlan, Nft)]
fn a_deleted_device_is_back_with_all_its_peers() -> Result<()> {
    survives_lines(
        "device deleted",
        &["ip link del flannel.1", "ip link del flannel-v6.1"],
    )
}

#[scenario(Vxlan, Nft)]
fn routes_and_neighbors_return_after_the_device_went_down() -> Result<()> {
    let lines = [
        "ip link set flannel.1 down",
        "ip link set flannel.1 up",
        "ip link set flannel-v6.1 down",
    ];
    survives_lines("device down and up", &lines)?;
    survives(
        "device down and up, nexthop objects",
        &["--nexthop-objects-above", "1"],
        |stage| run_lines(stage, &lines),
    )
}

#[scenario(Vxlan, Nft)]
fn the_interface_below_may_go_down_and_up() -> Result<()> {
    let lines = [
        // Otherwise the kernel removes the IPv6 addresses for good.
        "sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1",
        "ip link set eth0 down",
        "ip link set eth0 up",
    ];
    survives_lines("interface below down and up", &lines)
}

#[scenario(Vxlan, Nft)]
fn flushed_routes_neighbors_and_fdb_are_back() -> Result<()> {
    survives_lines(
        "routes flushed",
        &[
            "ip route flush dev flannel.1",
            "ip -6 route flush dev flannel-v6.1",
        ],
    )?;
    survives_lines(
        "neighbors flushed",
        &[
            "ip neigh flush dev flannel.1 nud permanent",
            "ip neigh flush dev flannel-v6.1 nud permanent",
        ],
    )?;
    survives("FDB flushed", &[], |stage| {
        for device in ["flannel.1", "flannel-v6.1"] {
            for entry in &state(&stage.nodes[0], device)?["fdb"] {
                let words: Vec<&str> = entry.split_whitespace().collect();
                let [mac, "dst", to, ..] = words[..] else {
                    continue;
                };
                let line = format!("fdb del {mac} dev {device} dst {to} self");
                tool(&stage.nodes[0], "bridge", &line)?;
            }
        }
        Ok(())
    })
}

#[scenario(Vxlan, Nft)]
fn a_flushed_ruleset_interrupts_nothing() -> Result<()> {
    let flags = ["--ip-masq", "--overlay-filter", "enforce"];
    survives("ruleset flushed", &flags, |stage| {
        run_lines(stage, &["nft flush ruleset"])
    })?;
    let flags = [&flags[..], &["--no-table-owner"]].concat();
    survives("ruleset flushed, tables without owner", &flags, |stage| {
        run_lines(stage, &["nft flush ruleset"])?;
        wait_until("the table to be back", PATIENCE, || {
            tool(&stage.nodes[0], "nft", "list tables")
                .is_ok_and(|tables| tables.matches("portolan-overlay").count() == 2)
        })
    })
}

#[scenario(Vxlan, Nft)]
fn a_changed_hardware_address_mtu_or_address_is_put_back() -> Result<()> {
    survives_lines(
        "hardware address changed",
        &[
            "ip link set flannel.1 address 02:00:00:00:00:99",
            "ip link set flannel-v6.1 address 02:00:00:00:00:98",
        ],
    )?;
    survives_lines("MTU changed", &["ip link set flannel.1 mtu 1300"])?;
    survives_lines("address removed", &["ip addr flush dev flannel.1"])
}

#[scenario(Vxlan, Nft)]
fn flushed_nexthop_objects_return_and_foreign_ones_stay() -> Result<()> {
    let flags = ["--nexthop-objects-above", "1"];
    survives("nexthop objects flushed", &flags, |stage| {
        let routes = stage.ip(0, "route show dev flannel.1")?;
        ensure!(routes.matches("nhid").count() == 2, "{routes}");
        run_lines(stage, &["ip nexthop flush proto 112"])
    })?;
    let stage = OverlayStage::new(3)?;
    // 10.244.1.0 as a number.
    let taken = u32::from_be_bytes([10, 244, 1, 0]);
    stage.ip(0, &format!("nexthop add id {taken} blackhole"))?;
    let _daemons = stage.start_all(&flags)?;
    let routes = stage.ip(0, "route show dev flannel.1")?;
    ensure!(routes.matches("nhid").count() == 1, "{routes}");
    let nexthops = stage.ip(0, "nexthop show")?;
    ensure!(nexthops.contains("blackhole"), "{nexthops}");
    // Fewer nodes than the threshold: plain routes, and no nexthop object of Portolan is left.
    stage.write_nodes(0..2)?;
    wait_until("the nexthop objects to go", PATIENCE, || {
        stage
            .ip(0, "nexthop show")
            .is_ok_and(|nexthops| nexthops.lines().count() == 1)
    })
}

#[scenario(Vxlan, Nft)]
fn nodes_on_one_link_reach_each_other_directly_when_asked_to() -> Result<()> {
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
    // The route through the tunnel is the fallback.
    let found = state(&stage.nodes[0], "flannel.1")?;
    ensure!(
        found["neighbors"].len() == 2 && found["fdb"].len() == 2,
        "{found:?}"
    );
    // Each other node behind another one: the tunnel takes over without anybody asking.
    let beats = stage.beats()?;
    all_go_on(&beats)?;
    let lines = [
        "ip route add 192.168.77.11/32 via 192.168.77.12 dev eth0 onlink",
        "ip route add 192.168.77.12/32 via 192.168.77.11 dev eth0 onlink",
        "ip -6 route add fd00:77::11/128 via fd00:77::12 dev eth0 onlink",
        "ip -6 route add fd00:77::12/128 via fd00:77::11 dev eth0 onlink",
    ];
    run_lines(&stage, &lines)?;
    for (device, routes) in [("flannel.1", "routes"), ("flannel-v6.1", "routes6")] {
        wait_until("the routes to lead through the tunnel", PATIENCE, || {
            state(&stage.nodes[0], device).is_ok_and(|found| found[routes].len() == 2)
        })?;
    }
    all_go_on(&beats)?;
    stage.wait_for_mesh()?;
    let (lost, gap) = worst(beats)?;
    println!("| from direct routes to the tunnel | {lost} | {gap:.1?} | |");
    ensure!(gap < LIMIT * slowness(), "no answer for {gap:?}");
    Ok(())
}

/// The interface to other nodes belongs to a VRF, and has the node's addresses or leaves them to the VRF's device, whose own
/// MTU is of no link. Programs of the node are in no VRF: routes in the main table lead them out, and two settings in.
#[scenario(Vxlan, Nft, Vrf)]
fn an_interface_in_a_vrf_carries_the_tunnel_by_its_own_mtu() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let [v4, v6] = stage.nodes[0].addresses();
    let belongs = [
        "sysctl -qw net.ipv4.udp_l3mdev_accept=1",
        "sysctl -qw net.ipv4.tcp_l3mdev_accept=1",
        // IPv6 addresses go when an interface changes its master.
        "sysctl -qw net.ipv6.conf.eth0.keep_addr_on_down=1",
        "ip link set eth0 mtu 1400",
        "ip link add blue type vrf table 100",
        "ip link set blue up",
        "ip link set eth0 master blue",
        "ip route add 192.168.77.0/24 dev eth0",
        "ip route add default via 192.168.77.1 dev eth0",
        "ip -6 route add fd00:77::/64 dev eth0",
        "ip -6 route add default via fd00:77::1 dev eth0",
    ];
    run_lines(&stage, &belongs)?;
    let goes_on = || {
        let daemons = stage.start_all(&[])?;
        for device in ["flannel.1", "flannel-v6.1"] {
            let link = stage.ip(0, &format!("link show {device}"))?;
            let overhead = if device == "flannel.1" { 50 } else { 70 };
            ensure!(
                link.contains(&format!("mtu {} ", 1400 - overhead)),
                "{link}"
            );
        }
        wait_for("a healthy verdict", PATIENCE, || {
            let (code, text) = doctor(&stage.nodes[0], &[])?;
            ensure!(code == Some(0), "{code:?} {text}");
            Ok(())
        })?;
        drop(daemons);
        anyhow::Ok(())
    };
    goes_on()?;
    // The kernel chooses the source of the routes in the main table from the VRF's device.
    let moves = [
        format!("ip addr del {v4}/24 dev eth0"),
        format!("ip -6 addr del {v6}/64 dev eth0"),
        format!("ip addr add {v4}/32 dev blue"),
        format!("ip -6 addr add {v6}/128 dev blue nodad"),
        format!("ip route replace 192.168.77.0/24 dev eth0 table 100 src {v4}"),
        format!("ip -6 route replace fd00:77::/64 dev eth0 table 100 src {v6}"),
        // They went with the last address of the interface.
        "ip route replace 192.168.77.0/24 dev eth0".to_owned(),
        "ip route replace default via 192.168.77.1 dev eth0".to_owned(),
    ];
    run_lines(&stage, &moves.each_ref().map(String::as_str))?;
    goes_on()
}

#[scenario(Vxlan, Nft)]
fn killed_overlay_daemon_loses_nothing_and_restart_is_a_no_op() -> Result<()> {
    outlived("daemons killed and started again", Signal::SIGKILL)
}

#[scenario(Vxlan, Nft)]
fn stopped_overlay_daemon_loses_nothing_and_restart_is_a_no_op() -> Result<()> {
    outlived("daemons ended and started again", Signal::SIGTERM)
}

/// Nothing is lost when all daemons end by a signal, and nothing is left to do for those that follow.
fn outlived(what: &str, signal: Signal) -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let daemons = stage.start_all(&[])?;
    let beats = stage.beats()?;
    for daemon in &daemons {
        daemon.signal(signal)?;
        let status = daemon.wait(PATIENCE)?;
        ensure!(
            status.success() || signal == Signal::SIGKILL,
            "ended with {status}: {:#?}",
            daemon.lines()
        );
    }
    let before = state(&stage.nodes[0], "flannel.1")?;
    let again = stage.start_all(&[])?;
    stage.wait_until_ready(0, &again[0])?;
    ensure!(
        before == state(&stage.nodes[0], "flannel.1")?,
        "something was changed at the start"
    );
    let metrics = metrics(&stage.nodes[0])?;
    let spent = "portolan_overlay_apply_seconds_total 0.0\n";
    ensure!(
        metrics.contains(spent),
        "changes that do not show: {metrics}"
    );
    let (lost, gap) = worst(beats)?;
    println!("| {what} | {lost} | {gap:.1?} | |");
    ensure!(lost == 0, "{lost} datagrams lost, longest gap {gap:?}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn entries_of_nodes_deleted_while_stopped_are_cleaned_up() -> Result<()> {
    let stage = OverlayStage::new(4)?;
    let mut daemons = stage.start_all(&[])?;
    daemons.remove(0).kill()?;
    stage.write_nodes(0..3)?;
    let _again = stage.start(0, &[])?;
    wait_until("the entries of node-3 to go", PATIENCE, || {
        state(&stage.nodes[0], "flannel.1").is_ok_and(|found| {
            found["routes"].len() == 2 && found["neighbors"].len() == 2 && found["fdb"].len() == 2
        })
    })
}

#[scenario(Vxlan, Nft)]
fn second_daemon_backs_off_while_the_first_owns_the_table() -> Result<()> {
    if !features()?.has(Feature::TableOwner) {
        println!("FALLBACK: tables have no owner, and both daemons write the same one");
        return Ok(());
    }
    let stage = OverlayStage::new(2)?;
    let mut daemons = stage.start_all(&[])?;
    let second = stage.start(
        0,
        &[
            "--healthz-bind-address=127.0.0.1:10299",
            "--metrics-bind-address=127.0.0.1:10298",
        ],
    )?;
    let rounds = || -> Result<u64> {
        let to = SocketAddr::from(([127, 0, 0, 1], 10298));
        let text = stage.nodes[0]
            .http_get(to, "/metrics")?
            .context("no metrics")?
            .1;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix("portolan_overlay_reconciles_total "));
        Ok(value.context("no such metric")?.trim().parse()?)
    };
    let (mut last, mut since) = (0, Instant::now());
    wait_until("a pause of a second between two rounds", PATIENCE, || {
        rounds().is_ok_and(|rounds| {
            if rounds != last {
                (last, since) = (rounds, Instant::now());
            }
            rounds >= 3 && since.elapsed() >= Duration::from_secs(1)
        })
    })?;
    drop(daemons.remove(0));
    // The first one's end frees the table, and nothing announces that.
    stage.nodes[0].wait_until_ready(&second, 10299, PATIENCE)
}

#[scenario(Vxlan, Nft)]
fn stale_younger_and_overlarge_nodes_cut_nobody_off() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let _daemons = stage.start_all(&[])?;
    let mut serving = node_object(&stage.nodes[1]);
    serving["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    stage.manifests.write_objects("node-1.yaml", &[serving])?;
    // All of them come first by name. A renamed machine leaves its address behind.
    let mut stale = node_object(&stage.nodes[1]);
    stale["metadata"]["name"] = "a-stale".into();
    stale["spec"]["podCIDRs"] = json!(["10.244.77.0/24", "fd00:244:77::/64"]);
    let mut younger = node_object(&stage.nodes[1]);
    younger["metadata"] =
        json!({ "name": "a-younger", "creationTimestamp": "2026-02-01T00:00:00Z" });
    younger["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "198.51.100.1" }]);
    let mut overlarge = node_object(&stage.nodes[1]);
    overlarge["metadata"]["name"] = "a-overlarge".into();
    overlarge["spec"]["podCIDRs"] = json!(["10.244.78.0/24"]);
    let addresses = (0..1000).map(|n| {
        let address = format!("198.18.{}.{}", n / 250, n % 250 + 1);
        json!({ "type": "InternalIP", "address": address })
    });
    overlarge["status"]["addresses"] = addresses.collect();
    let others = [stale, younger, overlarge];
    stage.manifests.write_objects("others.yaml", &others)?;
    for node in [0, 2] {
        wait_until("routes to the others", PATIENCE, || {
            let routes = stage.ip(node, "route show dev flannel.1");
            routes.is_ok_and(|routes| {
                let mut wanted = ["10.244.77.0/24", "10.244.78.0/24"].iter();
                wanted.all(|range| routes.contains(*range))
            })
        })?;
    }
    stage.wait_for_mesh()?;
    let table = tool(&stage.nodes[0], "nft", "list table ip portolan-overlay")?;
    let elements = table.matches("198.18.").count();
    assert!(
        (8..100).contains(&elements),
        "{elements} elements of one node"
    );
    Ok(())
}
