//! Nodes that go down: new connections avoid them within seconds, long before an EndpointSlice says so.
//!
//! Three nodes, the first of which runs the program under test; a Service with pods on the other two. Clients connect about
//! 200 times a second through cluster IP, node port and a load balancer's address.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Daemon, HEALTH_PORT, Probe, Protocol, Streams, TcpService, ThreeNodes, Unplugged, scenario,
    wait_until,
};
use portolan_tests::overlay::metric;
use portolan_tests::stage::{PATIENCE, portolan};
use portolan_tests::{number_from_env, slowness};
use serde_json::{Value, json};

const UDP_PORT: u16 = 53;
/// Between two connections of a stream.
const PAUSE: Duration = Duration::from_millis(60);
/// What the scenario asserts: far below the 40 s until EndpointSlices tell of the node, far above what `benches` aim at, since
/// machines are busy.
const LIMIT: Duration = Duration::from_secs(15);

/// Three nodes, and a second Service of the same pods, for datagrams.
struct Stage(ThreeNodes);

impl Stage {
    fn new() -> Result<Stage> {
        let nodes = ThreeNodes::new()?;
        for pod in &nodes.pods {
            pod.serve(Protocol::Udp, UDP_PORT)?;
        }
        let dns = TcpService {
            name: "dns".into(),
            cluster_ips: ["10.96.0.53".into(), "fd00:96::53".into()],
            port: UDP_PORT,
            target_port: UDP_PORT,
            node_port: None,
        };
        let slices = dns.slices(&nodes.located());
        let mut objects: Vec<Value> = std::iter::once(dns.object()).chain(slices).collect();
        objects[0]["spec"]["ports"][0]["protocol"] = "UDP".into();
        for slice in &mut objects[1..] {
            slice["ports"][0]["protocol"] = "UDP".into();
        }
        nodes.manifests.write_objects("dns.yaml", &objects)?;
        Ok(Stage(nodes))
    }

    fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        self.0.start(portolan()?, arguments)
    }

    fn connect(&self) -> Result<Streams> {
        self.0.connect(PAUSE * slowness())
    }

    fn metric(&self, name: &str) -> Result<u64> {
        metric(&self.0.nodes[0], &format!("portolan_failover_{name} "))
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
        let outcome = self
            .0
            .client
            .probe(probe.within(Duration::from_millis(300)));
        let server = outcome.ok()?.server()?.split(':').next()?.to_owned();
        Some(server)
    }

    /// Pulls the cable of `node-b` under connections, and returns the last failure, once 200 more were answered.
    fn unplug(&self, streams: &Streams) -> Result<(Duration, Unplugged)> {
        streams.wait_for(50)?;
        let (unplugged_at, unplugged) = (Instant::now(), self.0.nodes[1].unplug()?);
        self.wait_for_suspects(1)?;
        streams.wait_for(200)?;
        let last = streams.last_failure(unplugged_at).unwrap_or_default();
        Ok((last, unplugged))
    }
}

#[scenario(Nft)]
fn unplugged_node_gets_no_new_connections_within_seconds() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start(&[])?;
    stage.0.wait_for_pods(4)?;
    let held = stage
        .0
        .client
        .hold(stage.0.web_address(), 8, Duration::from_millis(100))?;
    let streams = stage.connect()?;
    // A flow to the node that goes down, and one that stays where it is.
    let mut flow = None;
    wait_until("a flow", PATIENCE, || {
        flow = stage.ask();
        flow.is_some()
    })?;
    let (last, unplugged) = stage.unplug(&streams)?;
    println!(
        "last failed connection {last:?} after the plug, {} attempts",
        streams.attempts()
    );
    ensure!(
        last <= LIMIT,
        "connections failed until {last:?} after the plug"
    );
    streams.wait_for(300)?;
    drop(streams);
    stage.0.wait_for_pods(2)?;
    // Whichever pod had the flow: one that is alive has it now.
    wait_until("the flow to be answered", PATIENCE, || {
        stage
            .ask()
            .is_some_and(|pod| pod == "web-2" || pod == "web-3")
    })?;
    let (code, text) = stage.0.nodes[0]
        .http_get(([127, 0, 0, 1], HEALTH_PORT).into(), "/readyz")?
        .context("no /readyz")?;
    ensure!(
        code == 200 && text.contains("failover: node node-b does not answer"),
        "{text}"
    );
    drop(unplugged);
    stage.wait_for_suspects(0)?;
    stage.0.wait_for_pods(4)?;
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

/// Attempts that failed in the first outage are still in conntrack during the second.
#[scenario(Nft)]
fn a_second_outage_of_a_node_is_noticed_like_the_first() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start(&[])?;
    stage.0.wait_for_pods(4)?;
    let streams = stage.connect()?;
    for outage in 1..=2 {
        let (last, unplugged) = stage.unplug(&streams)?;
        println!("outage {outage}: last failed connection {last:?} after the plug");
        ensure!(
            last <= LIMIT,
            "outage {outage}: connections failed until {last:?} after the plug"
        );
        stage.0.wait_for_pods(2)?;
        drop(unplugged);
        stage.wait_for_suspects(0)?;
        stage.0.wait_for_pods(4)?;
    }
    Ok(())
}

/// Without any connection: the round of the overlay's probes is the only reason to look.
#[scenario(Nft, Vxlan)]
fn a_node_silent_to_the_overlay_is_avoided_beforehand() -> Result<()> {
    let stage = Stage::new()?;
    let overlay = ["--overlay=vxlan", "--overlay-probe-interval=500ms"];
    let mut daemons = Vec::new();
    for node in &stage.0.nodes[1..] {
        let mut command = node.command(portolan()?);
        command.args(["run", "--hostname-override", node.name(), "--manifests"]);
        command.arg(stage.0.manifests.path());
        command.args([
            "--cluster-cidr=10.244.0.0/16,fd00:244::/32",
            "--failover=off",
        ]);
        command.args(overlay);
        daemons.push(node.spawn("portolan", command)?);
    }
    let _daemon = stage.start(&overlay)?;
    stage.0.wait_for_pods(4)?;
    let (unplugged_at, unplugged) = (Instant::now(), stage.0.nodes[1].unplug()?);
    stage.wait_for_suspects(1)?;
    println!(
        "noticed after {:?} without a connection",
        unplugged_at.elapsed()
    );
    stage.0.wait_for_pods(2)?;
    let streams = stage.connect()?;
    streams.wait_for(200)?;
    let failed = streams.last_failure(unplugged_at);
    ensure!(
        failed.is_none(),
        "a connection failed {failed:?} after the plug"
    );
    drop(unplugged);
    stage.wait_for_suspects(0)?;
    stage.0.wait_for_pods(4)
}

/// A pod hangs: it takes no connection, and its node answers by the other pod.
#[scenario(Nft)]
fn a_hung_endpoint_is_skipped_where_that_is_asked_for() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start(&[])?;
    stage.0.wait_for_pods(4)?;
    let streams = stage.connect()?;
    streams.wait_for(50)?;
    let hung = &stage.0.pods[0];
    hung.nft(&[
        "table inet hung { chain c { type filter hook input priority 0; tcp dport 8080 drop; }; }",
    ])?;
    let hung_at = Instant::now();
    // Its node is asked, and answers.
    wait_until("failures that go on", PATIENCE, || {
        let last = streams.last_failure(hung_at);
        last.is_some_and(|last| last > Duration::from_secs(3))
    })?;
    wait_until("a probe", PATIENCE, || {
        stage.metric("probes_total").is_ok_and(|probes| probes > 0)
    })?;
    // On a busy machine the node's answer may be late once: then the next one ends the suspicion.
    stage.wait_for_suspects(0)?;
    stage
        .0
        .annotate(&json!({ "portolan/failover-endpoints": "true" }))?;
    let asked_at = Instant::now();
    let suspects = |count| {
        wait_until(&format!("{count} suspect endpoints"), PATIENCE, || {
            stage
                .metric("suspect_endpoints")
                .is_ok_and(|found| found == count)
        })
    };
    suspects(1)?;
    stage.0.wait_for_pods(3)?;
    let skipped_at = Instant::now();
    let last = streams.last_failure(asked_at).unwrap_or_default();
    println!("last failed connection {last:?} after the annotation");
    stage.wait_for_suspects(0)?;
    streams.wait_for(200)?;
    let failed = streams.last_failure(skipped_at);
    ensure!(failed.is_none(), "a connection failed {failed:?} later");
    hung.nft(&["delete table inet hung"])?;
    suspects(0)?;
    stage.0.wait_for_pods(4)
}

#[scenario(Nft)]
fn every_service_is_asked_about_its_endpoints_by_flag() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start(&["--failover=endpoints"])?;
    stage.0.wait_for_pods(4)?;
    let streams = stage.connect()?;
    streams.wait_for(50)?;
    let hang =
        "table inet hung { chain c { type filter hook input priority 0; tcp dport 8080 drop; }; }";
    for (pod, serving) in [(0, 3), (2, 2)] {
        stage.0.pods[pod].nft(&[hang])?;
        stage.0.wait_for_pods(serving)?;
    }
    drop(streams);
    for pod in [0, 2] {
        stage.0.pods[pod].nft(&["delete table inet hung"])?;
    }
    stage.0.wait_for_pods(4)
}

#[scenario(Nft)]
fn failover_that_is_off_leaves_endpoints_in_place() -> Result<()> {
    let stage = Stage::new()?;
    let _daemon = stage.start(&["--failover=off"])?;
    stage.0.wait_for_pods(4)?;
    let streams = stage.connect()?;
    let (unplugged_at, _unplugged) = (Instant::now(), stage.0.nodes[1].unplug()?);
    wait_until("failures that go on", PATIENCE, || {
        let last = streams.last_failure(unplugged_at);
        last.is_some_and(|last| last > Duration::from_secs(4))
    })?;
    ensure!(stage.metric("conntrack_readings_total")? == 0);
    ensure!(stage.metric("suspects")? == 0);
    Ok(())
}

/// Each packet between nodes is lost with this probability.
const LOSS: u8 = 5;
/// How long no node may be suspected in a lossy network; `PORTOLAN_LOSSY_SECONDS` sets another time.
const LOSSY_SECONDS: u64 = 20;

fn lossy_time() -> Duration {
    Duration::from_secs(number_from_env("PORTOLAN_LOSSY_SECONDS", LOSSY_SECONDS))
}

/// Lost packets are a reason for probes all the time. They neither make suspects nor hide the node that goes down in the end.
#[scenario(Nft)]
fn lossy_network_makes_no_suspect_and_hides_no_dead_node() -> Result<()> {
    let stage = Stage::new()?;
    let daemon = stage.start(&[])?;
    stage.0.wait_for_pods(4)?;
    let _lossy = [
        stage.0.nodes[1].lose_percent(LOSS)?,
        stage.0.nodes[2].lose_percent(LOSS)?,
    ];
    let streams = stage.connect()?;
    wait_until("probes of both nodes", PATIENCE, || {
        stage.metric("probes_total").is_ok_and(|probes| probes >= 4)
    })?;
    let end = Instant::now() + lossy_time();
    while Instant::now() < end {
        streams.wait_for(100)?;
        ensure!(
            stage.metric("suspicions_total")? == 0,
            "{:?}",
            daemon.lines()
        );
    }
    let (unplugged_at, _unplugged) = (Instant::now(), stage.0.nodes[1].unplug()?);
    stage.wait_for_suspects(1)?;
    let noticed = unplugged_at.elapsed();
    println!(
        "noticed after {noticed:?}, {} probes before",
        stage.metric("probes_total")?
    );
    ensure!(noticed <= LIMIT, "noticed after {noticed:?}");
    Ok(())
}

/// A collector of datagrams that never answers is no node that is down.
#[scenario(Nft)]
fn one_way_datagrams_lead_to_few_probes_and_no_suspect() -> Result<()> {
    let stage = Stage::new()?;
    for pod in &stage.0.pods {
        pod.stop_serving(Protocol::Udp, UDP_PORT)?;
    }
    let silent = stage.0.pods.iter().map(|pod| {
        let at = SocketAddr::from((pod.ipv4(), UDP_PORT));
        pod.run(move || std::net::UdpSocket::bind(at))?
            .context("bind")
    });
    let _silent = silent.collect::<Result<Vec<_>>>()?;
    let daemon = stage.start(&[])?;
    stage.0.wait_for_pods(4)?;
    let to = SocketAddr::from(([10, 96, 0, 53], UDP_PORT));
    let probe = Probe::new(Protocol::Udp, to).within(Duration::from_millis(1));
    let _sending = stage
        .0
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
