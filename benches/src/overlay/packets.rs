//! What packets between pods of two nodes pay: throughput of one TCP stream and round trips, through the overlay and
//! through VXLAN devices made by hand between nodes of the same kind, in turn. All pairs of nodes have the tables for
//! Services, and so connection tracking.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, HEALTH_PORT, Host, Lab, Manifests, Node, Pod, node_object,
    wait_until,
};

use crate::{Report, Row, microseconds};

const PATIENCE: Duration = Duration::from_secs(30);
const PORT: u16 = 9000;
/// Of one stream.
const STREAM: Duration = Duration::from_millis(250);
/// In one round.
const ROUND_TRIPS: u32 = 500;

/// Two nodes with a pod each.
pub(super) struct Pair {
    pub(super) pods: Vec<Pod>,
    pub(super) nodes: Vec<Node>,
    _lab: Lab,
}

impl Pair {
    pub(super) fn new() -> Result<Pair> {
        let lab = Lab::builder().without_pod_routes().build()?;
        let nodes = vec![lab.node("node-0")?, lab.node("node-1")?];
        let pods = nodes
            .iter()
            .map(|node| node.pod("pod"))
            .collect::<Result<Vec<_>>>()?;
        Ok(Pair {
            pods,
            nodes,
            _lab: lab,
        })
    }

    /// A device as the overlay's, made by hand.
    fn by_hand(&self) -> Result<()> {
        const MACS: [&str; 2] = ["02:00:00:00:00:01", "02:00:00:00:00:02"];
        for (own, other) in [(0, 1), (1, 0)] {
            let (node, peer) = (&self.nodes[own], &self.nodes[other]);
            let (local, remote) = (node.ipv4(), peer.ipv4());
            let (mac, its_mac) = (MACS[own], MACS[other]);
            let (range, its_range) = (node.pod_cidr_v4(), peer.pod_cidr_v4());
            let (first, gateway) = (range.network(), its_range.network());
            for line in [
                format!(
                    "ip link add hand0 address {mac} mtu 1450 type vxlan id 1 dstport 8472 local {local} dev eth0 \
                     nolearning"
                ),
                format!("ip addr add {first}/32 dev hand0"),
                "ip link set hand0 up".to_owned(),
                format!("ip neigh add {gateway} lladdr {its_mac} nud permanent dev hand0"),
                format!("bridge fdb append {its_mac} dev hand0 dst {remote} self permanent"),
                format!("ip route add {its_range} via {gateway} dev hand0 onlink"),
            ] {
                let (program, arguments) = line.split_once(' ').context("no arguments")?;
                let mut command = node.command(program);
                command.args(arguments.split_whitespace());
                let output = node.output(command)?;
                ensure!(output.status.success(), "{line}: {output:?}");
            }
        }
        Ok(())
    }

    fn to(&self) -> SocketAddr {
        SocketAddr::new(self.pods[1].ipv4().into(), PORT)
    }

    /// Makes the pods send each segment of a connection as a packet of its own, not several as one for the kernel to divide.
    pub(super) fn divide_at_once(&self) -> Result<()> {
        for pod in &self.pods {
            let mut ip = pod.command("ip");
            ip.args(["link", "set", "dev", "eth0", "gso_max_segs", "1"]);
            let output = pod.output(ip)?;
            ensure!(output.status.success(), "{output:?}");
        }
        Ok(())
    }

    /// Serves both measurements in the second pod, until the process ends.
    pub(super) fn serve(&self) -> Result<()> {
        let address = self.to();
        let (listener, socket) = self.pods[1].run(move || -> Result<_> {
            Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?))
        })??;
        drop(self.pods[1].thread(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok((mut stream, _)) = listener.accept() {
                while matches!(stream.read(&mut buffer), Ok(length) if length > 0) {}
                let _ = stream.write_all(b"!");
            }
        })?);
        drop(self.pods[1].thread(move || {
            let mut buffer = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        })?);
        wait_until("the other pod", PATIENCE, || {
            round_trip(&self.pods[0], address, 1).is_ok()
        })
    }
}

/// Measures in this number of rounds, with these `rules` of the overlay, and reports as `what`.
///
/// There are two pairs by hand: what they differ by is what the measure cannot tell. A ratio is the median of those of the
/// rounds, so that what changes on the machine meanwhile is in both sides of each.
pub fn measure(
    report: &mut Report,
    program: &Path,
    rounds: usize,
    (what, rules): (&str, &[&str]),
) -> Result<()> {
    let (hand, ours, hand_again) = (Pair::new()?, Pair::new()?, Pair::new()?);
    let pairs = [ours, hand, hand_again];
    let [ours, hand, hand_again] = &pairs;
    let manifests = Manifests::new()?;
    for node in &ours.nodes {
        let file = format!("{}.yaml", node.name());
        manifests.write_objects(&file, &[node_object(node)])?;
    }
    let folder = manifests.path().display().to_string();
    let ranges = format!("{CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}");
    let overlay = [&super::OVERLAY[..], rules].concat();
    let mut daemons = Vec::new();
    for (pair, flags) in [(ours, &overlay[..]), (hand, &[]), (hand_again, &[])] {
        for node in &pair.nodes {
            let more = [&["--manifests", &folder], flags].concat();
            let daemon = super::start(program, node, &ranges, &more)?;
            node.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
            daemons.push(daemon);
        }
    }
    hand.by_hand()?;
    hand_again.by_hand()?;
    let pairs = pairs.each_ref();
    pairs.iter().try_for_each(|pair| pair.serve())?;
    compare(report, pairs, rounds, (BY_HAND, what))
}

/// What a bench compares the overlay with.
pub(super) struct Yardstick {
    pub(super) name: &'static str,
    /// For throughput, and for round trips.
    pub(super) targets: [&'static str; 2],
}

const BY_HAND: Yardstick = Yardstick {
    name: "by hand",
    targets: [">= 0.97 x by hand", "<= 1.03 x by hand"],
};

/// Measures in this number of rounds between the pods of our pair and of two others, which are alike and serve, and reports as `what`.
pub(super) fn compare(
    report: &mut Report,
    pairs: [&Pair; 3],
    rounds: usize,
    (yardstick, what): (Yardstick, &str),
) -> Result<()> {
    let mut streams: [Vec<f64>; 3] = Default::default();
    let mut trips: [Vec<f64>; 3] = Default::default();
    for round in 0..rounds {
        // None is always first.
        for number in (0..3).map(|i| (i + round) % 3) {
            let pair = pairs[number];
            streams[number].push(stream(&pair.pods[0], pair.to())?);
            trips[number].push(round_trip(&pair.pods[0], pair.to(), ROUND_TRIPS)?.as_secs_f64());
        }
    }
    let gigabits = |bytes: f64| format!("{:.2} Gbit/s", bytes * 8.0 / 1e9);
    let time = |seconds: f64| microseconds(Duration::from_secs_f64(seconds));
    let names = ("TCP", what);
    rows(report, names, (&yardstick, 0), &streams, gigabits);
    let names = ("UDP round trip", what);
    rows(report, names, (&yardstick, 1), &trips, time);
    Ok(())
}

/// One kind of measure: ours to the yardstick, and the yardstick to another like it.
fn rows(
    report: &mut Report,
    (measure, what): (&str, &str),
    (yardstick, kind): (&Yardstick, usize),
    [ours, theirs, again]: &[Vec<f64>; 3],
    show: impl Fn(f64) -> String,
) {
    let ratio = |values: &[f64]| {
        let ratios = values
            .iter()
            .zip(theirs)
            .map(|(value, their)| value / their);
        format!("{:.3}", median(ratios.collect()))
    };
    let name = yardstick.name;
    let again_name = format!("{name} again");
    let (target, again_target) = (yardstick.targets[kind], "1.000");
    for (whose, target, values) in [(what, target, ours), (&again_name, again_target, again)] {
        report.row(Row {
            quantity: format!("{measure} between pods of two nodes, {whose}"),
            target: target.into(),
            measured: show(median(values.clone())),
            floor: format!("{} {name}", show(median(theirs.clone()))),
            ratio: ratio(values),
        });
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// Bytes a second, acknowledged by the other end.
fn stream(from: &Host, to: SocketAddr) -> Result<f64> {
    from.run(move || -> Result<f64> {
        let mut stream = TcpStream::connect(to)?;
        let chunk = vec![0; 128 << 10];
        let (start, mut sent) = (Instant::now(), 0);
        while start.elapsed() < STREAM {
            stream.write_all(&chunk)?;
            sent += chunk.len();
        }
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut end = [0; 1];
        stream.read_exact(&mut end)?;
        Ok(sent as f64 / start.elapsed().as_secs_f64())
    })?
}

/// The mean of this number of round trips.
fn round_trip(from: &Host, to: SocketAddr, count: u32) -> Result<Duration> {
    from.run(move || -> Result<Duration> {
        let socket = UdpSocket::bind(("0.0.0.0", 0))?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let (start, mut buffer) = (Instant::now(), [0; 64]);
        for _ in 0..count {
            socket.send(b"round trip")?;
            if socket.recv(&mut buffer)? == 0 {
                bail!("an empty answer");
            }
        }
        Ok(start.elapsed() / count)
    })?
}
