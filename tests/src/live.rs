//! A live cluster: real API server, controllers and scheduler, nodes with kubelets, and Portolan on each node.
//!
//! One is shared by all scenarios that only use it as people use clusters ([`LiveCluster::shared`]); each has a
//! namespace of its own there ([`Scene`]). What disturbs the control plane has one of its own.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Client, ConnectionStream, ControlPlane, Daemon, HEALTH_PORT,
    Host, Kubelet, Lab, Node, Outcome, Pod, Probe, Protocol, StreamReport, wait_for, wait_until,
};

use crate::stage::{PATIENCE, portolan};

/// For what several controllers have to do first, each in its own time.
pub const CLUSTER_PATIENCE: Duration = Duration::from_secs(90);
/// Between attempts of a client.
const EVERY: Duration = Duration::from_millis(2);

pub struct LiveCluster {
    /// A pod on the first node that no controller knows.
    pub client: Pod,
    pub outside: Client,
    /// `node-a`, `node-b`, `node-c`, in zones of their own.
    pub nodes: [Node; 3],
    portolans: Mutex<BTreeMap<String, Daemon>>,
    kubelets: Mutex<BTreeMap<String, Kubelet>>,
    kubeconfig: PathBuf,
    pub plane: ControlPlane,
    lab: Lab,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LiveCluster {
    /// The cluster that is running, or a new one. It ends with its last user.
    pub fn shared() -> Result<Arc<LiveCluster>> {
        static SHARED: Mutex<Weak<LiveCluster>> = Mutex::new(Weak::new());
        let mut shared = locked(&SHARED);
        if let Some(cluster) = shared.upgrade() {
            return Ok(cluster);
        }
        let cluster = Arc::new(LiveCluster::start()?);
        *shared = Arc::downgrade(&cluster);
        Ok(cluster)
    }

    fn start() -> Result<LiveCluster> {
        let lab = Lab::builder().without_pod_routes().build()?;
        let plane = ControlPlane::start(&lab)?;
        let kubeconfig = plane.kubeconfig_for_portolan()?;
        let nodes = [
            lab.node("node-a")?,
            lab.node("node-b")?,
            lab.node("node-c")?,
        ];
        let mut kubelets = BTreeMap::new();
        for node in &nodes {
            let kubelet = Kubelet::start(&plane, node, &zone(node), None)?;
            kubelets.insert(node.name().to_owned(), kubelet);
        }
        let cluster = LiveCluster {
            // Made after the kubelet, so in the range that the controller manager chose.
            client: nodes[0].pod("client")?,
            outside: lab.client("outside")?,
            nodes,
            portolans: Mutex::default(),
            kubelets: Mutex::new(kubelets),
            kubeconfig,
            plane,
            lab,
        };
        for node in &cluster.nodes {
            cluster.start_portolan(node, "ClusterCIDR")?;
        }
        Ok(cluster)
    }

    /// Kills Portolan on a node if it runs there, starts it, and waits for its first sync.
    pub fn start_portolan(&self, node: &Node, detect_local: &str) -> Result<()> {
        drop(locked(&self.portolans).remove(node.name()));
        let mut command = node.command(portolan()?);
        command
            .arg("run")
            .arg(format!("--kubeconfig={}", self.kubeconfig.display()))
            .arg(format!("--hostname-override={}", node.name()))
            .arg(format!("--detect-local-mode={detect_local}"));
        if detect_local == "ClusterCIDR" {
            command.arg(format!(
                "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
            ));
        }
        let daemon = node.spawn("portolan", command)?;
        node.wait_until_ready(&daemon, HEALTH_PORT, PATIENCE)?;
        locked(&self.portolans).insert(node.name().to_owned(), daemon);
        Ok(())
    }

    /// Stops the kubelet of a node: its pods are gone, the API server is not notified.
    pub fn stop_kubelet(&self, node: &Node) {
        drop(locked(&self.kubelets).remove(node.name()));
    }

    /// A further node, for pods only that tolerate this taint. Its Portolan knows local pods by the node's own
    /// ranges.
    pub fn reserved_node(&self, name: &str, taint: &str) -> Result<Node> {
        let node = self.lab.node(name)?;
        self.start_reserved_kubelet(&node, taint)?;
        self.start_portolan(&node, "NodeCIDR")?;
        Ok(node)
    }

    /// Starts the kubelet of a reserved node, which registers the node.
    pub fn start_reserved_kubelet(&self, node: &Node, taint: &str) -> Result<()> {
        let kubelet = Kubelet::start(&self.plane, node, &zone(node), Some(taint))?;
        locked(&self.kubelets).insert(node.name().to_owned(), kubelet);
        Ok(())
    }

    /// Pods that the kubelet of a node runs.
    pub fn pods_on(&self, node: &Node) -> usize {
        locked(&self.kubelets)
            .get(node.name())
            .map_or(0, Kubelet::pod_count)
    }
}

fn zone(node: &Node) -> String {
    format!("zone-{}", node.name().trim_start_matches("node-"))
}

/// A scenario's own namespace in a live cluster.
pub struct Scene {
    pub cluster: Arc<LiveCluster>,
    namespace: &'static str,
}

impl Scene {
    /// A new namespace in the shared cluster.
    pub fn new(namespace: &'static str) -> Result<Scene> {
        let cluster = LiveCluster::shared()?;
        cluster.plane.kubectl(&["create", "namespace", namespace])?;
        Ok(Scene { cluster, namespace })
    }

    /// Runs `kubectl` in the scenario's namespace.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let namespace = format!("--namespace={}", self.namespace);
        let arguments: Vec<&str> = arguments
            .iter()
            .copied()
            .chain([namespace.as_str()])
            .collect();
        self.cluster.plane.kubectl(&arguments)
    }

    /// Creates a deployment of echo servers; deleted pods serve for the grace period.
    pub fn deploy(&self, name: &str, replicas: usize, grace: Duration) -> Result<()> {
        let create = ["create", "deployment", name, "--image=echo", "--port=8080"];
        self.kubectl(&[&create[..], &["--replicas=0"]].concat())?;
        let seconds = grace.as_secs();
        let patch = format!(
            r#"{{"spec":{{"template":{{"spec":{{"terminationGracePeriodSeconds":{seconds}}}}}}}}}"#
        );
        self.kubectl(&["patch", "deployment", name, "--patch", &patch])?;
        self.scale(name, replicas)
    }

    /// Runs `kubectl scale`, and waits until all replicas are ready.
    pub fn scale(&self, name: &str, replicas: usize) -> Result<()> {
        let count = format!("--replicas={replicas}");
        self.kubectl(&["scale", "deployment", name, &count])?;
        self.rolled_out(name)
    }

    /// Waits by `kubectl rollout status`.
    pub fn rolled_out(&self, name: &str) -> Result<()> {
        let (what, limit) = (
            format!("deployment/{name}"),
            format!("--timeout={}s", CLUSTER_PATIENCE.as_secs()),
        );
        self.kubectl(&["rollout", "status", &what, &limit])
            .map(drop)
    }

    /// `kubectl expose`: a dual-stack Service on port 80.
    pub fn expose(&self, name: &str, arguments: &[&str]) -> Result<()> {
        let expose = [
            "expose",
            "deployment",
            name,
            "--port=80",
            "--target-port=8080",
        ];
        let dual = r#"--overrides={"spec":{"ipFamilyPolicy":"RequireDualStack"}}"#;
        self.kubectl(&[&expose[..], &[dual], arguments].concat())
            .map(drop)
    }

    /// A field of a Service, as `kubectl` prints it.
    pub fn field(&self, service: &str, path: &str) -> Result<String> {
        let output = format!("--output=jsonpath={{{path}}}");
        self.kubectl(&["get", "service", service, &output])
    }

    /// The Service's addresses with port 80, IPv4 first.
    pub fn addresses(&self, service: &str) -> Result<[SocketAddr; 2]> {
        let text = self.field(service, ".spec.clusterIPs[*]")?;
        let addresses: Vec<SocketAddr> = text
            .split_whitespace()
            .map(|address| Ok(SocketAddr::new(address.parse::<IpAddr>()?, 80)))
            .collect::<Result<_>>()?;
        <[SocketAddr; 2]>::try_from(addresses)
            .map_err(|addresses| anyhow::anyhow!("cluster IPs: {addresses:?}"))
    }

    /// The Service's node port on both addresses of a node, IPv4 first.
    pub fn node_port(&self, service: &str, node: &Node) -> Result<[SocketAddr; 2]> {
        let port = self.field(service, ".spec.ports[0].nodePort")?;
        let port: u16 = port
            .parse()
            .with_context(|| format!("node port {port:?}"))?;
        Ok(node
            .addresses()
            .map(|address| SocketAddr::new(address, port)))
    }

    /// New connections all the time, to each of these.
    pub fn stream(&self, from: &Host, to: &[SocketAddr]) -> Result<Streams> {
        let streams = to.iter().map(|&to| {
            let probe = Probe::new(Protocol::Tcp, to);
            Ok((to, from.stream_connections(probe, EVERY)?))
        });
        Ok(Streams {
            streams: streams.collect::<Result<_>>()?,
        })
    }
}

/// Clients that connect without a pause.
#[must_use = "dropping the handle ends the streams"]
pub struct Streams {
    streams: Vec<(SocketAddr, ConnectionStream)>,
}

impl Streams {
    pub fn and(mut self, other: Streams) -> Streams {
        self.streams.extend(other.streams);
        self
    }

    /// Waits until each has made this number of further connections.
    pub fn go_on(&self, connections: usize) -> Result<()> {
        let attempts = |stream: &ConnectionStream| {
            let tally = stream.report().tally;
            tally.answered() + tally.failed()
        };
        for (to, stream) in &self.streams {
            let enough = attempts(stream) + connections;
            wait_until(&format!("traffic to {to}"), CLUSTER_PATIENCE, || {
                attempts(stream) >= enough
            })?;
        }
        Ok(())
    }

    pub fn stop(self) -> Vec<(SocketAddr, StreamReport)> {
        self.streams
            .into_iter()
            .map(|(to, stream)| (to, stream.stop()))
            .collect()
    }

    /// Ends them; every attempt must have been answered. Says how many there were.
    pub fn lost_nothing(self) -> Result<usize> {
        let mut all = 0;
        for (to, report) in self.stop() {
            let answered = report.tally.answered();
            println!(
                "{to}: {answered} connections to {} servers, the slowest in {:?}",
                report.tally.servers.len(),
                report.slowest
            );
            ensure!(answered > 0, "no connection to {to} at all");
            ensure!(
                report.failures.is_empty(),
                "{} of {answered} connections to {to} failed: {:?}",
                report.failures.len(),
                report.failures
            );
            all += answered;
        }
        Ok(all)
    }
}

/// Waits until connections are balanced over exactly `count` servers, and none fails.
pub fn wait_for_servers(from: &Host, to: SocketAddr, count: usize) -> Result<()> {
    // One of 20 is missed by 300 connections once in 10^5 times, and then looked for again.
    let connections = 15 * count.max(4);
    let what = format!("{count} servers at {to}");
    wait_for(&what, CLUSTER_PATIENCE, || {
        let tally = from.connect_many(Protocol::Tcp, to, connections)?;
        ensure!(
            tally.failed() == 0 && tally.servers.len() == count,
            "it is {tally:?}"
        );
        Ok(())
    })
}

/// Waits until a connection has this outcome.
pub fn wait_for_outcome(from: &Host, to: SocketAddr, wanted: &Outcome) -> Result<()> {
    wait_for(&format!("{wanted:?} from {to}"), CLUSTER_PATIENCE, || {
        let outcome = from.connect(Protocol::Tcp, to)?;
        ensure!(outcome == *wanted, "it is {outcome:?}");
        Ok(())
    })
}
