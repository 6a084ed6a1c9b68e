//! Names of a cluster and its nodes, and the folders where their state is.
//!
//! Owns every name that is visible outside a node; each begins with the cluster's name. Invariant: only a process that this cluster
//! started is signaled or entered; its number and start time identify it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::control_plane::cache_folder;

/// Where programs and images are inside of a node.
pub(super) const PROGRAMS: &str = "/run/programs";

/// The order in which a node searches for programs.
const PATH: &str = "/run/programs/containerd/usr/bin:/run/programs/node:/run/programs/control-plane:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A cluster, whether it exists or not.
pub(super) struct Cluster {
    pub(super) name: String,
    pub(super) folder: PathBuf,
}

/// A node of a cluster.
pub(super) struct Node {
    cluster: String,
    pub(super) number: u8,
    pub(super) folder: PathBuf,
}

impl Cluster {
    pub(super) fn named(name: &str) -> Result<Cluster> {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        ensure!(
            (1..=12).contains(&name.len()) && name.chars().all(is_plain),
            "a cluster's name has 1 to 12 lower-case letters and digits, not {name:?}"
        );
        Ok(Cluster {
            name: name.to_owned(),
            folder: cache_folder("clusters")?.join(name),
        })
    }

    pub(super) fn exists(&self) -> bool {
        self.folder.exists()
    }

    /// The prefix of its network namespaces and cgroups.
    pub(super) fn prefix(&self) -> String {
        format!("portolan-{}-", self.name)
    }

    /// The network namespace with the bridge.
    pub(super) fn wire(&self) -> String {
        self.prefix() + "wire"
    }

    pub(super) fn new_node(&self, number: u8) -> Node {
        Node {
            cluster: self.name.clone(),
            number,
            folder: self.folder.join(format!("node{number}")),
        }
    }

    /// A node that exists, by its name or number.
    pub(super) fn node(&self, name: &str) -> Result<Node> {
        let number = name.trim_start_matches("node").parse().ok();
        let node = number.map(|number| self.new_node(number));
        match node.filter(|node| node.folder.is_dir()) {
            Some(node) => Ok(node),
            None => bail!(
                "cluster {} has no node {name}; names are node1, node2, ...",
                self.name
            ),
        }
    }

    pub(super) fn first(&self) -> Result<Node> {
        self.node("node1")
    }

    /// All nodes that exist.
    pub(super) fn nodes(&self) -> Vec<Node> {
        let all = (1..=9).map(|number| self.new_node(number));
        all.filter(|node| node.folder.is_dir()).collect()
    }
}

impl Node {
    pub(super) fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// The name of its network namespace, and of its cgroup.
    pub(super) fn label(&self) -> String {
        format!("portolan-{}-{}", self.cluster, self.name())
    }

    pub(super) fn wire(&self) -> String {
        format!("portolan-{}-wire", self.cluster)
    }

    /// The last part of its addresses: by default the node's number.
    pub(super) fn host_number(&self) -> u8 {
        let moved = fs::read_to_string(self.folder.join("host-number")).ok();
        moved
            .and_then(|number| number.trim().parse().ok())
            .unwrap_or(self.number)
    }

    /// Gives the node other addresses at its next start.
    pub(super) fn move_to(&self, host_number: u8) -> Result<()> {
        let file = self.folder.join("host-number");
        fs::write(&file, host_number.to_string())
            .with_context(|| format!("write {}", file.display()))
    }

    /// Its addresses, IPv4 and IPv6.
    pub(super) fn addresses(&self) -> [String; 2] {
        let number = self.host_number();
        [format!("192.168.88.{number}"), format!("fd88::{number}")]
    }

    /// The administrator's kubeconfig, on the first node.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("etc/kubernetes/admin.conf")
    }

    pub(super) fn log(&self, of: &str) -> PathBuf {
        self.folder.join(format!("{of}.log"))
    }

    /// A command inside of the node.
    pub(super) fn command(&self, program: &str) -> Result<Command> {
        let init = self
            .init()
            .with_context(|| format!("{} does not run", self.name()))?;
        let mut command = Command::new("nsenter");
        command
            .args([
                "-t",
                &init.to_string(),
                "-m",
                "-u",
                "-n",
                "-p",
                "--wd=/",
                "--",
                "env",
            ])
            .arg(format!("PATH={PATH}"))
            .arg("KUBECONFIG=/etc/kubernetes/admin.conf")
            .arg(program);
        Ok(command)
    }

    /// The first process of the node, while it runs.
    pub(super) fn init(&self) -> Option<i32> {
        let text = fs::read_to_string(self.folder.join("init")).ok()?;
        let (pid, started) = text.trim().split_once(' ')?;
        let pid = pid.parse().ok()?;
        (start_time(pid)? == started).then_some(pid)
    }

    /// Saves number and start time of the first process.
    pub(super) fn set_init(&self, pid: i32) -> Result<()> {
        let started = start_time(pid).context("the first process of the node has ended")?;
        fs::write(self.folder.join("init"), format!("{pid} {started}\n"))?;
        Ok(())
    }
}

/// The PATH of a node's processes.
pub(super) fn path() -> &'static str {
    PATH
}

/// When a process started, in ticks since boot (proc_pid_stat(5)); `None` for one that has ended.
fn start_time(pid: i32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses, and may hold spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    let state = fields.next()?;
    let started = fields.nth(18)?;
    (state != "Z").then(|| started.to_owned())
}
