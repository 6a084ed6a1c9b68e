//! A hollow kubelet: what the API server sees of a node, and what the network sees of its pods, without containers.
//!
//! It registers a lab's node with addresses and zone, waits for the pod ranges that the controller manager chooses,
//! keeps the routes to other nodes' pods, and renews the node's lease. A pod that the scheduler binds here becomes a
//! pod of the lab whose echo servers listen on its container ports (8080 when it names none), called by the pod's
//! name. Status is reported as a kubelet reports it; a pod is ready unless its annotation [`READY_ANNOTATION`] says
//! `false`. A pod that is deleted serves until its grace period is over, then it goes, and then its object.
//!
//! Left out: containers, probes, volumes, static pods, eviction. Nothing here depends on order or timing of events:
//! each pod has a task of its own ([`pod`]) that follows the newest version of its object.

mod follow;
mod node;
mod pod;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::control_plane::ControlPlane;
use crate::lock;
use crate::topology::{Node, Pod};
use follow::Change;

/// The API's types; some names are also types of the lab.
mod objects {
    pub(super) use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
    pub(super) use k8s_openapi::api::core::v1::{ContainerPort, Node, Pod};
    pub(super) use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
    pub(super) use k8s_openapi::jiff::Timestamp;
}

/// Set to `false` on a pod, it makes the pod unready; anything else, or taking it away, makes it ready.
pub const READY_ANNOTATION: &str = "lab/ready";

/// For a node to get its pod ranges.
const REGISTER_LIMIT: Duration = Duration::from_secs(60);

/// The pods that run on a node, by `namespace/name`.
type Running = Arc<Mutex<HashMap<String, Pod>>>;

/// What the tasks of one kubelet share.
#[derive(Clone)]
struct Shared {
    client: Client,
    node: Node,
    running: Running,
}

/// A running kubelet. Dropping it is like a power cut of the node: its pods are gone, their objects stay.
pub struct Kubelet {
    shared: Shared,
    task: AbortHandle,
}

impl Kubelet {
    /// Registers the node, by its name in the lab, and returns when it has its pod ranges and is ready.
    ///
    /// With a `taint`, only pods that tolerate a taint of this key are scheduled here (a kubelet's
    /// `--register-with-taints`). The control plane must be one with controllers. A lab for it is best made
    /// [without pod routes](crate::LabBuilder::without_pod_routes), which come from here.
    pub fn start(
        plane: &ControlPlane,
        node: &Node,
        zone: &str,
        taint: Option<&str>,
    ) -> Result<Kubelet> {
        let shared = Shared {
            client: plane.client(),
            node: node.clone(),
            running: Running::default(),
        };
        let registering = shared.clone();
        let object = node::object(node.name(), zone, taint);
        plane
            .run(|_| async move {
                let registered = node::register(&registering, object);
                tokio::time::timeout(REGISTER_LIMIT, registered)
                    .await
                    .context("no pod ranges in time")?
            })
            .with_context(|| format!("could not register node {}", node.name()))?;
        // The way back, for pods that talk to the API server.
        let machine = plane.machine();
        machine.route_via(node, node.pod_cidr_v4().into())?;
        machine.route_via(node, node.pod_cidr_v6().into())?;
        let task = plane.handle()?.spawn(work(shared.clone())).abort_handle();
        Ok(Kubelet { shared, task })
    }

    pub fn node(&self) -> &Node {
        &self.shared.node
    }

    /// A pod that runs here, to send from or to look into.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        lock(&self.shared.running)
            .get(&format!("{namespace}/{name}"))
            .cloned()
    }

    /// How many pods run here.
    pub fn pod_count(&self) -> usize {
        lock(&self.shared.running).len()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
        let running = std::mem::take(&mut *lock(&self.shared.running));
        for pod in running.into_values() {
            pod.delete();
        }
    }
}

/// All that goes on until the kubelet is dropped.
async fn work(shared: Shared) {
    let pods = Api::<objects::Pod>::all(shared.client.clone());
    let here = format!("spec.nodeName={}", shared.node.name());
    let (pod_changes, mut pods_changed) = mpsc::channel(64);
    let nodes = Api::<objects::Node>::all(shared.client.clone());
    let (node_changes, mut nodes_changed) = mpsc::channel(64);
    // Ended with this task.
    let mut followers = JoinSet::new();
    followers.spawn(follow::follow(pods, Some(here), pod_changes));
    followers.spawn(follow::follow(nodes, None, node_changes));
    followers.spawn(node::heartbeats(shared.clone()));
    let mut lives = Lives::new(shared.clone());
    let mut routes = node::Routes::default();
    loop {
        tokio::select! {
            Some(change) = pods_changed.recv() => lives.change(change),
            Some(change) = nodes_changed.recv() => routes.change(&shared, change).await,
            else => return,
        }
    }
}

/// The tasks of this node's pods.
struct Lives {
    shared: Shared,
    /// By UID: a pod of the same name may come before its predecessor has gone. Dropping one ends the pod.
    newest: HashMap<String, watch::Sender<objects::Pod>>,
    tasks: JoinSet<()>,
}

impl Lives {
    fn new(shared: Shared) -> Lives {
        Lives {
            shared,
            newest: HashMap::new(),
            tasks: JoinSet::new(),
        }
    }

    fn change(&mut self, change: Change<objects::Pod>) {
        // Those that have ended.
        while self.tasks.try_join_next().is_some() {}
        match change {
            Change::All(pods) => {
                let there: HashSet<String> = pods.iter().filter_map(ResourceExt::uid).collect();
                self.newest.retain(|uid, _| there.contains(uid));
                pods.into_iter().for_each(|pod| self.applied(pod));
            }
            Change::Applied(pod) => self.applied(pod),
            Change::Deleted(pod) => {
                self.newest.remove(&pod.uid().unwrap_or_default());
            }
        }
    }

    fn applied(&mut self, pod: objects::Pod) {
        let uid = pod.uid().unwrap_or_default();
        if let Some(newest) = self.newest.get(&uid) {
            newest.send_replace(pod);
        } else if !pod::has_ended(&pod) {
            let (newest, versions) = watch::channel(pod);
            self.newest.insert(uid, newest);
            self.tasks.spawn(pod::live(self.shared.clone(), versions));
        }
    }
}

/// A moment as objects have it.
fn now() -> objects::Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let micros = i64::try_from(since.as_micros()).unwrap_or_default();
    objects::Timestamp::from_microsecond(micros).unwrap_or_default()
}

/// Link and namespace work takes milliseconds and would hold up a thread of the runtime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("it panicked")?
}
