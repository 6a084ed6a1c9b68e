//! Starts and stops a node: its namespaces, file system, containerd and kubelet.
//!
//! Owns everything inside a node. [`start`] makes the namespaces with `unshare`, and runs this program in them as the node's first
//! process. That process ([`run`]) mounts the node's own folders over those of this machine, then keeps containerd running, and
//! kubelet once kubeadm has configured kubelet.
//!
//! Invariant: everything that is written inside a node, kernel settings included, is in the node's folder or in memory.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::place::{self, Node, PROGRAMS};
use super::programs::Programs;
use super::{logged, until};
use crate::run::output;

const CONTAINERD: Duration = Duration::from_secs(60);

/// Sysctls of the whole kernel that kubelet sets at its start, with kubelet's values. In a node, files replace these sysctls.
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Sysctls of the network namespace that a node needs.
const FORWARDING: [&str; 2] = ["ipv4/ip_forward", "ipv6/conf/all/forwarding"];

/// Configuration of the first process of a node.
#[derive(clap::Args)]
pub(crate) struct Init {
    /// The node's folder.
    #[arg(long)]
    folder: PathBuf,
    /// The node's name.
    #[arg(long)]
    hostname: String,
    /// Name of the cgroup above its pods.
    #[arg(long)]
    cgroup: String,
    /// Addresses of both families, with a comma between.
    #[arg(long)]
    addresses: String,
    /// Folder with the control plane's programs.
    #[arg(long)]
    control_plane: PathBuf,
    /// Folder with kubelet and kubeadm.
    #[arg(long)]
    node: PathBuf,
    /// Tree of containerd's package.
    #[arg(long)]
    containerd: PathBuf,
}

/// Makes the folder of a node and starts the node. `pause` is the image of every pod's first container.
pub(super) fn start(node: &Node, programs: &Programs, pause: &str) -> Result<()> {
    let folder = &node.folder;
    for path in [
        "opt/cni/bin",
        "var/lib",
        "var/log",
        "var/tmp",
        "work/etc",
        "work/opt",
    ] {
        fs::create_dir_all(folder.join(path))?;
    }
    configure(node)?;
    symlink("/run", folder.join("var/run"))?;
    for (name, value) in SETTINGS {
        fs::write(folder.join(name.replace('/', ".")), format!("{value}\n"))?;
    }
    for plugin in fs::read_dir(&programs.plugins)? {
        let plugin = plugin?;
        fs::copy(
            plugin.path(),
            folder.join("opt/cni/bin").join(plugin.file_name()),
        )?;
    }
    fs::write(folder.join("etc/containerd.toml"), containerd(pause))?;
    start_again(node, programs)
}

/// Makes the folders of kubelet and CNI as they are before kubeadm writes into them.
fn configure(node: &Node) -> Result<()> {
    let folder = &node.folder;
    for path in ["etc/cni/net.d", "etc/kubernetes"] {
        fs::create_dir_all(folder.join(path))?;
    }
    // Nobody answers there: nothing outside of the cluster has a name.
    let resolver = folder.join("etc/kubernetes/resolv.conf");
    Ok(fs::write(resolver, "nameserver 192.168.88.254\n")?)
}

/// Deletes the cluster's state of a stopped node, but not its images.
pub(super) fn wipe(node: &Node) -> Result<()> {
    for path in [
        "etc/cni",
        "etc/kubernetes",
        "var/lib/kubelet",
        "var/lib/cni",
    ] {
        let path = node.folder.join(path);
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("delete {}", path.display()));
            }
            _ => {}
        }
    }
    configure(node)
}

/// Starts a node whose folder exists.
pub(super) fn start_again(node: &Node, programs: &Programs) -> Result<()> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(node.log("node"))?;
    let mut command = Command::new("nsenter");
    command
        .current_dir("/")
        .arg(format!("--net=/run/netns/{}", node.label()))
        .args([
            "setsid",
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
        ])
        .args(["--mount-proc", "--propagation", "private"])
        .arg(std::env::current_exe()?)
        .args([
            "cluster",
            "node",
            "--hostname",
            &node.name(),
            "--cgroup",
            &node.label(),
        ])
        .args(["--addresses", &node.addresses().join(",")])
        .arg("--folder")
        .arg(&node.folder)
        .arg("--control-plane")
        .arg(&programs.control_plane)
        .arg("--node")
        .arg(&programs.node)
        .arg("--containerd")
        .arg(&programs.containerd)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let unshare = command.spawn().context("start nsenter")?.id();
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    let init = until(CONTAINERD, || {
        let children = fs::read_to_string(&children)?;
        let first = children.split_whitespace().next();
        Ok(first.context("unshare has no child yet")?.parse::<i32>()?)
    });
    node.set_init(init.with_context(|| failed(node))?)
}

/// Waits until containerd answers.
pub(super) fn wait_for_containerd(node: &Node) -> Result<()> {
    until(CONTAINERD, || {
        ensure!(
            node.folder.join("mounted").exists(),
            "its mounts are not complete"
        );
        output(node.command("ctr")?.arg("version")).map(drop)
    })
    .with_context(|| failed(node))
}

/// Imports an archive of an image.
pub(super) fn import(node: &Node, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    let mut command = node.command("ctr")?;
    command.args(["--namespace", "k8s.io", "images", "import", "-"]);
    logged(&mut command, node, Stdio::from(file))
        .with_context(|| format!("import {}", archive.display()))
}

/// Runs a command inside the node, and appends its output to the node's log.
pub(super) fn run_in(node: &Node, command: &[&str]) -> Result<()> {
    let (program, args) = command.split_first().context("no command")?;
    logged(node.command(program)?.args(args), node, Stdio::null())
        .with_context(|| format!("on {}: {}", node.name(), command.join(" ")))
}

fn failed(node: &Node) -> String {
    format!(
        "{} did not start; see {} and {}",
        node.name(),
        node.log("node").display(),
        node.log("containerd").display()
    )
}

fn containerd(pause: &str) -> String {
    format!(
        r#"version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "{pause}"
[plugins."io.containerd.cri.v1.runtime"]
  # A score below one's own needs CAP_SYS_RESOURCE, which containers and some machines lack.
  restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
    SystemdCgroup = false
"#
    )
}

/// The first process of a node.
pub(super) fn run(init: &Init) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "only `cargo xtask cluster up` runs this"
    );
    let mut containerd = Service::new("containerd", &init.folder)?;
    let mut kubelet = Service::new("kubelet", &init.folder)?;
    let _ = fs::remove_file(init.folder.join("mounted"));
    make_mounts(init)?;
    nix::unistd::sethostname(&init.hostname)?;
    for setting in FORWARDING {
        fs::write(Path::new("/proc/sys/net").join(setting), "1")?;
    }
    make_cgroups(&init.cgroup)?;
    // The node's folder may be below /var, which is the node's own now: this is its path through the mount.
    fs::write("/run/node/mounted", "")?;
    loop {
        containerd.keep(|| Ok(Some(vec!["--config=/etc/containerd.toml".to_owned()])))?;
        kubelet.keep(|| kubelet_args(init))?;
        while let Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..)) =
            waitpid(None, Some(WaitPidFlag::WNOHANG))
        {
            for service in [&mut containerd, &mut kubelet] {
                service.pid.take_if(|own| *own == pid.as_raw());
            }
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Mounts the node's own /run, /etc, /opt and /var, the programs, and the files that replace sysctls.
fn make_mounts(init: &Init) -> Result<()> {
    let folder = &init.folder;
    mount_at("tmpfs", "/run", Some("tmpfs"), Some("mode=755".to_owned()))?;
    bind(folder, "/run/node")?;
    for (from, name) in [
        (&init.control_plane, "control-plane"),
        (&init.node, "node"),
        (&init.containerd, "containerd"),
    ] {
        bind(from, &format!("{PROGRAMS}/{name}"))?;
    }
    for (name, _) in SETTINGS {
        let to = format!("/proc/sys/{name}");
        if Path::new(&to).exists() {
            let from = folder.join(name.replace('/', "."));
            bind_file(&from, &to)?;
        }
    }
    for name in ["etc", "opt"] {
        let (upper, work) = (folder.join(name), folder.join("work").join(name));
        let options = format!(
            "lowerdir=/{name},upperdir={},workdir={}",
            upper.display(),
            work.display()
        );
        mount_at(
            "overlay",
            &format!("/{name}"),
            Some("overlay"),
            Some(options),
        )?;
    }
    bind(Path::new("/run/node/var"), "/var")?;
    for path in ["/run/lock", "/run/netns"] {
        fs::create_dir_all(path)?;
    }
    // kubelet passes mounts on to containers.
    let shared = MsFlags::MS_REC | MsFlags::MS_SHARED;
    mount(None::<&str>, "/", None::<&str>, shared, None::<&str>).context("share mounts")
}

fn bind(from: &Path, to: &str) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {to}"))?;
    bind_file(from, to)
}

fn bind_file(from: &Path, to: &str) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| format!("mount {} at {to}", from.display()))
}

fn mount_at(source: &str, to: &str, kind: Option<&str>, options: Option<String>) -> Result<()> {
    mount(Some(source), to, kind, MsFlags::empty(), options.as_deref())
        .with_context(|| format!("mount {source} at {to}"))
}

/// Makes the cgroup above all pods of the node, in every hierarchy.
fn make_cgroups(name: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        fs::create_dir_all(root.join(name))?;
        return Ok(());
    }
    for hierarchy in fs::read_dir(root)? {
        let hierarchy = hierarchy?.path();
        if hierarchy.is_symlink() || !hierarchy.join("tasks").exists() {
            continue;
        }
        let own = hierarchy.join(name);
        fs::create_dir_all(&own)?;
        // A new cpuset is empty, and takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read(hierarchy.join(file)) {
                fs::write(own.join(file), all)?;
            }
        }
    }
    Ok(())
}

/// kubelet's command line, once kubeadm has configured it.
fn kubelet_args(init: &Init) -> Result<Option<Vec<String>>> {
    let exists = |path: &str| Path::new(path).exists();
    let is_configured = exists("/var/lib/kubelet/config.yaml")
        && (exists("/etc/kubernetes/kubelet.conf")
            || exists("/etc/kubernetes/bootstrap-kubelet.conf"));
    if !is_configured {
        return Ok(None);
    }
    let mut args = vec![
        "--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf".to_owned(),
        "--kubeconfig=/etc/kubernetes/kubelet.conf".to_owned(),
        "--config=/var/lib/kubelet/config.yaml".to_owned(),
        format!("--hostname-override={}", init.hostname),
        format!("--cgroup-root=/{}", init.cgroup),
        format!("--node-ip={}", init.addresses),
    ];
    // KUBELET_KUBEADM_ARGS="--a=b --c=d"
    let more = fs::read_to_string("/var/lib/kubelet/kubeadm-flags.env").unwrap_or_default();
    let more = more.trim().split_once('=').map_or("", |(_, args)| args);
    args.extend(more.trim_matches('"').split_whitespace().map(str::to_owned));
    Ok(Some(args))
}

/// A program that is started again when it ends.
struct Service {
    program: &'static str,
    log: File,
    pid: Option<i32>,
}

impl Service {
    fn new(program: &'static str, folder: &Path) -> Result<Service> {
        let log = folder.join(format!("{program}.log"));
        let log = File::options().create(true).append(true).open(&log);
        Ok(Service {
            program,
            log: log.with_context(|| format!("open the log of {program}"))?,
            pid: None,
        })
    }

    /// Starts the program unless it runs or has no arguments yet.
    fn keep(&mut self, args: impl FnOnce() -> Result<Option<Vec<String>>>) -> Result<()> {
        if self.pid.is_some() {
            return Ok(());
        }
        let Some(args) = args()? else {
            return Ok(());
        };
        let child = Command::new(self.program)
            .args(args)
            .env("PATH", place::path())
            .stdin(Stdio::null())
            .stdout(self.log.try_clone()?)
            .stderr(self.log.try_clone()?)
            .current_dir("/")
            .spawn()
            .with_context(|| format!("start {}", self.program))?;
        self.pid = Some(child.id().cast_signed());
        Ok(())
    }
}
