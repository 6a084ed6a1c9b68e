//! What the connections, the watches and the handle of a test share: store, settings, faults, counters.
//!
//! Knows nothing of HTTP. Leaves answers to `answer` and `nodes`, connections to `server`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::faults::{Faults, Verb};
use super::store::{Resource, Store};

/// What the server does with `sendInitialEvents=true`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamingList {
    /// Sends the objects and the bookmark that ends them.
    Served,
    /// Answers 422, as servers with the feature switched off.
    Refused,
    /// Does not know the parameter: sends the objects, but no bookmark ends them.
    Ignored,
}

/// A request.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub at: Instant,
    pub resource: Resource,
    pub verb: Verb,
    /// The parameters, decoded.
    pub parameters: BTreeMap<String, String>,
    /// `User-Agent`.
    pub user_agent: String,
    /// Objects are wanted as `PartialObjectMetadata` (API concepts, "Metadata-only fetches").
    pub metadata_only: bool,
}

impl Seen {
    /// Whether all objects of the kind are requested, also as a stream. A list of one object compares versions.
    pub fn is_whole_list(&self) -> bool {
        match self.verb {
            Verb::List => self
                .parameters
                .get("limit")
                .is_none_or(|limit| limit != "1"),
            _ => self.parameters.contains_key("sendInitialEvents"),
        }
    }
}

/// Settings of a test.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) streaming_list: StreamingList,
    pub(super) bookmark_interval: Duration,
    pub(super) node_patches: bool,
    /// The node of each pod that can be read, by `NAMESPACE/NAME`.
    pub(super) pods: BTreeMap<String, String>,
    pub(super) token: Option<String>,
    pub(super) reachable: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            streaming_list: StreamingList::Served,
            bookmark_interval: Duration::from_secs(60),
            node_patches: false,
            pods: BTreeMap::new(),
            token: None,
            reachable: true,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    seen: Vec<Seen>,
    forbidden: u64,
    connections: u64,
}

/// An answer that is not a success: HTTP status, reason and message of a `Status` object.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) code: u16,
    pub(super) message: String,
    pub(super) retry_after: Option<u64>,
}

impl Refusal {
    pub(super) fn new(code: u16, message: impl Into<String>) -> Self {
        Refusal {
            code,
            message: message.into(),
            retry_after: None,
        }
    }

    pub(super) fn gone() -> Self {
        Refusal::new(410, "too old resource version")
    }

    /// The `Status` object.
    pub(super) fn status(&self) -> String {
        let reason = match self.code {
            400 => "BadRequest",
            401 => "Unauthorized",
            403 => "Forbidden",
            404 => "NotFound",
            410 => "Expired",
            422 => "Invalid",
            429 => "TooManyRequests",
            503 => "ServiceUnavailable",
            504 => "Timeout",
            _ => "InternalError",
        };
        json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": reason, "code": self.code,
            "details": { "retryAfterSeconds": self.retry_after.unwrap_or(0) },
        })
        .to_string()
    }
}

/// State shared by the handle, the connections and the watches.
#[derive(Debug)]
pub(super) struct Server {
    store: Mutex<Store>,
    settings: Mutex<Settings>,
    pub(super) faults: Mutex<Faults>,
    tally: Mutex<Tally>,
    pub(super) events: Mutex<Vec<Value>>,
    bytes: Arc<AtomicU64>,
    /// Ticks at each change of the store.
    news: watch::Sender<()>,
    /// Ticks to break every connection.
    pub(super) breaks: watch::Sender<()>,
}

/// Locks; a panic elsewhere in a test must not hide its cause behind a poisoned lock.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub(super) fn new() -> Self {
        Server {
            store: Mutex::default(),
            settings: Mutex::default(),
            faults: Mutex::default(),
            tally: Mutex::default(),
            events: Mutex::default(),
            bytes: Arc::default(),
            news: watch::Sender::new(()),
            breaks: watch::Sender::new(()),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        lock(&self.store)
    }

    /// Changes the store and notifies the watches.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.news.send_replace(());
        result
    }

    /// Changes the store and breaks every connection, in one step for the watches: they wait for the store.
    pub(super) fn change_unseen<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        self.break_connections();
        change(&mut store)
    }

    pub(super) fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    pub(super) fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }

    pub(super) fn bytes(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.bytes)
    }

    pub(super) fn break_connections(&self) {
        self.breaks.send_replace(());
    }

    pub(super) fn record(&self, seen: Seen) {
        lock(&self.tally).seen.push(seen);
    }

    pub(super) fn count_connection(&self) {
        lock(&self.tally).connections += 1;
    }

    pub(super) fn count_forbidden(&self) {
        lock(&self.tally).forbidden += 1;
    }

    pub(super) fn count_bytes(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        lock(&self.tally).seen.clone()
    }

    /// Forbidden requests, connections, and bytes of bodies.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let tally = lock(&self.tally);
        (
            tally.forbidden,
            tally.connections,
            self.bytes.load(Ordering::Relaxed),
        )
    }
}
