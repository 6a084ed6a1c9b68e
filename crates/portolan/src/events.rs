//! Events of the cluster (events.k8s.io/v1): what somebody who looks at a Service or at this Node should see there.
//!
//! Best effort: nothing waits for an Event, one that cannot be created is tried a few times and then left, and the same
//! is in the log. Events go one after another with a pause, so that no trouble here becomes trouble of the API server.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use service_model::ObjectName;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that may wait; more are left out: so many say enough.
const WAITING: usize = 32;
/// Between two events, and after the first failure of one.
const PAUSE: Duration = Duration::from_secs(2);
const TRIES: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest note that the API takes, in bytes.
const NOTE: usize = 1024;
/// Where events of objects without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";

/// What an event is about.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The Node of this daemon.
    Node,
    /// A Service.
    Service(ObjectName),
}

/// Whether something is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// `Normal`
    Normal,
    /// `Warning`
    Warning,
}

/// Tells the cluster, where there is one.
#[derive(Clone)]
pub struct Recorder {
    waiting: Option<mpsc::Sender<Event>>,
    node: Arc<str>,
}

impl Recorder {
    /// Starts telling on the caller's runtime, which is the client's, until cancelled; without a client nothing is told.
    pub fn start(client: Option<Client>, node: Arc<str>, cancel: CancellationToken) -> Self {
        let start = |client| {
            let (sender, waiting) = mpsc::channel(WAITING);
            tokio::spawn(async move { cancel.run_until_cancelled(work(client, waiting)).await });
            sender
        };
        Recorder {
            waiting: client.map(start),
            node,
        }
    }

    /// Has an event created, in time. `reason` and `action` are words of the kind that people filter by.
    pub fn tell(
        &self,
        subject: Subject,
        severity: Severity,
        (reason, action): (&'static str, &'static str),
        note: &str,
    ) {
        if let Some(waiting) = &self.waiting {
            let event = self.event(subject, severity, (reason, action), note);
            let _ = waiting.try_send(event);
        }
    }

    fn event(
        &self,
        subject: Subject,
        severity: Severity,
        (reason, action): (&str, &str),
        note: &str,
    ) -> Event {
        let node = self.node.to_string();
        let (kind, namespace, name) = match &subject {
            Subject::Node => ("Node", None, node.clone()),
            Subject::Service(service) => (
                "Service",
                Some(service.namespace.to_string()),
                service.name.to_string(),
            ),
        };
        // As in the kubelet's events a Node's uid is its name here: `kubectl describe node` asks for that.
        let uid = matches!(subject, Subject::Node).then(|| node.clone());
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("portolan-{node}-")),
                namespace: Some(
                    namespace
                        .clone()
                        .unwrap_or_else(|| DEFAULT_NAMESPACE.into()),
                ),
                ..ObjectMeta::default()
            },
            event_time: Some(MicroTime(Timestamp::now())),
            reporting_controller: Some("portolan".into()),
            reporting_instance: Some(node),
            type_: Some(format!("{severity:?}")),
            reason: Some(reason.into()),
            action: Some(action.into()),
            note: Some(note[..note.floor_char_boundary(NOTE)].into()),
            regarding: Some(ObjectReference {
                api_version: Some("v1".into()),
                kind: Some(kind.into()),
                namespace,
                name: Some(name),
                uid,
                ..ObjectReference::default()
            }),
            ..Event::default()
        }
    }
}

async fn work(client: Client, mut waiting: mpsc::Receiver<Event>) {
    while let Some(event) = waiting.recv().await {
        let mut pause = PAUSE;
        for _ in 0..TRIES {
            match create(&client, &event).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::debug!(error = format!("{error:#}"), "an Event was not created");
                }
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn create(client: &Client, event: &Event) -> anyhow::Result<()> {
    let namespace = event.metadata.namespace.as_deref();
    let events: Api<Event> =
        Api::namespaced(client.clone(), namespace.unwrap_or(DEFAULT_NAMESPACE));
    tokio::time::timeout(TIMEOUT, events.create(&PostParams::default(), event))
        .await
        .context("the API server is silent")??;
    Ok(())
}
