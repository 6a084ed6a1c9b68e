//! The image as a node runs it: unpacked, and started by runc with what a DaemonSet's security context comes to.
//!
//! The configuration is what containerd's CRI makes of `runAsUser`, `capabilities: {drop: [ALL], add: [...]}`,
//! `allowPrivilegeEscalation: false`, `readOnlyRootFilesystem: true` and `hostNetwork: true`: bounding, permitted and
//! effective capabilities are those that are added, inheritable and ambient ones are empty, no_new_privs is set. Seccomp
//! profile and cgroup limits are left to real clusters.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Daemon, Host};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::stage::PATIENCE;

/// Names the archive that `cargo xtask image` has written.
const ARCHIVE: &str = "PORTOLAN_IMAGE";
/// Where the manifests of a test are inside the container.
pub const MANIFESTS: &str = "/manifests";

/// A security context, as far as it differs between containers.
pub struct Rights {
    /// User and group.
    pub user: u32,
    /// Capabilities that are added after all were dropped.
    pub capabilities: &'static [&'static str],
}

/// An image that is unpacked, for containers one after another.
pub struct Image {
    folder: TempDir,
    /// The environment that the image's configuration gives to its containers.
    environment: Value,
}

impl Image {
    /// Unpacks the image that the environment names. Without one this is nothing, reported loudly; with `CI` set it is a failure.
    ///
    /// # Panics
    ///
    /// When there is no image or no runc, and the environment has `CI`.
    pub fn unpack() -> Result<Option<Image>> {
        let runc = Command::new("runc").arg("--version").output().is_ok();
        let Some(archive) = std::env::var_os(ARCHIVE).filter(|_| runc) else {
            let why = format!("no image (`cargo xtask image`, then {ARCHIVE}=ARCHIVE), or no runc");
            assert!(std::env::var_os("CI").is_none(), "{why}");
            // Past the capture of the test harness; nowhere to report that stderr is closed.
            let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let layer = folder.path().join("layer.tar.gz");
        let (content, environment) = layer_of(Path::new(&archive))?;
        fs::write(&layer, content)?;
        let root = folder.path().join("rootfs");
        fs::create_dir(&root)?;
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=security.capability", "-xpzf"]);
        let status = tar.arg(&layer).arg("-C").arg(&root).status()?;
        ensure!(status.success(), "tar: {status}");
        Ok(Some(Image {
            folder,
            environment,
        }))
    }

    /// A command that runs the image's program with these arguments: killing it ends everything that it has started.
    pub fn command(
        &self,
        host: &Host,
        rights: &Rights,
        arguments: &[&str],
        manifests: Option<&Path>,
    ) -> Result<Command> {
        if let Some(folder) = manifests {
            // As a ConfigMap's volume is: for everyone to read.
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
        }
        let mut config = configuration(rights, arguments, manifests);
        config["process"]["env"] = self.environment.clone();
        fs::write(self.path("config.json"), serde_json::to_vec(&config)?)?;
        // runc's container does not end with runc, but with the first process of its namespace of processes.
        let mut command = host.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "runc"]);
        command.arg("--root").arg(self.path("state"));
        command.arg("run").arg("--bundle").arg(self.folder.path());
        command.arg(format!("portolan-{}", std::process::id()));
        Ok(command)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The container's configuration.
fn configuration(rights: &Rights, arguments: &[&str], manifests: Option<&Path>) -> Value {
    let readonly = ["nosuid", "noexec", "nodev", "ro"];
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc"}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": readonly}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]}),
    ];
    if let Some(folder) = manifests {
        mounts.push(json!({
            "destination": MANIFESTS, "type": "bind", "source": folder, "options": ["rbind", "ro"],
        }));
    }
    let capabilities = rights.capabilities;
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": rights.user, "gid": rights.user, "additionalGids": [0]},
            "args": arguments,
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "mounts": mounts,
        "linux": {
            // No network namespace: hostNetwork.
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}],
            "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
        },
    })
}

/// The compressed layer in the archive of an image for one architecture, and the environment that its configuration has.
fn layer_of(archive: &Path) -> Result<(Vec<u8>, Value)> {
    let unpacked = tempfile::tempdir()?;
    let status = Command::new("tar")
        .arg("-xf")
        .arg(archive)
        .arg("-C")
        .arg(unpacked.path())
        .status()?;
    ensure!(status.success(), "tar: {status}");
    let read = |name: &str| -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let path = unpacked.path().join(name);
        fs::File::open(&path)
            .with_context(|| format!("open {path:?}"))?
            .read_to_end(&mut content)?;
        Ok(content)
    };
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().context("no digest")?;
        read(&format!("blobs/{}", digest.replace(':', "/")))
    };
    let parse = |bytes: Vec<u8>| -> Result<Value> { Ok(serde_json::from_slice(&bytes)?) };
    let layout = parse(read("index.json")?)?;
    let index = parse(blob(&layout["manifests"][0])?)?;
    let manifest = parse(blob(&index["manifests"][0])?)?;
    let config = parse(blob(&manifest["config"])?)?;
    Ok((
        blob(&manifest["layers"][0])?,
        config["config"]["Env"].clone(),
    ))
}

/// The container's own process, once it runs, and the text of its `/proc/PID/status`.
fn process_of(daemon: &Daemon) -> Result<(i32, String)> {
    let mut processes = vec![daemon.pid()];
    while let Some(process) = processes.pop() {
        // A process has the children of all its threads.
        for thread in fs::read_dir(format!("/proc/{process}/task"))? {
            let children = fs::read_to_string(thread?.path().join("children"))?;
            let children = children.split_whitespace().map(str::parse);
            processes.extend(children.collect::<Result<Vec<i32>, _>>()?);
        }
        // Those that lead to it have other names.
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        if status.starts_with("Name:\tportolan\n") {
            return Ok((process, status));
        }
    }
    anyhow::bail!("no process named portolan")
}

/// The value of a field in `/proc/PID/status` of the container's process; of several the first.
pub fn status(daemon: &Daemon, field: &str) -> Result<String> {
    let (_, status) = process_of(daemon)?;
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(|values| values.split_whitespace().next());
    Ok(value.with_context(|| format!("no {field}"))?.to_owned())
}

/// Asks the container to end, so that runc removes what it has made (control groups), and waits.
pub fn stop(daemon: &Daemon) -> Result<()> {
    kill(Pid::from_raw(process_of(daemon)?.0), Signal::SIGTERM)?;
    let status = daemon.wait(PATIENCE)?;
    ensure!(status.success(), "the container ended with {status}");
    Ok(())
}
