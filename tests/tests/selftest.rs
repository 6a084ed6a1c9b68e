//! `portolan selftest` on two nodes with real pods, against a kubectl that does what an API server and kubelets would.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, HEALTH_PORT, Host, Lab, Manifests, Node, Pod, Probe,
    Protocol, node_object, scenario, wait_for,
};
use portolan_tests::stage::{PATIENCE, portolan};
use serde_json::{Value, json};

const NODES: [&str; 2] = ["node-a", "node-b"];
const NAMES: [&str; 4] = ["server-1", "client-1", "server-2", "client-2"];

/// Two nodes that run Portolan, and a folder with the answers of kubectl.
struct Cluster {
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    manifests: Manifests,
    /// kubectl, its answers, and what it was given.
    folder: tempfile::TempDir,
    _daemons: Vec<Daemon>,
    _lab: Lab,
}

/// The file of the network namespace of a host.
fn namespace_of(host: &Host) -> Result<String> {
    let thread = host.run(nix::unistd::gettid)?;
    Ok(format!("/proc/{}/task/{thread}/ns/net", std::process::id()))
}

impl Cluster {
    fn new() -> Result<Cluster> {
        let lab = Lab::new()?;
        let nodes = vec![lab.node(NODES[0])?, lab.node(NODES[1])?];
        let mut pods = Vec::new();
        for (n, name) in NAMES.iter().enumerate() {
            pods.push(nodes[n / 2].pod(name)?);
        }
        let manifests = Manifests::new()?;
        let objects: Vec<Value> = nodes.iter().map(node_object).collect();
        manifests.write_objects("nodes.yaml", &objects)?;
        let mut daemons = Vec::new();
        for node in &nodes {
            let mut command = node.command(portolan()?);
            command
                .args(["run", "--hostname-override", node.name(), "--manifests"])
                .arg(manifests.path())
                .arg(format!(
                    "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
                ));
            let daemon = node.spawn("portolan", command)?;
            node.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
            daemons.push(daemon);
        }
        let cluster = Cluster {
            nodes,
            pods,
            manifests,
            folder: tempfile::tempdir()?,
            _daemons: daemons,
            _lab: lab,
        };
        cluster.write_kubectl(objects)?;
        Ok(cluster)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn answer(&self, name: &str, items: Vec<Value>) -> Result<()> {
        // Readers see the old or the new answer.
        let new = self.file("new");
        fs::write(&new, json!({ "items": items }).to_string())?;
        Ok(fs::rename(new, self.file(name))?)
    }

    fn write_kubectl(&self, nodes: Vec<Value>) -> Result<()> {
        let daemons = NODES.map(|node| {
            json!({
                "metadata": { "name": format!("portolan-{node}") },
                "spec": { "nodeName": node, "containers": [{ "name": "portolan", "image": "portolan:test" }] },
                "status": { "phase": "Running" },
            })
        });
        self.answer("daemons", daemons.to_vec())?;
        self.answer("nodes", nodes)?;
        for empty in ["pods", "services", "dns"] {
            self.answer(empty, Vec::new())?;
        }
        let mut script = format!(
            "#!/bin/sh\ncd {}\nnamespace=$1; shift\ncase \"$namespace $*\" in\n\
             '--namespace=kube-system get pods'*) cat daemons;;\n\
             '--namespace=kube-system get services'*) cat dns;;\n\
             *' get pods'*) cat pods;;\n*' get services'*) cat services;;\n*' get nodes'*) cat nodes;;\n\
             *' get namespace'*) cat leftover 2>/dev/null;;\n\
             *' apply'*) cat > applying && mv applying applied;;\n\
             *' patch service '*) for status; do :; done; echo \"$status\" > patching && mv patching patched-$3;;\n\
             *' delete namespace portolan-selftest'*) echo x >> deleted; rm -f leftover;;\n",
            self.folder.path().display()
        );
        let program = portolan()?.display();
        for pod in &self.pods {
            let namespace = namespace_of(pod)?;
            let name = pod.name();
            script += &format!(
                "*' exec {name} -- '*) shift 4; exec nsenter --net={namespace} {program} \"$@\";;\n"
            );
        }
        script += "*) echo \"unknown: $*\" >&2; exit 9;;\nesac\nexit 0\n";
        let kubectl = self.file("kubectl");
        fs::write(&kubectl, script)?;
        Ok(fs::set_permissions(
            kubectl,
            fs::Permissions::from_mode(0o755),
        )?)
    }

    /// Runs the test, and does meanwhile what controllers and kubelets would. Returns the exit code, the output and the
    /// errors.
    fn selftest(&self, arguments: &[&str]) -> Result<(i32, String, String)> {
        for old in ["applied", "deleted"] {
            let _ = fs::remove_file(self.file(old));
        }
        let mut command = self.nodes[0].command(portolan()?);
        let path = format!("{}:/usr/bin:/bin", self.folder.path().display());
        command.arg("selftest").args(arguments).env("PATH", path);
        let host = self.nodes[0].clone();
        let running = std::thread::spawn(move || host.output(command));
        let applied: Value = wait_for("objects to be applied", PATIENCE, || {
            Ok(serde_json::from_str(&fs::read_to_string(
                self.file("applied"),
            )?)?)
        })?;
        let servers = self.realize(&applied)?;
        let output = running.join().ok().context("the test panicked")??;
        drop(servers);
        let code = output.status.code().context("ended by a signal")?;
        let text = |bytes| String::from_utf8(bytes).context("not text");
        Ok((code, text(output.stdout)?, text(output.stderr)?))
    }

    /// Runs the pods that were applied, and serves the Services.
    fn realize(&self, applied: &Value) -> Result<Vec<Daemon>> {
        let items = applied["items"].as_array().context("no items")?;
        let of_kind = |kind: &str| -> Vec<Value> {
            items
                .iter()
                .filter(|item| item["kind"] == kind)
                .cloned()
                .collect()
        };
        let mut running = Vec::new();
        let mut pods = of_kind("Pod");
        ensure!(pods.len() == NAMES.len(), "{} pods", pods.len());
        for pod in &mut pods {
            let name = pod["metadata"]["name"]
                .as_str()
                .context("no name")?
                .to_owned();
            let place = NAMES
                .iter()
                .position(|known| **known == name)
                .context("a pod")?;
            ensure!(pod["spec"]["nodeName"] == NODES[place / 2], "{pod}");
            let host = &self.pods[place];
            let mut command = host.command(portolan()?);
            let arguments = pod["spec"]["containers"][0]["args"].as_array();
            command.args(
                arguments
                    .context("no arguments")?
                    .iter()
                    .filter_map(Value::as_str),
            );
            running.push(host.spawn(&name, command)?);
            let at = SocketAddr::new(host.ipv4().into(), 8080);
            wait_for(&name, PATIENCE, || {
                let probe = Probe::new(Protocol::Udp, at).within(Duration::from_millis(200));
                ensure!(self.nodes[place / 2].probe(probe).is_ok());
                Ok(())
            })?;
            let addresses = host
                .addresses()
                .map(|address| json!({ "ip": address.to_string() }));
            pod["status"] = json!({ "phase": "Running", "podIP": host.ipv4().to_string(), "podIPs": addresses });
        }
        let mut services = of_kind("Service");
        for (number, service) in (20_u16..).zip(&mut services) {
            let addresses = [format!("10.96.0.{number}"), format!("fd00:96::{number}")];
            service["spec"]["clusterIP"] = addresses[0].clone().into();
            service["spec"]["clusterIPs"] = json!(addresses);
            let name = service["metadata"]["name"].as_str().context("no name")?;
            if service["spec"]["type"] == "LoadBalancer" {
                let patch = wait_for("the status of a load balancer", PATIENCE, || {
                    let file = self.file(&format!("patched-{name}"));
                    let patch: Value = serde_json::from_str(&fs::read_to_string(file)?)?;
                    Ok(patch)
                })?;
                service["status"] = patch["status"].clone();
                if service["spec"]["externalTrafficPolicy"] == "Local" {
                    service["spec"]["healthCheckNodePort"] = (31_000 + number).into();
                }
            }
            if ["NodePort", "LoadBalancer"]
                .iter()
                .any(|kind| service["spec"]["type"] == *kind)
            {
                for port in service["spec"]["ports"]
                    .as_array_mut()
                    .into_iter()
                    .flatten()
                {
                    port["nodePort"] = (30_000 + number).into();
                }
            }
            let mut objects = vec![service.clone()];
            for family in ["IPv4", "IPv6"] {
                objects.push(slice(service, &pods, family)?);
            }
            self.manifests
                .write_objects(&format!("{number}.yaml"), &objects)?;
        }
        // The last: from here on the test goes on.
        self.answer("services", services)?;
        self.answer("pods", pods)?;
        Ok(running)
    }
}

/// The slice of a Service's pods.
fn slice(service: &Value, pods: &[Value], family: &str) -> Result<Value> {
    let selector = service["spec"]["selector"]
        .as_object()
        .context("no selector")?;
    let name = service["metadata"]["name"].as_str().context("no name")?;
    let selected = pods.iter().filter(|pod| {
        let labels = &pod["metadata"]["labels"];
        selector
            .iter()
            .all(|(label, value)| labels[label] == *value)
    });
    let index = usize::from(family == "IPv6");
    let endpoints: Vec<Value> = selected
        .map(|pod| {
            json!({
                "addresses": [pod["status"]["podIPs"][index]["ip"]], "nodeName": pod["spec"]["nodeName"],
                "conditions": { "ready": true },
            })
        })
        .collect();
    let port = |protocol: &str| json!({ "name": protocol.to_lowercase(), "protocol": protocol, "port": 8080 });
    Ok(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-{}", family.to_lowercase()), "namespace": service["metadata"]["namespace"],
            "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": family, "ports": [port("TCP"), port("UDP")], "endpoints": endpoints,
    }))
}

/// The names of the checks that failed.
fn failed(report: &Value) -> Vec<&str> {
    let checks = report["checks"].as_array().into_iter().flatten();
    let failed = checks.filter(|check| check["state"] == "failed");
    failed.filter_map(|check| check["name"].as_str()).collect()
}

#[scenario(Nft)]
fn selftest_passes_on_two_healthy_nodes() -> Result<()> {
    let cluster = Cluster::new()?;
    let (code, text, errors) = cluster.selftest(&["--output", "json"])?;
    let report: Value = serde_json::from_str(&text).with_context(|| errors.clone())?;
    ensure!(code == 0 && failed(&report).is_empty(), "{text}{errors}");
    ensure!(report["nodes"] == json!(NODES), "{text}");
    let checks = report["checks"].as_array().context("no checks")?;
    for (what, count) in [
        ("pod to pod on its node, ", 16),
        ("pod to pod on another node, ", 16),
        ("Service, ", 16),
        ("session affinity, ", 8),
        ("internalTrafficPolicy Local, ", 8),
        ("Service without endpoints, ", 8),
        ("node port of node-a, ", 8),
        ("node port of node-b, ", 8),
        ("hairpin, ", 4),
        ("loadBalancerSourceRanges, ", 8),
        ("externalTrafficPolicy Local, load balancer IP, ", 8),
        ("externalTrafficPolicy Local, node port of node-a, ", 8),
        ("externalTrafficPolicy Local, health check of node-a, ", 4),
        ("externalTrafficPolicy Local, health check of node-b, ", 4),
    ] {
        let passed = checks.iter().filter(|check| {
            check["state"] == "passed"
                && check["name"]
                    .as_str()
                    .is_some_and(|name| name.starts_with(what))
        });
        ensure!(passed.count() == count, "{what}: {text}");
    }
    // No DNS here.
    ensure!(report["skipped"] == 2, "{text}");
    ensure!(fs::read_to_string(cluster.file("deleted"))?.lines().count() == 1);
    Ok(())
}

#[scenario(Nft)]
fn selftest_names_what_a_broken_node_loses() -> Result<()> {
    let cluster = Cluster::new()?;
    // What an interrupted test has left.
    let leftover = json!({ "metadata": { "labels": { "app.kubernetes.io/managed-by": "portolan-selftest" } } });
    fs::write(cluster.file("leftover"), leftover.to_string())?;
    let dns =
        json!({ "metadata": { "name": "kube-dns" }, "spec": { "clusterIPs": ["10.96.0.99"] } });
    cluster.answer("dns", vec![dns])?;
    cluster.nodes[1].nft_stdin(
        "table inet broken { chain forward { type filter hook forward priority 0; iifname \"eth0\" udp dport 8080 drop; }\n}",
    )?;
    let (code, text, errors) = cluster.selftest(&[])?;
    ensure!(code == 1, "{text}{errors}");
    let line = |start: &str, words: &[&str]| {
        text.lines()
            .any(|line| line.starts_with(start) && words.iter().all(|word| line.contains(word)))
    };
    for (start, words) in [
        (
            "FAILED",
            [
                "pod to pod on another node, IPv4 UDP",
                "client-1",
                "no answer (1)",
            ],
        ),
        (
            "FAILED",
            [
                "Service, IPv6 UDP",
                "client-1",
                "expected answers of server-1 and server-2",
            ],
        ),
        (
            "FAILED",
            ["DNS, IPv4", "client-1", "expected answers of DNS"],
        ),
        (
            "ok",
            ["pod to pod on another node, IPv4 TCP", "client-1", ""],
        ),
        (
            "ok",
            ["pod to pod on another node, IPv4 UDP", "client-2", ""],
        ),
        ("Verdict", ["checks failed on node-a and node-b", "", ""]),
    ] {
        ensure!(line(start, &words), "{words:?}: {text}{errors}");
    }
    // The leftovers, and those of this test.
    ensure!(fs::read_to_string(cluster.file("deleted"))?.lines().count() == 2);
    Ok(())
}

#[scenario(Nft)]
fn selftest_leaves_the_namespace_of_somebody_else() -> Result<()> {
    let cluster = Cluster::new()?;
    fs::write(
        cluster.file("leftover"),
        json!({ "metadata": {} }).to_string(),
    )?;
    let mut command = cluster.nodes[0].command(portolan()?);
    let path = format!("{}:/usr/bin:/bin", cluster.folder.path().display());
    command.arg("selftest").env("PATH", path);
    let output = cluster.nodes[0].output(command)?;
    let errors = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(2) && errors.contains("is not the test's"),
        "{errors}"
    );
    ensure!(!cluster.file("deleted").exists() && !cluster.file("applied").exists());
    Ok(())
}
