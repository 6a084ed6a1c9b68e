//! Clusters come and go: nothing of them is left, and two at once do not see each other.

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::wait_for;

use crate::kubeadm::{Cluster, xtask};
use crate::traffic::{Traffic, Web};

/// Number of clusters in a row, instead of [`ROUNDS`].
const VARIABLE: &str = "PORTOLAN_CLUSTER_ROUNDS";
const ROUNDS: usize = 10;

/// Time limit for the kernel to free namespaces whose last process has ended.
const GONE: Duration = Duration::from_secs(30);

/// Kinds of namespaces that a node or its pods have for themselves.
const KINDS: [&str; 6] = ["net", "mnt", "pid", "uts", "ipc", "cgroup"];

#[test]
#[ignore = "needs cluster"]
fn clusters_in_a_row_leave_nothing_behind() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let rounds = match std::env::var(VARIABLE) {
        Ok(number) => number.parse().context(VARIABLE)?,
        Err(_) => ROUNDS,
    };
    let mut seconds = Vec::new();
    for round in 1..=rounds {
        let start = Instant::now();
        let cluster = Cluster::up(&xtask, "often", &[])?;
        let up = start.elapsed().as_secs_f64();
        let own = Own::of(&cluster)?;
        ensure!(
            own.namespaces.len() > 2 * KINDS.len() && own.processes.len() > 10,
            "a cluster of two nodes has more: {own:?}"
        );
        let start = Instant::now();
        cluster.down()?;
        println!(
            "{round}: up {up:.1} s, down {:.1} s",
            start.elapsed().as_secs_f64()
        );
        seconds.push(up);
        wait_for("the end of everything", GONE, || own.is_gone())?;
    }
    seconds.sort_by(f64::total_cmp);
    println!("up, sorted: {seconds:.1?}");
    Ok(())
}

#[test]
#[ignore = "needs cluster"]
fn two_clusters_at_once_do_not_see_each_other() -> Result<()> {
    let Some(xtask) = xtask() else {
        return Ok(());
    };
    let (one, two) = std::thread::scope(|scope| {
        let two = scope.spawn(|| Cluster::up(&xtask, "two", &[]));
        let one = Cluster::up(&xtask, "one", &[]);
        let two = two.join();
        (one, two.unwrap_or_else(|panic| resume_unwind(panic)))
    });
    let (one, two) = (one?, two?);
    let (web, other) = (Web::new(&one)?, Web::new(&two)?);
    let (traffic, others) = (Traffic::start(&web)?, Traffic::start(&other)?);
    traffic.goes_on(50)?;
    others.goes_on(50)?;
    others.stop()?.nothing_is_lost("beside another cluster")?;
    let own = Own::of(&two)?;
    drop(other);
    two.down()?;
    wait_for("the end of everything", GONE, || own.is_gone())?;
    traffic.goes_on(50)?;
    traffic.stop()?.nothing_is_lost("another cluster deleted")?;
    one.doctor()
}

/// What a cluster has on this machine.
#[derive(Debug)]
struct Own {
    folder: String,
    /// The prefix of its names.
    prefix: String,
    /// Kind and inode of each namespace of its processes.
    namespaces: BTreeSet<String>,
    /// Number and start time.
    processes: BTreeSet<(String, String)>,
}

impl Own {
    fn of(cluster: &Cluster) -> Result<Own> {
        let mut roots = BTreeSet::new();
        for node in ["node1", "node2"] {
            roots.insert(link(&format!("/proc/{}/ns/pid", cluster.init(node)?))?);
        }
        let mut own = Own {
            folder: cluster.folder().display().to_string(),
            prefix: cluster.prefix(),
            namespaces: BTreeSet::new(),
            processes: BTreeSet::new(),
        };
        let host: BTreeSet<String> = KINDS
            .iter()
            .map(|kind| link(&format!("/proc/self/ns/{kind}")))
            .collect::<Result<_>>()?;
        // A container has a PID namespace below that of its node.
        let mut is_own = BTreeSet::new();
        let mut all = processes()?;
        all.sort_by_key(|(pid, _, _)| pid.parse::<u32>().unwrap_or_default());
        for (pid, parent, _) in &all {
            let namespace = link(&format!("/proc/{pid}/ns/pid")).unwrap_or_default();
            if roots.contains(&namespace) || is_own.contains(parent) {
                is_own.insert(pid.clone());
            }
        }
        for (pid, _, started) in all {
            if !is_own.contains(&pid) {
                continue;
            }
            for kind in KINDS {
                let namespace = link(&format!("/proc/{pid}/ns/{kind}")).unwrap_or_default();
                if !namespace.is_empty() && !host.contains(&namespace) {
                    own.namespaces.insert(namespace);
                }
            }
            own.processes.insert((pid, started));
        }
        Ok(own)
    }

    fn is_gone(&self) -> Result<()> {
        ensure!(!Path::new(&self.folder).exists(), "{} is left", self.folder);
        for (pid, _, started) in processes()? {
            let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = command.replace('\0', " ");
            for kind in KINDS {
                let namespace = link(&format!("/proc/{pid}/ns/{kind}")).unwrap_or_default();
                let is_left = self.namespaces.contains(&namespace);
                ensure!(!is_left, "{pid} is still in {namespace}: {command}");
            }
            let is_named = command.contains(&self.folder);
            ensure!(!is_named, "process {pid} is left: {command}");
            let is_left = self.processes.contains(&(pid.clone(), started));
            ensure!(!is_left, "process {pid} is left: {command}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for mount in mounts.lines() {
            let is_left = mount.contains(&self.folder) || mount.contains(&self.prefix);
            ensure!(!is_left, "a mount is left: {mount}");
        }
        for folder in ["/run/netns", "/sys/fs/cgroup"] {
            let below = below(Path::new(folder), 2);
            let left = below.iter().find(|name| name.contains(&self.prefix));
            ensure!(left.is_none(), "{folder}: {left:?} is left");
        }
        Ok(())
    }
}

/// Number, parent and start time of each process (proc_pid_stat(5)).
fn processes() -> Result<Vec<(String, String, String)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_string_lossy().into_owned();
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let Some((_, fields)) = stat.rsplit_once(") ") else {
            continue;
        };
        let fields: Vec<&str> = fields.split(' ').collect();
        if let [state, parent, ..] = fields.as_slice()
            && let Some(started) = fields.get(19)
            && *state != "Z"
            && pid != "self"
        {
            found.push((pid, (*parent).to_owned(), (*started).to_owned()));
        }
    }
    Ok(found)
}

fn link(path: &str) -> Result<String> {
    let target = fs::read_link(path).with_context(|| format!("read {path}"))?;
    Ok(target.display().to_string())
}

/// Names in a folder and in the folders below it.
fn below(folder: &Path, depth: usize) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        names.push(entry.file_name().to_string_lossy().into_owned());
        if depth > 1 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            names.extend(below(&entry.path(), depth - 1));
        }
    }
    names
}
