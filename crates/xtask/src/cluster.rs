//! `cargo xtask cluster`: a Kubernetes cluster on this machine, made by kubeadm, with Portolan as `deploy/` ships it.
//!
//! Owns the commands and the order of their steps. [`place`] names the cluster, its nodes and their folders; [`parts`] lists
//! the programs to choose from; [`programs`] builds and fetches programs; [`images`] makes container images; [`network`]
//! connects the nodes; [`node`] starts a node; [`kubeadm`] configures and runs kubeadm; [`addons`] applies manifests; [`down`]
//! deletes the cluster. [`e2e`] runs Kubernetes' own tests in these clusters.
//!
//! Invariant: each node has a PID, mount, UTS and network namespace of its own. Outside of these, a cluster has only
//! cgroups, names of namespaces and one folder of the cache, all named after the cluster. So two clusters do not interfere,
//! and killing the first process of each node ends all processes of the cluster.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::tools;

mod addons;
mod down;
pub(crate) mod e2e;
mod images;
mod kubeadm;
mod network;
mod node;
mod parts;
mod place;
mod programs;

use images::Images;
use parts::Parts;
use place::{Cluster, Node};
use programs::Programs;

/// Programs of this machine, and the packages that hold them.
const NEEDED: &[(&str, &str)] = &[
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("nsenter", "util-linux"),
    ("unshare", "util-linux"),
];

/// Options of `cargo xtask cluster`.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    action: Action,
    /// Name of the cluster, to have several: lower-case letters and digits
    #[arg(long, global = true, default_value = "try")]
    name: String,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make a cluster and wait until its nodes are ready.
    Up(Up),
    /// Delete the cluster with everything that belongs to it.
    Down,
    /// Run a command on a node, with kubectl and ctr: exec node1 -- kubectl get pods -A.
    Exec {
        /// node1, node2, ...
        node: String,
        /// The command and its arguments
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Print the path of the administrator's kubeconfig.
    ///
    /// The server in it answers in the cluster's network namespaces.
    Kubeconfig,
    /// Kill everything on a node, empty its network namespace, and start the node again.
    Reboot {
        /// node1, node2, ...
        node: String,
    },
    /// Delete a node and let it join again as another machine would, under another address.
    Replace {
        /// node2, node3, ...
        node: String,
        /// Last part of the new addresses
        #[arg(long, value_parser = clap::value_parser!(u8).range(10..=200))]
        host_number: u8,
    },
    /// Be the first process of a node.
    #[command(hide = true)]
    Node(node::Init),
}

/// Options of `cargo xtask cluster up`.
#[derive(clap::Args)]
struct Up {
    /// Number of nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    #[command(flatten)]
    parts: Parts,
    /// Import the image of version 0.1.0 as well, built from this repository's history
    #[arg(long)]
    old_version: bool,
}

/// Runs `cargo xtask cluster`.
pub(crate) fn cluster(options: &Options) -> Result<()> {
    let cluster = Cluster::named(&options.name)?;
    match &options.action {
        Action::Node(init) => node::run(init),
        Action::Up(wanted) => {
            ensure!(
                !cluster.exists(),
                "a cluster {0} exists: end it by `cargo xtask cluster down --name {0}`, or give another --name",
                options.name
            );
            up(&cluster, wanted, &[]).with_context(|| {
                format!(
                    "the cluster is left as it is, for inspection: logs are in {}; `cargo xtask cluster down --name {}` ends it",
                    cluster.folder.display(),
                    options.name
                )
            })
        }
        Action::Down => Steps::start().run("delete the cluster", || down::down(&cluster)),
        Action::Exec { node, command } => {
            let Some((program, args)) = command.split_first() else {
                bail!("no command");
            };
            let error = cluster.node(node)?.command(program)?.args(args).exec();
            Err(error).context("start nsenter")
        }
        Action::Kubeconfig => {
            println!("{}", cluster.first()?.kubeconfig().display());
            Ok(())
        }
        Action::Reboot { node } => reboot(&cluster.node(node)?),
        Action::Replace { node, host_number } => {
            replace(&cluster.first()?, &cluster.node(node)?, *host_number)
        }
    }
}

/// Makes the cluster step by step, and imports further images on every node.
fn up(cluster: &Cluster, wanted: &Up, images: &[PathBuf]) -> Result<()> {
    wanted.parts.check()?;
    tools::ensure()?;
    tools::ensure_also(NEEDED)?;
    let mut steps = Steps::start();
    let programs = steps.run("programs", Programs::get)?;
    let mut more = images.to_vec();
    if wanted.old_version {
        more.push(steps.run("version 0.1.0", images::old_portolan)?);
    }
    let images = steps.run("images", || Images::get(&programs, wanted.parts, &more))?;
    let nodes: Vec<Node> = (1..=wanted.nodes)
        .map(|number| cluster.new_node(number))
        .collect();
    steps.run("network", || network::make(cluster, &nodes))?;
    steps.run("containerd", || {
        nodes
            .iter()
            .try_for_each(|node| node::start(node, &programs, &images.pause))?;
        each(&nodes, node::wait_for_containerd)
    })?;
    steps.run("import images", || each(&nodes, |node| images.import(node)))?;
    let (first, others) = nodes.split_first().context("no node")?;
    steps.run("kubeadm init", || {
        kubeadm::init(first, &programs, wanted.parts)
    })?;
    if !others.is_empty() {
        steps.run("kubeadm join", || each(others, kubeadm::join))?;
    }
    steps.run("apply manifests", || addons::apply(first, wanted.parts))?;
    steps.run("wait for nodes and pods", || {
        addons::wait(first, wanted.parts)
    })?;
    eprintln!("{:6.1} s in all. Try:", steps.start.elapsed().as_secs_f64());
    let name = match cluster.name.as_str() {
        "try" => String::new(),
        name => format!(" --name {name}"),
    };
    eprintln!("  cargo xtask cluster exec{name} node1 -- kubectl get pods -A -o wide");
    Ok(())
}

/// Stops a node as a power cut would, and starts it again.
fn reboot(node: &Node) -> Result<()> {
    let mut steps = Steps::start();
    let programs = Programs::get()?;
    steps.run("stop", || down::stop(node))?;
    steps.run("network", || network::renew(node))?;
    steps.run("start", || {
        node::start_again(node, &programs)?;
        node::wait_for_containerd(node)
    })
}

/// Deletes the Node object and the node's state, then joins the node again under other addresses.
fn replace(first: &Node, node: &Node, host_number: u8) -> Result<()> {
    ensure!(
        node.number != first.number,
        "{} has the control plane, and cannot be replaced",
        node.name()
    );
    let mut steps = Steps::start();
    let programs = Programs::get()?;
    steps.run("delete the Node", || {
        node::run_in(first, &["kubectl", "delete", "node", &node.name()])
    })?;
    steps.run("stop", || down::stop(node))?;
    node::wipe(node)?;
    node.move_to(host_number)?;
    steps.run("network", || network::renew(node))?;
    steps.run("start", || {
        node::start_again(node, &programs)?;
        node::wait_for_containerd(node)
    })?;
    steps.run("kubeadm join", || kubeadm::join(node))
}

/// Runs an action on all nodes in parallel.
fn each(nodes: &[Node], act: impl Fn(&Node) -> Result<()> + Sync) -> Result<()> {
    let act = &act;
    std::thread::scope(|scope| {
        let runs: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || act(node).with_context(|| node.name())))
            .collect();
        runs.into_iter().try_for_each(|run| {
            run.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })
}

/// Prints each step and its duration.
struct Steps {
    start: Instant,
}

impl Steps {
    fn start() -> Steps {
        Steps {
            start: Instant::now(),
        }
    }

    fn run<T>(&mut self, name: &str, act: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        eprintln!("    ...  {name}");
        let done = act().with_context(|| format!("step `{name}` failed"))?;
        eprintln!("{:6.1} s  {name}", start.elapsed().as_secs_f64());
        Ok(done)
    }
}

/// Repeats an attempt until it succeeds. Returns the last error after the time limit.
fn until<T>(limit: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + limit;
    loop {
        match attempt() {
            Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(200)),
            done => return done,
        }
    }
}

/// Runs a command and appends its output to the node's log. An error names the log and quotes its last lines.
fn logged(command: &mut Command, node: &Node, input: Stdio) -> Result<()> {
    let path = node.log("commands");
    let log = std::fs::File::options()
        .create(true)
        .append(true)
        .open(&path)?;
    let status = command
        .stdin(input)
        .stdout(log.try_clone()?)
        .stderr(log)
        .status()
        .with_context(|| format!("start {:?}", command.get_program()))?;
    if status.success() {
        return Ok(());
    }
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .get(lines.len().saturating_sub(12)..)
        .unwrap_or_default();
    bail!(
        "{status}; {} ends with:\n{}",
        path.display(),
        end.join("\n")
    )
}
