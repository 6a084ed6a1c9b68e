//! Alert rules and dashboard against a real Prometheus that scrapes a real daemon.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Protocol, scenario, wait_for, wait_until};
use portolan_tests::stage::{PATIENCE, Stage};
use serde_json::Value;

/// Where Prometheus answers, and the job that it scrapes Portolan as.
const PROMETHEUS: &str = "127.0.0.1:9090";
const JOB: &str = "kube-proxy";

/// Panels of the dashboard whose metrics need peers of an overlay.
const OF_PEERS: [&str; 2] = ["Round trip", "Probes a second"];

/// The panels and alerts that kubernetes-mixin has for kube-proxy (`dashboards/proxy.libsonnet`, `alerts/kube_proxy.libsonnet`),
/// without the panel about Go.
const OF_THE_MIXIN: [&str; 10] = [
    r#"sum(up{job="kube-proxy"})"#,
    r#"sum(rate(kubeproxy_sync_proxy_rules_duration_seconds_count{job="kube-proxy"}[1m]))"#,
    r#"histogram_quantile(0.99, rate(kubeproxy_sync_proxy_rules_duration_seconds_bucket{job="kube-proxy"}[1m]))"#,
    r#"sum(rate(kubeproxy_network_programming_duration_seconds_count{job="kube-proxy"}[1m])) by (instance)"#,
    r#"histogram_quantile(0.99, sum(rate(kubeproxy_network_programming_duration_seconds_bucket{job="kube-proxy"}[1m])) by (instance, le))"#,
    r#"sum(rate(rest_client_requests_total{job="kube-proxy", code=~"2.."}[1m]))"#,
    r#"histogram_quantile(0.99, sum(rate(rest_client_request_duration_seconds_bucket{job="kube-proxy", verb="GET"}[1m])) by (verb, le))"#,
    r#"process_resident_memory_bytes{job="kube-proxy"}"#,
    r#"rate(process_cpu_seconds_total{job="kube-proxy"}[1m])"#,
    r#"portolan_threads{job="kube-proxy"}"#,
];

fn monitoring() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    Ok(here
        .parent()
        .context("the checkout")?
        .join("deploy/monitoring"))
}

fn promtool(arguments: &[&str], folder: &Path) -> Result<String> {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(folder)
        .output()
        .context("start promtool (Debian: package prometheus)")?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    ensure!(output.status.success(), "promtool {arguments:?}: {text}");
    Ok(text)
}

/// Every expression of the dashboard with the title of its panel.
fn panels() -> Result<Vec<(String, String)>> {
    let dashboard = fs::read_to_string(monitoring()?.join("dashboard.json"))?;
    let dashboard: Value = serde_json::from_str(&dashboard)?;
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().context("no panels")? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let text = |value: &Value| value.as_str().map(str::to_owned).context("no text");
            let expression = text(&target["expr"])?
                .replace("$__rate_interval", "1m")
                .replace("$instance", ".*");
            all.push((text(&panel["title"])?, expression));
        }
    }
    Ok(all)
}

/// A Prometheus on the node under test, with the alert rules, but without their waiting times.
struct Prometheus<'a> {
    stage: &'a Stage,
    _daemon: Daemon,
    _folder: tempfile::TempDir,
}

impl Prometheus<'_> {
    fn start(stage: &Stage) -> Result<Prometheus<'_>> {
        let folder = tempfile::tempdir()?;
        let rules = fs::read_to_string(monitoring()?.join("alerts.yaml"))?;
        let at_once: Vec<&str> = rules
            .lines()
            .filter(|line| !line.trim_start().starts_with("for: "))
            .collect();
        fs::write(folder.path().join("alerts.yaml"), at_once.join("\n"))?;
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: [alerts.yaml]\nscrape_configs:\n  \
             - {{job_name: {JOB}, static_configs: [{{targets: ['127.0.0.1:10249']}}]}}\n"
        );
        fs::write(folder.path().join("prometheus.yml"), config)?;
        let mut command = stage.node.command("prometheus");
        command
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .arg(format!(
                "--config.file={}",
                folder.path().join("prometheus.yml").display()
            ))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.path().join("data").display()
            ));
        let daemon = stage.node.spawn("prometheus", command)?;
        Ok(Prometheus {
            stage,
            _daemon: daemon,
            _folder: folder,
        })
    }

    /// The series that an expression gives now.
    fn query(&self, expression: &str) -> Result<Vec<Value>> {
        let mut path = "/api/v1/query?query=".to_owned();
        for byte in expression.bytes() {
            path += &format!("%{byte:02X}");
        }
        let to: SocketAddr = PROMETHEUS.parse()?;
        let answer = self.stage.node.http_get(to, &path)?;
        let (_, body) = answer.context("Prometheus refuses")?;
        let answer: Value = serde_json::from_str(&body)?;
        ensure!(answer["status"] == "success", "{expression}: {answer}");
        let series = answer["data"]["result"].as_array();
        Ok(series.context("no result")?.clone())
    }

    /// Names of the alerts that fire.
    fn firing(&self) -> Result<Vec<String>> {
        let alerts = self.query(r#"ALERTS{alertstate="firing"}"#)?;
        let names = alerts.iter().map(|alert| &alert["metric"]["alertname"]);
        Ok(names
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect())
    }
}

#[test]
#[ignore = "needs prometheus"]
fn each_alert_fires_for_what_it_is_about() -> Result<()> {
    let folder = monitoring()?;
    promtool(&["check", "rules", "alerts.yaml"], &folder)?;
    promtool(&["test", "rules", "alerts_test.yaml"], &folder)?;
    // Each alert is tested silent and firing.
    let rules = fs::read_to_string(folder.join("alerts.yaml"))?;
    let tests = fs::read_to_string(folder.join("alerts_test.yaml"))?;
    for alert in rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- alert: "))
    {
        let silent = format!("alertname: {alert}, exp_alerts: []");
        let firing = format!("ALERTS{{alertname=\"{alert}\", alertstate=\"firing\"}}");
        ensure!(tests.contains(&silent), "{alert} is not tested silent");
        ensure!(tests.contains(&firing), "{alert} is not tested firing");
    }
    Ok(())
}

/// All that Prometheus shows about a daemon at work, and one that has ended.
#[scenario(Nft)]
#[ignore = "needs prometheus"]
fn every_panel_has_data_and_an_ended_daemon_is_an_alert() -> Result<()> {
    let stage = Stage::new()?;
    let (api, kubeconfig) = stage.serve_api(stage.all_objects())?;
    let source = ["--kubeconfig", &kubeconfig];
    let daemon = stage.start_with(&source, &["--service-traffic=on"])?;
    stage.wait_until_ready(&daemon)?;
    let prometheus = Prometheus::start(&stage)?;
    let scrape = stage
        .node
        .http_get(([127, 0, 0, 1], 10_249).into(), "/metrics")?;
    let scrape = scrape.context("the metrics port refuses")?.1;
    let checked = lint(&scrape)?;
    ensure!(checked.is_empty(), "{checked}");
    wait_until("Prometheus", PATIENCE, || prometheus.query("up").is_ok())?;
    let panels = panels()?;
    ensure!(panels.len() > 30, "{} panels", panels.len());
    let dashboard = panels
        .iter()
        .filter(|(title, _)| !OF_PEERS.contains(&title.as_str()))
        .map(|(title, expression)| (title.as_str(), expression.as_str()));
    let mixin = OF_THE_MIXIN.map(|expression| ("kubernetes-mixin", expression));
    let mut missing: BTreeMap<&str, &str> = dashboard
        .chain(mixin)
        // Peers that are unreachable, and commits that failed: none here.
        .filter(|(_, expression)| {
            !expression.ends_with("> 0") && !expression.contains("_failures_")
        })
        .map(|(title, expression)| (expression, title))
        .collect();
    let mut count = 4;
    let waited = wait_for("data in every panel", PATIENCE, || {
        // Something happens all the time.
        stage
            .client
            .connect_many(Protocol::Tcp, Stage::address(&stage.web)?, 20)?;
        count = if count == 4 { 3 } else { 4 };
        // Otherwise no request is made: watches last for minutes.
        api.break_connections();
        api.apply_all(triggered(stage.objects(&stage.web, 0..count))?)?;
        missing.retain(|expression, _| !has_a_number(&prometheus, expression));
        ensure!(missing.is_empty());
        Ok(())
    });
    ensure!(waited.is_ok(), "no data: {missing:#?}");
    // The broken connections have been alerts, since the rules have no waiting times here.
    let quiet = wait_until("a healthy node to be silent", PATIENCE, || {
        prometheus.firing().is_ok_and(|firing| firing.is_empty())
    });
    quiet.with_context(|| format!("{:?} on a healthy node", prometheus.firing()))?;
    daemon.kill()?;
    wait_until("the alert about an ended daemon", PATIENCE, || {
        let firing = prometheus.firing();
        firing.is_ok_and(|firing| firing.contains(&"PortolanInstanceUnreachable".to_owned()))
    })?;
    // kubernetes-mixin's KubeProxyInstanceUnreachable and KubeProxyDown.
    ensure!(prometheus.query(r#"up{job="kube-proxy"} == 0"#)?.len() == 1);
    ensure!(
        prometheus
            .query(r#"absent(up{job="kube-proxy"})"#)?
            .is_empty()
    );
    Ok(())
}

/// The slices with the time of their last change, which is now.
fn triggered(mut objects: Vec<Value>) -> Result<Vec<Value>> {
    let now = Command::new("date")
        .args(["-u", "+%Y-%m-%dT%H:%M:%S.%NZ"])
        .output()?;
    let now = String::from_utf8(now.stdout)?;
    let slices = objects.iter_mut();
    for slice in slices.filter(|object| object["kind"] == "EndpointSlice") {
        slice["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"] =
            now.trim().into();
    }
    Ok(objects)
}

fn has_a_number(prometheus: &Prometheus<'_>, expression: &str) -> bool {
    prometheus.query(expression).is_ok_and(|series| {
        let mut numbers = series.iter().filter_map(|one| one["value"][1].as_str());
        numbers.any(|number| number != "NaN")
    })
}

/// What `promtool check metrics` finds, without what it finds in kube-proxy's own names.
fn lint(scrape: &str) -> Result<String> {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("start promtool (Debian: package prometheus)")?;
    let mut stdin = child.stdin.take().context("no input")?;
    stdin.write_all(scrape.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| {
        // kube-proxy calls this gauge so.
        !line.starts_with("kubeproxy_sync_proxy_rules_no_local_endpoints_total ")
    });
    Ok(lines.collect::<Vec<_>>().join("\n"))
}
