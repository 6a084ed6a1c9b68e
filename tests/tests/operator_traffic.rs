//! What commands say about traffic, against traffic that is counted elsewhere; and the archive for bug reports.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Host, Probe, Protocol, scenario, wait_for, wait_until};
use netfilter::{Conntrack, FlowFilter};
use nft::Family;
use portolan_tests::commands::{document, run};
use portolan_tests::stage::{PATIENCE, Stage, portolan, service};
use serde_json::{Value, json};

/// Counts the packets of the client to Services and back, in the client's own namespace.
const COUNTERS: &str = "table ip counted {
  counter sent { }
  counter received { }
  chain output { type filter hook output priority 0; ip daddr 10.96.0.80 counter name sent; }
  chain input { type filter hook input priority 0; ip saddr 10.96.0.80 counter name received; }
}";
/// Counts the packets of an endpoint of `web`, in its own namespace.
const ENDPOINT_COUNTERS: &str = "table ip counted {
  counter sent { }
  counter received { }
  chain output { type filter hook output priority 0; tcp sport 8080 counter name sent; }
  chain input { type filter hook input priority 0; tcp dport 8080 counter name received; }
}";
/// The largest error of a measurement, in thousandths.
const TOLERANCE: u64 = 10;

/// The bytes of a counter in a namespace.
fn counted(host: &Host, name: &str) -> Result<u64> {
    let text = host.nft(&["list", "counter", "ip", "counted", name])?;
    let bytes = text.split("bytes").nth(1).context("no bytes")?;
    let number = bytes.split_whitespace().next().context("no number")?;
    Ok(number.parse()?)
}

/// The bytes of all counters in a namespace.
fn all_counted(host: &Host) -> Result<u64> {
    Ok(counted(host, "sent")? + counted(host, "received")?)
}

/// The bytes that each endpoint of `web` has counted, by its address and port.
fn counted_by_endpoints(stage: &Stage) -> Result<BTreeMap<String, u64>> {
    let pods = stage.pods.iter();
    pods.map(|pod| Ok((format!("{}:8080", pod.ipv4()), all_counted(pod)?)))
        .collect()
}

fn is_close(measured: u64, counted: u64) -> bool {
    counted > 0 && measured.abs_diff(counted) * 1000 <= counted * TOLERANCE
}

/// Sum of the bytes of each endpoint in the lines that `services NAME --top` has printed.
fn measured_by_endpoints(lines: &[String]) -> Result<BTreeMap<String, f64>> {
    let mut sums: BTreeMap<String, f64> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.starts_with('{')) {
        let top: Value = serde_json::from_str(line)?;
        let elapsed = top["elapsed_seconds"].as_f64().context("no time")?;
        let endpoints = top["services"][0]["endpoints"].as_array();
        for endpoint in endpoints.into_iter().flatten() {
            let address = endpoint["address"].as_str().context("no address")?;
            let rate = endpoint["bytes_per_second"].as_f64().context("no rate")?;
            *sums.entry(address.to_owned()).or_default() += elapsed * rate;
        }
    }
    Ok(sums)
}

/// Sum of the bytes of a Service in the lines that `services --top` has printed.
fn measured(lines: &[String], service: &str) -> Result<f64> {
    let mut sum = 0.0;
    for line in lines.iter().filter(|line| line.starts_with('{')) {
        let top: Value = serde_json::from_str(line)?;
        let elapsed = top["elapsed_seconds"].as_f64().context("no time")?;
        let rates = top["services"].as_array().context("no Services")?;
        let rate = rates.iter().find(|rate| rate["service"] == service);
        let rate = rate.and_then(|rate| rate["bytes_per_second"].as_f64());
        sum += elapsed * rate.unwrap_or_default();
    }
    Ok(sum)
}

#[scenario(Nft)]
fn services_top_is_within_a_hundredth_of_counted_bytes() -> Result<()> {
    let stage = Stage::new()?;
    // Before the first connection: an entry counts if this was set when it began. Entries of ended connections stay even if this
    // machine stands still for a while.
    stage.node.run(|| {
        fs::write("/proc/sys/net/netfilter/nf_conntrack_acct", "1")?;
        fs::write(
            "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close",
            "600",
        )
    })??;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let start_top = |arguments: &[&str]| {
        let mut command = stage.node.command(portolan()?);
        command.args(arguments).args(["--output", "json"]);
        stage.node.spawn("top", command)
    };
    let top = start_top(&["services", "--top"])?;
    let named = start_top(&["services", "web", "--top"])?;
    wait_until("the first measurements", PATIENCE, || {
        top.lines().len() > 1 && named.lines().len() > 1
    })?;
    let before = measured(&top.lines(), "default/web")?;
    let endpoints_before = measured_by_endpoints(&named.lines())?;
    stage.client.nft_stdin(COUNTERS)?;
    for pod in &stage.pods {
        pod.nft_stdin(ENDPOINT_COUNTERS)?;
    }
    let to = Stage::address(&stage.web)?;
    // Connections that last, and connections that end between two questions.
    let held = stage.client.hold(to, 8, Duration::from_millis(5))?;
    // Each has a port of its own. The kernel's choice repeats soon, since it is shared with all namespaces that have the same
    // addresses; and a port that is used again replaces the entry of a connection that was reset, with its bytes.
    for port in 20_000..20_500 {
        let outcome = stage
            .client
            .probe(Probe::new(Protocol::Tcp, to).from_port(port))?;
        ensure!(outcome.server().is_some(), "{outcome:?}");
    }
    drop(held);
    let mut last = (0, 0.0);
    wait_until("the last bytes to be measured", PATIENCE, || {
        let all = all_counted(&stage.client).unwrap_or(0);
        let seen = measured(&top.lines(), "default/web").unwrap_or_default() - before;
        let is_quiet = all == last.0 && all > 0;
        last = (all, seen);
        is_quiet && (seen - all as f64).abs() * 1000.0 <= (all * TOLERANCE) as f64
    })
    .with_context(|| {
        let said = top.lines();
        let said = said.iter().rev().take(3).collect::<Vec<_>>();
        format!("counted {}, measured {}: {said:?}", last.0, last.1)
    })?;
    println!("counted {} bytes, measured {:.0}", last.0, last.1);
    let counted = counted_by_endpoints(&stage)?;
    wait_for("the last bytes of each endpoint", PATIENCE, || {
        let all = measured_by_endpoints(&named.lines())?;
        for (endpoint, counted) in &counted {
            let measured = |all: &BTreeMap<_, f64>| all.get(endpoint).copied().unwrap_or_default();
            let since = measured(&all) - measured(&endpoints_before);
            println!("{endpoint}: counted {counted} bytes, measured {since:.0}");
            ensure!(is_close(since.round() as u64, *counted), "{endpoint}");
        }
        Ok(())
    })
}

/// The metrics of the node under test.
fn metrics(stage: &Stage) -> Result<String> {
    let answer = stage
        .node
        .http_get(([127, 0, 0, 1], 10_249).into(), "/metrics")?;
    Ok(answer.context("the metrics port refuses")?.1)
}

/// A metric of the Service `web`, port 80; 0 while there is none.
fn of_web(metrics: &str, name: &str) -> Result<u64> {
    let start = format!("{name}{{namespace=\"default\",service=\"web\",port=\"80/TCP\"}} ");
    let mut lines = metrics.lines();
    let number = lines.find_map(|line| line.strip_prefix(&start));
    number.map_or(Ok(0), |number| Ok(number.parse()?))
}

/// A metric of each endpoint of the Service `web`, by address and port.
fn of_endpoints(metrics: &str, name: &str) -> Result<BTreeMap<String, u64>> {
    let start =
        format!("{name}{{namespace=\"default\",service=\"web\",port=\"80/TCP\",endpoint=\"");
    let lines = metrics.lines();
    let found = lines.filter_map(|line| line.strip_prefix(&start)?.split_once("\"} "));
    found
        .map(|(endpoint, number)| Ok((endpoint.to_owned(), number.parse()?)))
        .collect()
}

#[scenario(Nft)]
fn traffic_metrics_are_within_a_hundredth_of_counted_bytes() -> Result<()> {
    let stage = Stage::new()?;
    let mut objects = stage.objects(&stage.web, 0..4);
    let annotations = json!({ "portolan/count-connections": "true" });
    objects[0]["metadata"]["annotations"] = annotations;
    stage.manifests.write_objects("web.yaml", &objects)?;
    let _daemon = stage.start_synced(&["--service-traffic=on"])?;
    stage.wait_for_backends(&stage.web, 4)?;
    let end_all = || -> Result<usize> {
        stage.node.run(|| -> Result<usize> {
            let mut conntrack = Conntrack::open()?;
            let all = FlowFilter::all(Family::Ip, nft::Protocol::Tcp);
            Ok(conntrack.delete(&all, |_| true)?)
        })?
    };
    // Those of the start count or not, depending on the first listing.
    end_all()?;
    wait_until(
        "the connections of the start to be counted",
        PATIENCE,
        || {
            let before = metrics(&stage);
            before.is_ok_and(|before| before.contains("\nportolan_service_bytes_total{"))
        },
    )?;
    let before = metrics(&stage)?;
    stage.client.nft_stdin(COUNTERS)?;
    for pod in &stage.pods {
        pod.nft_stdin(ENDPOINT_COUNTERS)?;
    }
    let to = Stage::address(&stage.web)?;
    let connections = 200;
    let tally = stage.client.connect_many(Protocol::Tcp, to, connections)?;
    ensure!(tally.failed() == 0, "{tally:?}");
    let all = all_counted(&stage.client)?;
    end_all()?;
    let since = |name| -> Result<u64> {
        Ok(of_web(&metrics(&stage)?, name)?.saturating_sub(of_web(&before, name)?))
    };
    wait_until("the connections to be counted", PATIENCE, || {
        since("portolan_service_flows_total").is_ok_and(|flows| flows >= connections as u64)
    })?;
    let (flows, bytes) = (
        since("portolan_service_flows_total")?,
        since("portolan_service_bytes_total")?,
    );
    ensure!(flows == connections as u64, "{flows} flows");
    ensure!(is_close(bytes, all), "counted {all}, measured {bytes}");
    println!("counted {all} bytes, measured {bytes}");
    let name = "portolan_service_endpoint_bytes_total";
    let (after, before) = (
        of_endpoints(&metrics(&stage)?, name)?,
        of_endpoints(&before, name)?,
    );
    for (endpoint, counted) in counted_by_endpoints(&stage)? {
        let measured = |all: &BTreeMap<_, u64>| all.get(&endpoint).copied().unwrap_or_default();
        let since = measured(&after) - measured(&before);
        println!("{endpoint}: counted {counted} bytes, measured {since}");
        ensure!(is_close(since, counted), "{endpoint}");
    }
    let lost = "portolan_service_traffic_losses_total 0";
    ensure!(metrics(&stage)?.contains(lost), "lost");
    Ok(())
}

#[scenario(Nft)]
fn the_page_is_for_this_node_only() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start_synced(&["--metrics-bind-address=0.0.0.0:10249"])?;
    let here = |path: &str| -> Result<(u16, String)> {
        let answer = stage.node.http_get(([127, 0, 0, 1], 10_249).into(), path)?;
        answer.context("the metrics port refuses")
    };
    let (code, page) = here("/")?;
    ensure!(code == 200 && page.starts_with("<!doctype html>"), "{code}");
    ensure!(
        !page.contains("http://") || !page.contains("src="),
        "the page loads something"
    );
    let (code, text) = here("/v1/services?measure=1")?;
    let services: Value = serde_json::from_str(&text)?;
    ensure!(
        code == 200 && services["services"][0]["name"] == "default/web",
        "{text}"
    );
    for path in ["/v1/status", "/v1/flows"] {
        let (code, text) = here(path)?;
        let document: Value = serde_json::from_str(&text)?;
        ensure!(code == 200 && document["node"] == "node-a", "{text}");
    }
    let (code, text) = here("/v1/services?name=nothing")?;
    ensure!(
        code == 400 && text.contains("no Service is called nothing"),
        "{code} {text}"
    );
    let node = SocketAddr::new(stage.node.ipv4().into(), 10_249);
    let from_pod = |path: &str| -> Result<(u16, String)> {
        let answer = stage.client.http_get(node, path)?;
        answer.context("the metrics port refuses")
    };
    for path in ["/", "/v1/services", "/v1/flows"] {
        let (code, text) = from_pod(path)?;
        ensure!(
            code == 403 && !text.contains("default/web"),
            "{path}: {text}"
        );
    }
    ensure!(from_pod("/metrics")?.0 == 200);
    drop(daemon);
    let off = stage.start_synced(&["--page=off"])?;
    let (code, _) = here("/")?;
    ensure!(code == 404, "{code}");
    drop(off);
    Ok(())
}

#[scenario(Nft)]
fn flows_have_names_and_new_ones_are_followed() -> Result<()> {
    let stage = Stage::new()?;
    let other = service("other", 91);
    stage.add(&other, 0..2)?;
    let _daemon = stage.start_synced(&[])?;
    stage.wait_for_backends(&other, 2)?;
    let to_web = Stage::address(&stage.web)?;
    let held = stage.client.hold(to_web, 3, Duration::from_secs(1))?;
    let listed = run(&stage.node, &["flows", "--service=web", "--output=json"])?;
    ensure!(listed.code == 0, "{listed:?}");
    let lines = listed.stdout.lines();
    let flows: Vec<Value> = lines.map(serde_json::from_str).collect::<Result<_, _>>()?;
    ensure!(flows.len() == 3, "{}", listed.stdout);
    for flow in &flows {
        ensure!(
            flow["service"] == "default/web" && flow["answered"] == true,
            "{flow}"
        );
        let node = flow["endpoint_node"].as_str();
        ensure!(matches!(node, Some("node-a" | "node-b")), "{flow}");
        let address = flow["endpoint"].as_str().unwrap_or_default();
        let pod = stage
            .pods
            .iter()
            .find(|pod| address.starts_with(&format!("{}:", pod.ipv4())));
        let pod = pod.context("an endpoint that is no pod")?;
        ensure!(
            flow["endpoint_pod"] == format!("default/{}", pod.name()),
            "{flow}"
        );
        // The client is no endpoint of any Service.
        ensure!(flow["from_pod"].is_null(), "{flow}");
    }
    let mut command = stage.node.command(portolan()?);
    command.args([
        "flows",
        "--follow",
        "--service",
        "default/other",
        "--output",
        "json",
    ]);
    let follower = stage.node.spawn("flows", command)?;
    wait_until("a new flow to be followed", PATIENCE, || {
        let connected = stage.connect(&stage.client, &other).is_ok();
        connected
            && follower
                .lines()
                .iter()
                .filter(|line| line.contains("default/other"))
                .count()
                > 3
    })?;
    ensure!(
        follower
            .lines()
            .iter()
            .all(|line| !line.contains("\"service\":\"default/web\"")),
        "{:?}",
        follower.lines()
    );
    drop(held);
    // A client that is an endpoint has a name.
    ensure!(
        stage
            .connect(&stage.pods[0], &stage.web)?
            .server()
            .is_some()
    );
    let listed = run(&stage.node, &["flows", "--service=web", "--output=json"])?;
    let is_named = listed.stdout.contains("\"from_pod\":\"default/web-0\"");
    ensure!(is_named, "{}", listed.stdout);
    Ok(())
}

#[scenario(Nft)]
fn endpoints_and_clients_have_the_names_of_their_pods() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start_synced(&[])?;
    let (services, _) = document(&stage.node, &["services", "web"])?;
    let endpoints = services["services"][0]["endpoints"].as_array();
    let endpoints = endpoints.context("no endpoints")?;
    ensure!(endpoints.len() == 8, "{services}");
    for endpoint in endpoints {
        let address: SocketAddr = endpoint["address"]
            .as_str()
            .context("no address")?
            .parse()?;
        let mut pods = stage.pods.iter();
        let pod = pods.find(|pod| pod.addresses().contains(&address.ip()));
        let name = format!("default/{}", pod.context("no such pod")?.name());
        let zone = format!("zone-of-{}", endpoint["node"].as_str().context("no node")?);
        ensure!(
            endpoint["pod"] == name && endpoint["zone"] == zone,
            "{endpoint}"
        );
    }
    for (to, from) in [
        ("10.96.0.80:80", stage.pods[1].ipv4().to_string()),
        ("[fd00:96::80]:80", stage.pods[1].ipv6().to_string()),
    ] {
        let arguments = ["trace", "--from", "default/web-1", "--to", to];
        let (trace, _) = document(&stage.node, &arguments)?;
        ensure!(trace["from"] == from, "{trace}");
    }
    let unknown = run(
        &stage.node,
        &["trace", "--from=default/nobody", "--to=10.96.0.80:80"],
    )?;
    ensure!(
        unknown.code == 2 && unknown.stderr.contains("default/nobody"),
        "{unknown:?}"
    );
    Ok(())
}

/// The files of an archive.
fn files(archive: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let name = entry.path()?.display().to_string();
        let mut contents = Vec::new();
        entry.read_to_end(&mut contents)?;
        files.insert(name, contents);
    }
    Ok(files)
}

#[scenario(Nft)]
fn the_support_archive_has_everything_but_the_token() -> Result<()> {
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.planted.secret";
    let stage = Stage::new()?;
    let (_api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let mut config: Value = serde_json::from_str(&fs::read_to_string(&kubeconfig)?)?;
    config["users"][0]["user"]["token"] = TOKEN.into();
    fs::write(&kubeconfig, config.to_string())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &[])?;
    stage.wait_until_ready(&daemon)?;
    let mut command = stage.node.command(portolan()?);
    command
        .args(["support", "--to", "-"])
        .env("PORTOLAN_SECRET", TOKEN);
    let output = stage.node.output(command)?;
    let files = files(&output.stdout)?;
    let names: Vec<&String> = files.keys().collect();
    for wanted in [
        "status.json",
        "services.json",
        "verify.json",
        "checks.json",
        "configz.json",
        "metrics.txt",
        "tables.nft",
        "features.txt",
    ] {
        ensure!(
            files.contains_key(&format!("portolan-support/{wanted}")),
            "{wanted} is not among {names:?}"
        );
    }
    let tables = files
        .get("portolan-support/tables.nft")
        .context("no tables")?;
    ensure!(
        String::from_utf8_lossy(tables).contains("10.96.0.80"),
        "empty tables"
    );
    for (name, contents) in &files {
        let text = String::from_utf8_lossy(contents);
        ensure!(!text.contains("planted"), "{name} has the token");
    }
    let to = stage.manifests.path().join("support.tar.gz");
    let to = to.display().to_string();
    let written = run(&stage.node, &["support", "--to", &to])?;
    ensure!(
        written.code == 0 && written.stdout.trim() == to,
        "{written:?}"
    );
    let again = run(&stage.node, &["support", "--to", &to])?;
    ensure!(
        again.code == 2 && again.stderr.contains("cannot create"),
        "{again:?}"
    );
    Ok(())
}

#[scenario(Nft)]
fn a_token_is_in_no_log_and_on_no_port() -> Result<()> {
    const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.planted.secret";
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    api.require_token(Some(TOKEN));
    api.kubeconfig(kubeconfig.as_ref())?;
    let daemon = stage.start_with(&["--kubeconfig", &kubeconfig], &["--log-level=trace"])?;
    stage.wait_until_ready(&daemon)?;
    for path in ["/configz", "/flagz", "/statusz", "/metrics"] {
        let answer = stage.node.http_get(([127, 0, 0, 1], 10_249).into(), path)?;
        let (code, text) = answer.context("the metrics port refuses")?;
        ensure!(code == 200 && !text.contains("planted"), "{path}: {text}");
    }
    // What is said about a failure names the request.
    api.require_token(Some("another"));
    api.break_connections();
    daemon.wait_for_line("401", PATIENCE)?;
    let lines = daemon.lines();
    let told = lines.iter().find(|line| line.contains("planted"));
    ensure!(told.is_none(), "{told:?}");
    Ok(())
}
