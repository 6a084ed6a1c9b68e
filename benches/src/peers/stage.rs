//! The cluster that each contender finds: a node, an API server on it, and all endpoints behind a real link.
//!
//! Every address of the pods' range answers: it is local to one namespace, whose server says which address it was
//! called by. So a connection through a Service tells which endpoint the node chose, at any size of cluster.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::fake_api::FakeApi;
use lab::{Client, Lab, Node, node_object, wait_until};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::worst::{self, Worst};
use crate::overlay::memory::peer;
use crate::shape::{CLUSTER_CIDR, OWN_NODE, PORT, Shape, TARGET_PORT};

/// The cluster IP of the Service with one endpoint, whose change is waited for.
const PROBE_IP: Ipv4Addr = Ipv4Addr::new(10, 111, 255, 1);
/// Its endpoints are taken from here, which no pod of a shape is in.
const PROBE_PODS: &str = "10.127.0.0/16";
const FIRST_PROBE_POD: u32 = u32::from_be_bytes([10, 127, 0, 1]);
/// An attempt to connect is given up after so long: nothing on the way takes a millisecond, and a packet that is sent before
/// there are rules is lost.
const ATTEMPT: Duration = Duration::from_millis(5);
/// The same for an answer of who has accepted.
const ANSWER: Duration = Duration::from_millis(100);
/// Between attempts, so that waiting does not take the processor from what is waited for.
const PAUSE: Duration = Duration::from_micros(300);

/// A node, its API server and every endpoint.
pub struct Stage {
    shape: Shape,
    api: FakeApi,
    folder: TempDir,
    node: Node,
    /// The object that [`Stage::change`] touches, in the place of the shape's endpoints.
    worst: Option<Worst>,
    /// Nodes of an overlay.
    peers: usize,
    /// Holds all pods.
    _pods: Client,
    /// Last: it ends the others.
    _lab: Lab,
}

impl Stage {
    /// Makes the cluster; nothing programs its Services yet.
    pub fn new(shape: Shape) -> Result<Stage> {
        let lab = Lab::new()?;
        let node = lab.node("node")?;
        let pods = lab.client("pods")?;
        for range in [CLUSTER_CIDR, PROBE_PODS, worst::PODS] {
            ip(&pods, &["route", "add", "local", range, "dev", "lo"])?;
            ip(
                &node,
                &["route", "add", range, "via", &pods.ipv4().to_string()],
            )?;
        }
        let listener = pods.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))??;
        pods.thread(move || serve(&listener))?;
        let listener = node.run(|| TcpListener::bind(("127.0.0.1", 0)))??;
        let api = FakeApi::serve(listener)?;
        api.apply_all(shape.objects())?;
        api.apply(probe_service())?;
        api.apply(probe_slice(0))?;
        let folder = tempfile::tempdir()?;
        api.kubeconfig(&folder.path().join("kubeconfig"))?;
        Ok(Stage {
            shape,
            api,
            folder,
            node,
            worst: None,
            peers: 0,
            _pods: pods,
            _lab: lab,
        })
    }

    /// The same with the worst Service of a kind, which [`Stage::change`] then touches.
    pub fn with_worst(shape: Shape, kind: Worst) -> Result<Stage> {
        let mut stage = Stage::new(shape)?;
        stage.api.apply_all(kind.objects())?;
        stage.worst = Some(kind);
        Ok(stage)
    }

    /// The same with so many Nodes of flannel's beside this node's, for a contender with an overlay.
    pub fn with_peers(shape: Shape, peers: u32) -> Result<Stage> {
        let mut stage = Stage::new(shape)?;
        let mut own = node_object(&stage.node);
        own["metadata"]["name"] = OWN_NODE.into();
        stage.api.set_node_patches(true);
        stage.api.apply(own)?;
        stage.api.apply_all((1..=peers).map(peer))?;
        stage.peers = peers as usize;
        Ok(stage)
    }

    /// Waits until the kernel has a route to the IPv4 pods of each peer.
    pub fn wait_for_peers(&self, patience: Duration) -> Result<()> {
        if self.peers == 0 {
            return Ok(());
        }
        wait_until("the routes to all peers", patience, || {
            let mut command = self.node.command("ip");
            command.args(["route", "show", "dev", "flannel.1"]);
            let listed = self.node.output(command);
            listed.is_ok_and(|listed| {
                let text = String::from_utf8_lossy(&listed.stdout).into_owned();
                text.lines().count() == self.peers
            })
        })
    }

    /// Where contenders run.
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// Of the cluster.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Leads to the API server.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Makes the `n`th change ([`Shape::change`]).
    pub fn change(&self, n: u32) -> Result<()> {
        if let Some(kind) = self.worst {
            return self.api.apply(kind.touched(n)).map(drop);
        }
        let (service, endpoint, address) = self.shape.change(n);
        self.api
            .apply(self.shape.slice_object(service, Some((endpoint, address))))
            .map(drop)
    }

    /// Fails if the worst Service answers although it is over its budget, or does not answer although it is not.
    pub fn check_worst(&self) -> Result<()> {
        let Some(kind) = self.worst else {
            return Ok(());
        };
        let answers = self
            .node
            .run(|| endpoint_behind(worst::CLUSTER_IP).is_some())?;
        ensure!(
            answers == kind.is_served(),
            "whether the Service of kind {} answers: {answers}",
            kind.name
        );
        Ok(())
    }

    /// Puts the `n`th pod in the place of the probing Service's only one. Returns when.
    pub fn change_probe(&self, n: u32) -> Result<Instant> {
        let slice = probe_slice(n);
        let now = Instant::now();
        self.api.apply(slice)?;
        Ok(now)
    }

    /// Waits until a new connection through the probing Service goes to its `n`th pod. Says when; `None` when
    /// `patience` is over before.
    pub fn wait_for_probe(&self, n: u32, patience: Duration) -> Result<Option<Instant>> {
        let wanted = probe_pod(n);
        self.wait_until(patience, move || endpoint_behind(PROBE_IP) == Some(wanted))
    }

    /// Waits until a connection goes through every Service. Says when the last one did.
    ///
    /// The one with the highest number is waited for; then each is tried, and those that do not answer are waited
    /// for in turn. Trying them all takes its time, so it counts only where one is found missing.
    pub fn wait_for_all(&self, patience: Duration) -> Result<Option<Instant>> {
        let shape = self.shape;
        let deadline = Instant::now() + patience;
        let last = shape.cluster_ip(shape.services - 1);
        let mut answered = self.wait_until(patience, move || endpoint_behind(last).is_some())?;
        while answered.is_some() {
            let missing = self.node.run(move || {
                (0..shape.services)
                    .map(|service| shape.cluster_ip(service))
                    .find(|address| endpoint_behind(*address).is_none())
            })?;
            let Some(missing) = missing else {
                break;
            };
            let left = deadline.saturating_duration_since(Instant::now());
            answered = self.wait_until(left, move || endpoint_behind(missing).is_some())?;
        }
        Ok(answered)
    }

    fn wait_until(
        &self,
        patience: Duration,
        mut holds: impl FnMut() -> bool + Send + 'static,
    ) -> Result<Option<Instant>> {
        let deadline = Instant::now() + patience;
        self.node.run(move || {
            loop {
                if holds() {
                    return Some(Instant::now());
                }
                if Instant::now() >= deadline {
                    return None;
                }
                std::thread::sleep(PAUSE);
            }
        })
    }
}

fn ip(host: &lab::Host, arguments: &[&str]) -> Result<()> {
    let mut command = host.command("ip");
    command.args(arguments);
    let output = host.output(command)?;
    ensure!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Tells everyone who connects by which address, until the end of the namespace.
fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        if let Ok(SocketAddr::V4(own)) = stream.local_addr() {
            // Who went away has no use for it.
            let _ = stream.write_all(&own.ip().octets());
        }
    }
}

/// Connects to a Service and asks for the endpoint's address; `None` when there is no answer.
fn endpoint_behind(cluster_ip: Ipv4Addr) -> Option<Ipv4Addr> {
    let to = SocketAddr::new(IpAddr::V4(cluster_ip), PORT);
    let mut stream = TcpStream::connect_timeout(&to, ATTEMPT).ok()?;
    // Closes by a reset: tens of thousands of connections shall not wait for their end on either side.
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream, sockopt::Linger, &at_once).ok()?;
    stream.set_read_timeout(Some(ANSWER)).ok()?;
    let mut address = [0; 4];
    stream.read_exact(&mut address).ok()?;
    Some(address.into())
}

fn probe_pod(n: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_PROBE_POD + n % 60_000)
}

fn probe_service() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": "probe", "namespace": "default" },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": PROBE_IP,
            "clusterIPs": [PROBE_IP],
            "ipFamilies": ["IPv4"],
            "internalTrafficPolicy": "Cluster",
            "sessionAffinity": "None",
            "ports": [{ "name": "http", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT }],
        },
        "status": { "loadBalancer": {} },
    })
}

fn probe_slice(n: u32) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "probe-1", "namespace": "default",
            "labels": { "kubernetes.io/service-name": "probe" },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "protocol": "TCP", "port": TARGET_PORT }],
        "endpoints": [{
            "addresses": [probe_pod(n)],
            "conditions": { "ready": true, "serving": true, "terminating": false },
            "nodeName": "node-1",
        }],
    })
}
