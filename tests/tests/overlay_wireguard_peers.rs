//! Encryption between nodes beside what clusters have: host networks, pods made before it, firewalls, and other people's keys.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::fake_api::Resource;
use lab::{Host, Protocol, scenario, wait_for, wait_until};
use nix::sys::socket::{getsockopt, sockopt};
use portolan_tests::encrypted::{ANNOTATION, Encrypted};
use portolan_tests::overlay::{PORT, all_go_on, reaches, tool, worst};
use portolan_tests::slowness;
use portolan_tests::stage::PATIENCE;
use portolan_tests::wire::{Listener, ensure_sealed};
use serde_json::{Value, json};

#[scenario(Vxlan, Nft, Wireguard)]
fn host_networks_reach_pods_of_other_nodes_encrypted() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    let listeners = nodes.listen()?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    for (node, host) in nodes.stage.nodes.iter().enumerate() {
        for pod in &nodes.stage.pods {
            for address in pod.addresses() {
                for protocol in [Protocol::Udp, Protocol::Tcp] {
                    let what = format!("{protocol} from node-{node} to {address}");
                    wait_until(&what, PATIENCE, || reaches(host, protocol, address))?;
                }
            }
        }
    }
    for listener in listeners {
        ensure_sealed(listener.stop()?)?;
    }
    Ok(())
}

/// What a pod sends and gets back over one connection, in full segments.
const BULK: usize = 256 << 10;
/// Less than the space of a socket: both ends send and receive by turns.
const CHUNK: usize = 16 << 10;

/// Sends a lot to a pod's server, which echoes it. Returns the largest segment that the connection agreed on.
fn bulk(to: SocketAddr) -> Result<u32> {
    let limit = Duration::from_secs(10) * slowness();
    let mut stream = TcpStream::connect_timeout(&to, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    reader.read_line(&mut String::new())?;
    let (sent, mut received) = (vec![7; CHUNK], vec![0; CHUNK]);
    for chunk in 0..BULK / CHUNK {
        stream.write_all(&sent)?;
        let read = reader.read_exact(&mut received);
        read.with_context(|| format!("{} bytes came through", chunk * CHUNK))?;
    }
    Ok(getsockopt(&stream, sockopt::TcpMaxSeg)?)
}

/// Drops what says that a packet is too large.
fn drop_icmp(host: &Host) -> Result<()> {
    let chain = "chain c { type filter hook prerouting priority -400;";
    host.nft_stdin(&format!(
        "table ip deaf {{ {chain} icmp type destination-unreachable drop; }}; }}\n\
         table ip6 deaf {{ {chain} icmpv6 type packet-too-big drop; }}; }}\n"
    ))?;
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn pods_with_a_larger_mtu_need_no_icmp_while_encrypted() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    for pod in &nodes.stage.pods {
        drop_icmp(pod)?;
        let links = tool(pod, "ip", "-o link show")?;
        ensure!(links.contains("mtu 1500"), "{links}");
    }
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    for (from, to) in [(0, 1), (1, 0)] {
        let (from, to) = (&nodes.stage.pods[from], &nodes.stage.pods[to]);
        for address in to.addresses() {
            // Headers of IP and TCP, and the MTU of the device of each family.
            let most = match address {
                IpAddr::V4(_) => 1390 - 40,
                IpAddr::V6(_) => 1370 - 60,
            };
            let segment = from.run(move || bulk((address, PORT).into()))??;
            ensure!(
                segment <= most,
                "segments to {address} have {segment} bytes"
            );
            println!("{BULK} bytes to {address} and back in segments of {segment}");
        }
    }
    nodes.start(0, "prefer")?;
    nodes.start(1, "prefer")?;
    nodes.start(0, "off")?;
    nodes.start(1, "off")?;
    let is_gone = || {
        let tables = nodes.stage.nodes[0].nft(&["list", "ruleset"]);
        tables.is_ok_and(|tables| !tables.contains("maxseg"))
    };
    wait_until("nothing is clamped without encryption", PATIENCE, is_gone)
}

/// Waits until status and doctor of a node say this of a peer.
fn says(nodes: &Encrypted, node: usize, text: &str) -> Result<()> {
    for command in ["status", "doctor"] {
        let what = format!("{command} of node-{node} says {text:?}");
        wait_until(&what, PATIENCE, || {
            nodes
                .says(node, command)
                .is_ok_and(|said| said.contains(text))
        })
        .with_context(|| nodes.situation(node))?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_blocked_port_is_named_by_both_and_prefer_goes_on_in_clear() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.stage.nodes[0].nft_stdin(
        "table inet blocked { chain c { type filter hook output priority 0; udp dport 51820 drop; }; }",
    )?;
    nodes.start_all("prefer")?;
    says(&nodes, 0, "UDP port 51820 is blocked from here to it")?;
    says(
        &nodes,
        1,
        "the port is blocked from it to here or both ways",
    )?;
    nodes.stage.wait_for_mesh()?;
    nodes.stage.nodes[0].nft(&["delete table inet blocked"])?;
    nodes.wait_until_encrypted()?;
    nodes.stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_key_that_its_node_lacks_is_named_until_put_right() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    let announced = nodes.announced(1).context("no key")?;
    drop(nodes.daemons[1].take());
    let mut node = nodes.api.node("node-1").context("no node-1")?;
    let start = if announced.starts_with("wg=A") {
        "wg=B"
    } else {
        "wg=A"
    };
    let forged = format!("{start}{}", announced.get(4..).context("no key")?);
    node["metadata"]["annotations"][ANNOTATION] = forged.into();
    nodes.api.apply(node)?;
    says(
        &nodes,
        0,
        "the node does not have the key that it announces",
    )?;
    nodes.start(1, "require")?;
    wait_until("the own key is announced again", PATIENCE, || {
        nodes.announced(1).as_ref() == Some(&announced)
    })?;
    nodes.wait_until_encrypted()?;
    nodes.stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_spoiled_key_file_cuts_no_node_off_that_prefers_encryption() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    std::fs::write(nodes.stage.file(0, "keys"), "{")?;
    // The first cannot go on with `require`.
    nodes.start(1, "prefer")?;
    nodes.start(0, "prefer")?;
    nodes.stage.wait_for_mesh()?;
    let (node, pod) = (&nodes.stage.nodes[0], &nodes.stage.pods[1]);
    wait_for("packets in clear text", PATIENCE, || {
        let listeners = nodes.listen()?;
        for address in pod.addresses() {
            ensure!(reaches(node, Protocol::Tcp, address), "{address}");
        }
        let heard = listeners.into_iter().map(Listener::stop);
        let heard = heard.collect::<Result<Vec<_>>>()?;
        ensure!(heard.iter().any(|heard| heard.readable > 0), "{heard:?}");
        Ok(())
    })?;
    let said = nodes.says(0, "status")?;
    ensure!(said.contains("does not decode"), "{said}");
    // And what the earlier run has left goes, without a gap.
    let beats = nodes.stage.beats()?;
    let is_gone = || {
        let links = tool(&nodes.stage.nodes[0], "ip", "-o link show");
        links.is_ok_and(|links| !links.contains("portolan-wg"))
    };
    wait_until("the old devices are gone", 2 * PATIENCE, is_gone)?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    ensure!(lost <= 3, "{lost} datagrams were lost, longest gap {gap:?}");
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_family_without_a_tunnel_is_not_reached_in_clear_either() -> Result<()> {
    for (mode, is_sealed) in [("prefer", false), ("require", true)] {
        let mut nodes = Encrypted::new(2)?;
        // Too small for IPv6 with both headers.
        for node in 0..2 {
            nodes.stage.ip(node, "link set eth0 mtu 1380")?;
        }
        for (node, other) in [(0, 1), (1, 0)] {
            let range = nodes.stage.nodes[other].pod_cidr_v6();
            let by = nodes.stage.nodes[other].ipv6();
            nodes
                .stage
                .ip(node, &format!("-6 route add {range} via {by}"))?;
        }
        let listeners = nodes.listen()?;
        nodes.start(0, mode)?;
        nodes.start(1, mode)?;
        let (node, pods) = (&nodes.stage.nodes[0], &nodes.stage.pods);
        let v4 = pods[1].ipv4().into();
        wait_until("IPv4 pods", PATIENCE, || reaches(node, Protocol::Udp, v4))?;
        let v6 = pods[1].ipv6().into();
        ensure!(reaches(node, Protocol::Udp, v6) != is_sealed, "{mode}");
        // Its own pods are reached.
        ensure!(
            reaches(node, Protocol::Udp, pods[0].ipv6().into()),
            "{mode}"
        );
        for listener in listeners {
            let heard = listener.stop()?;
            println!("{mode}: {heard:?}");
            match is_sealed {
                true => ensure_sealed(heard)?,
                false => ensure!(heard.readable > 0, "{heard:?}"),
            }
        }
    }
    Ok(())
}

/// The first node's IPv6 table filters frames that arrive, and seals what leaves.
fn filters_and_seals(nodes: &Encrypted, when: &str) -> Result<()> {
    let table = nodes.stage.nodes[0].nft(&["list", "table", "ip6", "portolan-overlay"])?;
    for chain in ["raw_prerouting", "sealed"] {
        ensure!(
            table.contains(&format!("chain {chain} ")),
            "{when}: {table}"
        );
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_family_that_loses_its_tunnel_keeps_the_table_of_it() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    filters_and_seals(&nodes, "with the tunnel")?;
    nodes.stage.ip(0, "link set eth0 mtu 1380")?;
    wait_for("the problem", PATIENCE, || {
        let said = nodes.says(0, "status")?;
        ensure!(said.contains("1380"), "{said}");
        Ok(())
    })?;
    // The device is there, and what filters its frames as well; also for the next process.
    filters_and_seals(&nodes, "without a plan for it")?;
    nodes.start(0, "require")?;
    let (node, v4) = (&nodes.stage.nodes[0], nodes.stage.pods[1].ipv4());
    wait_until("IPv4 pods", PATIENCE, || {
        reaches(node, Protocol::Udp, v4.into())
    })?;
    filters_and_seals(&nodes, "after a restart")
}

/// The Node of a machine that was replaced by node-1, with the address and a key of its own. Its name comes first.
fn left_behind(nodes: &Encrypted) -> Result<Value> {
    let mut old = nodes.api.node("node-1").context("no node-1")?;
    old["metadata"]["name"] = "a-old".into();
    old["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z".into();
    let annotations = &mut old["metadata"]["annotations"];
    annotations[ANNOTATION] = format!("wg={:0>42}A=@51820", 7).into();
    annotations["flannel.alpha.coreos.com/backend-data"] =
        r#"{"VNI":1,"VtepMAC":"02:00:00:00:aa:01"}"#.into();
    let range = "10.244.200.0/24";
    old["spec"] = json!({ "podCIDR": range, "podCIDRs": [range] });
    Ok(old)
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_dead_node_with_the_address_of_a_living_one_harms_none() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    nodes.api.apply(left_behind(&nodes)?)?;
    says(&nodes, 0, "node node-1 has its address")?;
    nodes.stage.wait_for_mesh()?;
    // Without any session, the older has the address, until that of node-1 is there again.
    nodes.stage.ip(0, "link del portolan-wg")?;
    nodes.stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_younger_node_gets_the_address_once_the_older_is_stale() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    // WireGuard's packets of node-1 come from another address than the one that it publishes.
    let source = "192.168.77.160";
    nodes.stage.ip(1, &format!("addr add {source}/32 dev lo"))?;
    let by = nodes.stage.nodes[1].ipv4();
    nodes.stage.ip(0, &format!("route add {source} via {by}"))?;
    nodes.stage.nodes[1].nft_stdin(&format!(
        "table ip egress {{ chain c {{ type filter hook postrouting priority 0; \
         udp sport 51820 ip saddr set {source}; }}; }}"
    ))?;
    nodes.start_all("prefer")?;
    nodes.wait_until_encrypted()?;
    // All FDB entries of node-0, and those by WireGuard: two Nodes with IPv4, one of them with IPv6.
    let becomes = |expected: (usize, usize)| {
        let what = format!("{expected:?} entries of node-0");
        wait_until(&what, PATIENCE, || {
            let found = nodes.entries(0, "portolan-wg");
            found.is_ok_and(|found| found == expected)
        })
        .with_context(|| nodes.situation(0))
    };
    let condition = |status: &str| json!([{ "type": "Ready", "status": status, "lastTransitionTime": "2020-01-01T00:00:00Z" }]);
    let mut old = left_behind(&nodes)?;
    old["status"]["conditions"] = condition("True");
    nodes.api.apply(old.clone())?;
    becomes((3, 0))?;
    // This changes nothing of its metadata.
    old["status"]["conditions"] = condition("Unknown");
    nodes.api.apply(old)?;
    becomes((3, 3))?;
    nodes.stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_younger_node_takes_no_address_of_one_that_serves() -> Result<()> {
    let mut nodes = Encrypted::new(3)?;
    let mut young = nodes.api.node("node-2").context("no node-2")?;
    young["metadata"]["creationTimestamp"] = "2026-06-01T00:00:00Z".into();
    young["metadata"]["annotations"]["flannel.alpha.coreos.com/public-ip-overwrite"] =
        nodes.stage.nodes[1].ipv4().to_string().into();
    nodes.api.apply(young)?;
    for node in 0..3 {
        nodes.start(node, "prefer")?;
    }
    // It has a key, and a session from its real address.
    wait_until("a session of node-2 with node-0", PATIENCE, || {
        let found = nodes.entries(2, "portolan-wg");
        found.is_ok_and(|(_, carried)| carried >= 2)
    })
    .with_context(|| nodes.situation(2))?;
    for when in ["at first", "after a restart"] {
        says(&nodes, 0, "node node-1 has its address")?;
        let pods = &nodes.stage.pods;
        for address in pods[1].addresses() {
            let what = format!("{address} of node-1 {when}");
            let reached = || {
                let entries = nodes.entries(0, "portolan-wg");
                entries.is_ok_and(|found| found == (4, 4))
                    && reaches(&pods[0], Protocol::Udp, address)
            };
            wait_until(&what, PATIENCE, reached).with_context(|| nodes.situation(0))?;
        }
        nodes.start(0, "prefer")?;
    }
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_node_with_a_copied_key_file_makes_a_key_of_its_own() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start(0, "require")?;
    wait_until("the key of node-0", PATIENCE, || {
        nodes.announced(0).is_some()
    })?;
    std::fs::copy(nodes.stage.file(0, "keys"), nodes.stage.file(1, "keys"))?;
    nodes.start(1, "require")?;
    nodes.wait_until_encrypted()?;
    nodes.stage.wait_for_mesh()?;
    ensure!(nodes.announced(0) != nodes.announced(1), "one key of both");
    Ok(())
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_key_file_that_cannot_be_written_keeps_no_peer_out() -> Result<()> {
    let mut nodes = Encrypted::new(3)?;
    for node in [0, 1] {
        nodes.start(node, "require")?;
    }
    wait_until("two nodes that encrypt", PATIENCE, || {
        let both = [0, 1].map(|node| nodes.entries(node, "portolan-wg"));
        both.iter()
            .all(|found| found.as_ref().is_ok_and(|found| *found == (2, 2)))
    })?;
    // No file takes the place of a folder, for root neither.
    let keys = nodes.stage.file(0, "keys");
    std::fs::remove_file(&keys)?;
    std::fs::create_dir(&keys)?;
    std::fs::write(Path::new(&keys).with_extension("rotate"), "")?;
    wait_until("the problem", PATIENCE, || {
        nodes
            .says(0, "status")
            .is_ok_and(|said| said.contains("cannot write the key file"))
    })?;
    nodes.start(2, "require")?;
    nodes.wait_until_encrypted()?;
    nodes.stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft, Wireguard)]
fn a_node_whose_node_object_is_deleted_keeps_its_sessions() -> Result<()> {
    let mut nodes = Encrypted::new(2)?;
    nodes.start_all("require")?;
    nodes.wait_until_encrypted()?;
    // Without its program, node-1 goes on to send to node-0.
    drop(nodes.daemons[1].take());
    let own = nodes.api.node("node-0").context("no node-0")?;
    let beats = nodes.stage.beats()?;
    all_go_on(&beats)?;
    ensure!(nodes.api.delete(Resource::Nodes, "", "node-0"));
    wait_for("node-0 without a Node", PATIENCE, || {
        let said = nodes.says(0, "status")?;
        ensure!(said.contains("does not exist yet"), "{said}");
        Ok(())
    })?;
    all_go_on(&beats)?;
    nodes.api.apply(own)?;
    nodes.start(1, "require")?;
    nodes.wait_until_encrypted()?;
    all_go_on(&beats)?;
    let (lost, gap) = worst(beats)?;
    ensure!(lost <= 3, "{lost} datagrams were lost, longest gap {gap:?}");
    Ok(())
}
