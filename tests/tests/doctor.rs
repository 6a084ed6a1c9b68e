//! The overlay measured: networks broken in one way each, and what the daemon and `portolan doctor` make of them.

use std::io::Read;
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    Daemon, HEALTH_PORT, Host, Lab, Loss, Node, PodLinks, program, scenario, wait_for, wait_until,
};
use portolan_tests::doctor::{Diagnosis, FAMILIES, FAST, ask, doctor, wait_until_healthy};
use portolan_tests::flannel::{Firewall, start_flannel, write_net_conf};
use portolan_tests::overlay::{OverlayStage, metric, tool};
use portolan_tests::stage::PATIENCE;
use serde_json::Value;

/// The verdict is this one, and the exit status says so.
fn is<'a>(found: &'a Diagnosis, verdict: &str) -> Result<&'a str> {
    let code = if verdict == "healthy" { 0 } else { 1 };
    ensure!(
        found.verdict() == verdict && found.code == Some(code),
        "{:?} {}",
        found.code,
        found.report
    );
    println!("{}", found.text());
    Ok(found.text())
}

/// Waits until a peer is healthy in both families, with nothing else to report.
fn recovers(from: &Host, peer: &str) -> Result<()> {
    for family in FAMILIES {
        let what = format!("{peer} to be well again ({family})");
        wait_for(&what, PATIENCE, || {
            is(&ask(from, peer, family)?, "healthy").map(drop)
        })?;
    }
    Ok(())
}

fn measured<'a>(found: &'a Diagnosis, path: &str) -> &'a Value {
    found.peer["measured"].pointer(path).unwrap_or(&Value::Null)
}

/// Nodes that measure each other, and whose answerers are up.
fn start(nodes: usize) -> Result<(OverlayStage, Vec<Daemon>)> {
    let stage = OverlayStage::new(nodes)?;
    let daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    Ok((stage, daemons))
}

/// Waits for this number of further rounds.
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

#[scenario(Vxlan, Nft)]
fn a_peer_whose_own_mtu_is_smaller_is_healthy() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let backend = r#", "MTU": 1400"#;
    let conf = write_net_conf(&stage, 1, Firewall::Nftables, backend)?;
    let smaller = [FAST, &["--net-config-path", &conf]].concat();
    let _daemons = [stage.start(0, FAST)?, stage.start(1, &smaller)?];
    stage.wait_for_mesh()?;
    wait_until_healthy(&stage)?;
    for (from, to, full) in [(0, "node-1", 1450), (1, "node-0", 1350)] {
        let found = ask(&stage.nodes[from], to, "IPv4")?;
        is(&found, "healthy")?;
        ensure!(measured(&found, "/sizes/full") == full, "{}", found.peer);
    }
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn a_node_whose_services_are_kube_proxys_is_healthy() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    stage.nodes[0].nft(&["add table ip kube-proxy"])?;
    let _daemons = stage.start_all(&["--service-proxy=off"])?;
    wait_for("a verdict without a fault", PATIENCE, || {
        let (code, text) = doctor(&stage.nodes[0], &[])?;
        ensure!(
            code == Some(0) && text.contains("conntrack table"),
            "{code:?} {text}"
        );
        Ok(())
    })
}

#[scenario(Vxlan, Nft)]
fn healthy_mesh_raises_no_alarm_in_a_thousand_rounds() -> Result<()> {
    let (stage, _daemons) = start(3)?;
    let (code, text) = doctor(&stage.nodes[0], &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(0), "{code:?} {text}");
    for (family, mtu) in FAMILIES.into_iter().zip([1450, 1430]) {
        let found = ask(&stage.nodes[0], "node-1", family)?;
        is(&found, "healthy")?;
        for path in ["/sizes/full", "/sizes/forth", "/sizes/back"] {
            ensure!(measured(&found, path) == mtu, "{}", found.peer);
        }
    }
    let (code, text) = doctor(&stage.nodes[0], &[])?;
    ensure!(
        code == Some(0) && text.lines().count() == 5,
        "{code:?} {text}"
    );
    let (code, text) = doctor(&stage.nodes[0], &["--to", "nobody"])?;
    ensure!(code == Some(2), "{code:?} {text}");
    for node in &stage.nodes {
        rounds(node, 334)?;
    }
    for node in &stage.nodes {
        let ready = node.http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
        let (code, text) = ready.context("no answer")?;
        ensure!(code == 200 && !text.contains("overlay: "), "{code} {text}");
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

/// A direct route leads past the tunnel device to the pod bridge of the peer, which has the same address as an anycast one
/// (RFC 4291, section 2.6.1), and takes no TCP at it.
#[scenario(Vxlan, Nft)]
fn direct_routes_to_pod_bridges_raise_no_alarm() -> Result<()> {
    let stage = OverlayStage::with(PodLinks::Bridged, 2)?;
    let conf = stage.file(0, "net-conf");
    let text = r#"{"Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/32", "EnableIPv6": true,
                   "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    std::fs::write(&conf, text)?;
    let _daemons = stage.start_all(&[FAST, &["--net-config-path", &conf]].concat())?;
    for node in &stage.nodes {
        let route = tool(node, "ip", "-6 route show proto 112")?;
        ensure!(route.contains("dev eth0"), "not direct: {route}");
        rounds(node, 50)?;
        let (code, text) = doctor(node, &[])?;
        ensure!(code == Some(0), "{text}");
        ensure!(metric(node, "portolan_overlay_alarms_total ")? == 0);
    }
    Ok(())
}

/// The settings are those of a network namespace.
#[scenario(Vxlan, Nft, BridgeNetfilter)]
fn bridges_past_the_rules_are_a_note_of_the_doctor() -> Result<()> {
    let stage = OverlayStage::with(PodLinks::Bridged, 2)?;
    let _daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
    let [node, other] = [&stage.nodes[0], &stage.nodes[1]];
    for setting in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let set = |value: &str| tool(node, "sysctl", &format!("-w net.bridge.{setting}={value}"));
        let note = format!("net.bridge.{setting}: it is 0");
        set("0")?;
        let (code, text) = doctor(node, &[])?;
        ensure!(code == Some(0) && text.contains(&note), "{code:?} {text}");
        let (code, text) = doctor(other, &[])?;
        ensure!(code == Some(0) && !text.contains(&note), "{code:?} {text}");
        set("1")?;
        let (code, text) = doctor(node, &[])?;
        ensure!(code == Some(0) && !text.contains(&note), "{code:?} {text}");
    }
    Ok(())
}

/// As in a cloud that drops packets with addresses that it has not given out.
#[scenario(Vxlan, Nft)]
fn direct_routes_under_anti_spoofing_are_reported() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let conf = stage.file(0, "net-conf");
    let text = r#"{"Network": "10.244.0.0/16", "IPv6Network": "fd00:244::/32", "EnableIPv6": true,
                   "Backend": {"Type": "vxlan", "DirectRouting": true}}"#;
    std::fs::write(&conf, text)?;
    let _daemons = stage.start_all(&[FAST, &["--net-config-path", &conf]].concat())?;
    wait_for("a healthy mesh", PATIENCE, || is_well(&stage))?;
    for (rule, family) in [
        ("ip saddr 10.244.0.0/16", "IPv4"),
        ("ip6 saddr fd00:244::/32", "IPv6"),
    ] {
        stage.nodes[1].nft_stdin(&format!(
            "table inet network {{ chain arriving {{ type filter hook prerouting priority -350;
                 iifname eth0 {rule} drop; }}; }}"
        ))?;
        wait_for("the fault", 2 * PATIENCE, || {
            let (code, text) = doctor(&stage.nodes[0], &[])?;
            let broken = text.lines().filter(|line| line.contains("BROKEN"));
            let told = broken.clone().any(|line| line.contains(family));
            ensure!(code == Some(1) && told, "{code:?} {text}");
            Ok(())
        })?;
        stage.nodes[1].nft(&["delete", "table", "inet", "network"])?;
        wait_for("a healthy mesh", 2 * PATIENCE, || is_well(&stage))?;
    }
    Ok(())
}

fn is_well(stage: &OverlayStage) -> Result<()> {
    let (code, text) = doctor(&stage.nodes[0], &[])?;
    ensure!(code == Some(0), "{code:?} {text}");
    Ok(())
}

#[scenario(Vxlan, Nft)]
fn blocked_vxlan_port_is_reported_with_its_direction() -> Result<()> {
    let (stage, _daemons) = start(3)?;
    let [a, b, c] = [&stage.nodes[0], &stage.nodes[1], &stage.nodes[2]];
    let forth = a.lose(b, Loss::Udp(8472))?;
    for family in FAMILIES {
        for (from, to) in [(a, "node-1"), (b, "node-0")] {
            let found = ask(from, to, family)?;
            let expected = format!(
                "UDP 8472 from node-0 to node-1 is blocked (TCP to {to} works): open UDP 8472 between the nodes"
            );
            ensure!(is(&found, "blocked")? == expected, "{}", found.peer);
        }
        is(&ask(a, "node-2", family)?, "healthy")?;
        is(&ask(c, "node-1", family)?, "healthy")?;
    }
    wait_for_trouble(a, "node-1", "blocked", true)?;
    ensure!(metric(a, "portolan_overlay_peers_unreachable ")? == 1);
    let ready = a.http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?;
    ensure!(
        matches!(&ready, Some((200, text)) if text.contains("UDP 8472 from node-0 to node-1 is blocked")),
        "{ready:?}"
    );
    let back = b.lose(a, Loss::Udp(8472))?;
    let found = ask(a, "node-1", "IPv4")?;
    ensure!(
        is(&found, "blocked")?.contains("blocked in both directions (TCP to node-1 works)"),
        "{}",
        found.peer
    );
    let (code, text) = doctor(a, &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(1), "{text}");
    drop((forth, back));
    wait_for_trouble(a, "node-1", "blocked", false)?;
    recovers(a, "node-1")
}

#[scenario(Vxlan, Nft)]
fn packets_dropped_on_arrival_are_blamed_on_their_rule() -> Result<()> {
    let (stage, _daemons) = start(2)?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    b.nft_stdin(
        "table inet firewall {
             chain zone {
                 type filter hook input priority 0; policy accept;
                 iifname { flannel.1, flannel-v6.1 } drop
             }
         }",
    )?;
    let listing = b.nft(&["-a", "list", "table", "inet", "firewall"])?;
    let rule = listing.lines().find(|line| line.contains("drop"));
    let handle = rule.and_then(|rule| rule.split("# handle ").nth(1));
    let handle = handle.context("no handle")?.trim();
    for family in FAMILIES {
        let found = ask(a, "node-1", family)?;
        let text = is(&found, "dropped")?;
        let rule = format!("table inet firewall, chain zone, rule handle {handle}");
        ensure!(
            text.starts_with("VXLAN packets from node-0 arrive at node-1 and are dropped there")
                && text.contains(&format!("on node-1 they are dropped by {rule}")),
            "{text}"
        );
    }
    println!("{}", doctor(a, &["--to", "node-1"])?.1);
    b.nft(&["delete", "table", "inet", "firewall"])?;
    recovers(a, "node-1")
}

#[scenario(Vxlan, Nft)]
fn path_with_small_mtu_is_reported_with_the_largest_size() -> Result<()> {
    let (stage, _daemons) = start(2)?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    let small = a.lose(b, Loss::LargerThan(1450))?;
    for (family, full, passes) in [("IPv4", 1450, 1400), ("IPv6", 1430, 1380)] {
        for (from, to, way) in [(a, "node-1", "at"), (b, "node-0", "from")] {
            let found = ask(from, to, family)?;
            let expected =
                format!("MTU: packets of {full} bytes do not arrive {way} {to}, {passes} do");
            ensure!(is(&found, "mtu")? == expected, "{}", found.peer);
        }
    }
    wait_for_trouble(b, "node-0", "mtu", true)?;
    drop(small);
    recovers(a, "node-1")
}

#[scenario(Vxlan, Nft)]
fn missing_daemon_is_no_alarm_and_missing_node_is_one() -> Result<()> {
    let (stage, daemons) = start(2)?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    daemons[1].kill()?;
    rounds(a, 50)?;
    is(&ask(a, "node-1", "IPv4")?, "healthy")?;
    ensure!(metric(a, "portolan_overlay_alarms_total ")? == 0);
    let (code, text) = doctor(b, &[])?;
    ensure!(code == Some(2), "{code:?} {text}");
    let _away = [a.lose(b, Loss::Everything)?, b.lose(a, Loss::Everything)?];
    for family in FAMILIES {
        let found = ask(a, "node-1", family)?;
        ensure!(
            is(&found, "silent")? == "node-1 does not answer at all",
            "{}",
            found.peer
        );
    }
    wait_for_trouble(a, "node-1", "silent", true)
}

#[scenario(Vxlan, Nft)]
fn an_alarm_and_its_end_are_events_of_the_node() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    let (api, kubeconfig) = stage.serve_api()?;
    let _daemons = (0..2)
        .map(|node| stage.start_with_api(node, &kubeconfig, FAST))
        .collect::<Result<Vec<_>>>()?;
    stage.wait_for_mesh()?;
    rounds(&stage.nodes[0], 10)?;
    let is_other = |event: &serde_json::Value| event["reason"] != "Starting";
    ensure!(!api.events().iter().any(is_other), "{:?}", api.events());
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

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn a_peer_with_flannel_is_measured_by_what_its_kernel_answers() -> Result<()> {
    let program = program("flanneld")?;
    let stage = OverlayStage::new(2)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let _ours = stage.start_with_api(0, &kubeconfig, FAST)?;
    let _theirs = start_flannel(&stage, &program, 1, &kubeconfig, Firewall::Nftables)?;
    stage.wait_for_mesh()?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    rounds(a, 50)?;
    ensure!(metric(a, "portolan_overlay_alarms_total ")? == 0);
    let found = ask(a, "node-1", "IPv4")?;
    ensure!(
        is(&found, "healthy").is_ok()
            && measured(&found, "/tunnel/udp") == "refused"
            && measured(&found, "/sizes/forth") == 1450,
        "{}",
        found.peer
    );
    let small = a.lose(b, Loss::LargerThan(1450))?;
    let found = ask(a, "node-1", "IPv4")?;
    let text = is(&found, "mtu")?;
    ensure!(text.ends_with("node-1, 1400 do"), "{text}");
    drop(small);
    let _blocked = a.lose(b, Loss::Udp(8472))?;
    for family in FAMILIES {
        is(&ask(a, "node-1", family)?, "blocked")?;
    }
    Ok(())
}

/// What one sends of a request, by UDP to the probe port, comes back.
fn is_answered(from: &Host, to: IpAddr) -> Result<bool> {
    Ok(request(from, to, 0)?.is_some())
}

/// In a request: for counters, and for a trace of the rule that drops packets.
const WANT_COUNTERS: u8 = 4;
const WANT_TRACE: u8 = 8;
/// In an answer: the counter of VXLAN packets is valid.
const HAS_COUNTED: u8 = 2;

/// Sends a request for these things, by UDP to the probe port; returns what the answer has.
fn request(from: &Host, to: IpAddr, want: u8) -> Result<Option<u8>> {
    let mut request = b"PTPB\x01\x01\0".to_vec();
    request.push(want);
    request.resize(384, 0);
    from.run(move || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(&request, (to, 8473))?;
        let mut buffer = [0; 2048];
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => {
                ensure!((8..=request.len()).contains(&length), "{length} bytes");
                Ok(buffer.get(7).copied())
            }
            Err(_) => Ok(None),
        }
    })?
}

#[scenario(Vxlan, Nft)]
fn who_is_no_node_gets_no_answer() -> Result<()> {
    let (stage, _daemons) = start(2)?;
    let stranger = stage.lab().client("stranger")?;
    for (pod, to) in [
        (&stage.pods[1], stage.nodes[0].addresses()),
        (&stage.pods[0], stage.nodes[0].addresses()),
    ] {
        for to in to {
            wait_for("an answer for a node", PATIENCE, || {
                ensure!(is_answered(&stage.nodes[1], to)?);
                Ok(())
            })?;
            ensure!(!is_answered(&stranger, to)?);
            ensure!(!is_answered(pod, to)?);
        }
    }
    let from = stranger.run({
        let to = stage.nodes[0].ipv4();
        move || {
            let mut stream = TcpStream::connect((to, 8473))?;
            let mut text = Vec::new();
            // Closed, with or without a reset, and not a byte.
            let _ = stream.read_to_end(&mut text);
            anyhow::Ok(text.len())
        }
    })??;
    ensure!(from == 0);
    Ok(())
}

/// Whatever a pod sends to nodes has the address of this one from now on.
fn masquerade_as_another_program(node: &Node) -> Result<String> {
    node.nft_stdin(
        "table inet masquerading {}
         delete table inet masquerading
         table inet masquerading { chain leaving { type nat hook postrouting priority srcnat;
             ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade
             ip6 saddr fd00:244::/32 ip6 daddr != fd00:244::/32 masquerade; }; }",
    )
}

/// Behind the masquerading of its node, a pod would have the address of a node.
#[scenario(Vxlan, Nft)]
fn a_pod_behind_masquerading_gets_no_answer_and_no_trace() -> Result<()> {
    let stage = OverlayStage::new(2)?;
    for (filter, masquerade) in [
        ("off", "--ip-masq"),
        ("enforce", "--ip-masq"),
        ("off", "--ip-masq=false"),
        ("monitor", "--ip-masq=false"),
    ] {
        let flags = [FAST, &[masquerade, "--overlay-filter", filter]].concat();
        let _daemons = stage.start_all(&flags)?;
        if masquerade == "--ip-masq=false" {
            for node in &stage.nodes {
                masquerade_as_another_program(node)?;
            }
        }
        for to in stage.nodes[0].addresses() {
            wait_for("an answer for a node", PATIENCE, || {
                ensure!(is_answered(&stage.nodes[1], to)?);
                Ok(())
            })?;
            ensure!(!is_answered(&stage.pods[1], to)?, "{filter}: {to}");
            ensure!(!is_answered(&stage.pods[0], to)?, "{filter}: {to}");
        }
        // A Service of a tenant whose endpoint is a node.
        stage.nodes[1].nft_stdin(
            "table ip service { chain translate { type nat hook prerouting priority dstnat;
                 ip daddr 10.96.9.9 udp dport 8473 dnat to 192.168.77.10:8473; }; }",
        )?;
        let answered = is_answered(&stage.pods[1], "10.96.9.9".parse()?)?;
        ensure!(!answered, "{filter}: by a Service");
        stage.nodes[1].nft(&["delete", "table", "ip", "service"])?;
    }
    Ok(())
}

/// Where no Portolan keeps pods from it, a pod behind masquerading is taken for its node: it gets an echo, and neither the
/// node's counters nor a trace. So it does on a node whose own Portolan probes nobody.
#[scenario(Vxlan, Nft)]
fn pods_of_a_node_that_probes_nobody_get_but_an_echo() -> Result<()> {
    let stage = OverlayStage::new(3)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let silent = [FAST, &["--overlay-probe-port", "0", "--ip-masq=false"]].concat();
    let _asked = stage.start_with_api(0, &kubeconfig, FAST)?;
    let _silent = stage.start_with_api(1, &kubeconfig, &silent)?;
    let _asking = stage.start_with_api(2, &kubeconfig, FAST)?;
    stage.wait_for_mesh()?;
    masquerade_as_another_program(&stage.nodes[1])?;
    an_echo_is_all(&stage, &stage.nodes[2])
}

/// What the pod on the second node gets of the first, in the name of its node, and what a node that probes does.
fn an_echo_is_all(stage: &OverlayStage, probing: &Node) -> Result<()> {
    for to in stage.nodes[0].addresses() {
        wait_for("counters for a node that probes", PATIENCE, || {
            let has = request(probing, to, WANT_COUNTERS)?;
            ensure!(has.is_some_and(|has| has & HAS_COUNTED != 0), "{has:?}");
            Ok(())
        })?;
        let has = request(&stage.pods[1], to, WANT_COUNTERS | WANT_TRACE)?;
        ensure!(has == Some(0), "{to}: {has:?}");
    }
    Ok(())
}

#[scenario(Flanneld, Vxlan, Nft)]
#[ignore = "needs flanneld"]
fn a_pod_that_flannel_masquerades_gets_but_an_echo() -> Result<()> {
    let program = program("flanneld")?;
    let stage = OverlayStage::new(3)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let _asked = stage.start_with_api(0, &kubeconfig, FAST)?;
    let _theirs = start_flannel(&stage, &program, 1, &kubeconfig, Firewall::Nftables)?;
    let _asking = stage.start_with_api(2, &kubeconfig, FAST)?;
    stage.wait_for_mesh()?;
    an_echo_is_all(&stage, &stage.nodes[2])
}

/// The name of the daemon's socket has no owner: the first process that binds it has it, such as a pod on the host's network.
#[scenario(Vxlan, Nft)]
fn foreign_answerer_on_the_probe_port_is_not_believed() -> Result<()> {
    const NOBODY: &str = "65534";
    const ANSWER: &str =
        r#"{"node":"n","overlay":true,"checks":[{"check":"all is well","faults":[],"notes":[]}]}"#;
    let lab = Lab::builder().build()?;
    let node = lab.node("node-0")?;
    let script = format!(
        r#"$| = 1; socket(L, AF_UNIX, SOCK_STREAM, 0) or die;
           bind(L, pack("S a*", AF_UNIX, "\0portolan")) or die; listen(L, 1); print "listening\n";
           while (accept(C, L)) {{ my $question = <C>; print C '{ANSWER}', "\n"; close C; }}"#
    );
    let squatter = [
        "--reuid",
        NOBODY,
        "--clear-groups",
        "perl",
        "-MSocket",
        "-e",
        &script,
    ];
    let squatter = node.spawn_daemon("setpriv", squatter)?;
    squatter.wait_for_line("listening", PATIENCE)?;
    let (code, said) = doctor(&node, &[])?;
    ensure!(code == Some(2), "{code:?} {said}");
    ensure!(
        said.contains(NOBODY) && !said.contains("all is well"),
        "{said}"
    );
    Ok(())
}
