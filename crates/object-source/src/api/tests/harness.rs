//! A source, the server it follows and what it has delivered so far.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lab::fake_api::{FakeApi, Injection, Resource, Seen, Verb};
use serde_json::{Value, json};
use service_model::{Node, ObjectEvent, ObjectKind, ObjectName};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::{self, ApiClient, ApiConfig, RequestObserver, ServerSource};
use crate::{Events, Outage, Problem, SourceEvent};

/// An observer that does nothing.
pub(super) fn unobserved() -> RequestObserver {
    Arc::new(|_| {})
}

/// Limits for tests, as short as a busy machine permits.
pub(super) fn quick() -> ApiConfig {
    ApiConfig {
        silence: Duration::from_secs(2),
        watch_silence: Duration::from_secs(2),
        list_limit: Duration::from_secs(5),
        retry_base: Duration::from_millis(5),
        retry_limit: Duration::from_millis(40),
        away_limit: Duration::from_millis(40),
        ..ApiConfig::default()
    }
}

pub(super) fn service(name: &str) -> Value {
    json!({
        "kind": "Service",
        "metadata": { "namespace": "default", "name": name },
        "spec": { "type": "ClusterIP", "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10"],
            "ports": [{ "port": 80, "protocol": "TCP" }] },
    })
}

pub(super) fn slice(name: &str, service: &str) -> Value {
    json!({
        "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "namespace": "default", "name": name, "labels": { "kubernetes.io/service-name": service } },
        "ports": [{ "name": "", "port": 8080, "protocol": "TCP" }],
        "endpoints": [{ "addresses": ["10.244.0.5"], "conditions": { "ready": true }, "nodeName": "this" }],
    })
}

/// The state after all events so far.
#[derive(Debug, Default)]
pub(super) struct WatchView {
    pub(super) services: BTreeSet<String>,
    pub(super) slices: BTreeSet<String>,
    pub(super) nodes: Vec<String>,
    /// Nodes that were applied, as they came.
    pub(super) applied_nodes: Vec<Arc<Node>>,
    pub(super) resets: BTreeMap<ObjectKind, usize>,
    /// Services that the last `Reset` called invalid.
    pub(super) invalid: Vec<String>,
    pub(super) problems: Vec<Problem>,
    pub(super) connections: Vec<(ObjectKind, Result<(), Outage>)>,
    /// Services that were applied (true) and deleted, as they came.
    pub(super) changes: Vec<(String, bool)>,
    /// Service names of each `Reset`, as they came.
    pub(super) lists: Vec<Vec<String>>,
}

impl WatchView {
    fn on_event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(event) => {
                match &event {
                    ObjectEvent::Apply(object) => {
                        self.changes.push((object.name.name.to_string(), true));
                    }
                    ObjectEvent::Delete(name) => self.changes.push((name.name.to_string(), false)),
                    ObjectEvent::Reset { objects, invalid } => {
                        let names = objects.iter().map(|object| &object.name);
                        self.lists
                            .push(names.map(|name| name.name.to_string()).collect());
                        self.invalid = invalid.iter().map(|name| name.name.to_string()).collect();
                    }
                }
                self.count_and_sum(
                    ObjectKind::Service,
                    event,
                    |object| &object.name,
                    |view| &mut view.services,
                );
            }
            SourceEvent::EndpointSlice(event) => {
                self.count_and_sum(
                    ObjectKind::EndpointSlice,
                    event,
                    |object| &object.name,
                    |view| &mut view.slices,
                );
            }
            SourceEvent::Node(event) => {
                let mut nodes: BTreeSet<String> = self.nodes.drain(..).collect();
                self.count(ObjectKind::Node, &event);
                if let ObjectEvent::Apply(node) = &event {
                    self.applied_nodes.push(node.clone());
                }
                sum(&mut nodes, event, |object| &object.name);
                self.nodes = nodes.into_iter().collect();
            }
            SourceEvent::ServiceCidr(event) => self.count(ObjectKind::ServiceCidr, &event),
            SourceEvent::Problem(problem) => self.problems.push(problem),
            SourceEvent::Connection { kind, state } => self.connections.push((kind, state)),
            SourceEvent::Solved { .. } => panic!("an API server sends no solutions"),
        }
    }

    fn count_and_sum<T>(
        &mut self,
        kind: ObjectKind,
        event: ObjectEvent<T>,
        name: fn(&T) -> &ObjectName,
        names: fn(&mut WatchView) -> &mut BTreeSet<String>,
    ) {
        self.count(kind, &event);
        sum(names(self), event, name);
    }

    fn count<T>(&mut self, kind: ObjectKind, event: &ObjectEvent<T>) {
        match event {
            ObjectEvent::Reset { .. } => *self.resets.entry(kind).or_default() += 1,
            _ => assert!(
                self.resets.contains_key(&kind),
                "a change of {kind} before its list"
            ),
        }
    }

    /// Reported outages of a kind.
    pub(super) fn failures(&self, kind: ObjectKind) -> Vec<&String> {
        let of = self.connections.iter().filter(|(found, _)| *found == kind);
        of.filter_map(|(_, state)| Some(&state.as_ref().err()?.reason))
            .collect()
    }
}

fn sum<T>(names: &mut BTreeSet<String>, event: ObjectEvent<T>, name: fn(&T) -> &ObjectName) {
    match event {
        ObjectEvent::Apply(object) => {
            names.insert(name(&object).name.to_string());
        }
        ObjectEvent::Delete(name) => {
            names.remove(&*name.name);
        }
        ObjectEvent::Reset { objects, invalid } => {
            let kept = invalid
                .into_iter()
                .map(|name| name.name.to_string())
                .filter(|name| names.contains(name));
            let kept: Vec<String> = kept.collect();
            *names = objects
                .iter()
                .map(|object| name(object).name.to_string())
                .chain(kept)
                .collect();
        }
    }
}

/// A fake API server, a source that follows it, and what the source has delivered.
pub(super) struct Bench {
    pub(super) api: FakeApi,
    pub(super) view: WatchView,
    client: Option<ApiClient>,
    running: Option<(Events, JoinHandle<()>, CancellationToken)>,
}

impl Bench {
    /// A server that has the node `this` and another.
    pub(super) fn new() -> Self {
        let api = FakeApi::start().unwrap();
        for name in ["this", "other"] {
            api.apply(json!({ "kind": "Node", "metadata": { "name": name } }))
                .unwrap();
        }
        Bench {
            api,
            view: WatchView::default(),
            client: None,
            running: None,
        }
    }

    /// Adds a fault to the server.
    pub(super) fn inject(&self, injection: Injection) {
        self.api.inject(injection);
    }

    /// A client from a kubeconfig, as an operator would have it.
    pub(super) async fn client(&mut self) -> ApiClient {
        if self.client.is_none() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("kubeconfig");
            self.api.kubeconfig(&path).unwrap();
            let source = ServerSource {
                kubeconfig: Some(path),
                ..ServerSource::default()
            };
            self.client = Some(api::connect(&source, unobserved()).await.unwrap().reader);
        }
        self.client.clone().unwrap()
    }

    /// Starts a source from nothing; one that runs is stopped first.
    pub(super) async fn start(&mut self, config: ApiConfig) {
        self.stop().await;
        self.view = WatchView::default();
        let (sender, events) = mpsc::channel(1);
        let cancel = CancellationToken::new();
        let source = api::run(
            self.client().await,
            "this".to_owned(),
            config,
            sender,
            cancel.clone(),
        );
        self.running = Some((events, tokio::spawn(source), cancel));
    }

    /// Stops the source and receives what it had sent.
    pub(super) async fn stop(&mut self) {
        if let Some((mut events, task, cancel)) = self.running.take() {
            cancel.cancel();
            while let Some(event) = events.recv().await {
                self.view.on_event(event);
            }
            tokio::time::timeout(Duration::from_secs(5), task)
                .await
                .expect("the source ends")
                .unwrap();
        }
    }

    /// Receives events until the view is `done`.
    pub(super) async fn until(&mut self, what: &str, done: impl Fn(&WatchView) -> bool) {
        let view = &mut self.view;
        let (events, ..) = self.running.as_mut().expect("a running source");
        let wait = async {
            while !done(view) {
                view.on_event(events.recv().await.expect("the source runs"));
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .is_err()
        {
            panic!("not in time: {what}: {:#?}", self.view);
        }
    }

    /// Receives events until this many Services are known.
    pub(super) async fn until_listed(&mut self, count: usize) {
        self.until("the list", |view| view.services.len() == count)
            .await;
    }

    /// Receives events until an outage of a kind is reported.
    pub(super) async fn until_outage(&mut self, kind: ObjectKind) {
        self.until("an outage", |view| !view.failures(kind).is_empty())
            .await;
    }

    /// Receives events until the server is `done`.
    pub(super) async fn until_seen(&mut self, what: &str, done: impl Fn(&FakeApi) -> bool) {
        let (events, ..) = self.running.as_mut().expect("a running source");
        let (api, view) = (&self.api, &mut self.view);
        let wait = async {
            while !done(api) {
                match tokio::time::timeout(Duration::from_millis(1), events.recv()).await {
                    Ok(event) => view.on_event(event.expect("the source runs")),
                    Err(_) => continue,
                }
            }
        };
        if tokio::time::timeout(Duration::from_secs(10), wait)
            .await
            .is_err()
        {
            panic!("the server did not get {what}: {:#?}", self.api.seen());
        }
    }

    /// Requests of a kind, oldest first.
    pub(super) fn seen(&self, resource: Resource, verb: Verb) -> Vec<Seen> {
        let seen = self.api.seen().into_iter();
        seen.filter(|seen| seen.resource == resource && seen.verb == verb)
            .collect()
    }
}

/// How often Services were watched.
pub(super) fn watches(api: &FakeApi) -> usize {
    let of = |seen: &Seen| seen.resource == Resource::Services && seen.verb == Verb::Watch;
    api.seen().into_iter().filter(of).count()
}
