//! What the operator's commands look like: on terminals of 80 and of 200 columns, and in a pipe, with the longest names
//! and addresses that a cluster can have.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Held, scenario};
use portolan_tests::commands::run;
use portolan_tests::stage::Stage;
use portolan_tests::terminal::{plain, screen};
use serde_json::{Value, json};

/// Cluster IPs of two Services, and an external IP that both of them want.
const CLUSTER_IPS: [&str; 2] = [
    "fd00:96:1234:5678:9abc:def0:1234:5678",
    "fd00:96:1234:5678:9abc:def0:1234:5679",
];
const EXTERNAL_IP: &str = "2001:db8:1234:5678:9abc:def0:1234:5678";
/// Connections of a client that last.
const HELD: usize = 3;

/// A name of 63 characters, the most that a Service, a namespace or a label can have.
fn long(kind: &str, number: usize) -> String {
    let start = format!("{kind}-{number}-");
    format!("{start}{}", "x".repeat(63 - start.len()))
}

/// `NAMESPACE/NAME` of a Service.
fn named(number: usize) -> String {
    format!("{}/{}", long("namespace", 0), long("service", number))
}

/// The Service and its endpoints, which are all pods of the stage.
fn objects(stage: &Stage, number: usize) -> [Value; 2] {
    let (namespace, name) = (long("namespace", 0), long("service", number));
    let address = CLUSTER_IPS[number];
    let endpoints = stage.pods.iter().enumerate().map(|(pod, host)| {
        json!({
            "addresses": [host.ipv6().to_string()], "nodeName": if pod % 2 == 0 { "node-a" } else { "node-b" },
            "conditions": { "ready": true },
            "targetRef": { "kind": "Pod", "name": long("pod", pod), "namespace": namespace },
        })
    });
    let endpoints: Vec<Value> = endpoints.collect();
    [
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "externalIPs": [EXTERNAL_IP],
                "ipFamilies": ["IPv6"], "ports": [{ "name": "main", "protocol": "TCP", "port": 80, "targetPort": 8080 }],
            },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
            "metadata": {
                "name": format!("slice-{number}"), "namespace": namespace,
                "labels": { "kubernetes.io/service-name": name },
            },
            "ports": [{ "name": "main", "protocol": "TCP", "port": 8080 }], "endpoints": endpoints,
        }),
    ]
}

/// A command, and the names and addresses that its output is about.
struct Case {
    arguments: Vec<String>,
    shows: Vec<String>,
}

/// A daemon with two Services that have long names, and connections to the first one.
struct World {
    stage: Stage,
    _daemon: Daemon,
    _connections: Held,
}

impl World {
    fn new() -> Result<World> {
        let stage = Stage::new()?;
        for number in 0..CLUSTER_IPS.len() {
            let file = format!("long-{number}.yaml");
            stage
                .manifests
                .write_objects(&file, &objects(&stage, number))?;
        }
        let daemon = stage.start_synced(&[])?;
        let to = SocketAddr::new(CLUSTER_IPS[0].parse::<Ipv6Addr>()?.into(), 80);
        let connections = stage.client.hold(to, HELD, Duration::from_secs(1))?;
        Ok(World {
            stage,
            _daemon: daemon,
            _connections: connections,
        })
    }

    fn cases(&self) -> Vec<Case> {
        let (first, second) = (named(0), named(1));
        let client = self.stage.client.ipv6().to_string();
        let to = format!("[{}]:80", CLUSTER_IPS[0]);
        let both = vec![first.clone(), second.clone()];
        let pods = self.stage.pods.iter().enumerate();
        let endpoints: Vec<String> = pods
            .flat_map(|(n, pod)| [format!("[{}]:8080", pod.ipv6()), long("pod", n)])
            .collect();
        let of_first = [vec![first.clone()], endpoints.clone()].concat();
        let flow = vec![format!("[{client}]:"), to.clone(), first.clone()];
        let case = |arguments: &[&str], shows: Vec<String>| Case {
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            shows,
        };
        vec![
            case(
                &["status"],
                [both.clone(), vec![EXTERNAL_IP.to_owned()]].concat(),
            ),
            case(
                &["services"],
                [
                    both,
                    CLUSTER_IPS.map(|ip| format!("[{ip}]:80/TCP")).to_vec(),
                ]
                .concat(),
            ),
            case(&["services", &first], [of_first, vec![to.clone()]].concat()),
            case(&["flows"], flow.clone()),
            case(&["flows", "--service", &first], flow),
            case(
                &["trace", "--from", &client, "--to", &to],
                [vec![client.clone(), to.clone(), first], endpoints].concat(),
            ),
            case(&["verify"], Vec::new()),
            case(&["doctor"], vec!["node-a".to_owned()]),
        ]
    }

    /// Commands that replace their screen every second.
    fn endless(&self) -> Vec<Case> {
        let first = named(0);
        let top = |arguments: &[&str]| Case {
            arguments: arguments.iter().map(|text| (*text).to_owned()).collect(),
            shows: vec![first.clone()],
        };
        vec![
            top(&["services", "--top"]),
            top(&["services", &first, "--top"]),
            Case {
                shows: vec![named(1), EXTERNAL_IP.to_owned()],
                ..top(&["status", "--watch"])
            },
        ]
    }

    /// Checks the screen of each command.
    fn check_screens(&self, columns: u16, check: impl Fn(&Case, &str) -> Result<()>) -> Result<()> {
        for case in self.cases().into_iter().chain(self.endless()) {
            let arguments: Vec<&str> = case.arguments.iter().map(String::as_str).collect();
            let text = screen(&self.stage.node, &arguments, columns)?;
            let text = plain(&text);
            let wide = text
                .lines()
                .find(|line| line.chars().count() > usize::from(columns));
            ensure!(
                wide.is_none(),
                "{arguments:?}: {wide:?} is too wide\n{text}"
            );
            check(&case, &text).with_context(|| format!("{arguments:?} prints\n{text}"))?;
        }
        Ok(())
    }
}

/// Without spaces and line breaks, which may divide long names.
fn squeezed(text: &str) -> String {
    text.split_whitespace().collect()
}

#[scenario(Nft)]
fn commands_fit_80_columns_and_lose_no_name() -> Result<()> {
    World::new()?.check_screens(80, |case, text| {
        let squeezed = squeezed(text);
        let lost = case.shows.iter().find(|name| !squeezed.contains(*name));
        ensure!(lost.is_none(), "{lost:?} is missing");
        Ok(())
    })
}

#[scenario(Nft)]
fn commands_show_long_names_whole_in_200_columns() -> Result<()> {
    World::new()?.check_screens(200, |case, text| {
        let is_whole = |name: &&String| text.lines().any(|line| line.contains(*name));
        let divided = case.shows.iter().find(|name| !is_whole(name));
        ensure!(divided.is_none(), "{divided:?} is on no line");
        Ok(())
    })
}

#[scenario(Nft)]
fn verdicts_have_colors_on_a_terminal_only() -> Result<()> {
    let world = World::new()?;
    let node = &world.stage.node;
    let good = "\u{1b}[32m";
    for arguments in [["status"], ["verify"]] {
        let text = screen(node, &arguments, 80)?;
        ensure!(text.contains(good), "{arguments:?} prints\n{text}");
        let piped = run(node, &arguments)?;
        ensure!(!piped.stdout.contains('\u{1b}'), "{piped:?}");
    }
    Ok(())
}

#[scenario(Nft)]
fn commands_print_a_record_a_line_into_a_pipe() -> Result<()> {
    let world = World::new()?;
    for case in world.cases() {
        let arguments: Vec<&str> = case.arguments.iter().map(String::as_str).collect();
        let text = run(&world.stage.node, &arguments)?.stdout;
        let is_plain = !text.contains(['\u{1b}', '…', '\r']);
        ensure!(is_plain, "{arguments:?} prints\n{text}");
        for name in &case.shows {
            let is_whole = text.lines().any(|line| line.contains(name));
            ensure!(is_whole, "{arguments:?}: {name} is on no line of\n{text}");
        }
    }
    let node = &world.stage.node;
    // All that there is about a thing is on the line with its name, below one heading.
    let services = run(node, &["services"])?.stdout;
    ensure!(services.lines().count() == 4, "{services}");
    for (number, address) in CLUSTER_IPS.iter().enumerate() {
        let rest = format!("[{address}]:80/TCP (+1)");
        ensure!(
            has_line(&services, &[&named(number), &rest, "4/4"]),
            "{services}"
        );
    }
    let service = run(node, &["services", &named(0)])?.stdout;
    for (number, pod) in world.stage.pods.iter().enumerate() {
        let (pod, address) = (long("pod", number), format!("[{}]:8080", pod.ipv6()));
        ensure!(has_line(&service, &[&pod, &address, "yes"]), "{service}");
    }
    let flows = run(node, &["flows"])?.stdout;
    ensure!(flows.lines().count() == 1 + HELD, "{flows}");
    let client = format!("[{}]:", world.stage.client.ipv6());
    let to = format!("[{}]:80", CLUSTER_IPS[0]);
    let flow = [client.as_str(), &to, &named(0), ":8080"];
    ensure!(
        flows.lines().skip(1).all(|line| has_line(line, &flow)),
        "{flows}"
    );
    Ok(())
}

/// Whether one line has all these parts.
fn has_line(text: &str, parts: &[&str]) -> bool {
    let has_all = |line: &str| parts.iter().all(|part| line.contains(part));
    text.lines().any(has_all)
}
