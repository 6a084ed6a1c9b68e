//! A real Kubernetes control plane on the lab's underlay: etcd, kube-apiserver, and, unless a test wants to be the
//! only one that writes, kube-controller-manager and kube-scheduler.
//!
//! Owns the processes, their certificates and files, and the means to talk to them: [`ControlPlane::kubectl`] for what
//! a person would do, [`ControlPlane::run`] with a [`kube::Client`] for the rest. Nodes are the kubelet's
//! ([`Kubelet`](crate::Kubelet)).
//!
//! Everything runs on a machine of its own in the lab. Its processes die with the [`ControlPlane`], with the lab and
//! with the test, however that ends; its files are in a temporary folder that goes when the [`ControlPlane`] is
//! dropped.

mod access;
mod audit;
mod components;
mod pki;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kube::Client;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::{Handle, Runtime};

use crate::lock;
use crate::process::Daemon;
use crate::topology::{self, Lab};
use crate::wait::wait_for;
pub use audit::{AuditEvent, KUBE_PROXY_USER, PORTOLAN_USER, Right};
use components::Files;
pub use components::{API_SERVER_PORT, helm, program, programs};
pub(crate) use components::{kube_proxy, missing};
use pki::Pki;

/// Time limit of each start; a start takes seconds on an idle machine.
const START_LIMIT: Duration = Duration::from_secs(120);
/// The ServiceAccount, ClusterRole and ClusterRoleBinding that Portolan is shipped with.
pub const PORTOLAN_RBAC: &str = include_str!("../../../deploy/rbac.yaml");
/// The ClusterRole and ClusterRoleBinding for its overlay.
pub const PORTOLAN_OVERLAY_RBAC: &str = include_str!("../../../deploy/overlay-rbac.yaml");

/// A running control plane.
pub struct ControlPlane {
    /// Controllers and scheduler, if any.
    controllers: Vec<Daemon>,
    /// `None` while it is stopped.
    api_server: Mutex<Option<Daemon>>,
    etcd: Daemon,
    client: Client,
    /// Its threads are in the control plane's network namespace, so every socket is. `None` only while dropped.
    runtime: Option<Runtime>,
    files: Files,
    pki: Pki,
    machine: topology::Client,
    folder: TempDir,
}

impl ControlPlane {
    /// Starts etcd, API server, controllers and scheduler on a new machine of the lab, and waits until the API server
    /// is ready and the namespace `default` has its service account (without which no pod is let in).
    ///
    /// Pod ranges are given to nodes by the controller manager: a /24 of [`CLUSTER_CIDR_V4`](crate::CLUSTER_CIDR_V4)
    /// and a /48 of [`CLUSTER_CIDR_V6`](crate::CLUSTER_CIDR_V6) each.
    pub fn start(lab: &Lab) -> Result<ControlPlane> {
        let mut plane = ControlPlane::without_controllers(lab)?;
        for command in plane.files.controllers(&plane.machine)? {
            let daemon = plane.machine.spawn(command.name, command.command)?;
            plane.controllers.push(daemon);
        }
        wait_for("the default service account", START_LIMIT, || {
            for controller in &plane.controllers {
                alive(controller)?;
            }
            plane.kubectl(&["get", "serviceaccount", "default", "-o", "name"])
        })?;
        Ok(plane)
    }

    /// Starts etcd and API server only: objects stay as a test writes them. Nodes get no pod ranges but those the
    /// test gives them, Services no slices but those it writes.
    pub fn without_controllers(lab: &Lab) -> Result<ControlPlane> {
        let machine = lab.client("control-plane")?;
        let folder = tempfile::Builder::new()
            .prefix("lab-control-plane-")
            .tempdir()
            .context("could not make a folder for the control plane")?;
        let pki = Pki::new(&machine.addresses())?;
        let files = Files::write(folder.path(), &pki, &machine)?;
        let etcd = files.etcd(&machine)?;
        let etcd = machine.spawn(etcd.name, etcd.command)?;
        let runtime = machine.run(|| {
            // Born here, the worker threads are in this namespace.
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("lab-kube")
                .enable_all()
                .build()
        })??;
        let client = access::client(&runtime, &files.admin())?;
        let plane = ControlPlane {
            controllers: Vec::new(),
            api_server: Mutex::default(),
            etcd,
            client,
            runtime: Some(runtime),
            files,
            pki,
            machine,
            folder,
        };
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Starts the API server, after [`ControlPlane::stop_api_server`], and waits until it says that it is ready. The
    /// controllers find it again by themselves, after up to half a minute.
    pub fn start_api_server(&self) -> Result<()> {
        self.start_api_server_unready()?;
        wait_for("the API server to be ready", START_LIMIT, || {
            alive(&self.etcd)?;
            let server = lock(&self.api_server);
            alive(server.as_ref().context("the API server was stopped")?)?;
            drop(server);
            self.get_raw("/readyz").map(drop)
        })
    }

    fn start_api_server_unready(&self) -> Result<()> {
        let mut server = lock(&self.api_server);
        if server.is_some() {
            bail!("the API server is running");
        }
        let command = self.files.api_server(&self.machine)?;
        *server = Some(self.machine.spawn(command.name, command.command)?);
        Ok(())
    }

    /// Kills the API server. Its port refuses connections until [`ControlPlane::start_api_server`].
    pub fn stop_api_server(&self) -> Result<()> {
        let server = lock(&self.api_server).take();
        server
            .context("the API server does not run")?
            .kill()
            .map(drop)
    }

    /// Compacts etcd: a client that resumes an earlier watch receives 410, once the API server's own cache is
    /// empty too, which a restart sees to.
    pub fn compact_etcd(&self) -> Result<()> {
        let etcdctl = |arguments: &[&str]| {
            let mut command = self.files.etcdctl(&self.machine)?;
            command.args(arguments);
            self.machine.namespace().checked_output(command, "")
        };
        let status = etcdctl(&["endpoint", "status", "--write-out=json"])?;
        let status: Value = serde_json::from_str(&status).context("etcd's status")?;
        let revision = status
            .pointer("/0/Status/header/revision")
            .context("etcd's status has no revision")?;
        etcdctl(&["compaction", "--physical", &revision.to_string()]).map(drop)
    }

    /// The machine that everything runs on.
    pub fn machine(&self) -> &topology::Client {
        &self.machine
    }

    /// Where the API server listens.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.machine.ipv4().into(), API_SERVER_PORT)
    }

    /// A kubeconfig with all rights, good in any of the lab's namespaces that reaches the underlay.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.files.admin()
    }

    /// The temporary folder, for further files of a test.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn runtime(&self) -> Result<&Runtime> {
        self.runtime
            .as_ref()
            .context("the control plane is being dropped")
    }

    /// Where to start tasks that use [`ControlPlane::client`].
    pub fn handle(&self) -> Result<Handle> {
        Ok(self.runtime()?.handle().clone())
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Fails with the daemon's output if the daemon has ended.
fn alive(daemon: &Daemon) -> Result<()> {
    if daemon.is_running() {
        return Ok(());
    }
    Err(anyhow!(
        "it has ended; it said\n{}",
        daemon.lines().join("\n")
    ))
}

/// Runs a future on the runtime's threads, which are in another network namespace than the caller.
trait BlockOnWorker {
    fn block_on_worker<T, F>(&self, future: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static;
}

impl BlockOnWorker for Runtime {
    fn block_on_worker<T, F>(&self, future: F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
        T: Send + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            // The caller may have ended.
            let _ = sender.send(future.await);
        });
        receiver
            .recv()
            .context("the work did not come to its end")?
    }
}
