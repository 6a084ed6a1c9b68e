//! Nodes that go down: new connections avoid them within seconds, long before an EndpointSlice says so.
//!
//! Three nodes, the first of which runs the program under test; a Service with pods on the other two. Clients connect about
//! 200 times a second through cluster IP, node port and a load balancer's address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Client, ConnectionStream, Daemon, HEALTH_PORT, Host, Lab, Manifests, Node, Pod, Probe,
    Protocol, TcpService, Unplugged, node_object, scenario, wait_until,
};
use portolan_tests::overlay::metric;
use portolan_tests::slowness;
use portolan_tests::stage::{PATIENCE, portolan};
use serde_json::{Value, json};

/// The load balancer's address.
const EXTERNAL: &str = "203.0.113.80";
const NODE_PORT: u16 = 30080;
const UDP_PORT: u16 = 53;
/// Streams of connections to each of the three, and the pause between two connections of a stream.
const STREAMS: usize = 4;
const PAUSE: Duration = Duration::from_millis(60);
/// An attempt that is not answered by then has failed: less than TCP's first retry.
const ATTEMPT: Duration = Duration::from_millis(700);
/// What the scenario asserts: twice what is aimed at, and some, for machines that are busy.
const LIMIT: Duration = Duration::from_secs(5);

struct Stage {
    nodes: [Node; 3],
    client: Pod,
    outside: Client,
    pods: Vec<Pod>,
    web: TcpService,
    manifests: Manifests,
    _lab: Lab,
}

impl Stage {
    /// Two pods on each of `node-b` and `node-c`.
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
        for (n, node) in [&nodes[1], &nodes[1], &nodes[2], &nodes[2]]
            .iter()
            .enumerate()
        {
            let pod = node.pod(&format!("web-{n}"))?;
            pod.serve(Protocol::Tcp, 8080)?;
            pod.serve(Protocol::Udp, UDP_PORT)?;
            pods.push(pod);
        }
        let web = TcpService {
            name: "web".into(),
            cluster_ips: ["10.96.0.80".into(), "fd00:96::80".into()],
            port: 80,
            target_port: 8080,
            node_port: Some(NODE_PORT),
        };
        let manifests = Manifests::new()?;
        let stage = Stage {
            nodes,
            client,
            outside,
            pods,
            web,
            manifests,
            _lab: lab,
        };
        let objects = stage.nodes.iter().map(node_object).collect::<Vec<_>>();
        stage.manifests.write_objects("nodes.yaml", &objects)?;
        stage
            .manifests
            .write_objects("web.yaml", &stage.web_objects())?;
        stage
            .manifests
            .write_objects("dns.yaml", &stage.udp_objects())?;
        Ok(stage)
    }

    fn located(&self) -> Vec<(&Pod, &str)> {
        let names = ["node-b", "node-b", "node-c", "node-c"];
        self.pods.iter().zip(names).collect()
    }

    fn web_objects(&self) -> Vec<Value> {
        let mut service = self.web.object();
        service["spec"]["type"] = "LoadBalancer".into();
        service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": EXTERNAL }] } });
        let slices = self.web.slices(&self.located());
        std::iter::once(service).chain(slices).collect()
    }

    fn udp_objects(&self) -> Vec<Value> {
        let dns = TcpService {
            name: "dns".into(),
            cluster_ips: ["10.96.0.53".into(), "fd00:96::53".into()],
            port: UDP_PORT,
            target_port: UDP_PORT,
            node_port: None,
        };
        let slices = dns.slices(&self.located());
        let mut objects: Vec<Value> = std::iter::once(dns.object()).chain(slices).collect();
        objects[0]["spec"]["ports"][0]["protocol"] = "UDP".into();
        for slice in &mut objects[1..] {
            slice["ports"][0]["protocol"] = "UDP".into();
        }
        objects
    }

    fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        let mut command = self.nodes[0].command(portolan()?);
        command.args(["run", "--hostname-override=node-a", "--manifests"]);
        command.arg(self.manifests.path());
        command.arg("--cluster-cidr=10.244.0.0/16,fd00:244::/32");
        command.args(arguments);
        let daemon = self.nodes[0].spawn("portolan", command)?;
        self.nodes[0].wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        Ok(daemon)
    }

    fn web_address(&self) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, 80], self.web.port))
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
            from.stream_connections(probe, PAUSE * slowness())
        });
        streams.collect()
    }

    fn metric(&self, name: &str) -> Result<u64> {
        metric(&self.nodes[0], &format!("portolan_failover_{name} "))
    }

    /// Waits until connections are balanced over this number of pods, and none fails.
    fn wait_for_pods(&self, count: usize) -> Result<()> {
        wait_until(&format!("{count} pods"), PATIENCE, || {
            let tally = self
                .client
                .connect_many(Protocol::Tcp, self.web_address(), 60);
            tally.is_ok_and(|tally| tally.failed() == 0 && tally.servers.len() == count)
        })
    }

    fn wait_for_suspects(&self, count: u64) -> Result<()> {
        wait_until(&format!("{count} suspects"), PATIENCE, || {
            self.metric("suspects")
                .is_ok_and(|suspects| suspects == count)
        })
    }

    /// One datagram of a flow, which always has the same source port. Returns the pod that answered.
    fn ask(&self) -> Option<String> {
        let to = SocketAddr::from(([10, 96, 0, 53], UDP_PORT));
        let probe = Probe::new(Protocol::Udp, to).from_port(40_053);
        let outcome = self.client.probe(probe.within(Duration::from_millis(300)));
        let server = outcome.ok()?.server()?.split(':').next()?.to_owned();
        Some(server)
    }
}

/// The last failed attempt that began after the cable was pulled.
fn last_failure(streams: &[ConnectionStream], unplugged_at: Instant) -> Option<Duration> {
    let failures = streams.iter().flat_map(|stream| {
        let failures = stream.report().failures.into_iter();
        let at = move |(at, _): (Duration, String)| stream.started() + at;
        failures.map(at).collect::<Vec<_>>()
    });
    let after = failures.filter_map(|at| at.checked_duration_since(unplugged_at));
    after.max()
}

fn attempts(streams: &[ConnectionStream]) -> usize {
    let tallies = streams.iter().map(|stream| stream.report().tally);
    tallies.map(|tally| tally.answered() + tally.failed()).sum()
}

/// Pulls the cable of `node-b` under connections, and returns the last failure, once 200 more were answered.
fn unplug(stage: &Stage, streams: &[ConnectionStream]) -> Result<(Duration, Unplugged)> {
    let before = attempts(streams);
    wait_until("traffic", PATIENCE, || attempts(streams) >= before + 50)?;
    let (unplugged_at, unplugged) = (Instant::now(), stage.nodes[1].unplug()?);
    stage.wait_for_suspects(1)?;
    let before = attempts(streams);
    wait_until("traffic after", PATIENCE, || {
        attempts(streams) >= before + 200
    })?;
    let last = last_failure(streams, unplugged_at).unwrap_or_default();
    Ok((last, unplugged))
}

#[scenario(Nft)]
fn unplugged_node_gets_no_new_connections_within_seconds() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start(&[])?;
    stage.wait_for_pods(4)?;
    let held = stage
        .client
        .hold(stage.web_address(), 8, Duration::from_millis(100))?;
    let streams = stage.connect()?;
    // A flow to the node that goes down, and one that stays where it is.
    let mut flow = None;
    wait_until("a flow", PATIENCE, || {
        flow = stage.ask();
        flow.is_some()
    })?;
    let (last, unplugged) = unplug(&stage, &streams)?;
    println!(
        "last failed connection {last:?} after the plug, {} attempts",
        attempts(&streams)
    );
    ensure!(
        last <= LIMIT,
        "connections failed until {last:?} after the plug"
    );
    let total = attempts(&streams);
    wait_until("more traffic", PATIENCE, || {
        attempts(&streams) >= total + 300
    })?;
    drop(streams);
    stage.wait_for_pods(2)?;
    // Whichever pod had the flow: one that is alive has it now.
    wait_until("the flow to be answered", PATIENCE, || {
        stage
            .ask()
            .is_some_and(|pod| pod == "web-2" || pod == "web-3")
    })?;
    let (code, text) = stage.nodes[0]
        .http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?
        .context("no /readyz")?;
    ensure!(
        code == 200 && text.contains("failover: node node-b does not answer"),
        "{text}"
    );
    drop(unplugged);
    stage.wait_for_suspects(0)?;
    stage.wait_for_pods(4)?;
    let report = held.stop();
    ensure!(
        report.lost.is_empty(),
        "established connections were cut: {:?}",
        report.lost
    );
    ensure!(
        stage.metric("suspicions_total")? == 1,
        "{:?}",
        daemon.lines()
    );
    Ok(())
}

#[scenario(Nft)]
fn failover_that_is_off_leaves_endpoints_in_place() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start(&["--failover=off"])?;
    stage.wait_for_pods(4)?;
    let streams = stage.connect()?;
    let (unplugged_at, _unplugged) = (Instant::now(), stage.nodes[1].unplug()?);
    wait_until("failures that go on", PATIENCE, || {
        let last = last_failure(&streams, unplugged_at);
        last.is_some_and(|last| last > Duration::from_secs(4))
    })?;
    ensure!(stage.metric("conntrack_readings_total")? == 0);
    ensure!(stage.metric("suspects")? == 0);
    Ok(())
}

#[scenario(Nft)]
fn nodes_behind_a_lossy_network_are_probed_but_not_suspected() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start(&[])?;
    stage.wait_for_pods(4)?;
    let _lossy = [
        stage.nodes[1].lose_percent(10)?,
        stage.nodes[2].lose_percent(10)?,
    ];
    let streams = stage.connect()?;
    wait_until("probes of both nodes", PATIENCE, || {
        stage.metric("probes_total").is_ok_and(|probes| probes >= 4)
    })?;
    drop(streams);
    ensure!(
        stage.metric("suspicions_total")? == 0,
        "{:?}",
        daemon.lines()
    );
    Ok(())
}

/// A collector of datagrams that never answers is no node that is down.
#[scenario(Nft)]
fn one_way_datagrams_lead_to_few_probes_and_no_suspect() -> Result<()> {
    let stage = Stage::new()?;
    for pod in &stage.pods {
        pod.stop_serving(Protocol::Udp, UDP_PORT)?;
    }
    let silent = stage.pods.iter().map(|pod| {
        let at = SocketAddr::from((pod.ipv4(), UDP_PORT));
        pod.run(move || std::net::UdpSocket::bind(at))?
            .context("bind")
    });
    let _silent = silent.collect::<Result<Vec<_>>>()?;
    let daemon = stage.start(&[])?;
    stage.wait_for_pods(4)?;
    let to = SocketAddr::from(([10, 96, 0, 53], UDP_PORT));
    let probe = Probe::new(Protocol::Udp, to).within(Duration::from_millis(1));
    let _sending = stage
        .client
        .stream_connections(probe, Duration::from_millis(10))?;
    wait_until("probes", PATIENCE, || {
        stage.metric("probes_total").is_ok_and(|probes| probes >= 1)
    })?;
    let readings = stage.metric("conntrack_readings_total")?;
    wait_until("more readings", PATIENCE, || {
        stage
            .metric("conntrack_readings_total")
            .is_ok_and(|now| now >= readings + 8)
    })?;
    // Without pauses, each reading would lead to a probe of either node.
    let probes = stage.metric("probes_total")?;
    let readings = stage.metric("conntrack_readings_total")?;
    ensure!(
        probes <= readings + 3,
        "{probes} probes after {readings} readings"
    );
    ensure!(
        stage.metric("suspicions_total")? == 0,
        "{:?}",
        daemon.lines()
    );
    Ok(())
}
