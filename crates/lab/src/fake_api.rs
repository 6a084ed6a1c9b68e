//! A fake Kubernetes API server: lists, watches, and everything that goes wrong with them.
//!
//! Serves Services, EndpointSlices, Nodes and ServiceCIDRs over plain HTTP/1.1, with paging over consistent
//! snapshots, watches with versions, bookmarks and a bounded history, of metadata only if asked for, and streaming
//! lists. A test changes objects, injects faults and counts requests through [`FakeApi`]. It validates nothing: what is
//! applied is served, also when no real server would have taken it.
//!
//! Leaves TLS, admission, namespaced paths and writing over HTTP to real servers. Events of Nodes are kept for the test to read.
//! Anything else but a list or a watch of those four is answered with 403 and counted ([`Counts::forbidden`]).

mod answer;
mod body;
mod discovery;
mod faults;
mod nodes;
mod select;
mod server;
mod store;
#[cfg(test)]
mod tests;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::watch;

pub use faults::{Fault, Injection, Verb};
pub use server::{GoneAs, Seen, StreamingList};
pub use store::{Backup, Resource};

use server::{Server, lock};

/// A running fake API server. Dropping it breaks every connection and frees the port.
#[derive(Debug)]
pub struct FakeApi {
    server: Arc<Server>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// What has been asked of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lists, or pages of them.
    pub lists: usize,
    /// Watches, those with initial events included.
    pub watches: usize,
    /// Requests nobody may make: another path or method.
    pub forbidden: u64,
    /// TCP connections.
    pub connections: u64,
    /// Bytes of objects handed to the network: bodies of lists and watches, and single Nodes.
    pub bytes: u64,
}

impl FakeApi {
    /// Listens on a free port of 127.0.0.1, in the caller's network namespace.
    pub fn start() -> Result<Self> {
        Self::serve(TcpListener::bind(("127.0.0.1", 0)).context("listen for the fake API server")?)
    }

    /// Serves on a listener; its network namespace is the one it was made in.
    pub fn serve(listener: TcpListener) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let server = Arc::new(Server::new());
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let accept = Arc::clone(&server).accept(listener, stopped);
        let thread = std::thread::Builder::new()
            .name("fake-api".to_owned())
            // Dropping the runtime breaks the connections.
            .spawn(move || runtime.block_on(accept))?;
        Ok(FakeApi {
            server,
            address,
            stop,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://ADDRESS`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Writes a kubeconfig that leads here, with the token that is required now.
    pub fn kubeconfig(&self, path: &Path) -> Result<()> {
        let user = match &self.server.settings().token {
            Some(token) => serde_json::json!({ "token": token }),
            None => serde_json::json!({}),
        };
        // JSON is YAML.
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{ "name": "fake", "cluster": { "server": self.url() } }],
            "users": [{ "name": "fake", "user": user }],
            "contexts": [{ "name": "fake", "context": { "cluster": "fake", "user": "fake" } }],
        });
        std::fs::write(path, config.to_string()).with_context(|| format!("write {path:?}"))
    }

    /// Events written so far (events.k8s.io/v1), oldest first.
    pub fn events(&self) -> Vec<Value> {
        lock(&self.server.events).clone()
    }

    /// Adds or replaces an object of one of the four kinds, and returns its version.
    pub fn apply(&self, object: Value) -> Result<u64> {
        let kind = object
            .get("kind")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let Some(resource) = Resource::ALL
            .into_iter()
            .find(|resource| resource.kind() == kind)
        else {
            bail!("kind {kind:?} is not served");
        };
        let key = store::key_of(&object).context("object without a name")?;
        Ok(self
            .server
            .change(|store| store.apply(resource, key, object)))
    }

    /// Applies each.
    pub fn apply_all(&self, objects: impl IntoIterator<Item = Value>) -> Result<()> {
        objects
            .into_iter()
            .try_for_each(|object| self.apply(object).map(drop))
    }

    /// Removes an object; `namespace` is empty for cluster-scoped ones. Says whether there was one.
    pub fn delete(&self, resource: Resource, namespace: &str, name: &str) -> bool {
        let key = (namespace.to_owned(), name.to_owned());
        self.server
            .change(|store| store.delete(resource, &key))
            .is_some()
    }

    /// The newest version.
    pub fn version(&self) -> u64 {
        self.server.store().version()
    }

    /// Uses up `by` versions for what nobody here watches.
    pub fn advance(&self, by: u64) {
        self.server.change(|store| store.advance(by));
    }

    /// Forgets the history and the open pages: what resumes from an older version is answered with 410.
    pub fn compact(&self) {
        self.server.change(store::Store::compact);
    }

    /// Keeps at most so many changes per resource.
    pub fn set_history_limit(&self, changes: usize) {
        self.server.change(|store| store.set_history_limit(changes));
    }

    /// The present, to go back to.
    pub fn backup(&self) -> Backup {
        self.server.store().backup()
    }

    /// Goes back to a backup: objects and versions. Break the connections as well for what a restored cluster
    /// looks like; without, its watches just stay silent.
    pub fn restore(&self, backup: &Backup) {
        self.server.change(|store| store.restore(backup));
    }

    /// Adds a fault; injections strike in the order in which they were added.
    pub fn inject(&self, injection: Injection) {
        lock(&self.server.faults).inject(injection);
    }

    /// Lets each request meet a random fault with this probability; the seed repeats a run.
    pub fn inject_randomly(&self, seed: u64, probability: f64) {
        lock(&self.server.faults).randomly(seed, probability);
    }

    /// Ends all injections. What hangs already goes on hanging.
    pub fn heal(&self) {
        lock(&self.server.faults).clear();
    }

    /// Closes every connection there is.
    pub fn break_connections(&self) {
        self.server.break_connections();
    }

    /// An unreachable server closes every connection, new ones at once.
    pub fn set_reachable(&self, reachable: bool) {
        self.server.settings().reachable = reachable;
        if !reachable {
            self.break_connections();
        }
    }

    /// What is done with `sendInitialEvents`; served at first.
    pub fn set_streaming_list(&self, mode: StreamingList) {
        self.server.settings().streaming_list = mode;
    }

    /// How a watch from a forgotten version is refused; by status at first.
    pub fn set_gone(&self, gone: GoneAs) {
        self.server.settings().gone = gone;
    }

    /// How often watches begun from now on get a bookmark; a minute at first, as in real servers.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.server.settings().bookmark_interval = interval;
    }

    /// Whether single Nodes can be read and patched; if not, such requests are answered with 403.
    pub fn set_node_patches(&self, allowed: bool) {
        self.server.settings().node_patches = allowed;
    }

    /// A Node as it is now.
    pub fn node(&self, name: &str) -> Option<Value> {
        nodes::get(&self.server, name).ok()
    }

    /// Requires a bearer token; requests without it are answered with 401.
    pub fn require_token(&self, token: Option<&str>) {
        self.server.settings().token = token.map(str::to_owned);
    }

    /// Every list, watch and reading of the four kinds, oldest first.
    pub fn seen(&self) -> Vec<Seen> {
        self.server.seen()
    }

    /// What has been asked so far.
    pub fn counts(&self) -> Counts {
        let seen = self.server.seen();
        let asked = |verb| seen.iter().filter(|seen| seen.verb == verb).count();
        let (forbidden, connections, bytes) = self.server.totals();
        Counts {
            lists: asked(Verb::List),
            watches: asked(Verb::Watch),
            forbidden,
            connections,
            bytes,
        }
    }
}

impl Drop for FakeApi {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
