//! The real program as the overlay of a lab whose underlay knows no way to pods, and traffic that measures outages.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use lab::fake_api::FakeApi;
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, ControlPlane, Daemon, HEALTH_PORT, Held, Host, Lab,
    Manifests, Node, Pod, PodLinks, Protocol, node_object, wait_until,
};

use crate::clock::Clock;
use crate::slowness;
use crate::stage::{PATIENCE, portolan};

/// Where every pod echoes.
pub const PORT: u16 = 8080;
/// Between two datagrams of a [`Beat`], on a machine of ordinary speed.
const BEAT: Duration = Duration::from_millis(2);
/// What a [`Beat`] sends.
pub const DATAGRAM: &[u8] = b"a beat of a pod";
/// How long an answer may take that is still owed when a [`Beat`] is stopped.
const OWED: Duration = Duration::from_secs(1);

/// Nodes with one echoing pod each, dual stack, and no way between them but the overlay.
pub struct OverlayStage {
    pub nodes: Vec<Node>,
    /// A pod on each.
    pub pods: Vec<Pod>,
    pub manifests: Manifests,
    lab: Lab,
}

impl OverlayStage {
    /// So many nodes, named `node-0` on.
    pub fn new(nodes: usize) -> Result<OverlayStage> {
        OverlayStage::with(PodLinks::Routed, nodes)
    }

    /// The same, with pods linked in this way.
    pub fn with(pod_links: PodLinks, nodes: usize) -> Result<OverlayStage> {
        let lab = Lab::builder().without_pod_routes();
        let lab = lab.pod_links(pod_links).build()?;
        let nodes = (0..nodes)
            .map(|n| lab.node(&format!("node-{n}")))
            .collect::<Result<Vec<_>>>()?;
        let mut pods = Vec::new();
        for (n, node) in nodes.iter().enumerate() {
            let pod = node.pod(&format!("pod-{n}"))?;
            pod.serve(Protocol::Tcp, PORT)?;
            pod.serve(Protocol::Udp, PORT)?;
            pods.push(pod);
        }
        let manifests = Manifests::new()?;
        let stage = OverlayStage {
            nodes,
            pods,
            manifests,
            lab,
        };
        stage.write_nodes(0..stage.nodes.len())?;
        Ok(stage)
    }

    /// The lab, for more machines.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Writes the Node objects of these nodes, one file each, and removes those of the others.
    pub fn write_nodes(&self, present: std::ops::Range<usize>) -> Result<()> {
        for (n, node) in self.nodes.iter().enumerate() {
            let file = format!("node-{n}.yaml");
            if present.contains(&n) {
                self.manifests.write_objects(&file, &[node_object(node)])?;
            } else if self.manifests.path().join(&file).exists() {
                self.manifests.remove(&file)?;
            }
        }
        Ok(())
    }

    /// Starts the program on a node.
    pub fn start(&self, node: usize, more: &[&str]) -> Result<Daemon> {
        let manifests = self
            .manifests
            .path()
            .to_str()
            .context("a path that is text")?;
        self.start_from(node, &["--manifests", manifests], more)
    }

    /// Starts the program on a node with a clock of its own.
    pub fn start_with_clock(&self, node: usize, clock: &Clock) -> Result<Daemon> {
        let folder = self.manifests.path().display().to_string();
        let mut command = self.nodes[node].command(portolan()?);
        command
            .args(self.arguments(node))
            .args(["--manifests", &folder]);
        clock.give(&mut command);
        self.nodes[node].spawn("portolan", command)
    }

    fn start_from(&self, node: usize, source: &[&str], more: &[&str]) -> Result<Daemon> {
        let arguments = self.arguments(node);
        let arguments = arguments.iter().map(String::as_str);
        let all = arguments.chain(source.iter().chain(more).copied());
        self.nodes[node].spawn_daemon(portolan()?, all)
    }

    fn arguments(&self, node: usize) -> Vec<String> {
        let subnet_file = self.file(node, "env");
        let name = self.nodes[node].name();
        let clusters = format!("{CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}");
        [
            "run",
            "--hostname-override",
            name,
            "--overlay",
            "vxlan",
            "--cluster-cidr",
            &clusters,
            "--subnet-file",
            &subnet_file,
        ]
        .map(str::to_owned)
        .into()
    }

    /// A path of a file of a node's own, no manifest.
    pub fn file(&self, node: usize, ending: &str) -> String {
        let path = self.manifests.path().join(format!("node-{node}.{ending}"));
        path.display().to_string()
    }

    /// Serves the Node objects from an API server on the first node's address, and writes a kubeconfig.
    pub fn serve_api(&self) -> Result<(FakeApi, String)> {
        let address = SocketAddr::new(self.nodes[0].ipv4().into(), 6443);
        let listener = self.nodes[0].run(move || TcpListener::bind(address))??;
        let api = FakeApi::serve(listener)?;
        api.set_node_patches(true);
        for node in &self.nodes {
            api.apply(node_object(node))?;
        }
        let kubeconfig = self.manifests.path().join("kubeconfig");
        api.kubeconfig(&kubeconfig)?;
        Ok((api, kubeconfig.display().to_string()))
    }

    /// Serves them from a real API server without other clients, and a kubeconfig with exactly the rights that are
    /// shipped for an overlay.
    pub fn serve_real_api(&self) -> Result<(ControlPlane, String)> {
        let plane = ControlPlane::without_controllers(&self.lab)?;
        for node in &self.nodes {
            plane.register(node)?;
        }
        let kubeconfig = plane.kubeconfig_for_overlay()?.display().to_string();
        Ok((plane, kubeconfig))
    }

    /// Starts the program on a node with an API server.
    pub fn start_with_api(&self, node: usize, kubeconfig: &str, more: &[&str]) -> Result<Daemon> {
        let cache = self.file(node, "peers");
        let source = ["--kubeconfig", kubeconfig, "--overlay-cache", &cache];
        self.start_from(node, &source, more)
    }

    /// Waits until the program on a node reports that it is ready.
    pub fn wait_until_ready(&self, node: usize, daemon: &Daemon) -> Result<()> {
        self.nodes[node].wait_until_ready(daemon, HEALTH_PORT, PATIENCE)
    }

    /// Starts it on every node and waits until every pod reaches every other.
    pub fn start_all(&self, more: &[&str]) -> Result<Vec<Daemon>> {
        let daemons = (0..self.nodes.len())
            .map(|n| self.start(n, more))
            .collect::<Result<Vec<_>>>()?;
        self.wait_for_mesh()?;
        Ok(daemons)
    }

    /// Waits until every pod reaches every other, by both protocols and families.
    pub fn wait_for_mesh(&self) -> Result<()> {
        for (n, from) in self.pods.iter().enumerate() {
            for (m, to) in self.pods.iter().enumerate().filter(|(m, _)| *m != n) {
                for address in to.addresses() {
                    for protocol in [Protocol::Udp, Protocol::Tcp] {
                        let what = format!("{protocol} from pod-{n} to pod-{m} at {address}");
                        wait_until(&what, PATIENCE, || reaches(from, protocol, address))?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Datagrams from each pod to the next, in both families.
    pub fn beats(&self) -> Result<Vec<Beat>> {
        let mut beats = Vec::new();
        for (n, from) in self.pods.iter().enumerate() {
            let to = &self.pods[(n + 1) % self.pods.len()];
            for address in to.addresses() {
                beats.push(Beat::start(from, address)?);
            }
        }
        Ok(beats)
    }

    /// Open connections from each pod to the next, in both families, that exchange something all the time.
    pub fn connections(&self) -> Result<Vec<Held>> {
        let mut held = Vec::new();
        for (n, from) in self.pods.iter().enumerate() {
            for address in self.pods[(n + 1) % self.pods.len()].addresses() {
                held.push(from.hold((address, PORT), 1, BEAT)?);
            }
        }
        Ok(held)
    }

    /// Runs a line of `ip` on a node.
    pub fn ip(&self, node: usize, line: &str) -> Result<String> {
        tool(&self.nodes[node], "ip", line)
    }
}

/// Runs a tool with its arguments, and returns what it prints.
pub fn tool(host: &Host, program: &str, line: &str) -> Result<String> {
    let mut command = host.command(program);
    command.args(line.split_whitespace());
    let output = host.output(command)?;
    ensure!(
        output.status.success(),
        "{program} {line}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether one attempt is answered.
pub fn reaches(from: &Host, protocol: Protocol, to: IpAddr) -> bool {
    let probe =
        lab::Probe::new(protocol, (to, PORT)).within(Duration::from_millis(300) * slowness());
    from.probe(probe)
        .is_ok_and(|outcome| outcome.server().is_some())
}

/// What a [`Beat`] came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct BeatReport {
    pub sent: u64,
    pub answered: u64,
    /// The longest time without an answer.
    pub longest_gap: Duration,
}

/// Datagrams to an echo server all the time, and the time in which no answer came.
pub struct Beat {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    thread: JoinHandle<Result<BeatReport>>,
}

impl Beat {
    pub fn start(from: &Host, to: IpAddr) -> Result<Beat> {
        let stop = Arc::new(AtomicBool::new(false));
        let answered = Arc::new(AtomicU64::new(0));
        let (stopping, answers) = (stop.clone(), answered.clone());
        let thread = from.thread(move || beat(SocketAddr::new(to, PORT), &stopping, &answers))?;
        Ok(Beat {
            stop,
            answered,
            thread,
        })
    }

    /// Waits for this number of further answers.
    pub fn goes_on(&self, answers: u64) -> Result<()> {
        let enough = self.answered.load(Ordering::Relaxed) + answers;
        wait_until("answers", PATIENCE, || {
            self.answered.load(Ordering::Relaxed) >= enough
        })
    }

    /// Lets it send nothing more, without waiting for the answers that are owed.
    fn quiet(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops and reports, when the last answers have had time to come.
    pub fn stop(self) -> Result<BeatReport> {
        self.quiet();
        match self.thread.join() {
            Ok(report) => report,
            Err(_) => bail!("the thread of a beat panicked"),
        }
    }
}

fn beat(to: SocketAddr, stop: &AtomicBool, answered: &AtomicU64) -> Result<BeatReport> {
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse()?;
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    let pause = BEAT * slowness();
    socket.set_read_timeout(Some(pause))?;
    let mut report = BeatReport::default();
    let (mut buffer, mut last) = ([0; 512], Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let next = Instant::now() + pause;
        // A way that is missing is an outage like any other.
        let _ = socket.send(DATAGRAM);
        report.sent += 1;
        while Instant::now() < next {
            match socket.recv(&mut buffer) {
                Ok(_) => {
                    report.answered += 1;
                    answered.store(report.answered, Ordering::Relaxed);
                    report.longest_gap = report.longest_gap.max(last.elapsed());
                    last = Instant::now();
                }
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
    }
    // Answers that are owed now may still come, and do not lengthen the gap.
    report.longest_gap = report.longest_gap.max(last.elapsed());
    drain(&socket, &mut report)?;
    Ok(report)
}

/// Receives the answers that are still owed. What has arrived counts however late this thread is given a processor:
/// an answer is lost when none came in a whole wait.
fn drain(socket: &UdpSocket, report: &mut BeatReport) -> Result<()> {
    let mut buffer = [0; 512];
    socket.set_read_timeout(Some(OWED * slowness()))?;
    let mut refusals = 0;
    while report.answered < report.sent {
        match socket.recv(&mut buffer) {
            Ok(_) => report.answered += 1,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                break;
            }
            // An ICMP error of an earlier datagram: one at most for each.
            Err(_) if refusals < report.sent => refusals += 1,
            Err(_) => break,
        }
    }
    Ok(())
}

/// What the program on a host answers to `/metrics`.
pub fn metrics(host: &Host) -> Result<String> {
    let to = SocketAddr::from(([127, 0, 0, 1], 10249));
    Ok(host.http_get(to, "/metrics")?.context("no metrics")?.1)
}

/// The value of a metric of the program on a host, by name and labels; 0 where there is none.
pub fn metric(host: &Host, series: &str) -> Result<u64> {
    let text = metrics(host)?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(series));
    let value = values.find_map(|rest| rest.trim().parse().ok());
    Ok(value.unwrap_or_default())
}

/// Waits until every one of them had more answers, enough to show a gap.
pub fn all_go_on(beats: &[Beat]) -> Result<()> {
    beats.iter().try_for_each(|beat| beat.goes_on(50))
}

/// The longest time that an open connection waited for an echo; each must still be there.
pub fn longest_echo(connections: Vec<Held>) -> Result<Duration> {
    let mut longest = Duration::ZERO;
    for held in connections {
        let report = held.stop();
        ensure!(report.lost.is_empty(), "{:?}", report.lost);
        longest = longest.max(report.longest_echo);
    }
    Ok(longest)
}

/// The worst of several beats: the most lost, and the longest gap.
pub fn worst(beats: Vec<Beat>) -> Result<(u64, Duration)> {
    let mut worst = (0, Duration::ZERO);
    beats.iter().for_each(Beat::quiet);
    for beat in beats {
        let report = beat.stop()?;
        ensure!(report.answered > 0, "nothing was ever answered");
        worst.0 = worst.0.max(report.sent - report.answered);
        worst.1 = worst.1.max(report.longest_gap);
    }
    Ok(worst)
}

/// What hangs on a device: `ip` and `bridge` lines by kind, sorted.
pub fn state(host: &Host, device: &str) -> Result<BTreeMap<&'static str, Vec<String>>> {
    let mut state = BTreeMap::new();
    for (what, program, line) in [
        ("link", "ip", format!("-d -o link show dev {device}")),
        (
            "addresses",
            "ip",
            format!("-o addr show dev {device} scope global"),
        ),
        ("routes", "ip", format!("route show dev {device}")),
        (
            "routes6",
            "ip",
            format!("-6 route show dev {device} proto 112"),
        ),
        (
            "neighbors",
            "ip",
            format!("neigh show dev {device} nud permanent"),
        ),
        ("fdb", "bridge", format!("fdb show dev {device}")),
    ] {
        let text = tool(host, program, &line)?;
        let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
        lines.sort();
        state.insert(what, lines);
    }
    Ok(state)
}

/// The hardware address of a device, as text and bytes.
pub fn mac_of(host: &Host, device: &str) -> Result<[u8; 6]> {
    let text = tool(host, "ip", &format!("-o link show dev {device}"))?;
    let after = text
        .split("link/ether ")
        .nth(1)
        .context("no hardware address")?;
    let parts: Vec<u8> = after
        .split_whitespace()
        .next()
        .unwrap_or_default()
        .split(':')
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    parts
        .try_into()
        .map_err(|_| anyhow::anyhow!("{text}: no hardware address"))
}
