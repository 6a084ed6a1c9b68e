//! Kubernetes Events (events.k8s.io/v1) about Services and about this Node, for `kubectl describe`.
//!
//! Best effort: nothing waits for an Event, a failed one is retried a few times and then dropped, and the log says the same.
//! Events are sent one after another with a pause, so that trouble here does not become trouble of the API server.
//!
//! `kube::runtime::events::Recorder` was considered: it patches the Event it repeats, which takes a right that the role does
//! not grant (it may create Events, no more), sends on the caller's task without a limit on time or rate, and adds
//! kube-runtime with its dependencies.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use http::header::{CONTENT_TYPE, HeaderValue};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use object_source::Problem;
use object_source::api::{ApiClient, Limits, RequestError};
use service_model::{ObjectKind, ObjectName};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::observer::{Commit, Observer};
use crate::parts::Parts;

/// Length of the queue of Events; further ones are dropped.
const QUEUE: usize = 32;
/// Pause between two Events, and after the first failure of one.
const PAUSE: Duration = Duration::from_secs(2);
const TRIES: u32 = 4;
/// Pause between two Events about one Service, and maximum number of Services with one in that time.
const EACH: Duration = Duration::from_secs(60);
const MOST_RECORDED: usize = 1024;
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(5),
    total: Duration::from_secs(5),
};
/// Longest note that the API accepts, in bytes.
const NOTE: usize = 1024;
/// Namespace of Events about objects without a namespace.
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

/// An Event. Dropping it notifies the caller that waits for it.
struct Queued {
    event: Event,
    _done: oneshot::Sender<()>,
}

/// Creates Events, if there is an API server.
#[derive(Clone)]
pub struct Recorder {
    queue: Option<mpsc::Sender<Queued>>,
    node: Arc<str>,
}

impl Recorder {
    /// Starts sending on the caller's runtime, which is the client's; without a client Events are dropped.
    pub(crate) fn start(parts: &Parts, client: Option<ApiClient>, node: Arc<str>) -> Self {
        let start = |client| {
            let (sender, queue) = mpsc::channel(QUEUE);
            parts.task("recorder", &Handle::current(), work(client, queue));
            sender
        };
        Recorder {
            queue: client.map(start),
            node,
        }
    }

    /// Queues an Event. `reason` and `action` are single words to filter by. A process that is about to exit can await the
    /// receiver, which completes once the Event was sent or dropped.
    pub fn record(
        &self,
        subject: Subject,
        severity: Severity,
        (reason, action): (&'static str, &'static str),
        note: &str,
    ) -> oneshot::Receiver<()> {
        let (_done, done) = oneshot::channel();
        if let Some(queue) = &self.queue {
            let event = self.event(subject, severity, (reason, action), note);
            let _ = queue.try_send(Queued { event, _done });
        }
        done
    }

    /// Reports the start of the daemon, as kube-proxy does.
    pub(crate) fn starting(self) -> Self {
        let note = concat!("portolan ", env!("CARGO_PKG_VERSION"));
        let words = ("Starting", "StartKubeProxy");
        // Nothing waits for it.
        drop(self.record(Subject::Node, Severity::Normal, words, note));
        self
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

/// Creates Events about Services that are ignored, whole or in part, or quarantined, and about commits that fail: at most one a
/// minute for each Service, and one for the Node.
pub struct ServiceEvents {
    recorder: Recorder,
    recorded: HashMap<ObjectName, Instant>,
    failed: Option<Instant>,
}

impl ServiceEvents {
    /// Reports to this recorder.
    pub fn new(recorder: Recorder) -> Self {
        ServiceEvents {
            recorder,
            recorded: HashMap::new(),
            failed: None,
        }
    }

    fn warn(&mut self, service: &ObjectName, words: (&'static str, &'static str), note: &str) {
        let now = Instant::now();
        self.recorded
            .retain(|_, at| now.saturating_duration_since(*at) < EACH);
        if self.recorded.len() < MOST_RECORDED && !self.recorded.contains_key(service) {
            self.recorded.insert(service.clone(), now);
            let subject = Subject::Service(service.clone());
            // Nothing waits for it.
            drop(
                self.recorder
                    .record(subject, Severity::Warning, words, note),
            );
        }
    }
}

impl Observer for ServiceEvents {
    fn new_problem(&mut self, problem: &Problem) {
        if let Some(invalid) = problem.invalid()
            && invalid.kind == ObjectKind::Service
        {
            let words = match problem.is_whole() {
                true => ("InvalidService", "KeepLastVersion"),
                false => ("InvalidField", "ServeWithoutField"),
            };
            self.warn(&invalid.object, words, &invalid.to_string());
        }
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        for quarantined in &commit.outcome.quarantined {
            let note = format!("the kernel refused this Service: {}", quarantined.error);
            let words = match quarantined.last_good {
                Some(_) => ("QuarantinedService", "KeepLastVersion"),
                None => ("QuarantinedService", "ServeNothing"),
            };
            self.warn(&quarantined.service, words, &note);
        }
    }

    fn failed(&mut self) {
        let now = Instant::now();
        let is_recent = |at: Instant| now.saturating_duration_since(at) < EACH;
        if self.failed.is_none_or(|at| !is_recent(at)) {
            self.failed = Some(now);
            let words = ("FailedToSyncRules", "RetrySync");
            let note = "the kernel has refused a commit of all rules; the log of this node's pod has the error; retrying";
            // Nothing waits for it.
            drop(
                self.recorder
                    .record(Subject::Node, Severity::Warning, words, note),
            );
        }
    }
}

async fn work(client: ApiClient, mut queue: mpsc::Receiver<Queued>) -> anyhow::Result<()> {
    while let Some(queued) = queue.recv().await {
        let event = &queued.event;
        let mut pause = PAUSE;
        for _ in 0..TRIES {
            match create(&client, event).await {
                Ok(()) => break,
                Err(error) => tracing::debug!(%error, "cannot create an Event"),
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        drop(queued);
        tokio::time::sleep(PAUSE).await;
    }
    // Nobody creates Events in this configuration, or the daemon is ending.
    std::future::pending().await
}

async fn create(client: &ApiClient, event: &Event) -> Result<(), RequestError> {
    let namespace = event.metadata.namespace.as_deref();
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    let path = format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events");
    let unusable = |error: &dyn std::fmt::Display| RequestError::Unreadable(error.to_string());
    let body = serde_json::to_vec(event).map_err(|error| unusable(&error))?;
    let request = Request::post(path)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(body)
        .map_err(|error| unusable(&error))?;
    client.call(request, LIMITS).await.map(drop)
}
