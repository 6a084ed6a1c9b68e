//! `cargo xtask demo`: the main job on real packets, without a cluster.
//!
//! Two nodes with pods and a client outside, all network namespaces of this machine; the real daemon on each node,
//! fed by a folder of manifests. Everything goes when the demo ends, however it ends.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Client, Daemon, HEALTH_PORT, Host, Lab, Manifests, Node, Pod,
    Probe, Protocol, TcpService, node_object, wait_until,
};

use portolan_tests::stage::portolan;

/// The Service of the demo.
const CLUSTER_IPS: [&str; 2] = ["10.96.0.80", "fd00:96::80"];
const PORT: u16 = 80;
const NODE_PORT: u16 = 30080;
const TARGET_PORT: u16 = 8080;

/// Connections made for each line of the report.
const CONNECTIONS: usize = 60;
/// For what should take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Builds, shows, and cleans up.
fn main() -> Result<()> {
    let portolan = portolan()?;
    let start = Instant::now();

    say("Making two nodes, four pods and a client outside out of network namespaces");
    let stage = Stage::new()?;
    println!("   the network between the nodes knows no way to pods: that is the overlay's");
    say("Starting `portolan run --manifests --overlay vxlan` on both nodes");
    let mut daemons = Vec::new();
    for node in [&stage.node_a, &stage.node_b] {
        daemons.push(stage.start(portolan, node)?);
    }
    stage.wait_for_service()?;
    stage.connect_everywhere()?;
    stage.scale()?;
    stage.show_table()?;
    stage.survive(portolan, daemons)?;
    println!(
        "\nDone in {:.1} s; the namespaces and everything in them are gone.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn say(what: &str) {
    println!("\n== {what}");
    // Progress is worth nothing when it comes late.
    let _ = std::io::stdout().flush();
}

/// The nodes, pods and manifests of the demo.
struct Stage {
    // Held for its life time: the underlay goes with it.
    _lab: Lab,
    node_a: Node,
    node_b: Node,
    outside: Client,
    client: Pod,
    web: [Pod; 3],
    service: TcpService,
    manifests: Manifests,
}

impl Stage {
    fn new() -> Result<Stage> {
        let lab = Lab::builder().without_pod_routes().build()?;
        let (node_a, node_b) = (lab.node("node-a")?, lab.node("node-b")?);
        let outside = lab.client("outside")?;
        let client = node_a.pod("client")?;
        let web = [
            node_a.pod("web-1")?,
            node_b.pod("web-2")?,
            node_b.pod("web-3")?,
        ];
        for pod in &web {
            pod.serve(Protocol::Tcp, TARGET_PORT)?;
        }
        let service = TcpService {
            name: "web".into(),
            cluster_ips: CLUSTER_IPS.map(Into::into),
            port: PORT,
            target_port: TARGET_PORT,
            node_port: Some(NODE_PORT),
        };
        let manifests = Manifests::new()?;
        manifests.write_objects("nodes.yaml", &[node_object(&node_a), node_object(&node_b)])?;
        manifests.write_objects("web-service.yaml", &[service.object()])?;
        let stage = Stage {
            _lab: lab,
            node_a,
            node_b,
            outside,
            client,
            web,
            service,
            manifests,
        };
        stage.serve_with(2)?;
        println!(
            "   Service web: cluster IPs {} and {}, port {PORT}, node port {NODE_PORT}",
            CLUSTER_IPS[0], CLUSTER_IPS[1]
        );
        println!("   endpoints web-1 on node-a, web-2 on node-b; web-3 is to come");
        Ok(stage)
    }

    /// Writes the endpoints: the first `count` web pods.
    fn serve_with(&self, count: usize) -> Result<()> {
        let pods: Vec<(&Pod, &str)> = self
            .web
            .iter()
            .zip(["node-a", "node-b", "node-b"])
            .take(count)
            .collect();
        self.manifests
            .write_objects("web-endpoints.yaml", &self.service.slices(&pods))
    }

    fn start(&self, portolan: &Path, node: &Node) -> Result<Daemon> {
        let mut command = node.command(portolan);
        command
            .arg("run")
            .arg("--manifests")
            .arg(self.manifests.path());
        command.args(["--hostname-override", node.name()]);
        command.arg(format!(
            "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
        ));
        let subnet_file = self.manifests.path().join(format!("{}.env", node.name()));
        command.args(["--overlay", "vxlan", "--subnet-file"]);
        command.arg(subnet_file);
        node.spawn("portolan", command)
    }

    fn wait_for_service(&self) -> Result<()> {
        for pod in &self.web {
            for address in [IpAddr::from(pod.ipv4()), pod.ipv6().into()] {
                let what = format!("a pod of node-a to reach {} at {address}", pod.name());
                wait_until(&what, PATIENCE, || {
                    self.answers(&self.client, SocketAddr::new(address, TARGET_PORT))
                })?;
            }
        }
        for address in CLUSTER_IPS {
            let to = socket(address, PORT)?;
            wait_until("the Service to answer", PATIENCE, || {
                self.answers(&self.client, to)
            })?;
            wait_until("the Service to answer on node-b", PATIENCE, || {
                self.answers(&self.node_b, to)
            })?;
        }
        Ok(())
    }

    fn answers(&self, from: &Host, to: SocketAddr) -> bool {
        let probe = Probe::new(Protocol::Tcp, to).within(Duration::from_millis(200));
        from.probe(probe)
            .is_ok_and(|outcome| outcome.server().is_some())
    }

    fn connect_everywhere(&self) -> Result<()> {
        say(&format!("{CONNECTIONS} connections each way"));
        println!(
            "   {:<20} {:<30} {:<30} source seen by the pod",
            "from", "to", "answered by"
        );
        let cluster_ip = |i: usize| {
            CLUSTER_IPS
                .get(i)
                .map(|ip| socket(ip, PORT))
                .context("two cluster IPs")?
        };
        let node_port = |node: &Node| {
            [node.ipv4().into(), node.ipv6().into()]
                .map(|ip: IpAddr| SocketAddr::new(ip, NODE_PORT))
        };
        let [a4, a6] = node_port(&self.node_a);
        let [b4, b6] = node_port(&self.node_b);
        let ways: [(&str, &Host, SocketAddr); 8] = [
            ("pod on node-a", &self.client, cluster_ip(0)?),
            ("pod on node-a", &self.client, cluster_ip(1)?),
            ("node-b itself", &self.node_b, cluster_ip(0)?),
            ("pod web-1 (hairpin)", &self.web[0], cluster_ip(0)?),
            ("outside", &self.outside, a4),
            ("outside", &self.outside, a6),
            ("outside", &self.outside, b4),
            ("outside", &self.outside, b6),
        ];
        for (from, host, to) in ways {
            let tally = host.connect_many(Protocol::Tcp, to, CONNECTIONS)?;
            ensure!(tally.failed() == 0, "from {from} to {to}: {tally:?}");
            let servers: Vec<String> = tally
                .servers
                .iter()
                .map(|(name, n)| format!("{name} {n}"))
                .collect();
            let peers: Vec<String> = tally.peers.iter().map(ToString::to_string).collect();
            println!(
                "   {from:<20} {:<30} {:<30} {}",
                to.to_string(),
                servers.join(", "),
                peers.join(", ")
            );
        }
        Ok(())
    }

    fn scale(&self) -> Result<()> {
        say("Scaling by editing a manifest, while the client keeps connecting");
        let to = socket(CLUSTER_IPS[0], PORT)?;
        let stream = self
            .client
            .stream_connections(Probe::new(Protocol::Tcp, to), Duration::from_micros(500))?;
        for count in [3, 1, 2] {
            let before = stream.report().tally.answered();
            self.serve_with(count)?;
            let edited = Instant::now();
            let wanted = count.to_string();
            let set = format!("frontends_{wanted}");
            wait_until("the edit to reach the kernel", PATIENCE, || {
                self.node_a
                    .nft(&["list", "set", "ip", "portolan", &set])
                    .is_ok_and(|listing| listing.contains(CLUSTER_IPS[0]))
            })?;
            let elapsed = edited.elapsed();
            wait_until("connections after the edit", PATIENCE, || {
                stream.report().tally.answered() > before + 200
            })?;
            println!(
                "   to {count} endpoint(s): in the kernel {:.0} ms after the edit (`nft list` included)",
                elapsed.as_secs_f64() * 1e3
            );
        }
        let report = stream.stop();
        println!(
            "   {} connections meanwhile, {} failed: {:?}",
            report.tally.answered(),
            report.tally.failed(),
            report.tally.servers
        );
        ensure!(
            report.tally.failed() == 0,
            "connections failed: {:?}",
            report.failures
        );
        Ok(())
    }

    fn survive(&self, portolan: &Path, daemons: Vec<Daemon>) -> Result<()> {
        say("SIGKILL to the daemon on node-a, a foreign `nft flush ruleset`, 20 held connections");
        let to = socket(CLUSTER_IPS[0], PORT)?;
        let held = self.client.hold(to, 20, Duration::from_millis(5))?;
        let stream = self
            .client
            .stream_connections(Probe::new(Protocol::Tcp, to), Duration::from_millis(1))?;
        let mut daemons = daemons.into_iter();
        let daemon = daemons.next().context("the daemon of node-a")?;
        daemon.kill()?;
        let restarted = self.start(portolan, &self.node_a)?;
        self.node_a
            .wait_until_ready(&restarted, HEALTH_PORT, PATIENCE)?;
        self.node_a.nft(&["flush", "ruleset"])?;
        let exchanged = held.report().exchanges;
        wait_until("traffic after the flush", PATIENCE, || {
            held.report().exchanges > exchanged + 200
        })?;
        let (held, stream) = (held.stop(), stream.stop());
        println!(
            "   held connections lost: {}; new connections: {}, failed: {}",
            held.lost.len(),
            stream.tally.answered(),
            stream.tally.failed()
        );
        ensure!(
            held.lost.is_empty() && stream.tally.failed() == 0,
            "lost {:?}, failed {:?}",
            held.lost,
            stream.failures
        );
        self.lose_the_tunnel()
    }

    fn lose_the_tunnel(&self) -> Result<()> {
        say("The tunnel device on node-a deleted, 20 held connections to a pod of node-b");
        let [_, web, _] = &self.web;
        let held = self
            .client
            .hold((web.ipv4(), TARGET_PORT), 20, Duration::from_millis(5))?;
        let mut delete = self.node_a.command("ip");
        delete.args(["link", "del", "flannel.1"]);
        self.node_a.output(delete)?;
        let exchanged = held.report().exchanges;
        wait_until("traffic after the device is back", PATIENCE, || {
            held.report().exchanges > exchanged + 200
        })?;
        let held = held.stop();
        println!(
            "   held connections lost: {}; longest wait for an echo {:.0} ms",
            held.lost.len(),
            held.longest_echo.as_secs_f64() * 1e3
        );
        ensure!(held.lost.is_empty(), "lost {:?}", held.lost);
        Ok(())
    }

    fn show_table(&self) -> Result<()> {
        say("What nft lists on node-a (IPv4; sets without elements and unused chains left out)");
        println!(
            "{}",
            in_use(&self.node_a.nft(&["list", "table", "ip", "portolan"])?)
        );
        println!("   All of it: `nft list ruleset` on a node, or `portolan render`.");
        Ok(())
    }
}

fn socket(address: &str, port: u16) -> Result<SocketAddr> {
    Ok(SocketAddr::new(
        address
            .parse()
            .with_context(|| format!("address {address}"))?,
        port,
    ))
}

/// Leaves out the blocks that only wait for other numbers of endpoints: empty sets, and the rules and chains
/// that lead from and to them.
fn in_use(listing: &str) -> String {
    let declares_set = |line: &str| line.starts_with("\tset ") || line.starts_with("\tmap ");
    let lines: Vec<&str> = listing.lines().collect();
    let first = lines.iter().position(|line| declares_set(line));
    let (head, body) = lines.split_at(first.unwrap_or(lines.len()));
    let blocks: Vec<&[&str]> = body.split(|line| line.is_empty()).collect();

    let name = |block: &[&str]| {
        let words = block.first().map(|line| line.split_whitespace());
        words
            .and_then(|mut words| words.nth(1))
            .unwrap_or_default()
            .to_owned()
    };
    let is_numbered = |name: &str| {
        name.rsplit_once('_')
            .is_some_and(|(_, n)| n.parse::<u32>().is_ok())
    };
    let has_elements = |block: &[&str]| block.iter().any(|line| line.contains("elements = "));
    let sets: Vec<String> = blocks
        .iter()
        .filter(|block| has_elements(block))
        .map(|block| name(block))
        .collect();
    let picks: Vec<String> = sets
        .iter()
        .map(|set| {
            set.replace("frontends_", "pick_")
                .replace("nodeports_", "pick_nodeport_")
        })
        .collect();

    let is_in_use = |block: &&&[&str]| match block.first() {
        Some(line) if declares_set(line) => has_elements(block),
        _ => !name(block).starts_with("pick_") || picks.contains(&name(block)),
    };
    let leads_somewhere = |line: &&&str| {
        let set = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix('@'))
            .unwrap_or_default();
        !is_numbered(set) || sets.iter().any(|name| name == set)
    };
    let shown = |lines: &[&str]| {
        lines
            .iter()
            .filter(leads_somewhere)
            .copied()
            .collect::<Vec<_>>()
            .join("\n")
    };
    let blocks: Vec<String> = blocks
        .iter()
        .filter(is_in_use)
        .map(|block| shown(block))
        .collect();
    format!("{}\n{}", shown(head), blocks.join("\n\n"))
}
