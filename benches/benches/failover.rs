//! How long new connections fail after a node is unplugged, and what noticing that costs.
//!
//! Three nodes; a Service with two pods on each of the others. Clients connect about 200 times a second through cluster IP,
//! node port and load balancer. The cable of one node is pulled; nobody changes an EndpointSlice. A fresh process for each
//! repetition. kube-proxy in the same place fails until the slice changes, 40 s and more: it has nothing to be measured.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::{
    Client, ConnectionStream, Daemon, HEALTH_PORT, Host, Lab, Manifests, Node, Pod, Probe,
    Protocol, TcpService, node_object, wait_until,
};
use portolan_benches::{Report, Row, Samples, milliseconds, program, quick, wanted};
use serde_json::json;

const BENCH: &str = "failover";
const PATIENCE: Duration = Duration::from_secs(60);
const EXTERNAL: &str = "203.0.113.80";
const NODE_PORT: u16 = 30080;
/// Streams of connections to each of the three, and the pause between two connections of a stream.
const STREAMS: usize = 4;
const PAUSE: Duration = Duration::from_millis(60);
/// An attempt that is not answered by then has failed: less than TCP's first retry.
const ATTEMPT: Duration = Duration::from_millis(700);

fn main() -> Result<()> {
    if !wanted(BENCH) {
        return Ok(());
    }
    let program = program()?;
    let repetitions = if quick() { 1 } else { 20 };
    let stage = Stage::new()?;
    let (mut last, mut noticed) = (Samples::new(), Samples::new());
    for _ in 0..repetitions {
        let unplugged = stage.unplug(&program)?;
        eprintln!(
            "last failure after {:?}, noticed after {:?}",
            unplugged.last, unplugged.noticed
        );
        last.push(unplugged.last);
        noticed.push(unplugged.noticed);
    }
    let mut report = Report::default();
    for (quantity, target, samples) in [
        (
            "node unplugged: last connection that fails begins after",
            "p95 <= 2 s",
            &last,
        ),
        ("node unplugged: the node is a suspect after", "", &noticed),
    ] {
        report.row(Row {
            quantity: quantity.into(),
            target: target.into(),
            measured: format!(
                "p50 {}, p95 {}, at most {} of {repetitions}",
                milliseconds(samples.median()),
                milliseconds(samples.p95()),
                milliseconds(samples.max()),
            ),
            ..Row::default()
        });
    }
    let cost = stage.cost_of_readings(&program)?;
    report.row(Row {
        quantity: "reading conntrack meanwhile, of one processor".into(),
        target: "<= 0.5 %".into(),
        measured: format!("{:.2} %", cost * 100.0),
        ..Row::default()
    });
    report.print();
    Ok(())
}

struct Unplugged {
    /// When the last attempt began that failed.
    last: Duration,
    noticed: Duration,
}

struct Stage {
    nodes: [Node; 3],
    client: Pod,
    outside: Client,
    web: TcpService,
    manifests: Manifests,
    _lab: Lab,
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::new()?;
        let nodes = [
            lab.node("node-a")?,
            lab.node("node-b")?,
            lab.node("node-c")?,
        ];
        let (client, outside) = (nodes[0].pod("client")?, lab.client("outside")?);
        outside.route_via(&nodes[0], "203.0.113.0/24".parse()?)?;
        let mut pods = Vec::new();
        for (n, node) in [1, 1, 2, 2].into_iter().enumerate() {
            let pod = nodes[node].pod(&format!("web-{n}"))?;
            pod.serve(Protocol::Tcp, 8080)?;
            pods.push(pod);
        }
        let web = TcpService {
            name: "web".into(),
            cluster_ips: ["10.96.0.80".into(), "fd00:96::80".into()],
            port: 80,
            target_port: 8080,
            node_port: Some(NODE_PORT),
        };
        let names = ["node-b", "node-b", "node-c", "node-c"];
        let located: Vec<(&Pod, &str)> = pods.iter().zip(names).collect();
        let mut objects = vec![web.object()];
        objects[0]["spec"]["type"] = "LoadBalancer".into();
        objects[0]["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": EXTERNAL }] } });
        objects.extend(web.slices(&located));
        objects.extend(nodes.iter().map(node_object));
        let manifests = Manifests::new()?;
        manifests.write_objects("all.yaml", &objects)?;
        Ok(Stage {
            nodes,
            client,
            outside,
            web,
            manifests,
            _lab: lab,
        })
    }

    fn web_address(&self) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, 80], self.web.port))
    }

    /// Starts the program, and waits until all four pods are behind the Service.
    fn start(&self, program: &Path) -> Result<Daemon> {
        let mut command = self.nodes[0].command(program);
        command.args(["run", "--hostname-override=node-a", "--manifests"]);
        command.arg(self.manifests.path());
        command.arg("--cluster-cidr=10.244.0.0/16,fd00:244::/32");
        let daemon = self.nodes[0].spawn("portolan", command)?;
        self.nodes[0].wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        wait_until("all pods", PATIENCE, || {
            let to = self.web_address();
            let tally = self.client.connect_many(Protocol::Tcp, to, 60);
            tally.is_ok_and(|tally| tally.failed() == 0 && tally.servers.len() == 4)
        })?;
        Ok(daemon)
    }

    /// Connections through cluster IP, node port and load balancer, all the time.
    fn connect(&self) -> Result<Vec<ConnectionStream>> {
        let external = SocketAddr::new(EXTERNAL.parse()?, self.web.port);
        let node_port = SocketAddr::from((self.nodes[0].ipv4(), NODE_PORT));
        let frontends: [(&Host, SocketAddr); 3] = [
            (&self.client, self.web_address()),
            (&self.outside, node_port),
            (&self.outside, external),
        ];
        let all = frontends.iter().flat_map(|frontend| [frontend; STREAMS]);
        let streams = all.map(|(from, to)| {
            let probe = Probe::new(Protocol::Tcp, *to).within(ATTEMPT);
            from.stream_connections(probe, PAUSE)
        });
        streams.collect()
    }

    /// The value of a metric of the program.
    fn metric(&self, name: &str) -> Result<f64> {
        let to = SocketAddr::from(([127, 0, 0, 1], 10249));
        let answer = self.nodes[0].http_get(to, "/metrics")?;
        let (_, text) = answer.context("no metrics")?;
        let mut values = text.lines().filter_map(|line| line.strip_prefix(name));
        Ok(values.next().context("no such metric")?.trim().parse()?)
    }

    fn wait_for_suspects(&self, count: f64) -> Result<()> {
        wait_until("suspects", PATIENCE, || {
            let suspects = self.metric("portolan_failover_suspects ");
            suspects.is_ok_and(|suspects| suspects == count)
        })
    }

    fn unplug(&self, program: &Path) -> Result<Unplugged> {
        let _daemon = self.start(program)?;
        let streams = self.connect()?;
        more(&streams, 100)?;
        let (unplugged_at, cable) = (Instant::now(), self.nodes[1].unplug()?);
        self.wait_for_suspects(1.0)?;
        let noticed = unplugged_at.elapsed();
        more(&streams, 300)?;
        let last = last_failure(&streams, unplugged_at).unwrap_or_default();
        drop((streams, cable));
        self.wait_for_suspects(0.0)?;
        Ok(Unplugged { last, noticed })
    }

    /// The part of a processor that reading conntrack takes, while all is well and clients connect.
    fn cost_of_readings(&self, program: &Path) -> Result<f64> {
        let _daemon = self.start(program)?;
        let streams = self.connect()?;
        let seconds = || self.metric("portolan_failover_conntrack_reading_seconds_total ");
        more(&streams, 100)?;
        let (start, before) = (Instant::now(), seconds()?);
        more(&streams, if quick() { 100 } else { 4_000 })?;
        let spent = seconds()? - before;
        Ok(spent / start.elapsed().as_secs_f64())
    }
}

fn attempts(streams: &[ConnectionStream]) -> usize {
    let tallies = streams.iter().map(|stream| stream.report().tally);
    tallies.map(|tally| tally.answered() + tally.failed()).sum()
}

fn more(streams: &[ConnectionStream], count: usize) -> Result<()> {
    let enough = attempts(streams) + count;
    wait_until("traffic", PATIENCE, || attempts(streams) >= enough)
}

/// When the last attempt began that failed, counted from that instant.
fn last_failure(streams: &[ConnectionStream], from: Instant) -> Option<Duration> {
    let failures = streams.iter().flat_map(|stream| {
        let failures = stream.report().failures.into_iter();
        let at = move |(at, _): (Duration, String)| stream.started() + at;
        failures.map(at).collect::<Vec<_>>()
    });
    failures
        .filter_map(|at| at.checked_duration_since(from))
        .max()
}
