//! The real program on nodes of a lab: one Service `web` with pods that answer, a client that connects, and a folder of
//! manifests (or a fake API server) that says what there is.

use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::fake_api::FakeApi;
use lab::{
    CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, HEALTH_PORT, Host, Lab, Manifests, Namespace, Node,
    Outcome, Pod, Probe, Protocol, TcpService, node_object, wait_until,
};
use nft::{Backend, Family, Feature, Features, Kernel, KernelConfig, TableContents};
use serde_json::Value;
use service_dataplane::layout;

/// For what takes milliseconds on an idle machine; these machines are not, and some are emulated.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What the kernel at hand can do.
pub fn features() -> Result<Features> {
    Ok(Namespace::new("features")?.run(Features::probe)??)
}

/// Whether a scenario can go on that is about something kernels may lack: a skip is loud, and with `CI` set a failure,
/// since Linux 6.18 has all of it.
///
/// # Panics
///
/// When the feature is missing and the environment has `CI`.
pub fn has(feature: Feature) -> Result<bool> {
    let has = features()?.has(feature);
    assert!(
        has || std::env::var_os("CI").is_none(),
        "a CI machine must have {feature}"
    );
    if !has {
        // Past the capture of the test harness; nowhere to report that stderr is closed.
        let _ = writeln!(std::io::stderr(), "SKIPPED: the kernel has no {feature}");
    }
    Ok(has)
}

/// The program under test: the one that `PORTOLAN_PROGRAM` names, or else it is built.
pub fn portolan() -> Result<&'static Path> {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    if let Some(built) = BUILT.get() {
        return Ok(built);
    }
    if let Some(program) = std::env::var_os("PORTOLAN_PROGRAM") {
        return Ok(BUILT.get_or_init(|| program.into()));
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--bin", "portolan"])
        .status()?;
    ensure!(status.success(), "could not build portolan: {status}");
    // Test programs lie in target/PROFILE/deps.
    let test = std::env::current_exe()?;
    let profile = test
        .ancestors()
        .nth(2)
        .context("the folder of the profile")?;
    Ok(BUILT.get_or_init(|| profile.join("portolan")))
}

/// A node with pods, a second node with pods, and what there is in the cluster.
pub struct Stage {
    /// The node under test.
    pub node: Node,
    /// Connects to the Service.
    pub client: Pod,
    /// Serve TCP on the Service's target port: the even ones on the node under test.
    pub pods: Vec<Pod>,
    pub web: TcpService,
    /// What is in the cluster.
    pub manifests: Manifests,
    lab: Lab,
}

/// A Service of `stage` shape; `n` up to 250 makes its addresses.
pub fn service(name: &str, n: u8) -> TcpService {
    TcpService {
        name: name.into(),
        cluster_ips: [format!("10.96.0.{n}"), format!("fd00:96::{n}")],
        port: 80,
        target_port: 8080,
        node_port: Some(30000 + u16::from(n)),
    }
}

impl Stage {
    /// Four pods behind `web`, all of them ready.
    pub fn new() -> Result<Stage> {
        let lab = Lab::new()?;
        let (node, other) = (lab.node("node-a")?, lab.node("node-b")?);
        let client = node.pod("client")?;
        let mut pods = Vec::new();
        for n in 0..4 {
            let pod = if n % 2 == 0 { &node } else { &other }.pod(&format!("web-{n}"))?;
            pod.serve(Protocol::Tcp, 8080)?;
            pods.push(pod);
        }
        let manifests = Manifests::new()?;
        manifests.write_objects("nodes.yaml", &[node_object(&node), node_object(&other)])?;
        let stage = Stage {
            node,
            client,
            pods,
            web: service("web", 80),
            manifests,
            lab,
        };
        stage.add(&stage.web, 0..4)?;
        Ok(stage)
    }

    /// The lab, for more nodes and clients.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// All objects of a Service with these of the pods.
    pub fn objects(&self, service: &TcpService, pods: std::ops::Range<usize>) -> Vec<Value> {
        let numbered = self
            .pods
            .iter()
            .enumerate()
            .skip(pods.start)
            .take(pods.len());
        let pods: Vec<(&Pod, &str)> = numbered
            .map(|(n, pod)| (pod, if n % 2 == 0 { "node-a" } else { "node-b" }))
            .collect();
        std::iter::once(service.object())
            .chain(service.slices(&pods))
            .collect()
    }

    /// Writes a Service with these of the pods, or changes it.
    pub fn add(&self, service: &TcpService, pods: std::ops::Range<usize>) -> Result<()> {
        self.manifests.write_objects(
            &format!("{}.yaml", service.name),
            &self.objects(service, pods),
        )
    }

    /// Starts the program on the node under test, with the folder of manifests.
    pub fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        let folder = self.manifests.path().display().to_string();
        self.start_with(&["--manifests", &folder], arguments)
    }

    /// Starts the program on the node under test with this source.
    pub fn start_with(&self, source: &[&str], arguments: &[&str]) -> Result<Daemon> {
        self.start_program(portolan()?, source, arguments)
    }

    /// Starts this version of the program on the node under test with this source.
    pub fn start_program(
        &self,
        program: &Path,
        source: &[&str],
        arguments: &[&str],
    ) -> Result<Daemon> {
        self.spawn(self.node.command(program), source, arguments)
    }

    /// Starts the program on the node under test with this source, as the last argument of `strace`.
    pub fn start_traced(&self, tracer: &[&str], source: &[&str]) -> Result<Daemon> {
        let mut command = self.node.command("strace");
        command.args(tracer).arg(portolan()?);
        self.spawn(command, source, &[])
    }

    fn spawn(&self, mut command: Command, source: &[&str], arguments: &[&str]) -> Result<Daemon> {
        command
            .arg("run")
            .args(source)
            .args(["--hostname-override", "node-a"]);
        command
            .arg(format!(
                "--cluster-cidr={CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}"
            ))
            .args(arguments);
        self.node.spawn("portolan", command)
    }

    /// Starts the program and waits for its first sync.
    pub fn start_synced(&self, arguments: &[&str]) -> Result<Daemon> {
        let daemon = self.start(arguments)?;
        self.wait_until_ready(&daemon)?;
        Ok(daemon)
    }

    /// Waits until the program on the node under test reports that it is ready.
    pub fn wait_until_ready(&self, daemon: &Daemon) -> Result<()> {
        self.node.wait_until_ready(daemon, HEALTH_PORT, PATIENCE)
    }

    /// Serves these objects from a fake API server on the node's loopback, and writes a kubeconfig for it.
    pub fn serve_api(&self, objects: Vec<Value>) -> Result<(FakeApi, String)> {
        let listener = self.node.run(|| TcpListener::bind(("127.0.0.1", 0)))??;
        let api = FakeApi::serve(listener)?;
        api.apply_all(objects)?;
        let kubeconfig = self.manifests.path().join("kubeconfig");
        api.kubeconfig(&kubeconfig)?;
        Ok((api, kubeconfig.display().to_string()))
    }

    /// The Node object and those of `web`, with all pods behind it.
    pub fn all_objects(&self) -> Vec<Value> {
        let mut objects = self.objects(&self.web, 0..4);
        objects.push(node_object(&self.node));
        objects
    }

    /// The Service's IPv4 address and port.
    pub fn address(service: &TcpService) -> Result<std::net::SocketAddr> {
        Ok(std::net::SocketAddr::new(
            service.cluster_ips[0].parse()?,
            service.port,
        ))
    }

    /// Waits until connections to the Service are balanced over exactly this many pods.
    pub fn wait_for_backends(&self, service: &TcpService, count: usize) -> Result<()> {
        let what = format!("{count} backends of {}", service.name);
        wait_until(&what, PATIENCE, || {
            self.has_backends(service, count).unwrap_or(false)
        })
    }

    /// Whether connections to the Service are balanced over exactly this many pods.
    pub fn has_backends(&self, service: &TcpService, count: usize) -> Result<bool> {
        // One of 4 is missed by 60 connections once in 10^7 times; whoever waits then looks for it again.
        let to = Self::address(service)?;
        let tally = self.client.connect_many(Protocol::Tcp, to, 60)?;
        Ok(tally.failed() == 0 && tally.servers.len() == count)
    }

    /// One connection to the Service.
    pub fn connect(&self, from: &Host, service: &TcpService) -> Result<Outcome> {
        from.probe(Probe::new(Protocol::Tcp, Self::address(service)?))
    }

    /// Both tables as the kernel holds them, in an order of their own.
    pub fn tables(&self) -> Result<[Option<TableContents>; 2]> {
        self.node.run(|| {
            let mut kernel = Kernel::open(KernelConfig {
                table: layout::TABLE.into(),
                owner: false,
            })?;
            Ok([kernel.list(Family::Ip)?, kernel.list(Family::Ip6)?])
        })?
    }
}
