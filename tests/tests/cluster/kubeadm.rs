//! A cluster of `cargo xtask cluster`, and the pods in it.

use std::fs;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, wait_for};
use serde_json::Value;

/// Names the program behind `cargo xtask`.
const XTASK: &str = "PORTOLAN_XTASK";

/// Time limit for what a cluster does by itself, such as to start a pod.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);

/// The host outside, by its addresses.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(192, 168, 88, 254),
    Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, 0xfe),
);

/// A cluster, until it is dropped.
pub(crate) struct Cluster {
    xtask: PathBuf,
    name: String,
    folder: PathBuf,
}

/// The program of the commands. Without one a test is nothing, reported loudly; with `CI` set it is a failure.
pub(crate) fn xtask() -> Option<PathBuf> {
    let program = std::env::var_os(XTASK).map(PathBuf::from);
    if program.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no {XTASK}");
        // Past the capture of the test harness; nowhere to report that stderr is closed.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: no cluster: run this by `cargo xtask test --nightly`, or set {XTASK}"
        );
    }
    program
}

impl Cluster {
    /// Makes a cluster of two nodes.
    pub(crate) fn up(xtask: &Path, name: &str, options: &[&str]) -> Result<Cluster> {
        // Left by a run that was killed.
        cluster(xtask, name, &["down"])?;
        let mut made = Cluster {
            xtask: xtask.to_owned(),
            name: name.to_owned(),
            folder: PathBuf::new(),
        };
        cluster(xtask, name, &[&["up"], options].concat())?;
        let kubeconfig = PathBuf::from(cluster(xtask, name, &["kubeconfig"])?.trim());
        let folder = kubeconfig
            .ancestors()
            .find(|folder| folder.ends_with("node1"));
        let folder = folder.and_then(Path::parent).context("no folder")?;
        made.folder = folder.to_owned();
        Ok(made)
    }

    /// Deletes it.
    pub(crate) fn down(self) -> Result<()> {
        cluster(&self.xtask, &self.name, &["down"]).map(drop)
        // Dropping it tries once more, which is no error.
    }

    /// The folder of its nodes.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The prefix of its network namespaces and cgroups.
    pub(crate) fn prefix(&self) -> String {
        format!("portolan-{}-", self.name)
    }

    /// Runs a command on the first node, and returns what it printed.
    pub(crate) fn run(&self, command: &[&str]) -> Result<String> {
        self.run_on("node1", command)
    }

    pub(crate) fn run_on(&self, node: &str, command: &[&str]) -> Result<String> {
        let exec = ["exec", node, "--"];
        cluster(&self.xtask, &self.name, &[&exec[..], command].concat())
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.run(&[&["kubectl"], args].concat())
    }

    /// Runs a line of a guide, in a folder that has `deploy/` of the checkout.
    pub(crate) fn shell(&self, line: &str) -> Result<String> {
        let folder = self.folder.join("node1/etc/kubernetes/guide");
        if !folder.exists() {
            fs::create_dir(&folder)?;
            std::os::unix::fs::symlink(root()?.join("deploy"), folder.join("deploy"))?;
        }
        let line = format!("cd /etc/kubernetes/guide && {line}");
        self.run(&["bash", "-e", "-o", "pipefail", "-c", &line])
    }

    /// Applies a text.
    pub(crate) fn apply(&self, text: &str) -> Result<()> {
        self.kubectl_with("apply", text)
    }

    /// Creates the objects of a text, with fewer requests than [`Cluster::apply`].
    pub(crate) fn create(&self, text: &str) -> Result<()> {
        self.kubectl_with("create", text)
    }

    fn kubectl_with(&self, act: &str, text: &str) -> Result<()> {
        fs::write(self.folder.join("node1/etc/kubernetes/test.yaml"), text)?;
        self.kubectl(&[act, "-f", "/etc/kubernetes/test.yaml"])
            .map(drop)
    }

    pub(crate) fn get(&self, args: &[&str]) -> Result<Value> {
        let text = self.kubectl(&[&["get", "-o", "json"], args].concat())?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until every pod of a DaemonSet or Deployment is ready.
    pub(crate) fn rolled_out(&self, namespace: &str, set: &str) -> Result<()> {
        let status = ["-n", namespace, "rollout", "status", set, "--timeout=180s"];
        self.kubectl(&status).map(drop)
    }

    /// A power cut, and the next start.
    pub(crate) fn reboot(&self, node: &str) -> Result<()> {
        cluster(&self.xtask, &self.name, &["reboot", node]).map(drop)
    }

    /// Another machine joins under the node's name, with addresses that end with `host_number`.
    pub(crate) fn replace(&self, node: &str, host_number: u8) -> Result<()> {
        let number = host_number.to_string();
        let args = ["replace", node, "--host-number", &number];
        cluster(&self.xtask, &self.name, &args).map(drop)
    }

    /// The IPv4 address of a node.
    pub(crate) fn address(&self, node: &str) -> Result<Ipv4Addr> {
        let node = self.get(&["node", node])?;
        let addresses = node["status"]["addresses"].as_array();
        let mut addresses = addresses.into_iter().flatten();
        let address = addresses.find_map(|one| one["address"].as_str()?.parse().ok());
        address.context("no IPv4 address")
    }

    /// Waits until a node is ready.
    pub(crate) fn node_ready(&self, node: &str) -> Result<()> {
        let node = format!("node/{node}");
        let ready = ["wait", "--for=condition=Ready", &node, "--timeout=180s"];
        self.kubectl(&ready).map(drop)
    }

    /// The number of a node's first process.
    pub(crate) fn init(&self, node: &str) -> Result<String> {
        let text = fs::read_to_string(self.folder.join(node).join("init"))?;
        let pid = text.split_whitespace().next().context("no process")?;
        Ok(pid.to_owned())
    }

    /// A machine outside of the cluster.
    pub(crate) fn outside(&self) -> Result<Host> {
        let file = PathBuf::from(format!("/run/netns/portolan-{}-wire", self.name));
        Host::entered("outside", &file, OUTSIDE.0, OUTSIDE.1)
    }

    /// A node.
    pub(crate) fn node(&self, name: &str) -> Result<Host> {
        let file = PathBuf::from(format!("/run/netns/portolan-{}-{name}", self.name));
        let v4 = self.address(name)?;
        let [.., number] = v4.octets();
        let v6 = Ipv6Addr::new(0xfd88, 0, 0, 0, 0, 0, 0, number.into());
        Host::entered(name, &file, v4, v6)
    }

    /// A pod, as soon as it is ready.
    pub(crate) fn pod(&self, name: &str) -> Result<Host> {
        let pod = format!("pod/{name}");
        self.kubectl(&["wait", "--for=condition=Ready", &pod, "--timeout=180s"])?;
        let object = self.get(&[&pod])?;
        let node = object["spec"]["nodeName"].as_str().context("no node")?;
        let ips: Vec<&str> = object["status"]["podIPs"]
            .as_array()
            .context("no podIPs")?
            .iter()
            .filter_map(|ip| ip["ip"].as_str())
            .collect();
        let [v4, v6] = ips.as_slice() else {
            bail!("{name} has the addresses {ips:?}");
        };
        let file = self.namespace_of(node, v4)?;
        Host::entered(name, &file, v4.parse()?, v6.parse()?)
    }

    /// The network namespace on a node whose interface has this address.
    fn namespace_of(&self, node: &str, address: &str) -> Result<PathBuf> {
        let all = format!("/proc/{}/root/run/netns", self.init(node)?);
        for namespace in fs::read_dir(&all).with_context(|| format!("list {all}"))? {
            let namespace = namespace?.path();
            let mut show = Command::new("nsenter");
            show.arg(format!("--net={}", namespace.display()));
            show.args(["ip", "-o", "addr", "show", "dev", "eth0"]);
            let shown = String::from_utf8_lossy(&show.output()?.stdout).into_owned();
            if shown.contains(&format!(" {address}/")) {
                return Ok(namespace);
            }
        }
        bail!("no namespace on {node} has {address}")
    }

    /// The pods with a label, and their nodes.
    pub(crate) fn pods(&self, namespace: &str, label: &str) -> Result<Vec<(String, String)>> {
        let list = self.get(&["pods", "-n", namespace, "-l", label])?;
        let pods = list["items"].as_array().context("no items")?;
        pods.iter()
            .map(|pod| {
                let name = pod["metadata"]["name"].as_str().context("no name")?;
                let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
                Ok((name.to_owned(), node.to_owned()))
            })
            .collect()
    }

    /// Asks `portolan doctor` in every pod of the DaemonSet.
    pub(crate) fn doctor(&self) -> Result<()> {
        let pods = self.pods("kube-system", "app.kubernetes.io/name=portolan")?;
        ensure!(!pods.is_empty(), "no pod of Portolan");
        for (pod, node) in pods {
            let program = "/usr/local/bin/portolan";
            let exec = ["-n", "kube-system", "exec", &pod, "-c", "portolan", "--"];
            let ask = [&exec[..], &[program, "doctor"]].concat();
            wait_for("a doctor without findings", PATIENCE, || self.kubectl(&ask))
                .with_context(|| format!("on {node}"))?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = cluster(&self.xtask, &self.name, &["down"]) {
            eprintln!("{error:#}");
        }
    }
}

fn cluster(xtask: &Path, name: &str, args: &[&str]) -> Result<String> {
    let mut command = Command::new(xtask);
    // `--name` is an option of the command before its action.
    command.args(["cluster", "--name", name]).args(args);
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().context("start xtask")?;
    let printed = String::from_utf8_lossy(&stdout).into_owned();
    ensure!(
        status.success(),
        "cluster {args:?}: {status}\n{printed}{}",
        String::from_utf8_lossy(&stderr)
    );
    Ok(printed)
}

/// The root of the checkout.
pub(crate) fn root() -> Result<&'static Path> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().context("tests is below the root")
}
