//! What changes while the program runs, and is followed without a restart: a client's affinity, the facts about the node
//! that others change, and the answers to health checks of load balancers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::{Context, Result, ensure};
use lab::{Host, Outcome, Protocol, node_object, scenario, wait_until};
use nft::{Backend, Family};
use portolan_tests::stage::{self, PATIENCE, Stage};
use portolan_tests::written;
use serde_json::{Value, json};
use service_dataplane::layout;

/// `web` with these of the pods, changed.
fn write(stage: &Stage, pods: &[usize], change: impl Fn(&mut Value)) -> Result<()> {
    let mut objects = stage.objects(&stage.web, 0..4);
    for object in &mut objects {
        if let Some(endpoints) = object["endpoints"].as_array_mut() {
            let mut numbers = 0..;
            endpoints.retain(|_| numbers.next().is_some_and(|n| pods.contains(&n)));
        }
        change(object);
    }
    stage.manifests.write_objects("web.yaml", &objects)
}

fn with_affinity(seconds: u32) -> impl Fn(&mut Value) {
    move |object| {
        if object["kind"] == "Service" {
            object["spec"]["sessionAffinity"] = json!("ClientIP");
            object["spec"]["sessionAffinityConfig"] =
                json!({"clientIP": {"timeoutSeconds": seconds}});
        }
    }
}

/// The pod that answers, by its number.
fn server(outcome: &Outcome) -> Option<usize> {
    let name = outcome.server()?.split(':').next()?;
    name.strip_prefix("web-")?.parse().ok()
}

/// The one pod that answers this many connections, if it is one.
fn the_one(from: &Host, to: SocketAddr, connections: usize) -> Result<usize> {
    let tally = from.connect_many(Protocol::Tcp, to, connections)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    match tally.server_names().as_slice() {
        [one] => {
            let name = one
                .split(':')
                .next()
                .and_then(|name| name.strip_prefix("web-"));
            Ok(name.context("another server")?.parse()?)
        }
        several => anyhow::bail!("{several:?} answered"),
    }
}

/// A Service with affinity in force, and the pod that the client is sent to.
fn wait_for_affinity(stage: &Stage) -> Result<usize> {
    let to = Stage::address(&stage.web)?;
    // Without affinity, 30 connections all meet one of four once in 10^17 times.
    let kept = || the_one(&stage.client, to, 30).is_ok();
    wait_until("affinity", PATIENCE, kept)?;
    the_one(&stage.client, to, 30)
}

#[scenario(Nft)]
fn affinity_outlives_the_daemon_and_follows_its_endpoints() -> Result<()> {
    let stage = Stage::new()?;
    write(&stage, &[0, 1, 2, 3], with_affinity(10_800))?;
    let daemon = stage.start_synced(&[])?;
    let first = wait_for_affinity(&stage)?;
    let to = Stage::address(&stage.web)?;

    // Whichever way the client takes, and whoever restarts.
    let node_port = SocketAddr::new(
        stage.node.ipv4().into(),
        stage.web.node_port.context("has one")?,
    );
    ensure!(the_one(&stage.client, node_port, 20)? == first);
    daemon.kill()?;
    ensure!(the_one(&stage.client, to, 20)? == first);
    let _daemon = stage.start_synced(&[])?;
    ensure!(the_one(&stage.client, to, 20)? == first);

    // Other endpoints that go do not matter; its own takes the affinity along, and does not bring it back.
    let others: Vec<usize> = (0..4).filter(|n| *n != first).collect();
    write(
        &stage,
        &[first, others[0], others[1]],
        with_affinity(10_800),
    )?;
    ensure!(the_one(&stage.client, to, 20)? == first);
    write(&stage, &others, with_affinity(10_800))?;
    let elsewhere = || the_one(&stage.client, to, 1).is_ok_and(|pod| pod != first);
    wait_until("the client to be sent elsewhere", PATIENCE, elsewhere)?;
    let second = the_one(&stage.client, to, 20)?;
    ensure!(second != first);
    write(&stage, &[0, 1, 2, 3], with_affinity(10_800))?;
    // Another client sees when the endpoint is back.
    let other = stage.node.pod("other")?;
    let back = || the_one(&other, to, 1).is_ok();
    wait_until("another client", PATIENCE, back)?;
    ensure!(the_one(&stage.client, to, 30)? == second);
    Ok(())
}

/// Entries of all IPv4 affinity maps in the kernel that have not expired.
fn affinity_entries(stage: &Stage) -> Result<usize> {
    stage.node.run(|| {
        let mut kernel = written::kernel(layout::TABLE, false)?;
        let table = kernel.list(Family::Ip)?.context("no table")?;
        let maps = table.sets.values();
        let maps = maps.filter(|set| matches!(set.kind, nft::SetKind::Dynamic(_)));
        let mut entries = 0;
        for map in maps {
            entries += kernel.dynamic_elements(Family::Ip, &map.name)?.len();
        }
        Ok(entries)
    })?
}

/// One datagram to `to` from each of so many addresses.
fn flood(stage: &Stage, to: SocketAddr, clients: u32) -> Result<()> {
    // Addresses that the client's pod has without listing them, and a way back.
    let via = stage.client.ipv4().to_string();
    let local = ["route", "add", "local", "100.64.0.0/10", "dev", "lo"];
    let back = ["route", "add", "100.64.0.0/10", "via", &via];
    for (host, route) in [(&*stage.client, &local[..]), (&*stage.node, &back[..])] {
        let mut ip = host.command("ip");
        ip.args(route);
        host.output(ip)?;
    }
    stage.client.run(move || -> std::io::Result<()> {
        let first = Ipv4Addr::new(100, 64, 0, 1).to_bits();
        for n in 0..clients {
            let socket = UdpSocket::bind((Ipv4Addr::from_bits(first + n), 0))?;
            // The queue may be full for a moment, and an answer may say that nobody listens.
            let _ = socket.send_to(b"x", to);
        }
        Ok(())
    })??;
    Ok(())
}

#[scenario(Nft)]
fn clients_of_one_service_do_not_end_affinity_of_others() -> Result<()> {
    let stage = Stage::new()?;
    let flooded = stage::service("flooded", 81);
    let mut objects = stage.objects(&flooded, 0..4);
    for object in &mut objects {
        with_affinity(10_800)(object);
        for ports in ["/ports", "/spec/ports"] {
            let ports = object.pointer_mut(ports).and_then(Value::as_array_mut);
            for port in ports.into_iter().flatten() {
                port["protocol"] = json!("UDP");
            }
        }
    }
    stage.manifests.write_objects("flooded.yaml", &objects)?;
    write(&stage, &[0, 1, 2, 3], with_affinity(10_800))?;
    let _daemon = stage.start_synced(&[])?;
    // More than one map could hold for all Services.
    flood(&stage, Stage::address(&flooded)?, 160_000)?;
    let entries = affinity_entries(&stage)?;
    ensure!((40_000..60_000).contains(&entries), "{entries} entries");
    wait_for_affinity(&stage)?;
    Ok(())
}

#[scenario(Nft)]
fn affinity_ends_when_its_time_is_over() -> Result<()> {
    let stage = Stage::new()?;
    write(&stage, &[0, 1, 2, 3], with_affinity(1))?;
    let _daemon = stage.start_synced(&[])?;
    let first = wait_for_affinity(&stage)?;
    let to = Stage::address(&stage.web)?;
    for _ in 0..20 {
        wait_until("the entry to expire", PATIENCE, || {
            affinity_entries(&stage).is_ok_and(|entries| entries == 0)
        })?;
        // A new choice of four is the old one 20 times once in 10^12 times.
        if the_one(&stage.client, to, 1)? != first {
            return Ok(());
        }
    }
    anyhow::bail!("the client was sent to {first} for ever")
}

#[scenario(Nft)]
fn a_large_services_affinity_timeout_is_changed_in_steps() -> Result<()> {
    let stage = Stage::new()?;
    let large = |seconds| {
        move |object: &mut Value| {
            with_affinity(seconds)(object);
            if object["kind"] == "Service" {
                // More elements than one step has, all in the affinity group of one port.
                let addresses = (1..=100).map(|n| format!("198.51.100.{n}"));
                object["spec"]["externalIPs"] = addresses.collect();
            }
        }
    };
    write(&stage, &[0, 1, 2, 3], large(10_800))?;
    let _daemon = stage.start_synced(&[])?;
    let to = SocketAddr::from((Ipv4Addr::new(198, 51, 100, 100), stage.web.port));
    wait_until("the last step", PATIENCE, || {
        the_one(&stage.client, to, 1).is_ok()
    })?;
    wait_for_affinity(&stage)?;
    write(&stage, &[0, 1, 2, 3], large(1))?;
    wait_until("no group with the old time-out", PATIENCE, || {
        let chains = stage.node.run(|| -> Result<bool> {
            let mut kernel = written::kernel(layout::TABLE, false)?;
            let table = kernel.list(Family::Ip)?.context("no table")?;
            Ok(table.chains.keys().any(|name| name.ends_with("_10800")))
        });
        matches!(chains, Ok(Ok(false)))
    })?;
    the_one(&stage.client, to, 1)?;
    wait_until("an entry with the new time-out to expire", PATIENCE, || {
        affinity_entries(&stage).is_ok_and(|entries| entries == 0)
    })
}

#[scenario(Nft)]
fn affinity_switched_on_and_off_is_followed() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    for _ in 0..2 {
        write(&stage, &[0, 1, 2, 3], with_affinity(10_800))?;
        wait_for_affinity(&stage)?;
        write(&stage, &[0, 1, 2, 3], |_| {})?;
        stage.wait_for_backends(&stage.web, 4)?;
    }
    Ok(())
}

/// Node objects, the one under test changed.
fn write_nodes(stage: &Stage, change: impl Fn(&mut Value)) -> Result<()> {
    let mut own = node_object(&stage.node);
    change(&mut own);
    stage.manifests.write_objects("nodes.yaml", &[own])
}

#[scenario(Nft)]
fn a_node_that_changes_is_followed_without_exit() -> Result<()> {
    let stage = Stage::new()?;
    let hinted = |object: &mut Value| {
        for (n, endpoint) in object["endpoints"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let zone = if n == 0 { "zone-a" } else { "zone-b" };
            endpoint["hints"] = json!({"forZones": [{"name": zone}]});
        }
    };
    write(&stage, &[0, 1, 2, 3], hinted)?;
    let daemon = stage.start_synced(&["--detect-local-mode", "NodeCIDR"])?;
    stage.wait_for_backends(&stage.web, 4)?;
    for (zone, backends) in [("zone-a", 1), ("zone-b", 3), ("zone-c", 4)] {
        write_nodes(&stage, |node| {
            node["metadata"]["labels"] = json!({"topology.kubernetes.io/zone": zone});
        })?;
        stage.wait_for_backends(&stage.web, backends)?;
    }

    let to = Stage::address(&stage.web)?;
    let seen_as = |address: IpAddr| {
        let outcome = stage.client.connect(Protocol::Tcp, to);
        outcome.is_ok_and(|outcome| outcome.peer().is_some_and(|peer| peer.ip() == address))
    };
    wait_until("the pod to keep its address", PATIENCE, || {
        seen_as(stage.client.ipv4().into())
    })?;
    write_nodes(&stage, |node| {
        node["spec"]["podCIDRs"] = json!(["10.200.0.0/24"])
    })?;
    let gateways = [stage.node.ipv4().into(), stage.node.pod_gateway()[0]];
    let masqueraded = || gateways.iter().any(|gateway| seen_as(*gateway));
    wait_until("pods of no range to be masqueraded", PATIENCE, masqueraded)?;
    write_nodes(&stage, |_| {})?;
    wait_until("the range again", PATIENCE, || {
        seen_as(stage.client.ipv4().into())
    })?;

    let port = stage.web.node_port.context("it has one")?;
    let [old, new]: [IpAddr; 2] = [stage.node.ipv4().into(), stage.node.pod_gateway()[0]];
    let answers = |address: IpAddr| {
        let outcome = stage.client.connect(Protocol::Tcp, (address, port));
        outcome.is_ok_and(|outcome| server(&outcome).is_some())
    };
    ensure!(answers(old) && !answers(new));
    write_nodes(&stage, |node| {
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": new}]);
    })?;
    let moved = || answers(new) && !answers(old);
    wait_until("node ports at the new address only", PATIENCE, moved)?;
    ensure!(daemon.is_running(), "it has left");
    Ok(())
}

#[scenario(Nft)]
fn cluster_ips_work_before_the_node_has_addresses() -> Result<()> {
    let stage = Stage::new()?;
    write_nodes(&stage, |node| node["status"]["addresses"] = json!([]))?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let port = stage.web.node_port.context("it has one")?;
    let answers = || {
        let outcome = stage
            .client
            .connect(Protocol::Tcp, (stage.node.ipv4(), port));
        outcome.is_ok_and(|outcome| server(&outcome).is_some())
    };
    ensure!(!answers(), "node ports at an address that nobody knows of");
    write_nodes(&stage, |_| {})?;
    wait_until("node ports", PATIENCE, answers)
}

/// An external IP may be the node's own, but takes no port there that a process has.
#[scenario(Nft)]
fn processes_of_the_node_keep_their_ports_from_external_ips() -> Result<()> {
    let stage = Stage::new()?;
    let own = stage.node.ipv4();
    write(&stage, &[0, 1, 2, 3], |object| {
        if object["kind"] == "Service" {
            object["spec"]["externalIPs"] = json!([own]);
        }
    })?;
    let daemon = stage.start_synced(&[])?;
    let outside = stage.lab().client("outside")?;
    let answered_by = |from: &Host| -> Option<String> {
        let outcome = from.connect(Protocol::Tcp, (own, stage.web.port)).ok()?;
        Some(outcome.server()?.split(':').next()?.to_owned())
    };
    let by_node = || {
        let all: [&Host; 3] = [&outside, &stage.client, &stage.node];
        all.iter()
            .all(|from| answered_by(from).as_deref() == Some("node-a"))
    };
    let by_pod = || answered_by(&outside).is_some_and(|name| name.starts_with("web-"));
    wait_until("the Service at the node's address", PATIENCE, by_pod)?;
    // Somebody begins to listen later, for all addresses.
    stage.node.serve(Protocol::Tcp, stage.web.port)?;
    wait_until("the node's own service", PATIENCE, by_node)?;
    ensure!(
        stage
            .connect(&stage.client, &stage.web)?
            .server()
            .is_some_and(|name| name.starts_with("web-")),
        "the cluster IP is nobody else's"
    );
    // It has the port from the first packet on when it was there before.
    drop(daemon);
    let _daemon = stage.start_synced(&[])?;
    ensure!(by_node(), "{:?}", answered_by(&outside));
    Ok(())
}

#[scenario(Nft)]
fn an_address_that_comes_later_serves_node_ports() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&["--nodeport-addresses", "192.168.77.0/24"])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let to = SocketAddr::new(
        [192, 168, 77, 99].into(),
        stage.web.node_port.context("it has one")?,
    );
    let change = |verb: &str| {
        let mut command = stage.node.command("ip");
        command.args(["address", verb, "192.168.77.99/32", "dev", "eth0"]);
        let output = stage.node.output(command)?;
        ensure!(output.status.success(), "{output:?}");
        anyhow::Ok(())
    };
    let answers = || {
        stage
            .client
            .connect(Protocol::Tcp, to)
            .is_ok_and(|o| server(&o).is_some())
    };
    ensure!(!answers(), "served before it was there");
    for _ in 0..2 {
        change("add")?;
        wait_until("node ports at the new address", PATIENCE, answers)?;
        change("del")?;
        wait_until("no node ports there any more", PATIENCE, || !answers())?;
    }
    Ok(())
}

#[scenario(Nft)]
fn service_cidrs_that_come_and_go_are_followed_at_once() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let nobody = SocketAddr::new([10, 96, 5, 5].into(), 80);
    // A SYN that is sent again after a second distinguishes silence from a gateway that limits its answers.
    let comes_to = |wanted: Outcome| {
        let outcome = stage.client.connect(Protocol::Tcp, nobody);
        outcome.is_ok_and(|outcome| outcome == wanted)
    };
    for _ in 0..2 {
        wait_until("an address that nobody knows", PATIENCE, || {
            comes_to(Outcome::Unreachable)
        })?;
        let range = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR",
            "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["10.96.0.0/16"]},
        });
        stage.manifests.write_objects("ranges.yaml", &[range])?;
        wait_until("silence", PATIENCE, || comes_to(Outcome::TimedOut))?;
        stage.wait_for_backends(&stage.web, 4)?;
        stage.manifests.remove("ranges.yaml")?;
    }
    Ok(())
}

#[scenario(Nft)]
fn node_ports_on_loopback_work_without_route_localnet() -> Result<()> {
    let stage = Stage::new()?;
    let port = stage.web.node_port.context("it has one")?;
    let on_loopback = |address: IpAddr| {
        let outcome = stage.node.connect(Protocol::Tcp, (address, port));
        outcome.is_ok_and(|outcome| server(&outcome).is_some())
    };
    let loopback = [IpAddr::from([127, 0, 0, 1]), Ipv6Addr::LOCALHOST.into()];
    let daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    ensure!(!loopback.iter().any(|address| on_loopback(*address)));
    daemon.kill()?;
    let _daemon = stage.start_synced(&["--nodeport-addresses", "primary,localhost"])?;
    for address in loopback {
        wait_until("node ports on loopback", PATIENCE, || on_loopback(address))?;
    }
    let setting = || std::fs::read_to_string("/proc/sys/net/ipv4/conf/all/route_localnet");
    ensure!(
        stage.node.run(setting)??.trim() == "0",
        "route_localnet was changed"
    );
    Ok(())
}

const CHECK_PORT: u16 = 31_999;

/// Status code and JSON of `/healthz`; `None` when the port is closed.
fn ask(from: &Host, to: SocketAddr) -> Result<Option<(u16, Value)>> {
    let answer = from.http_get(to, "/healthz")?;
    let read = answer.map(|(code, body)| anyhow::Ok((code, serde_json::from_str(&body)?)));
    read.transpose()
}

/// `web` behind a load balancer, with external policy Local.
fn behind_load_balancer(port: u16) -> impl Fn(&mut Value) {
    move |object| {
        if object["kind"] == "Service" {
            object["spec"]["type"] = json!("LoadBalancer");
            object["spec"]["externalTrafficPolicy"] = json!("Local");
            object["spec"]["healthCheckNodePort"] = json!(port);
            object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}});
        }
    }
}

#[scenario(Nft)]
fn health_checks_report_ready_endpoints_of_this_node() -> Result<()> {
    let stage = Stage::new()?;
    let outside = stage.lab().client("outside")?;
    let says = |port: u16, wanted: Option<(u16, u64)>| {
        let what = format!("{wanted:?} at port {port}");
        for address in stage.node.addresses() {
            let to = SocketAddr::new(address, port);
            wait_until(&what, PATIENCE, || {
                ask(&outside, to).is_ok_and(|answer| {
                    let found = answer.map(|(code, body)| (code, body["localEndpoints"].as_u64()));
                    found == wanted.map(|(code, local)| (code, Some(local)))
                })
            })?;
        }
        anyhow::Ok(())
    };
    write(&stage, &[0, 1, 2, 3], behind_load_balancer(CHECK_PORT))?;
    let _daemon = stage.start_synced(&[])?;
    says(CHECK_PORT, Some((200, 2)))?;
    write(&stage, &[1, 2, 3], behind_load_balancer(CHECK_PORT))?;
    says(CHECK_PORT, Some((200, 1)))?;
    // Others have endpoints; here those that are left serve until they are gone, but new connections must not go to them.
    write(&stage, &[0, 1, 2, 3], |object| {
        behind_load_balancer(CHECK_PORT)(object);
        for endpoint in object["endpoints"].as_array_mut().into_iter().flatten() {
            if endpoint["nodeName"] == "node-a" {
                endpoint["conditions"] =
                    json!({"ready": false, "serving": true, "terminating": true});
            }
        }
    })?;
    says(CHECK_PORT, Some((503, 0)))?;
    let to = SocketAddr::new([203, 0, 113, 1].into(), stage.web.port);
    let tally = stage.client.connect_many(Protocol::Tcp, to, 20)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    // The port moves, and goes with the policy.
    write(&stage, &[0, 1, 2, 3], behind_load_balancer(CHECK_PORT + 1))?;
    says(CHECK_PORT + 1, Some((200, 2)))?;
    says(CHECK_PORT, None)?;
    // A node is asked at both addresses, whatever families the Service has.
    write(&stage, &[1, 2, 3], |object| {
        behind_load_balancer(CHECK_PORT + 1)(object);
        if object["kind"] == "Service" {
            let first = object["spec"]["clusterIPs"][0].clone();
            object["spec"]["clusterIPs"] = json!([first]);
            object["spec"]["ipFamilies"] = json!(["IPv4"]);
            object["spec"]["ipFamilyPolicy"] = json!("SingleStack");
        }
    })?;
    says(CHECK_PORT + 1, Some((200, 1)))?;
    write(&stage, &[0, 1, 2, 3], |_| {})?;
    says(CHECK_PORT + 1, None)?;
    write(&stage, &[0, 1, 2, 3], behind_load_balancer(CHECK_PORT))?;
    says(CHECK_PORT, Some((200, 2)))?;
    stage.manifests.remove("web.yaml")?;
    says(CHECK_PORT, None)
}

#[scenario(Nft)]
fn load_balancers_are_told_when_the_node_is_to_go() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    let to = SocketAddr::new(stage.node.ipv4().into(), 10_256);
    let outside = stage.lab().client("outside")?;
    let eligible = |wanted: bool| {
        wait_until(&format!("eligible: {wanted}"), PATIENCE, || {
            ask(&outside, to).is_ok_and(|answer| {
                answer.is_some_and(|(code, body)| {
                    (code == 200) == wanted
                        && body["nodeEligible"] == wanted
                        && body["healthy"] == true
                })
            })
        })
    };
    eligible(true)?;
    write_nodes(&stage, |node| {
        let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
        node["spec"]["taints"] = json!([taint]);
    })?;
    eligible(false)?;
    // What comes all the same is served.
    stage.wait_for_backends(&stage.web, 4)?;
    write_nodes(&stage, |_| {})?;
    eligible(true)
}

/// New connections to a frontend of `web`, as metrics tell; `None` when they are not counted.
fn counted(stage: &Stage, address: &str, port: u16) -> Result<Option<u64>> {
    let metrics = stage
        .node
        .http_get(([127, 0, 0, 1], 10_249).into(), "/metrics")?;
    let (_, metrics) = metrics.context("no metrics")?;
    let labels = format!(r#"address="{address}",port="{port}/TCP""#);
    let name = r#"portolan_service_connections_total{namespace="default",service="web","#;
    let mut lines = metrics.lines();
    let line = lines.find(|line| line.starts_with(name) && line.contains(&labels));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.map(str::parse).transpose()?)
}

#[scenario(Nft)]
fn new_connections_are_counted_for_services_that_ask_for_it() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let to = Stage::address(&stage.web)?;
    let node_port = stage.web.node_port.context("it has one")?;
    ensure!(counted(&stage, "10.96.0.80", 80)?.is_none());
    write(&stage, &[0, 1, 2, 3], |object| {
        if object["kind"] == "Service" {
            object["metadata"]["annotations"] = json!({"portolan/count-connections": "true"});
        }
    })?;
    wait_until("counters", PATIENCE, || {
        counted(&stage, "10.96.0.80", 80).is_ok_and(|count| count.is_some())
    })?;
    ensure!(counted(&stage, "", node_port)? == Some(0));
    ensure!(counted(&stage, "fd00:96::80", 80)? == Some(0));
    let tally = stage.client.connect_many(Protocol::Tcp, to, 25)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let at_node = (stage.node.ipv4(), node_port);
    let tally = stage.client.connect_many(Protocol::Tcp, at_node, 7)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    ensure!(counted(&stage, "10.96.0.80", 80)? == Some(25));
    ensure!(counted(&stage, "", node_port)? == Some(7));
    write(&stage, &[0, 1, 2, 3], |_| {})?;
    wait_until("no counters any more", PATIENCE, || {
        counted(&stage, "10.96.0.80", 80).is_ok_and(|count| count.is_none())
    })
}
