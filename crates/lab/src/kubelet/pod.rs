//! The life of one pod: from the first version of its object that names this node to its end.

use std::time::Duration;

use anyhow::{Context, Result};
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::{READY_ANNOTATION, Shared, blocking, now, objects};
use crate::lock;
use crate::socket::Protocol;
use crate::topology::Pod;

/// The port of a pod whose containers name none.
const DEFAULT_PORT: (Protocol, u16) = (Protocol::Tcp, 8080);
/// Pause between attempts to write to the API server.
const RETRY: Duration = Duration::from_millis(300);

/// Whether the pod has succeeded or failed already.
pub(super) fn has_ended(pod: &objects::Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Runs the pod while its object is there.
pub(super) async fn live(shared: Shared, mut versions: watch::Receiver<objects::Pod>) {
    let first = versions.borrow_and_update().clone();
    let key = format!(
        "{}/{}",
        first.namespace().unwrap_or_default(),
        first.name_any()
    );
    let pod = match begin(&shared, &first).await {
        Ok(pod) => pod,
        Err(error) => {
            eprintln!(
                "kubelet {}: {key} does not start: {error:#}",
                shared.node.name()
            );
            return;
        }
    };
    lock(&shared.running).insert(key.clone(), pod.clone());
    run(&shared, &pod, &mut versions).await;
    // A pod of the same name may have come meanwhile.
    {
        let mut running = lock(&shared.running);
        if running
            .get(&key)
            .is_some_and(|other| other.ipv4() == pod.ipv4())
        {
            running.remove(&key);
        }
    }
    // Its servers answer until here.
    let _ = blocking(move || {
        pod.delete();
        Ok(())
    })
    .await;
    remove(&shared, &first).await;
}

/// Makes the pod and its servers.
async fn begin(shared: &Shared, object: &objects::Pod) -> Result<Pod> {
    let (node, name, ports) = (shared.node.clone(), object.name_any(), ports(object));
    blocking(move || {
        let pod = node.pod(&name)?;
        for (protocol, port) in ports {
            pod.serve(protocol, port)?;
        }
        Ok(pod)
    })
    .await
}

/// Reports, until the object is gone or its grace period is over.
async fn run(shared: &Shared, pod: &Pod, versions: &mut watch::Receiver<objects::Pod>) {
    let mut reported = None;
    let mut ends: Option<Instant> = None;
    loop {
        let object = versions.borrow_and_update().clone();
        let ready = is_ready(&object);
        if reported != Some(ready) {
            if report(shared, pod, &object, ready).await.is_ok() {
                reported = Some(ready);
            } else {
                sleep(RETRY).await;
            }
        }
        if object.metadata.deletion_timestamp.is_some() {
            let seconds = object
                .metadata
                .deletion_grace_period_seconds
                .unwrap_or_default();
            let grace = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
            // A second, shorter deletion brings the end nearer.
            let end = Instant::now() + grace;
            ends = Some(ends.map_or(end, |before| before.min(end)));
        }
        let waits = reported == Some(ready);
        tokio::select! {
            changed = versions.changed(), if waits => if changed.is_err() { return },
            () = sleep_until(ends.unwrap_or_else(Instant::now)), if ends.is_some() => return,
            () = std::future::ready(()), if !waits => if versions.has_changed().is_err() { return },
        }
    }
}

/// Deletes the object, unless another pod has its name by now. Retries until the API server answers.
async fn remove(shared: &Shared, object: &objects::Pod) {
    let pods = pods(shared, object);
    let how = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: object.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    loop {
        match pods.delete(&object.name_any(), &how).await {
            // Gone (404), or another of the same name (409).
            Ok(_) | Err(kube::Error::Api(_)) => return,
            Err(_) => sleep(RETRY).await,
        }
    }
}

fn pods(shared: &Shared, object: &objects::Pod) -> Api<objects::Pod> {
    Api::namespaced(
        shared.client.clone(),
        &object.namespace().unwrap_or_default(),
    )
}

fn is_ready(object: &objects::Pod) -> bool {
    object
        .annotations()
        .get(READY_ANNOTATION)
        .map(String::as_str)
        != Some("false")
}

/// Container ports with their protocols.
fn ports(object: &objects::Pod) -> Vec<(Protocol, u16)> {
    let containers = object.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports: Vec<_> = containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        ports.push(DEFAULT_PORT);
    }
    ports
}

fn port(port: &objects::ContainerPort) -> Option<(Protocol, u16)> {
    let protocol = match port.protocol.as_deref() {
        None | Some("TCP") => Protocol::Tcp,
        Some("UDP") => Protocol::Udp,
        Some("SCTP") => Protocol::Sctp,
        Some(_) => return None,
    };
    Some((protocol, u16::try_from(port.container_port).ok()?))
}

/// Reports in the status that the pod runs, at which addresses, and whether it is ready.
async fn report(shared: &Shared, pod: &Pod, object: &objects::Pod, ready: bool) -> Result<()> {
    let patch = Patch::Strategic(status(shared, pod, object, ready));
    let (pods, name) = (pods(shared, object), object.name_any());
    match pods
        .patch_status(&name, &PatchParams::default(), &patch)
        .await
    {
        // Gone: the watch will say so.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(drop).context("could not report a pod's status"),
    }
}

fn status(shared: &Shared, pod: &Pod, object: &objects::Pod, ready: bool) -> Value {
    let time = objects::Time(now());
    let condition = |kind: &str, yes: bool| {
        let status = if yes { "True" } else { "False" };
        json!({ "type": kind, "status": status, "lastTransitionTime": time })
    };
    let containers = object.spec.iter().flat_map(|spec| &spec.containers);
    let containers: Vec<Value> = containers
        .map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "",
                "ready": ready, "started": true, "restartCount": 0,
                "state": { "running": { "startedAt": time } },
            })
        })
        .collect();
    let addresses = pod.addresses().map(|address| json!({ "ip": address }));
    json!({
        // The precondition: not a pod of the same name that came after it.
        "metadata": { "uid": object.uid() },
        "status": {
            "phase": "Running", "startTime": time,
            "hostIP": shared.node.ipv4(), "podIP": pod.ipv4(), "podIPs": addresses,
            "conditions": [
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "containerStatuses": containers,
        },
    })
}
