//! Deletes a cluster: its processes, cgroups, network namespaces and folder.
//!
//! Mounts, links and rules are inside namespaces, and the kernel removes them with the namespaces.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::network::ip;
use super::place::{Cluster, Node};
use super::until;

/// Time limit for processes to exit after SIGKILL, and for their cgroups to become empty.
const GONE: Duration = Duration::from_secs(30);

/// Deletes whatever exists of the cluster. Missing parts are no error.
pub(super) fn down(cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        stop(&node)?;
    }
    let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for namespace in namespaces {
        let name = namespace.file_name().to_string_lossy().into_owned();
        if name.starts_with(&cluster.prefix()) {
            ip(&["netns", "del", &name])?;
        }
    }
    match fs::remove_dir_all(&cluster.folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("delete {}", cluster.folder.display()))
        }
        _ => Ok(()),
    }
}

/// Kills everything on a node at once, as a power cut would, and removes its cgroups.
pub(super) fn stop(node: &Node) -> Result<()> {
    if let Some(init) = node.init() {
        // The kernel kills a PID namespace with its first process.
        kill(Pid::from_raw(init), Signal::SIGKILL).context("kill the first process")?;
    }
    until(GONE, || match node.init() {
        Some(init) => bail!("process {init} of {} does not end", node.name()),
        None => Ok(()),
    })?;
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten();
    let below = hierarchies.map(|hierarchy| hierarchy.path().join(node.label()));
    for cgroup in below.chain([Path::new("/sys/fs/cgroup").join(node.label())]) {
        until(GONE, || remove(&cgroup)).with_context(|| format!("remove {}", cgroup.display()))?;
    }
    Ok(())
}

/// Removes a cgroup and its children.
fn remove(cgroup: &Path) -> Result<()> {
    let Ok(below) = fs::read_dir(cgroup) else {
        return Ok(());
    };
    for entry in below {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match fs::remove_dir(cgroup) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}
