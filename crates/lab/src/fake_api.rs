//! A fake Kubernetes API server: lists, watches, and their faults.
//!
//! Serves Services, EndpointSlices, Nodes and ServiceCIDRs over HTTP/1.1, also over TLS, with paging over consistent
//! snapshots, watches with versions, bookmarks and a bounded history, of metadata only if asked for, and streaming
//! lists. A test changes objects, injects faults and counts requests through [`FakeApi`]. It validates nothing: an applied
//! object is served, even one that a real server would reject.
//!
//! Leaves admission, discovery, namespaced paths and writes of objects to real servers. Patches of Nodes and readings of
//! single pods are served if a test asks for them, Events about Nodes are kept for the test to read. Every other request is answered with 403 and counted
//! ([`Counts::forbidden`]).

mod answer;
mod body;
mod faults;
mod nodes;
mod select;
mod server;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod tls;

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

pub use faults::{Fault, Injection, Verb};
pub use state::{Seen, StreamingList};
pub use store::{Backup, Resource};
pub use tls::Authority;

use state::{Server, lock};

/// A running fake API server. Dropping it breaks every connection and frees the port.
#[derive(Debug)]
pub struct FakeApi {
    server: Arc<Server>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

/// Counters of the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests with another path or method than those served.
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
        Self::serve_with(listener, None)
    }

    /// The same over TLS, with a certificate for these names and addresses.
    pub fn serve_tls(listener: TcpListener, authority: &Authority, names: &[&str]) -> Result<Self> {
        Self::serve_with(listener, Some(authority.acceptor(names)?))
    }

    fn serve_with(listener: TcpListener, tls: Option<TlsAcceptor>) -> Result<Self> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let server = Arc::new(Server::new());
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let accept = Arc::clone(&server).accept(listener, tls, stopped);
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

    /// Advances the version, as changes of other resources do.
    pub fn advance(&self, by: u64) {
        self.server.change(|store| store.advance(by));
    }

    /// Forgets the history and the open pages: a request that resumes from an older version is answered with 410.
    pub fn compact(&self) {
        self.server.change(store::Store::compact);
    }

    /// Makes every kind be listed again: breaks every connection, and a watch that resumes is answered with 410. No watch
    /// receives a bookmark from which it could resume.
    pub fn expire_watches(&self) {
        self.server.change_unseen(|store| {
            store.advance(1);
            store.compact();
        });
    }

    /// Objects and version, for [`FakeApi::restore`].
    pub fn backup(&self) -> Backup {
        self.server.store().backup()
    }

    /// Restores a backup: objects and versions. A restored cluster breaks its connections as well; without that, watches
    /// stay silent.
    pub fn restore(&self, backup: &Backup) {
        self.server.change(|store| store.restore(backup));
    }

    /// Adds a fault; injections strike in the order in which they were added.
    pub fn inject(&self, injection: Injection) {
        lock(&self.server.faults).inject(injection);
    }

    /// Gives each request a random fault with this probability; the same seed repeats a run.
    pub fn inject_randomly(&self, seed: u64, probability: f64) {
        lock(&self.server.faults).randomly(seed, probability);
    }

    /// Removes all injections. A request that hangs continues to hang.
    pub fn heal(&self) {
        lock(&self.server.faults).clear();
    }

    /// Closes every connection there is. No watch on them receives a later change.
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

    /// How `sendInitialEvents` is answered; served by default.
    pub fn set_streaming_list(&self, mode: StreamingList) {
        self.server.settings().streaming_list = mode;
    }

    /// Bookmark interval of watches that begin from now on; a minute by default, as in real servers.
    pub fn set_bookmark_interval(&self, interval: Duration) {
        self.server.settings().bookmark_interval = interval;
    }

    /// Whether single Nodes can be read and patched; if not, such requests are answered with 403.
    pub fn set_node_patches(&self, allowed: bool) {
        self.server.settings().node_patches = allowed;
    }

    /// Serves the reading of a pod (`NAMESPACE/NAME`) that runs on this node.
    pub fn set_pod(&self, pod: &str, node: &str) {
        let pods = &mut self.server.settings().pods;
        pods.insert(pod.to_owned(), node.to_owned());
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

    /// The counters now.
    pub fn counts(&self) -> Counts {
        let (forbidden, connections, bytes) = self.server.totals();
        Counts {
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
