//! `cargo xtask demo`: Portolan on real packets, without a cluster.
//!
//! Three nodes with pods and a client outside, all network namespaces of this machine; the real daemon on each node,
//! fed by a folder of manifests, carries Services and the overlay. Everything is removed when the demo ends, however
//! it ends.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Client, Daemon, Host, Pod, Probe, Protocol, TcpService, wait_until};
use portolan_tests::overlay::{OverlayStage, PORT};
use portolan_tests::stage::{PATIENCE, service};

/// Connections for each line of the report.
const CONNECTIONS: usize = 60;
const NODES: usize = 3;

fn main() -> Result<()> {
    let start = Instant::now();
    say("Making three nodes with a pod each and a client outside out of network namespaces");
    let demo = Demo::new()?;
    println!("   the network between the nodes has no route to pods: the overlay provides it");
    say("Starting `portolan run --manifests --overlay vxlan` on the nodes");
    let daemons = demo.stage.start_all(&[])?;
    for address in demo.cluster_ips()? {
        wait_until("the Service to answer", PATIENCE, || {
            let probe = Probe::new(Protocol::Tcp, address).within(Duration::from_millis(200));
            demo.client
                .probe(probe)
                .is_ok_and(|outcome| outcome.server().is_some())
        })?;
    }
    demo.connect_everywhere()?;
    demo.scale()?;
    demo.show_table()?;
    demo.survive(daemons)?;
    println!(
        "\nDone in {:.1} s; the namespaces and everything in them are gone.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn say(what: &str) {
    println!("\n== {what}");
    // Late progress is useless; nowhere to report that stdout is closed.
    let _ = std::io::stdout().flush();
}

/// The nodes, pods and manifests of the demo.
struct Demo {
    stage: OverlayStage,
    outside: Client,
    client: Pod,
    service: TcpService,
}

impl Demo {
    fn new() -> Result<Demo> {
        let stage = OverlayStage::new(NODES)?;
        let outside = stage.lab().client("outside")?;
        let client = stage.nodes[0].pod("client")?;
        let service = TcpService {
            target_port: PORT,
            ..service("web", 80)
        };
        stage
            .manifests
            .write_objects("web-service.yaml", &[service.object()])?;
        let demo = Demo {
            stage,
            outside,
            client,
            service,
        };
        demo.serve_with(2)?;
        println!(
            "   Service web at {}, port {}, endpoints pod-0 and pod-1",
            demo.service.cluster_ips.join(" and "),
            demo.service.port
        );
        Ok(demo)
    }

    /// Writes the EndpointSlices: the first `count` pods.
    fn serve_with(&self, count: usize) -> Result<()> {
        let pods = self.stage.pods.iter().zip(&self.stage.nodes);
        let pods: Vec<(&Pod, &str)> = pods
            .map(|(pod, node)| (pod, node.name()))
            .take(count)
            .collect();
        self.stage
            .manifests
            .write_objects("web-endpoints.yaml", &self.service.slices(&pods))
    }

    fn cluster_ips(&self) -> Result<[SocketAddr; 2]> {
        let [v4, v6] = &self.service.cluster_ips;
        let socket = |address: &str| -> Result<SocketAddr> {
            Ok(SocketAddr::new(address.parse()?, self.service.port))
        };
        Ok([socket(v4)?, socket(v6)?])
    }

    fn connect_everywhere(&self) -> Result<()> {
        say(&format!("{CONNECTIONS} connections each way"));
        println!(
            "   {:<18} {:<26} {:<24} source address at the pod",
            "from", "to", "answered by"
        );
        let [v4, v6] = self.cluster_ips()?;
        let port = self.service.node_port.context("a node port")?;
        let node = &self.stage.nodes[1];
        let [node_v4, node_v6] =
            [IpAddr::from(node.ipv4()), node.ipv6().into()].map(|ip| SocketAddr::new(ip, port));
        let ways: [(&str, &Host, SocketAddr); 6] = [
            ("pod on node-0", &self.client, v4),
            ("pod on node-0", &self.client, v6),
            ("node-1 itself", node, v4),
            ("pod-0 (hairpin)", &self.stage.pods[0], v4),
            ("outside", &self.outside, node_v4),
            ("outside", &self.outside, node_v6),
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
                "   {from:<18} {to:<26} {:<24} {}",
                servers.join(", "),
                peers.join(", ")
            );
        }
        Ok(())
    }

    fn scale(&self) -> Result<()> {
        say("Scaling by editing a manifest, while the client keeps connecting");
        let [to, _] = self.cluster_ips()?;
        let stream = self
            .client
            .stream_connections(Probe::new(Protocol::Tcp, to), Duration::from_micros(500))?;
        for count in [3, 1, 2] {
            let before = stream.report().tally.answered();
            self.serve_with(count)?;
            let edited = Instant::now();
            let set = format!("frontends_{count}");
            wait_until("the edit to reach the kernel", PATIENCE, || {
                let listing = self.stage.nodes[0].nft(&["list", "set", "ip", "portolan", &set]);
                listing.is_ok_and(|listing| listing.contains(&self.service.cluster_ips[0]))
            })?;
            let elapsed = edited.elapsed().as_secs_f64() * 1e3;
            wait_until("connections after the edit", PATIENCE, || {
                stream.report().tally.answered() > before + 200
            })?;
            println!(
                "   to {count} endpoint(s): in the kernel {elapsed:.0} ms after the edit (`nft list` included)"
            );
        }
        let tally = stream.stop().tally;
        println!(
            "   {} connections meanwhile, {} failed",
            tally.answered(),
            tally.failed()
        );
        ensure!(tally.failed() == 0, "connections failed: {tally:?}");
        Ok(())
    }

    fn show_table(&self) -> Result<()> {
        say(
            "The Service as nft lists it on node-0 (IPv4; all of it: `nft list ruleset` on a node, or `portolan render`)",
        );
        for [kind, name] in [
            ["set", "frontends_2"],
            ["map", "backends"],
            ["chain", "pick_2"],
        ] {
            println!(
                "{}",
                self.stage.nodes[0].nft(&["list", kind, "ip", "portolan", name])?
            );
        }
        Ok(())
    }

    fn survive(&self, mut daemons: Vec<Daemon>) -> Result<()> {
        say("SIGKILL to the daemon on node-0, a foreign `nft flush ruleset`, 20 held connections");
        let [to, _] = self.cluster_ips()?;
        let held = self.client.hold(to, 20, Duration::from_millis(5))?;
        let stream = self
            .client
            .stream_connections(Probe::new(Protocol::Tcp, to), Duration::from_millis(1))?;
        daemons.remove(0).kill()?;
        let restarted = self.stage.start(0, &[])?;
        self.stage.wait_until_ready(0, &restarted)?;
        self.stage.nodes[0].nft(&["flush", "ruleset"])?;
        let exchanged = held.report().exchanges;
        wait_until("traffic after the flush", PATIENCE, || {
            held.report().exchanges > exchanged + 200
        })?;
        let (held, tally) = (held.stop(), stream.stop().tally);
        println!(
            "   held connections lost: {}; new connections: {}, failed: {}",
            held.lost.len(),
            tally.answered(),
            tally.failed()
        );
        ensure!(
            held.lost.is_empty() && tally.failed() == 0,
            "lost {:?}, {tally:?}",
            held.lost
        );
        self.lose_the_tunnel()
    }

    fn lose_the_tunnel(&self) -> Result<()> {
        say("The tunnel device on node-0 deleted, 20 held connections to the pod of node-1");
        let to = (self.stage.pods[1].ipv4(), PORT);
        let held = self.client.hold(to, 20, Duration::from_millis(5))?;
        self.stage.ip(0, "link del flannel.1")?;
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
}
