//! Three nodes, of which one can be unplugged under traffic: the first runs the program under test and has the client, the
//! others have two pods each behind one Service, which is reached by cluster IP, node port and a load balancer's address.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use crate::host::{HEALTH_PORT, Host};
use crate::manifests::{Manifests, TcpService, node_object};
use crate::probe::Probe;
use crate::process::Daemon;
use crate::socket::Protocol;
use crate::topology::{Client, Lab, Node, Pod};
use crate::traffic::ConnectionStream;
use crate::wait::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);
/// The load balancer's address.
const EXTERNAL: [u8; 4] = [203, 0, 113, 80];
const CLUSTER_IP: [u8; 4] = [10, 96, 0, 80];
const NODE_PORT: u16 = 30080;
/// Streams of connections to each of the three.
const STREAMS: usize = 4;
/// An attempt that is not answered by then has failed: less than TCP's first retry.
const ATTEMPT: Duration = Duration::from_millis(700);

/// See the module.
pub struct ThreeNodes {
    /// `node-a` to `node-c`.
    pub nodes: [Node; 3],
    /// On `node-a`.
    pub client: Pod,
    /// Sends to node ports and load balancers by way of `node-a`.
    pub outside: Client,
    /// Two on `node-b`, then two on `node-c`.
    pub pods: Vec<Pod>,
    pub web: TcpService,
    /// What the program reads: Nodes, the Service and its slices.
    pub manifests: Manifests,
    /// Last: it ends the others.
    _lab: Lab,
}

impl ThreeNodes {
    pub fn new() -> Result<ThreeNodes> {
        let lab = Lab::new()?;
        let nodes = [
            lab.node("node-a")?,
            lab.node("node-b")?,
            lab.node("node-c")?,
        ];
        let [a, b, c] = &nodes;
        let (client, outside) = (a.pod("client")?, lab.client("outside")?);
        outside.route_via(a, "203.0.113.0/24".parse()?)?;
        let mut pods = Vec::new();
        for (n, node) in [b, b, c, c].into_iter().enumerate() {
            let pod = node.pod(&format!("web-{n}"))?;
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
        let stage = ThreeNodes {
            nodes,
            client,
            outside,
            pods,
            web,
            manifests: Manifests::new()?,
            _lab: lab,
        };
        stage.annotate(&json!({}))?;
        Ok(stage)
    }

    /// Writes all objects, the Service with these annotations.
    pub fn annotate(&self, annotations: &Value) -> Result<()> {
        let mut objects: Vec<Value> = self.nodes.iter().map(node_object).collect();
        let mut service = self.web.object();
        service["metadata"]["annotations"] = annotations.clone();
        service["spec"]["type"] = "LoadBalancer".into();
        let external = SocketAddr::from((EXTERNAL, 0)).ip();
        service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": external }] } });
        objects.push(service);
        objects.extend(self.web.slices(&self.located()));
        self.manifests.write_objects("all.yaml", &objects)?;
        Ok(())
    }

    /// The pods with the names of their nodes.
    pub fn located(&self) -> Vec<(&Pod, &str)> {
        let names = ["node-b", "node-b", "node-c", "node-c"];
        self.pods.iter().zip(names).collect()
    }

    /// Starts the program on `node-a` and waits until it is ready.
    pub fn start(&self, program: &Path, arguments: &[&str]) -> Result<Daemon> {
        let [node, ..] = &self.nodes;
        let mut command = node.command(program);
        command.args(["run", "--hostname-override=node-a", "--manifests"]);
        command.arg(self.manifests.path());
        command.arg("--cluster-cidr=10.244.0.0/16,fd00:244::/32");
        command.args(arguments);
        let daemon = node.spawn("portolan", command)?;
        node.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        Ok(daemon)
    }

    /// Waits until connections are balanced over this number of pods, and none fails.
    pub fn wait_for_pods(&self, count: usize) -> Result<()> {
        wait_until(&format!("{count} pods"), PATIENCE, || {
            let to = self.web_address();
            let tally = self.client.connect_many(Protocol::Tcp, to, 60);
            tally.is_ok_and(|tally| tally.failed() == 0 && tally.servers.len() == count)
        })
    }

    /// The cluster IP and port of the Service.
    pub fn web_address(&self) -> SocketAddr {
        SocketAddr::from((CLUSTER_IP, self.web.port))
    }

    /// Connects through cluster IP, node port and load balancer, all the time, in a dozen streams with this pause between two
    /// connections.
    pub fn connect(&self, pause: Duration) -> Result<Streams> {
        let [node, ..] = &self.nodes;
        let external = SocketAddr::from((EXTERNAL, self.web.port));
        let node_port = SocketAddr::from((node.ipv4(), NODE_PORT));
        let frontends: [(&Host, SocketAddr); 3] = [
            (&self.client, self.web_address()),
            (&self.outside, node_port),
            (&self.outside, external),
        ];
        let all = frontends.iter().flat_map(|frontend| [frontend; STREAMS]);
        let streams = all.map(|(from, to)| {
            let probe = Probe::new(Protocol::Tcp, *to).within(ATTEMPT);
            from.stream_connections(probe, pause)
        });
        Ok(Streams(streams.collect::<Result<_>>()?))
    }
}

/// Streams of connections; they end when this is dropped.
pub struct Streams(Vec<ConnectionStream>);

impl Streams {
    /// Attempts that have ended.
    pub fn attempts(&self) -> usize {
        let tallies = self.0.iter().map(|stream| stream.report().tally);
        tallies.map(|tally| tally.answered() + tally.failed()).sum()
    }

    /// Waits for this number of further attempts.
    pub fn wait_for(&self, count: usize) -> Result<()> {
        let enough = self.attempts() + count;
        wait_until("traffic", PATIENCE, || self.attempts() >= enough)
    }

    /// When the last attempt began that failed, counted from this instant; `None` if none began later.
    pub fn last_failure(&self, from: Instant) -> Option<Duration> {
        let failures = self.0.iter().flat_map(|stream| {
            let failures = stream.report().failures.into_iter();
            let at = move |(at, _): (Duration, String)| stream.started() + at;
            failures.map(at).collect::<Vec<_>>()
        });
        failures
            .filter_map(|at| at.checked_duration_since(from))
            .max()
    }
}
