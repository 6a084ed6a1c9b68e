//! The overlay measured: networks broken in one way each, and what the daemon and `portolan doctor` make of them.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Host, Lab, Loss, wait_for, wait_until};
use portolan_tests::doctor::{FAMILIES, Told, ask, doctor, wait_until_healthy};
use portolan_tests::flannel::{Firewall, flanneld, start_flannel};
use portolan_tests::overlay::{OverlayStage, can_run};
use portolan_tests::stage::PATIENCE;
use serde_json::Value;

/// Rounds that follow each other as fast as they can, and what they count.
const FAST: &[&str] = &[
    "--overlay-probe-interval",
    "20ms",
    "--metrics-bind-address",
    "127.0.0.1:10249",
    "--healthz-bind-address",
    "127.0.0.1:10256",
];

/// The verdict is this one, and the exit status says so.
fn is<'a>(told: &'a Told, verdict: &str) -> Result<&'a str> {
    let code = if verdict == "healthy" { 0 } else { 1 };
    ensure!(
        told.verdict() == verdict && told.code == Some(code),
        "{:?} {}",
        told.code,
        told.peer
    );
    println!("{}", told.text());
    Ok(told.text())
}

fn measured<'a>(told: &'a Told, path: &str) -> &'a Value {
    told.peer["measured"].pointer(path).unwrap_or(&Value::Null)
}

/// Nodes that measure each other, and whose answerers are up.
fn start(nodes: usize) -> Result<(OverlayStage, Vec<Daemon>)> {
    let stage = OverlayStage::new(nodes)?;
    let daemons = stage.start_all(FAST)?;
    wait_until_healthy(&stage)?;
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
    let (stage, _daemons) = start(3)?;
    let (code, text) = doctor(&stage.nodes[0], &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(0), "{code:?} {text}");
    for (family, mtu) in FAMILIES.into_iter().zip([1450, 1430]) {
        let told = ask(&stage.nodes[0], "node-1", family)?;
        is(&told, "healthy")?;
        for path in ["/sizes/full", "/sizes/forth", "/sizes/back"] {
            ensure!(measured(&told, path) == mtu, "{}", told.peer);
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
    let (stage, _daemons) = start(3)?;
    let [a, b, c] = [&stage.nodes[0], &stage.nodes[1], &stage.nodes[2]];
    let forth = a.lose(b, Loss::Udp(8472))?;
    for family in FAMILIES {
        for (from, to) in [(a, "node-1"), (b, "node-0")] {
            let told = ask(from, to, family)?;
            let expected = format!(
                "UDP 8472 from node-0 to node-1 is blocked (TCP to {to} works): open UDP 8472 between the nodes"
            );
            ensure!(is(&told, "blocked")? == expected, "{}", told.peer);
        }
        is(&ask(a, "node-2", family)?, "healthy")?;
        is(&ask(c, "node-1", family)?, "healthy")?;
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
        is(&told, "blocked")?.contains("blocked in both directions (TCP to node-1 works)"),
        "{}",
        told.peer
    );
    let (code, text) = doctor(a, &["--to", "node-1"])?;
    println!("{text}");
    ensure!(code == Some(1), "{text}");
    drop((forth, back));
    wait_for_trouble(a, "node-1", "blocked", false)?;
    is(&ask(a, "node-1", "IPv4")?, "healthy")?;
    Ok(())
}

#[test]
fn packets_that_arrive_and_do_not_get_through_are_no_blocked_port_and_their_rule_is_named()
-> Result<()> {
    if !can_run() {
        return Ok(());
    }
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
        let told = ask(a, "node-1", family)?;
        let text = is(&told, "dropped")?;
        let rule = format!("table inet firewall, chain zone, rule handle {handle}");
        ensure!(
            text.starts_with("VXLAN packets from node-0 arrive at node-1 and are dropped there")
                && text.contains(&format!("on node-1 they are dropped by {rule}")),
            "{text}"
        );
    }
    println!("{}", doctor(a, &["--to", "node-1"])?.1);
    b.nft(&["delete", "table", "inet", "firewall"])?;
    is(&ask(a, "node-1", "IPv4")?, "healthy")?;
    Ok(())
}

#[test]
fn a_path_for_smaller_packets_is_told_with_the_largest_that_passes() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (stage, _daemons) = start(2)?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    let small = a.lose(b, Loss::LargerThan(1450))?;
    for (family, full, passes) in [("IPv4", 1450, 1400), ("IPv6", 1430, 1380)] {
        for (from, to, way) in [(a, "node-1", "at"), (b, "node-0", "from")] {
            let told = ask(from, to, family)?;
            let expected =
                format!("MTU: packets of {full} bytes do not arrive {way} {to}, {passes} do");
            ensure!(is(&told, "mtu")? == expected, "{}", told.peer);
        }
    }
    wait_for_trouble(b, "node-0", "mtu", true)?;
    drop(small);
    is(&ask(a, "node-1", "IPv6")?, "healthy")?;
    Ok(())
}

#[test]
fn a_daemon_that_is_away_is_no_alarm_and_a_node_that_is_away_is_one() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
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
        let told = ask(a, "node-1", family)?;
        ensure!(
            is(&told, "silent")? == "node-1 does not answer at all",
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

#[test]
fn a_peer_with_flannel_is_measured_by_what_its_kernel_answers() -> Result<()> {
    let Some(program) = flanneld() else {
        return Ok(());
    };
    let stage = OverlayStage::new(2)?;
    let (_api, kubeconfig) = stage.serve_api()?;
    let _ours = stage.start_with_api(0, &kubeconfig, FAST)?;
    let _theirs = start_flannel(&stage, &program, 1, &kubeconfig, Firewall::Nftables)?;
    stage.wait_for_mesh()?;
    let [a, b] = [&stage.nodes[0], &stage.nodes[1]];
    rounds(a, 50)?;
    ensure!(metric(a, "portolan_overlay_alarms_total ")? == 0);
    let told = ask(a, "node-1", "IPv4")?;
    ensure!(
        is(&told, "healthy").is_ok()
            && measured(&told, "/tunnel/udp") == "refused"
            && measured(&told, "/sizes/forth") == 1450,
        "{}",
        told.peer
    );
    let small = a.lose(b, Loss::LargerThan(1450))?;
    let told = ask(a, "node-1", "IPv4")?;
    let text = is(&told, "mtu")?;
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
    let mut request = b"PTPB\x01\x01\0\0".to_vec();
    request.resize(384, 0);
    from.run(move || {
        let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        socket.send_to(&request, (to, 8473))?;
        let mut buffer = [0; 2048];
        match socket.recv_from(&mut buffer) {
            Ok((length, _)) => {
                ensure!(length <= request.len(), "{length} bytes");
                Ok(true)
            }
            Err(_) => Ok(false),
        }
    })?
}

#[test]
fn who_is_no_node_gets_no_answer() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
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

/// The name of the daemon's socket belongs to nobody: whoever comes first has it, a pod on the host's network, say.
#[test]
fn somebody_else_who_answers_in_the_daemons_place_is_not_believed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    const NOBODY: &str = "65534";
    const ANSWER: &str = r#"{"node":"n","trouble":null,"peers":[],"left_out":0,"remedies":[],"notes":["all is well"]}"#;
    let lab = Lab::builder().build()?;
    let node = lab.node("node-0")?;
    let script = format!(
        r#"$| = 1; socket(L, AF_UNIX, SOCK_STREAM, 0) or die;
           bind(L, pack("S a*", AF_UNIX, "\0portolan-doctor")) or die; listen(L, 1); print "listening\n";
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
