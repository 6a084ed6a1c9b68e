//! Encryption between nodes on real kernels: what is readable on the wire, and what is lost when it is switched on or a key
//! is replaced.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Capability, Protocol, scenario, wait_until};
use portolan_tests::encrypted::{ANNOTATION, ANSWER, Encrypted, UPLINK};
use portolan_tests::overlay::{DATAGRAM, all_go_on, longest_echo, reaches, tool, worst};
use portolan_tests::stage::PATIENCE;
use portolan_tests::wire::{Listener, ensure_sealed};
use serde_json::json;

#[scenario(Vxlan, Nft, Wireguard)]
fn pods_reach_each_other_and_no_inner_byte_is_on_the_wire() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    let control = nodes.listen()?;
    nodes.start_all("off")?;
    for listener in control {
        let heard = listener.stop()?;
        ensure!(
            heard.readable > 0 && heard.wireguard == 0,
            "the search finds nothing: {heard:?}"
        );
    }
    drop(nodes);
    let mut nodes = Encrypted::new(2)?;
    let listeners = nodes.listen()?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    let beats = nodes.stage.beats()?;
    all_go_on(&beats)?;
    let links = tool(&nodes.stage.nodes[0], "ip", "-d -o link show")?;
    ensure!(
        links.contains("portolan-wg: ") && links.contains("mtu 1440"),
        "{links}"
    );
    ensure!(
        links.contains("mtu 1390") && links.contains("mtu 1370"),
        "{links}"
    );
    worst(beats)?;
    for listener in listeners {
        let heard = listener.stop()?;
        println!("on the wire: {heard:?}");
        ensure_sealed(heard)?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn encryption_is_switched_on_and_off_under_traffic() -> Result<()> {
    let mut nodes = Encrypted::new(3)?;
    nodes.start_all("off")?;
    let beats = nodes.stage.beats()?;
    let connections = nodes.stage.connections()?;
    all_go_on(&beats)?;
    for mode in ["prefer", "require", "prefer", "off"] {
        for node in 0..3 {
            nodes.start(node, mode)?;
            all_go_on(&beats)?;
        }
        if mode == "off" {
            let none = |node| {
                nodes
                    .entries(node, "portolan-wg")
                    .is_ok_and(|found| found == (4, 0))
            };
            wait_until("nobody encrypts", PATIENCE, || (0..3).all(none))?;
        } else {
            nodes.wait_until_encrypted()?;
        }
        let listeners = nodes.listen()?;
        all_go_on(&beats)?;
        for listener in listeners {
            let heard = listener.stop()?;
            println!("{mode}: {heard:?}");
            match mode {
                "off" => ensure!(heard.readable > 0 && heard.vxlan > 0, "{heard:?}"),
                _ => ensure_sealed(heard)?,
            }
        }
    }
    let gone = || {
        let links = tool(&nodes.stage.nodes[0], "ip", "-o link show");
        links.is_ok_and(|links| !links.contains("portolan-wg"))
    };
    wait_until("the device is gone", PATIENCE * 2, gone)?;
    let (lost, gap) = worst(beats)?;
    let echo = longest_echo(connections)?;
    println!("| encryption switched on and off, node by node | {lost} | {gap:.1?} | {echo:.1?} |");
    ensure!(lost <= 3, "{lost} datagrams were lost");
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_peer_without_key_is_reached_in_clear_or_not_at_all() -> Result<()> {
    let mut nodes = Encrypted::new(3)?;
    nodes.start(0, "prefer")?;
    nodes.start(1, "prefer")?;
    nodes.start(2, "off")?;
    nodes.stage.wait_for_mesh()?;
    let is_mixed = |node| {
        nodes
            .entries(node, "portolan-wg")
            .is_ok_and(|found| found == (4, 2))
    };
    wait_until("one peer of two is encrypted", PATIENCE, || {
        is_mixed(0) && is_mixed(1)
    })?;
    let program = portolan_tests::stage::portolan()?.display().to_string();
    wait_until("the peer in clear text is named", PATIENCE, || {
        let status = tool(&nodes.stage.nodes[0], &program, "status");
        status.is_ok_and(|text| text.contains("node-2") && text.contains("clear text"))
    })?;
    let listener = Listener::start(&nodes.stage.nodes[2], UPLINK, ANSWER)?;
    nodes.start(0, "require")?;
    wait_until("node-0 is sealed", PATIENCE, || {
        nodes
            .entries(0, "portolan-wg")
            .is_ok_and(|found| found == (4, 4))
    })?;
    let beats = [
        portolan_tests::overlay::Beat::start(
            &nodes.stage.pods[0],
            nodes.stage.pods[1].ipv4().into(),
        )?,
        portolan_tests::overlay::Beat::start(
            &nodes.stage.pods[0],
            nodes.stage.pods[1].ipv6().into(),
        )?,
    ];
    all_go_on(&beats)?;
    worst(beats.into())?;
    let from = &nodes.stage.pods[0];
    let to = nodes.stage.pods[2].ipv4().into();
    let reached = portolan_tests::overlay::reaches(from, lab::Protocol::Udp, to);
    ensure!(
        !reached,
        "a peer without key is reached in spite of require"
    );
    drop(listener);
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn foreign_changes_of_the_devices_are_undone() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    let listeners = nodes.listen()?;
    for lines in [
        &["link del portolan-wg"][..],
        &["link set portolan-wg down"],
        &["link set portolan-wg mtu 1000"],
        &["route flush table 5182", "-6 route flush table 5182"],
        &["rule del pref 5182", "-6 rule del pref 5182"],
        &["rule del pref 5183", "-6 rule del pref 5183"],
        &["link del flannel.1", "link del flannel-v6.1"],
        &[
            "route flush dev flannel.1",
            "-6 route flush dev flannel-v6.1",
        ],
    ] {
        for line in lines {
            nodes.stage.ip(0, line)?;
        }
        let started = Instant::now();
        let healed = || {
            let ip = |line| nodes.stage.ip(0, line).unwrap_or_default();
            let link = ip("-d -o link show portolan-wg");
            let has_rules = |rules: &str| rules.contains("5182:") && rules.contains("5183:");
            link.contains("wireguard")
                && link.contains("mtu 1440")
                && link.contains(",UP")
                && has_rules(&ip("rule"))
                && has_rules(&ip("-6 rule"))
                && ip("route show table 5182").contains("default dev portolan-wg")
                && ip("-6 route show table 5182").contains("default dev portolan-wg")
        };
        wait_until(&format!("{lines:?} is undone"), PATIENCE, healed)?;
        println!("{lines:?}: undone after {:.1?}", started.elapsed());
        nodes.stage.wait_for_mesh()?;
    }
    for listener in listeners {
        ensure_sealed(listener.stop()?)?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_key_is_rotated_without_a_lost_packet() -> Result<()> {
    let mut nodes = Encrypted::new(3)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    let before = nodes.announced(0).context("no key")?;
    let beats = nodes.stage.beats()?;
    let connections = nodes.stage.connections()?;
    all_go_on(&beats)?;
    let listeners = nodes.listen()?;
    let started = Instant::now();
    let request = std::path::PathBuf::from(nodes.stage.file(0, "keys")).with_extension("rotate");
    std::fs::write(request, "")?;
    // A Node event wakes the daemon; without one it looks every 30 seconds.
    let is_new = || {
        let now = nodes.announced(0).unwrap_or_default();
        now.starts_with("wg=") && !now.contains(';') && now != before
    };
    wait_until(
        "the new key is announced alone",
        Duration::from_secs(300),
        is_new,
    )?;
    let second_is_gone = || {
        (0..3).all(|node| {
            let links = tool(&nodes.stage.nodes[node], "ip", "-o link show");
            links.is_ok_and(|links| !links.contains("portolan-wg2"))
        })
    };
    wait_until(
        "the second devices are gone",
        Duration::from_secs(180),
        second_is_gone,
    )?;
    let took = started.elapsed();
    nodes.wait_until_encrypted()?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    let echo = longest_echo(connections)?;
    println!("| key rotated ({took:.0?}) | {lost} | {gap:.1?} | {echo:.1?} |");
    for listener in listeners {
        ensure_sealed(listener.stop()?)?;
    }
    ensure!(lost <= 3, "{lost} datagrams were lost");
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn without_the_tunnel_pods_are_not_reached_by_another_way() -> Result<()> {
    for (mode, is_sealed) in [("prefer", false), ("require", true)] {
        let mut nodes = Encrypted::new(2)?;
        nodes.start_all(mode)?;
        nodes.wait_until_encrypted()?;
        let listeners = nodes.listen_for(DATAGRAM)?;
        let beats = nodes.stage.beats()?;
        all_go_on(&beats)?;
        // No daemon is there to put them back.
        drop(nodes.daemons[0].take());
        nodes.stage.ip(0, "link del flannel.1")?;
        nodes.stage.ip(0, "link del flannel-v6.1")?;
        // Both the node and its pod try, by the default route.
        let (node, pod) = (&nodes.stage.nodes[0], &nodes.stage.pods[0]);
        for address in nodes.stage.pods[1].addresses() {
            for protocol in [Protocol::Udp, Protocol::Tcp] {
                ensure!(!reaches(node, protocol, address) && !reaches(pod, protocol, address));
            }
        }
        // The node's own pod is.
        let own = pod.addresses();
        ensure!(own.into_iter().all(|own| reaches(node, Protocol::Tcp, own)));
        nodes.start(0, mode)?;
        nodes.stage.wait_for_mesh()?;
        worst(beats)?;
        for listener in listeners {
            let heard = listener.stop()?;
            println!("{mode}: {heard:?}");
            match is_sealed {
                true => ensure_sealed(heard)?,
                false => ensure!(heard.readable > 0, "nothing left by another way: {heard:?}"),
            }
        }
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_reboot_keeps_the_key_and_sends_nothing_in_clear() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    let before = nodes.announced(0).context("no key")?;
    let listeners = nodes.listen()?;
    let beats = nodes.stage.beats()?;
    all_go_on(&beats)?;
    drop(nodes.daemons[0].take());
    // What a reboot takes. Pods are back when their plugin finds the subnet file, which is in memory.
    let pod = &nodes.stage.pods[0];
    let away = "table inet away { chain input { type filter hook input priority 0; policy drop; }; chain output { type filter hook output priority 0; policy drop; }; }";
    pod.nft(&[away])?;
    std::fs::remove_file(nodes.stage.file(0, "env"))?;
    for line in [
        "link del flannel.1",
        "link del flannel-v6.1",
        "link del portolan-wg",
        "rule del pref 5182",
        "-6 rule del pref 5182",
        "rule del pref 5183",
        "-6 rule del pref 5183",
    ] {
        nodes.stage.ip(0, line)?;
    }
    nodes.stage.nodes[0].nft(&["flush ruleset"])?;
    let _ = std::fs::remove_file(nodes.stage.file(0, "peers"));
    nodes.start(0, "require")?;
    let subnet_file = std::path::PathBuf::from(nodes.stage.file(0, "env"));
    wait_until("the subnet file", PATIENCE, || subnet_file.exists())?;
    nodes.stage.pods[0].nft(&["delete table inet away"])?;
    nodes.stage.wait_for_mesh()?;
    all_go_on(&beats)?;
    ensure!(nodes.announced(0) == Some(before), "the key is another one");
    let (lost, gap) = worst(beats)?;
    println!("| a node rebooted | {lost} | {gap:.1?} |");
    for listener in listeners {
        ensure_sealed(listener.stop()?)?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_thousand_peers_are_programmed_and_healed() -> Result<()> {
    const PEERS: usize = 1000;
    let mut nodes = Encrypted::new(1)?;
    for n in 8..8 + PEERS {
        let pods = format!("10.244.{}.{}/26", n / 4, n % 4 * 64);
        let address = format!("172.16.{}.{}", n / 256, n % 256);
        let mac = format!("02:00:00:00:{:02x}:{:02x}", n / 256, n % 256);
        nodes.api.apply(json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": format!("peer-{n}"), "annotations": {
                "flannel.alpha.coreos.com/kube-subnet-manager": "true",
                "flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/public-ip": address,
                "flannel.alpha.coreos.com/backend-data": format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#),
                ANNOTATION: format!("wg={n:0>42}A=@51820"),
            }},
            "spec": { "podCIDR": pods, "podCIDRs": [pods] },
            "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
        }))?;
    }
    let started = Instant::now();
    nodes.start(0, "require")?;
    let programmed = || {
        nodes
            .entries(0, "portolan-wg")
            .is_ok_and(|found| found == (PEERS, PEERS))
    };
    wait_until("all entries", PATIENCE * 2, programmed).with_context(|| nodes.situation(0))?;
    let program = portolan_tests::stage::portolan()?.display().to_string();
    let peers = || {
        // Exit code 1: these peers do not answer.
        let mut command = nodes.stage.nodes[0].command(&program);
        command.args(["status", "--output", "json"]);
        let output = nodes.stage.nodes[0].output(command).ok()?;
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
        let peers = status["overlay"]["encryption"]["peers"].as_array()?;
        let sent = |peer: &&serde_json::Value| peer["sent_bytes"].as_u64() > Some(0);
        Some(peers.iter().filter(sent).count())
    };
    wait_until("a handshake is begun with each", PATIENCE * 2, || {
        peers() == Some(PEERS)
    })?;
    println!("1,000 peers programmed after {:.1?}", started.elapsed());
    let started = Instant::now();
    nodes.stage.ip(0, "link del portolan-wg")?;
    let healed = || {
        let links = nodes.stage.ip(0, "-o link show up").unwrap_or_default();
        links.contains("portolan-wg:") && programmed()
    };
    wait_until("all is back", PATIENCE * 2, healed)?;
    println!("1,000 peers healed after {:.1?}", started.elapsed());
    Ok(())
}

/// Small kernels for tests have no WireGuard.
#[scenario(Vxlan, Nft)]
fn without_wireguard_prefer_stays_clear_and_require_refuses() -> Result<()> {
    if Capability::Wireguard.missing().is_none() {
        println!("this kernel has WireGuard");
        return Ok(());
    }
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("prefer")?;
    ensure!(nodes.announced(0).is_none(), "a key is announced");
    let daemon = nodes.daemons[0].as_ref().context("a daemon")?;
    daemon.wait_for_line("no WireGuard", PATIENCE)?;
    nodes.start(0, "require")?;
    let daemon = nodes.daemons[0].as_ref().context("a daemon")?;
    daemon.wait_for_line("no WireGuard", PATIENCE)?;
    ensure!(
        !daemon.wait(PATIENCE)?.success(),
        "it ended as if all were well"
    );
    Ok(())
}
