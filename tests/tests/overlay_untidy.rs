//! The overlay when the world is untidy: leftovers of other programs, devices that are not as they should be, a family
//! that cannot be carried.

use anyhow::{Context, Result, ensure};
use lab::{HEALTH_PORT, Node, Protocol, scenario, wait_for, wait_until};
use nix::sys::signal::Signal;
use portolan_tests::overlay::{OverlayStage, all_go_on, metric, reaches, state, tool, worst};
use portolan_tests::stage::PATIENCE;

/// What the program on a node answers to `/readyz`.
fn readyz(node: &Node) -> Result<(u16, String)> {
    let answer = node.http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
    answer.context("no answer")
}

/// Waits for an answer with this status that has these words.
fn wait_for_readyz(node: &Node, status: u16, words: &str) -> Result<String> {
    wait_for(words, PATIENCE, || {
        let (code, text) = readyz(node)?;
        ensure!(code == status && text.contains(words), "{code} {text}");
        Ok(text)
    })
}

/// A configuration as in flannel's ConfigMap, with this in its `Backend`.
fn net_conf(stage: &OverlayStage, name: &str, backend: &str) -> Result<String> {
    let path = stage.file(0, name);
    let text = format!(
        r#"{{"Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/32", "EnableIPv6": true,
            "Backend": {{"Type": "vxlan" {backend}}}}}"#
    );
    std::fs::write(&path, text)?;
    Ok(path)
}

/// Routes that another program left or made: the kernel takes none through the tunnel while one of these leads to its
/// gateway (IPv6), and they must be turned without a gap.
#[scenario(Vxlan, Nft)]
fn foreign_routes_to_pods_are_replaced_in_place() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    for line in [
        "-6 route add fd00:244:1::/64 via fd00:77::1 dev eth0 proto 186",
        "route add 10.244.1.0/24 via 192.168.77.1 dev eth0 proto 186",
        // One for all pods covers the gateways as well.
        "-6 route add fd00:244::/32 via fd00:77::1 dev eth0 proto 186",
    ] {
        stage.ip(0, line)?;
    }
    let _daemons = stage.start_all(&[])?;
    let beats = stage.beats()?;
    all_go_on(&beats)?;
    for line in [
        "-6 route replace fd00:244:1::/64 via fd00:77::1 dev eth0 proto 186",
        "-6 route append fd00:244:1::/64 via fd00:77::1 dev eth0 proto 186",
        "route replace 10.244.1.0/24 via 192.168.77.1 dev eth0 proto 186",
        "route append 10.244.1.0/24 via 192.168.77.1 dev eth0 proto 186",
    ] {
        stage.ip(0, line)?;
        wait_until("the route through the tunnel alone", PATIENCE, || {
            let v4 = stage.ip(0, "route show 10.244.1.0/24").unwrap_or_default();
            let v6 = stage.ip(0, "-6 route show fd00:244:1::/64");
            [v4, v6.unwrap_or_default()]
                .iter()
                .all(|routes| routes.contains("dev flannel") && !routes.contains("eth0"))
        })?;
        all_go_on(&beats)?;
    }
    let (lost, gap) = worst(beats)?;
    println!("| routes of another program in the place of the overlay's | {lost} | {gap:.1?} | |");
    let routes = stage.ip(0, "-6 route show")?;
    ensure!(
        routes.contains("fd00:244::/32"),
        "it is not the overlay's: {routes}"
    );
    ensure!(
        !routes.contains("\nfd00:244:1:: dev"),
        "a guide is left: {routes}"
    );
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn changed_port_vni_and_direct_routing_are_rolled_out() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let backends = [
        ("plain", ""),
        ("port", r#", "Port": 4789"#),
        ("direct", r#", "Port": 4789, "DirectRouting": true"#),
        ("vni", r#", "VNI": 7"#),
        ("back", ""),
    ];
    let mut daemons = Vec::new();
    for (name, backend) in backends {
        let file = net_conf(&stage, name, backend)?;
        // A rollout: one node after another.
        for node in 0..3 {
            if !daemons.is_empty() && daemons.len() == 3 {
                drop(daemons.remove(0));
            }
            let daemon = stage.start(node, &["--net-config-path", &file])?;
            stage.wait_until_ready(node, &daemon)?;
            daemons.push(daemon);
        }
        stage.wait_for_mesh().with_context(|| name.to_owned())?;
    }
    let link = stage.ip(0, "-d -o link show dev flannel.1")?;
    ensure!(link.contains("dstport 8472"), "{link}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn devices_of_another_kind_or_with_a_remote_are_made_anew() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let daemons = stage.start_all(&[])?;
    let daemon = daemons.first().context("node-0 has one")?;
    for lines in [
        ["link del flannel.1", "link add flannel.1 type bridge"],
        [
            "link del flannel.1",
            "link add flannel.1 type vxlan id 1 dstport 8472 remote 192.168.77.99 local 192.168.77.10",
        ],
        [
            "link del flannel-v6.1",
            "link add flannel-v6.1 type vxlan id 9 dstport 8472 local 192.168.77.10 dev eth0",
        ],
    ] {
        // Otherwise the daemon would make its device between the two lines.
        daemon.signal(Signal::SIGSTOP)?;
        for line in lines {
            stage.ip(0, line)?;
        }
        daemon.signal(Signal::SIGCONT)?;
        stage.wait_for_mesh()?;
    }
    let fdb = tool(&stage.nodes[0], "bridge", "fdb show dev flannel.1")?;
    ensure!(!fdb.contains("192.168.77.99"), "{fdb}");
    Ok(())
}

/// A machine outside the cluster that an operator has connected by hand.
#[scenario(Vxlan, Nft)]
fn an_operators_own_tunnel_end_stays_on_the_device() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(&[])?;
    for line in [
        "ip route add 172.30.0.0/24 via 172.30.0.0 dev flannel.1 onlink",
        "ip neigh replace 172.30.0.0 lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent",
        "bridge fdb append 02:00:00:00:00:77 dev flannel.1 dst 192.168.77.99",
        // In the network, and no Node has it: the overlay's, left by somebody.
        "ip route add 10.244.99.0/24 via 10.244.99.0 dev flannel.1 onlink",
        "ip neigh replace 10.244.99.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
        "bridge fdb append 02:00:00:00:00:99 dev flannel.1 dst 192.168.77.98",
    ] {
        let (program, arguments) = line.split_once(' ').unwrap_or_default();
        tool(&stage.nodes[0], program, arguments)?;
    }
    wait_until("what is the overlay's to go", PATIENCE, || {
        state(&stage.nodes[0], "flannel.1").is_ok_and(|found| {
            let all = format!("{found:?}");
            !all.contains("10.244.99.0") && !all.contains("02:00:00:00:00:99")
        })
    })?;
    let found = state(&stage.nodes[0], "flannel.1")?;
    let has = |kind: &str, text: &str| found[kind].iter().any(|line| line.contains(text));
    ensure!(
        has("routes", "172.30.0.0/24")
            && has("neighbors", "172.30.0.0 lladdr")
            && has("fdb", "02:00:00:00:00:77"),
        "{found:?}"
    );
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn the_tunnel_is_never_its_own_interface_below() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let _daemons = stage.start_all(&[])?;
    // A DHCP client that configures every device. It does not do so in the interface's place.
    let line = "addr add 192.168.77.10/24 dev flannel.1 noprefixroute";
    stage.ip(0, line)?;
    stage.ip(0, "link set flannel.1 mtu 1300")?;
    wait_until("the MTU to be back", PATIENCE, || {
        let link = stage.ip(0, "-d -o link show dev flannel.1");
        link.is_ok_and(|link| link.contains("mtu 1450") && link.contains("dev eth0"))
    })?;
    stage.wait_for_mesh()
}

#[scenario(Vxlan, Nft)]
fn a_family_without_an_interface_leaves_the_other_one_serving() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    stage.ip(0, "addr del fd00:77::10/64 dev eth0")?;
    let daemon = stage.start(0, &[])?;
    let _other = stage.start(1, &[])?;
    stage.wait_until_ready(0, &daemon)?;
    wait_for_readyz(&stage.nodes[0], 200, "no interface with an IPv6 address")?;
    let env = wait_for("subnet.env", PATIENCE, || {
        Ok(std::fs::read_to_string(stage.file(0, "env"))?)
    })?;
    ensure!(
        env.contains("FLANNEL_SUBNET=10.244.0.1/24") && !env.contains("IPV6"),
        "{env}"
    );
    let to = stage.pods[1].ipv4().into();
    wait_until("the other pod by IPv4", PATIENCE, || {
        reaches(&stage.pods[0], Protocol::Tcp, to)
    })?;
    stage.ip(0, "addr add fd00:77::10/64 dev eth0 nodad")?;
    stage.wait_for_mesh()?;
    wait_until("both families in subnet.env", PATIENCE, || {
        std::fs::read_to_string(stage.file(0, "env")).is_ok_and(|env| env.contains("IPV6"))
    })
}

#[scenario(Vxlan, Nft)]
fn an_mtu_too_small_for_ipv6_leaves_ipv4_serving() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    for node in 0..2 {
        stage.ip(node, "link set eth0 mtu 1340")?;
    }
    let daemons = [stage.start(0, &[])?, stage.start(1, &[])?];
    stage.wait_until_ready(0, &daemons[0])?;
    wait_for_readyz(&stage.nodes[0], 200, "MTU 1340 of eth0 leaves 1270 bytes")?;
    let to = stage.pods[1].ipv4().into();
    wait_until("the other pod by IPv4", PATIENCE, || {
        reaches(&stage.pods[0], Protocol::Tcp, to)
    })?;
    let env = std::fs::read_to_string(stage.file(0, "env"))?;
    ensure!(
        env.contains("FLANNEL_MTU=1290") && !env.contains("IPV6"),
        "{env}"
    );
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn a_device_in_the_way_is_named_and_tried_again_quietly() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    stage.ip(
        0,
        "link add other0 type vxlan id 1 dstport 8472 local 192.168.77.10",
    )?;
    let daemon = stage.start(0, &[])?;
    let _other = stage.start(1, &[])?;
    wait_for_readyz(&stage.nodes[0], 503, "device other0 has this VNI and port")?;
    let tries = || metric(&stage.nodes[0], "portolan_overlay_reconciles_total ");
    let enough = tries()? + 3;
    wait_until("more tries", PATIENCE, || {
        tries().is_ok_and(|tries| tries >= enough)
    })?;
    let lines = daemon.lines();
    let told = lines
        .iter()
        .filter(|line| line.contains("changed the overlay") && line.contains("refused=1"));
    let told = told.count();
    ensure!(
        (1..=3).contains(&told),
        "{told} lines of refused rounds: {lines:#?}"
    );
    stage.ip(0, "link del other0")?;
    stage.wait_for_mesh()
}

/// One family alone: the device of the other family's name is nobody's, and the kernel has one device for a VNI and port.
#[scenario(Vxlan, Nft)]
fn a_device_of_the_other_familys_name_gives_way() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let file = stage.file(0, "ipv4");
    std::fs::write(
        &file,
        r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#,
    )?;
    stage.ip(
        0,
        "link add flannel-v6.1 type vxlan id 1 dstport 8472 local 192.168.77.10",
    )?;
    let flags = ["--net-config-path", &file];
    let _daemons = [stage.start(0, &flags)?, stage.start(1, &flags)?];
    let to = stage.pods[1].ipv4().into();
    wait_until("the other pod by IPv4", PATIENCE, || {
        reaches(&stage.pods[0], Protocol::Tcp, to)
    })
}

/// The hardware address of the other node is unknown, as where a provider's network carries packets to it by a router
/// alone: node-2 is that router here. The address lies in the range of the link all the same.
#[scenario(Vxlan, Nft)]
fn direct_routes_follow_the_kernels_look_up_not_prefixes() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let file = net_conf(&stage, "direct", r#", "DirectRouting": true"#)?;
    let directly = |direct: bool| {
        wait_until(&format!("a direct route: {direct}"), PATIENCE, || {
            let found = stage.ip(0, "route get 10.244.1.5").unwrap_or_default();
            found.contains("dev eth0") == direct && found.contains("dev flannel.1") != direct
        })
    };
    let _daemons = stage.start_all(&["--net-config-path", &file])?;
    directly(true)?;
    for line in [
        "route add 192.168.77.11/32 via 192.168.77.12",
        "neigh replace 192.168.77.11 lladdr 02:00:00:00:00:aa dev eth0 nud permanent",
    ] {
        stage.ip(0, line)?;
    }
    directly(false)?;
    stage.wait_for_mesh()?;
    stage.ip(0, "neigh del 192.168.77.11 dev eth0")?;
    stage.ip(0, "route del 192.168.77.11/32")?;
    directly(true)?;
    // An address without a range, and a route instead of it.
    for line in [
        "addr add 192.168.77.10/32 dev eth0",
        "addr del 192.168.77.10/24 dev eth0",
        "route replace 192.168.77.0/24 dev eth0",
    ] {
        stage.ip(0, line)?;
    }
    directly(true)?;
    stage.wait_for_mesh()
}
