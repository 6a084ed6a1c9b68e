//! The operator's commands against a real daemon, real tables and real packets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{HEALTH_PORT, Manifests, scenario, wait_for, wait_until};
use nft::{Backend, Family, Feature, Kernel, KernelConfig, Operation, Table, Transaction};
use portolan_tests::cluster::{Generator, Space};
use portolan_tests::commands::{document, run};
use portolan_tests::differential::portolan_flags;
use portolan_tests::field::Field;
use portolan_tests::oracle::{Expected, Packet, outcome};
use portolan_tests::stage::{PATIENCE, Stage, has, portolan, service};
use portolan_tests::{number_from_env, oracle, packets};
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use service_dataplane::layout;

const NODES: u8 = 2;
const PODS: u8 = 6;
const PORTS: [u16; 3] = [8080, 8443, 53];
/// Packets of a cluster that are traced and sent.
const PACKETS: usize = 40;
/// Of these, packets of each kind without an answer.
const SILENT: usize = 3;

/// The verdict of a trace in the reference model's terms.
fn traced(trace: &Value) -> Result<Expected> {
    Ok(match trace["verdict"].as_str() {
        Some("untouched") => Expected::NotOurs,
        Some("refused") => Expected::Refused,
        Some("dropped") => Expected::Dropped,
        Some("balanced") => {
            let endpoints = trace["endpoints"].as_array().context("no endpoints")?;
            let eligible = endpoints
                .iter()
                .filter(|endpoint| endpoint["eligible"] == true);
            let targets = eligible.map(|endpoint| {
                let address: SocketAddr = endpoint["address"]
                    .as_str()
                    .context("no address")?
                    .parse()?;
                Ok((address, !endpoint["masquerade"].is_null()))
            });
            Expected::Balanced(targets.collect::<Result<_>>()?)
        }
        other => anyhow::bail!("verdict {other:?}"),
    })
}

/// `portolan trace` for a packet.
fn trace(node: &lab::Node, packet: &Packet) -> Result<Value> {
    let oracle::Protocol::Transport(transport) = packet.protocol else {
        anyhow::bail!("ICMP is not traced")
    };
    let to = SocketAddr::new(packet.destination, packet.port);
    let to = format!("{to}/{}", transport.name().to_lowercase());
    let from = packet.source.to_string();
    let (trace, code) = document(node, &["trace", "--from", &from, "--to", &to])?;
    let is_answered = matches!(trace["verdict"].as_str(), Some("balanced" | "untouched"));
    ensure!(
        code == i32::from(!is_answered),
        "exit code {code} of {trace:#}"
    );
    Ok(trace)
}

/// Traces and sends packets on random clusters. `PORTOLAN_TRACES` says on how many (25 are 1,000 packets), `PORTOLAN_SEED`
/// where to begin.
#[scenario(Nft)]
fn traces_on_random_clusters_agree_with_real_packets() -> Result<()> {
    let seed = number_from_env("PORTOLAN_SEED", 1);
    let clusters = number_from_env("PORTOLAN_TRACES", 5);
    let client_pod = 2 + PODS;
    let field = Field::new(NODES, client_pod, &PORTS)?;
    let mut generator = Generator::in_space(seed, Space::real(NODES, PODS, PORTS.to_vec()));
    let (mut compared, mut balanced) = (0, 0);
    for number in 0..clusters {
        let cluster = generator.cluster();
        let node = &cluster.nodes[0];
        let machine = field.machine(&node.name)?;
        field.lead_client_to(machine)?;
        let manifests = Manifests::new()?;
        manifests.write("cluster.yaml", &cluster.to_manifests())?;
        let mut command = machine.command(portolan()?);
        let folder = format!("--manifests={}", manifests.path().display());
        command
            .arg("run")
            .arg(folder)
            .args(portolan_flags(&cluster, node));
        let daemon = machine.spawn("portolan", command)?;
        machine.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        let mut packets = packets::interesting(&cluster, node, client_pod);
        packets.shuffle(generator.rng());
        let (mut passing, mut dropping) = (0, 0);
        let mut sent = 0;
        for packet in packets {
            let expected = outcome(&cluster, node, &packet);
            passing += usize::from(expected == Expected::NotOurs);
            dropping += usize::from(expected == Expected::Dropped);
            let is_worth_it = match expected {
                Expected::NotOurs => passing <= SILENT,
                Expected::Dropped => dropping <= SILENT,
                _ => true,
            };
            if sent == PACKETS || !is_worth_it || !field.can_send(node, &packet, &expected) {
                continue;
            }
            let trace = trace(machine, &packet)?;
            let traced = traced(&trace)?;
            balanced += usize::from(matches!(traced, Expected::Balanced(_)));
            if let Err(error) = field.check_once(node, &packet, &traced) {
                panic!(
                    "{}PORTOLAN_SEED={seed}, cluster {number}: {packet}\n{trace:#}\n  got: {error:#}",
                    cluster.to_manifests()
                );
            }
            sent += 1;
        }
        compared += sent;
        daemon.kill()?;
        let removed = run(machine, &["cleanup"])?;
        ensure!(removed.code == 0, "{}", removed.stderr);
    }
    println!(
        "{compared} packets on {clusters} clusters from seed {seed}, {balanced} balanced, 0 differences"
    );
    ensure!(compared as u64 >= 20 * clusters && balanced as u64 >= 8 * clusters);
    Ok(())
}

#[scenario(Nft)]
fn status_says_what_is_wrong_and_waits_until_it_is_not() -> Result<()> {
    let stage = Stage::new()?;
    let node = &stage.node;
    let without = run(node, &["status"])?;
    ensure!(
        without.code == 2 && without.stderr.lines().count() == 1,
        "{without:?}"
    );
    ensure!(
        without.stderr.contains("no portolan daemon answers"),
        "{without:?}"
    );
    // Two faults: an object that cannot be used, and a contested address.
    let mut bad = service("bad", 90).object();
    bad["spec"]["clusterIPs"] = json!(["10.96.0.300"]);
    bad["spec"]["clusterIP"] = "10.96.0.300".into();
    stage.manifests.write_objects("bad.yaml", &[bad])?;
    for (name, n) in [("first", 91), ("second", 92)] {
        let mut object = service(name, n).object();
        object["spec"]["externalIPs"] = json!(["203.0.113.7"]);
        stage
            .manifests
            .write_objects(&format!("{name}.yaml"), &[object])?;
    }
    let _daemon = stage.start(&[])?;
    let waited = run(node, &["status", "--wait", "--timeout=60"])?;
    ensure!(waited.code == 0, "{waited:?}");
    ensure!(waited.stdout.contains("10.96.0.300"), "{}", waited.stdout);
    let (status, code) = document(node, &["status"])?;
    ensure!(code == 0 && status["state"] == "ok", "{status:#}");
    ensure!(status["services"]["services"] == 3, "{status:#}");
    ensure!(status["services"]["endpoints"] == 8, "{status:#}");
    ensure!(status["ignored_count"] == 1, "{status:#}");
    let conflict = status["conflicts"][0].as_str().unwrap_or_default();
    ensure!(
        conflict
            == "external IP 203.0.113.7, port 80/TCP: default/first has it, default/second does not",
        "{status:#}"
    );
    let before = status["services"]["commits"].as_u64();
    stage.add(&stage.web, 0..3)?;
    wait_until("another commit in the status", PATIENCE, || {
        let status = document(node, &["status"]).map(|(status, _)| status);
        status.is_ok_and(|status| {
            status["services"]["commits"].as_u64() > before && status["services"]["endpoints"] == 6
        })
    })
}

#[scenario(Nft)]
fn status_counts_a_repair_of_a_foreign_change() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&["--no-table-owner"])?;
    let (before, _) = document(&stage.node, &["status"])?;
    ensure!(before["services"]["repairs"] == 0, "{before:#}");
    stage.node.nft(&["flush", "ruleset"])?;
    wait_until("the repair in the status", PATIENCE, || {
        let status = document(&stage.node, &["status"]).map(|(status, _)| status);
        status.is_ok_and(|status| status["services"]["repairs"].as_u64() > Some(0))
    })
}

#[scenario(Nft)]
fn services_show_endpoints_reasons_and_connections() -> Result<()> {
    let stage = Stage::new()?;
    // The second pod is not ready.
    let mut objects = stage.objects(&stage.web, 0..4);
    for object in objects
        .iter_mut()
        .filter(|object| object["kind"] == "EndpointSlice")
    {
        object["endpoints"][1]["conditions"] = json!({"ready": false});
    }
    stage.manifests.write_objects("web.yaml", &objects)?;
    let _daemon = stage.start_synced(&[])?;
    let held = 5;
    let to = Stage::address(&stage.web)?;
    let connections = stage.client.hold(to, held, Duration::from_secs(1))?;
    let (all, code) = document(&stage.node, &["services"])?;
    ensure!(
        code == 0 && all["services"][0]["name"] == "default/web",
        "{all:#}"
    );
    ensure!(all["services"][0]["used_count"] == 6, "{all:#}");
    let (one, _) = document(&stage.node, &["services", "web"])?;
    let service = &one["services"][0];
    ensure!(service["traffic"]["connections"] == held, "{one:#}");
    let endpoints = service["endpoints"].as_array().context("no endpoints")?;
    ensure!(endpoints.len() == 8, "{one:#}");
    let unready: Vec<&Value> = endpoints
        .iter()
        .filter(|one| one["used"] == false)
        .collect();
    ensure!(unready.len() == 2, "{one:#}");
    ensure!(
        unready
            .iter()
            .all(|one| one["reason"] == "not ready" && one["node"] == "node-b"),
        "{one:#}"
    );
    let counted: u64 = endpoints
        .iter()
        .filter_map(|one| one["traffic"]["connections"].as_u64())
        .sum();
    ensure!(counted == held as u64, "{one:#}");
    let text = run(&stage.node, &["services", "default/web"])?;
    ensure!(
        text.stdout.contains("no: not ready") && !text.stdout.contains('\u{1b}'),
        "{text:?}"
    );
    let none = run(&stage.node, &["services", "nothing"])?;
    ensure!(
        none.code == 2 && none.stderr.contains("no Service is called nothing"),
        "{none:?}"
    );
    drop(connections);
    Ok(())
}

/// Another program replaces a table by one that only that program may change, and goes.
#[scenario(Nft)]
fn verify_names_what_a_table_lacks_until_it_is_repaired() -> Result<()> {
    if !has(Feature::TablePersist)? {
        return Ok(());
    }
    let stage = Stage::new()?;
    let node = &stage.node;
    let _daemon = stage.start_synced(&["--no-table-owner"])?;
    let same = run(node, &["verify"])?;
    ensure!(same.code == 0, "{same:?}");
    let thief = node.run(|| {
        let mut kernel = Kernel::open(KernelConfig {
            table: layout::TABLE.into(),
            owner: true,
        })?;
        let empty = Table {
            family: Family::Ip,
            name: layout::TABLE.into(),
            comment: "".into(),
        };
        let mut transaction = Transaction::new();
        transaction.push(Family::Ip, Operation::DeleteTable);
        transaction.push(Family::Ip, Operation::AddTable(empty));
        kernel.commit(&transaction)?;
        anyhow::Ok(kernel)
    })??;
    let (found, code) = document(node, &["verify"])?;
    ensure!(code == 1, "{found:#}");
    let text = run(node, &["verify"])?;
    ensure!(
        text.code == 1 && text.stdout.contains("add set ip cluster_ips"),
        "{text:?}"
    );
    drop(thief);
    wait_for("the repaired table", PATIENCE, || {
        let (found, code) = document(node, &["verify"])?;
        ensure!(code == 0 && found["difference_count"] == 0, "{found:#}");
        Ok(())
    })?;
    Ok(())
}

#[scenario(Nft)]
fn live_tables_are_printed_as_nft_prints_them() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&["--no-table-owner"])?;
    for family in ["ip", "ip6"] {
        let live = run(&stage.node, &["render", "--live", "--family", family])?;
        let printed = stage.node.nft(&["list", "table", family, "portolan"])?;
        ensure!(live.code == 0, "{live:?}");
        let (ours, theirs) = (words(&live.stdout), words(&printed));
        ensure!(ours == theirs, "{}\n{printed}", live.stdout);
    }
    let elsewhere = stage.lab().node("node-c")?;
    let none = run(&elsewhere, &["render", "--live"])?;
    ensure!(none.code == 1 && none.stdout.is_empty(), "{none:?}");
    Ok(())
}

/// All words, sorted: the order of chains and elements is the kernel's.
fn words(text: &str) -> Vec<&str> {
    let mut words: Vec<&str> = text.split_whitespace().collect();
    words.sort_unstable();
    words
}

#[scenario(Nft)]
fn other_users_and_other_namespaces_get_one_clear_line() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    let mut command = stage.node.command(portolan()?);
    command.arg("status").uid(65_534).gid(65_534);
    let output = stage.node.output(command)?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{text}");
    ensure!(text.lines().count() == 1 && text.contains("root"), "{text}");
    let elsewhere = stage.lab().node("node-c")?;
    let ran = run(&elsewhere, &["services"])?;
    ensure!(ran.code == 2 && ran.stderr.lines().count() == 1, "{ran:?}");
    Ok(())
}

#[scenario(Nft)]
fn a_live_trace_agrees_with_the_plan_and_names_droppers() -> Result<()> {
    if !has(Feature::TableOwner)? {
        return Ok(());
    }
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let (client, to) = (stage.client.ipv4().to_string(), Stage::address(&stage.web)?);
    let arguments = |from: &str, to: &str| -> Vec<String> {
        let words = [
            "trace",
            "--live",
            "--output=json",
            "--from",
            from,
            "--to",
            to,
        ];
        words.map(str::to_owned).to_vec()
    };
    let trace = |from: &str, to: &str| -> Result<(Value, i32)> {
        let arguments = arguments(from, to);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ran = run(&stage.node, &arguments)?;
        let document = serde_json::from_str(&ran.stdout).with_context(|| ran.stderr.clone());
        Ok((document?, ran.code))
    };
    // A client whose packets come again and again, until one is traced.
    let (document, code) = std::thread::scope(|scope| {
        let traced = scope.spawn(|| trace(&client, &to.to_string()));
        while !traced.is_finished() {
            let _ = stage.connect(&stage.client, &stage.web);
        }
        traced.join().ok().context("the trace panicked")?
    })?;
    let live = &document["live"];
    ensure!(code == 0 && live["is_dropped"] == false, "{document}");
    ensure!(
        live["steps"]
            .as_array()
            .is_some_and(|steps| steps.len() > 2),
        "{document}"
    );
    // Sent from the node itself.
    let (document, code) = trace("node", &to.to_string())?;
    let live = &document["live"];
    ensure!(code == 0 && live["agrees"] == true, "{document}");
    let endpoint = live["endpoint"].as_str().context("no endpoint")?;
    let known = stage.pods.iter().map(|pod| format!("{}:8080", pod.ipv4()));
    ensure!(known.into_iter().any(|pod| pod == endpoint), "{document}");
    // Another program's rule: the daemon cannot know it, and the kernel names it.
    stage.node.nft_stdin(
        "table ip wall { chain out { type filter hook output priority 0; ip daddr 10.244.0.0/16 tcp dport 8080 drop; }\n}",
    )?;
    let (document, code) = trace("node", &to.to_string())?;
    let live = &document["live"];
    ensure!(code == 1 && live["agrees"] == false, "{document}");
    ensure!(
        live["text"]
            .as_str()
            .is_some_and(|text| text.contains("ip wall, chain out")),
        "{document}"
    );
    Ok(())
}

#[scenario(Nft)]
fn a_command_changes_the_log_level_of_a_running_daemon() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&[])?;
    let ask = |arguments: &[&str]| run(&stage.node, arguments);
    let ran = ask(&["log-level"])?;
    ensure!(ran.code == 0 && ran.stdout.trim() == "info", "{ran:?}");
    let has_debug = || daemon.lines().iter().any(|line| line.contains("DEBUG"));
    ensure!(!has_debug());
    for (level, expected) in [("6", "trace"), ("portolan=debug", "portolan=debug")] {
        let ran = ask(&["log-level", level])?;
        ensure!(ran.code == 0 && ran.stdout.contains(expected), "{ran:?}");
    }
    stage.add(&service("other", 91), 0..2)?;
    stage.wait_for_backends(&service("other", 91), 2)?;
    wait_until("a line at debug", PATIENCE, has_debug)?;
    for level in ["portolan=loud", "warning"] {
        let ran = ask(&["log-level", level])?;
        ensure!(ran.code == 2 && ran.stderr.lines().count() == 1, "{ran:?}");
    }
    let (document, _) = document(&stage.node, &["log-level", "warn"])?;
    ensure!(document["level"] == "warn", "{document}");
    Ok(())
}

#[scenario(Nft)]
fn a_put_as_to_kube_proxy_changes_the_log_level() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&["--profiling"])?;
    let put = |body: &str| -> Result<String> {
        let length = body.len();
        let request = format!(
            "PUT /debug/flags/v HTTP/1.0\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stage.node.run(move || -> Result<String> {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 10_249))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    };
    let answer = put("4")?;
    let is_done = answer.starts_with("HTTP/1.0 200")
        && answer.ends_with("\r\n\r\nsuccessfully set klog.logging.verbosity to 4\n");
    ensure!(is_done, "{answer}");
    stage.add(&service("other", 91), 0..2)?;
    let has_debug = || daemon.lines().iter().any(|line| line.contains("DEBUG"));
    wait_until("a line at debug", PATIENCE, has_debug)?;
    let answer = put("debug")?;
    ensure!(answer.starts_with("HTTP/1.0 400"), "{answer}");
    ensure!(put("2")?.starts_with("HTTP/1.0 200"));
    let level = run(&stage.node, &["log-level"])?;
    ensure!(level.stdout.trim() == "info", "{level:?}");
    Ok(())
}

/// kubectl is a program that runs `exec` here: what a pod of the node's network namespace would do.
#[scenario(Nft)]
fn the_kubectl_plugin_asks_all_nodes_and_one() -> Result<()> {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    let folder = tempfile::tempdir()?;
    let program = portolan()?.display();
    let pods = |phase: &str, nodes: &[&str]| {
        let pod = |node| json!({"metadata": {"name": format!("pod-{node}")}, "spec": {"nodeName": node}, "status": {"phase": phase}});
        json!({"items": nodes.iter().map(pod).collect::<Vec<_>>()}).to_string()
    };
    let running = |nodes: &[&str]| pods("Running", nodes);
    let (all, one) = (running(&["node-a", "node-long"]), running(&["node-a"]));
    let (pending, broken) = (pods("Pending", &["node-b"]), running(&["node-c"]));
    let script = format!(
        "#!/bin/sh\nnamespace=$1; shift\n[ $namespace = --namespace=kube-system ] || exit 9\n\
         case \"$*\" in\n'get pods'*nodeName=node-a*) echo '{one}';;\n'get pods'*nodeName=node-b*) echo '{pending}';;\n\
         'get pods'*nodeName=node-c*) echo '{broken}';;\n'get pods'*) echo '{all}';;\n\
         'exec pod-node-c'*) printf 'error: \\033[2Jcontainer not found\\n' >&2; exit 1;;\n\
         exec*) while [ $1 != -- ]; do shift; done; shift 2; {program} \"$@\"; code=$?\n\
         [ $code = 0 ] || echo \"command terminated with exit code $code\" >&2; exit $code;;\nesac\n"
    );
    let kubectl = folder.path().join("kubectl");
    std::fs::write(&kubectl, script)?;
    std::fs::set_permissions(&kubectl, std::fs::Permissions::from_mode(0o755))?;
    let plugin = folder.path().join("kubectl-portolan");
    symlink(portolan()?, &plugin)?;
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let ask = |arguments: &[&str]| -> Result<(i32, String, String)> {
        let mut command = stage.node.command(&plugin);
        command.args(arguments).env("PATH", &path);
        let output = stage.node.output(command)?;
        let code = output.status.code().context("ended by a signal")?;
        let text = |bytes| String::from_utf8(bytes).context("not text");
        Ok((code, text(output.stdout)?, text(output.stderr)?))
    };
    let (code, text, errors) = ask(&["services"])?;
    ensure!(code == 0, "{text}{errors}");
    for start in ["node-a     ", "node-long  "] {
        let mut lines = text.lines().filter(|line| line.starts_with(start));
        ensure!(lines.any(|line| line.contains("default/web")), "{text}");
    }
    let (code, text, _) = ask(&["--node", "node-a", "status", "--output", "json"])?;
    let documents: Vec<Value> = text
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    ensure!(code == 0 && documents.len() == 1, "{text}");
    ensure!(documents[0]["state"] == "ok", "{text}");
    let (code, _, errors) = ask(&["services", "nothing"])?;
    // kubectl adds a line.
    ensure!(code == 2 && errors.lines().count() == 4, "{code} {errors}");
    let refused = ["trace", "--from=node", "--to=10.96.0.80:81"];
    let (code, text, errors) = ask(&[&["--node", "node-a"][..], &refused].concat())?;
    ensure!(code == 1, "{code} {text}{errors}");
    // Nodes that cannot be asked.
    for (node, line) in [
        ("node-b", "node-b  not asked: Pending"),
        ("node-c", "node-c  error: \\u{1b}[2Jcontainer not found"),
    ] {
        let (code, text, errors) = ask(&["--node", node, "status"])?;
        let is_told = text.is_empty() && errors.trim_end() == line;
        ensure!(code == 2 && is_told, "{code} {text}{errors:?}");
    }
    let (code, _, errors) = ask(&["cleanup"])?;
    ensure!(code == 2 && errors.lines().count() == 1, "{code} {errors}");
    Ok(())
}

/// The page shows rules of the objects that it shows.
#[test]
fn a_packets_way_is_in_the_rendered_table() -> Result<()> {
    let page = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/packet.md");
    let page = std::fs::read_to_string(page)?;
    let blocks = |kind: &str| -> Vec<String> {
        let start = format!("```{kind}\n");
        let blocks = page.split(start.as_str()).skip(1);
        blocks
            .filter_map(|block| block.split("```").next())
            .map(str::to_owned)
            .collect()
    };
    let manifests = Manifests::new()?;
    let objects = blocks("yaml");
    ensure!(objects.len() == 1, "{objects:?}");
    manifests.write("page.yaml", &objects[0])?;
    let output = std::process::Command::new(portolan()?)
        .args(["render", "--family=ip", "--hostname-override=node-a"])
        .args([
            "--cluster-cidr=10.244.0.0/16",
            "--interface-addresses=192.168.1.10",
        ])
        .arg(format!("--manifests={}", manifests.path().display()))
        .output()?;
    let table = String::from_utf8(output.stdout)?;
    let rules = blocks("nft").join("");
    ensure!(rules.lines().count() > 15, "{rules}");
    for line in rules.lines() {
        ensure!(
            table.lines().any(|rendered| rendered.trim() == line.trim()),
            "not rendered: {line}"
        );
    }
    Ok(())
}
