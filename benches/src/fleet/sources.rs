//! Nodes with Portolan's source, as the daemon starts it, all in one process and one network namespace.
//!
//! The daemon's other parts ask nothing of the API server while nothing fails. A node is a source with connections of its own;
//! its reader keeps the number of the last change of each EndpointSlice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc as std_mpsc};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use lab::{Client, PORTOLAN_USER};
use object_source::api::{self, ApiClient, ApiConfig, RequestOutcome, ServerSource};
use object_source::{Events, SourceEvent};
use service_model::{EndpointSlice, ObjectEvent, ObjectKind};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::cluster::{Cluster, Sent, node_name, version};
use super::fleets::{Fleet, KINDS, Return, Traffic};
use crate::Samples;

/// Capacity of the channel to the reader, as in the daemon.
const EVENTS: usize = 1024;
/// Runtimes end within this time; then their tasks are dropped.
const END: Duration = Duration::from_secs(10);

/// A number of sources.
pub struct Sources {
    nodes: Vec<Arc<Node>>,
    clients: Vec<ApiClient>,
    cancel: CancellationToken,
    /// Its threads are in `machine`. `None` only while dropped.
    runtime: Option<Runtime>,
    machine: Client,
    server: std::net::SocketAddr,
}

/// What a node has.
struct Node {
    state: Mutex<State>,
    sent: Sent,
}

#[derive(Default)]
struct State {
    /// By Service, the number of the last change of its slice.
    slices: Vec<u32>,
    whole_lists: usize,
    /// When each kind was connected last; absent while it is not.
    watching: BTreeMap<ObjectKind, SystemTime>,
    /// When the last list was complete.
    listed: Option<SystemTime>,
    /// When answers began.
    answered: Vec<SystemTime>,
    deliveries: Samples,
}

impl Node {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answered(&self, outcome: &RequestOutcome<'_>) {
        if outcome.code.is_some() {
            self.lock().answered.push(SystemTime::now());
        }
    }

    fn event(&self, event: &SourceEvent) {
        let mut state = self.lock();
        match event {
            SourceEvent::Connection {
                kind,
                state: Ok(()),
            } => {
                state.watching.insert(*kind, SystemTime::now());
            }
            SourceEvent::Connection {
                kind,
                state: Err(_),
            } => {
                state.watching.remove(kind);
            }
            SourceEvent::Service(ObjectEvent::Reset { .. })
            | SourceEvent::Node(ObjectEvent::Reset { .. })
            | SourceEvent::ServiceCidr(ObjectEvent::Reset { .. }) => state.list(),
            SourceEvent::EndpointSlice(ObjectEvent::Reset { objects, .. }) => {
                state.list();
                state.slices.fill(0);
                for slice in objects {
                    state.apply(slice);
                }
            }
            SourceEvent::EndpointSlice(ObjectEvent::Apply(slice)) => {
                if let Some(change) = state.apply(slice) {
                    let sent = self.sent.lock().unwrap_or_else(PoisonError::into_inner);
                    let sent = sent.get(change as usize).map(Instant::elapsed);
                    state.deliveries.push(sent.unwrap_or_default());
                }
            }
            _ => {}
        }
    }
}

impl State {
    fn list(&mut self) {
        self.whole_lists += 1;
        self.listed = Some(SystemTime::now());
    }

    /// Keeps the version of a slice and returns it; `None` for slices that are not of the shape.
    fn apply(&mut self, slice: &EndpointSlice) -> Option<u32> {
        let (service, change) = version(slice).ok()?;
        *self.slices.get_mut(service as usize)? = change;
        Some(change)
    }
}

impl Sources {
    /// Prepares this number of nodes with the rights that Portolan is shipped with. Nothing is sent yet.
    pub fn new(cluster: &Cluster, nodes: u32) -> Result<Sources> {
        let machine = cluster.lab().client("sources")?;
        let kubeconfig = cluster.plane().kubeconfig_for_portolan()?;
        // Born there, the worker threads are in the machine's network namespace.
        let runtime = machine.run(|| Builder::new_multi_thread().enable_all().build())??;
        let services = cluster.shape().services as usize;
        let node = |_| Node {
            state: Mutex::new(State {
                slices: vec![0; services],
                ..State::default()
            }),
            sent: cluster.sent(),
        };
        let nodes: Vec<Arc<Node>> = (0..nodes).map(node).map(Arc::new).collect();
        let of_runtime = nodes.clone();
        let (sender, receiver) = std_mpsc::channel();
        runtime.spawn(async move {
            for node in of_runtime {
                let source = ServerSource {
                    kubeconfig: Some(kubeconfig.clone()),
                    ..ServerSource::default()
                };
                let observer = move |outcome: &RequestOutcome<'_>| node.answered(outcome);
                let server = api::connect(&source, Arc::new(observer)).await;
                // The receiver waits for all of them.
                let _ = sender.send(server.map(|server| server.reader));
            }
        });
        Ok(Sources {
            clients: receiver.iter().collect::<Result<_>>()?,
            nodes,
            cancel: CancellationToken::new(),
            runtime: Some(runtime),
            machine,
            server: cluster.server(),
        })
    }
}

async fn read(mut events: Events, node: Arc<Node>) {
    while let Some(event) = events.recv().await {
        node.event(&event);
    }
}

impl Fleet for Sources {
    fn name(&self) -> String {
        "Portolan".to_owned()
    }

    fn nodes(&self) -> u32 {
        self.nodes.len() as u32
    }

    fn user(&self) -> &'static str {
        PORTOLAN_USER
    }

    fn start(&mut self) -> Result<()> {
        let runtime = self.runtime.as_ref().context("the sources have ended")?;
        let nodes = self.nodes.iter().cloned();
        for ((number, node), client) in (0..).zip(nodes).zip(self.clients.drain(..)) {
            let (sender, events) = mpsc::channel(EVENTS);
            let (name, cancel) = (node_name(number), self.cancel.clone());
            // As for `portolan run` without an overlay.
            let config = ApiConfig::default();
            runtime.spawn(api::run(client, name, config, sender, cancel));
            runtime.spawn(read(events, node));
        }
        Ok(())
    }

    fn is_watching(&self, _: &Cluster) -> Result<bool> {
        let is_watching = |node: &Arc<Node>| node.lock().watching.len() == KINDS;
        Ok(self.nodes.iter().all(is_watching))
    }

    fn traffic(&self) -> Result<Traffic> {
        Traffic::of(&self.machine, self.server)
    }

    fn missing(&self, expected: &BTreeMap<u32, u32>) -> Result<usize> {
        let missing = |node: &Arc<Node>| {
            let state = node.lock();
            let is_missing = |(service, change): &(&u32, &u32)| {
                state.slices.get(**service as usize) != Some(*change)
            };
            expected.iter().filter(is_missing).count()
        };
        Ok(self.nodes.iter().map(missing).sum())
    }

    fn returns(&self, since: SystemTime, _: &Cluster) -> Result<Vec<Return>> {
        let of = |node: &Arc<Node>| {
            let state = node.lock();
            let is_watching = state.watching.len() == KINDS;
            let last = state.watching.values().copied().max().max(state.listed);
            let answered = state.answered.iter().filter(|time| **time >= since);
            Return {
                first: answered.min().copied(),
                watching: last.filter(|_| is_watching),
            }
        };
        Ok(self.nodes.iter().map(of).collect())
    }

    fn whole_lists(&self) -> Option<usize> {
        Some(self.nodes.iter().map(|node| node.lock().whole_lists).sum())
    }

    fn deliveries(&self) -> Option<Samples> {
        let mut all = Samples::new();
        for node in &self.nodes {
            all.extend(&node.lock().deliveries);
        }
        Some(all)
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(END);
        }
    }
}
