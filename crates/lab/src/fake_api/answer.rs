//! Lists and watches: from a request's parameters and the store to the bytes of the answer.
//!
//! Follows what the API conventions say of a real server; see kubernetes.io "API concepts" for paging,
//! watches, bookmarks and streaming lists (KEP-3157).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use super::body::{Closed, Pieces, Pipe, pipe};
use super::faults::Fault;
use super::select::Selectors;
use super::state::{Refusal, Server, StreamingList};
use super::store::{Change, Gone, Resource, Stored};

/// Bytes gathered before they are handed on.
const PIECE: usize = 32 * 1024;
/// A real server ends a watch after 30 to 60 minutes unless the client asks otherwise.
const WATCH_TIMEOUT: Duration = Duration::from_secs(1800);

/// Parameters of a request, decoded.
#[derive(Debug, Default)]
pub(super) struct Parameters {
    pub(super) query: BTreeMap<String, String>,
    /// Answer watches with `PartialObjectMetadata`.
    pub(super) metadata_only: bool,
}

impl Parameters {
    fn get(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }

    pub(super) fn is_true(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.get(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Refusal::new(400, format!("{name}: not a number: {text:?}"))),
        }
    }

    fn selectors(&self) -> Result<Selectors, Refusal> {
        Selectors::parse(self.get("labelSelector"), self.get("fieldSelector"))
            .map_err(|e| Refusal::new(400, e))
    }
}

/// Answers a list or one page of it.
pub(super) fn list(
    server: &Arc<Server>,
    resource: Resource,
    parameters: &Parameters,
    fault: Option<Fault>,
) -> Result<Pieces, Refusal> {
    let selectors = parameters.selectors()?;
    let limit = parameters.number("limit")?.filter(|limit| *limit > 0);
    let (version, objects, from, token) = {
        let mut store = server.store();
        if parameters
            .number("resourceVersion")?
            .is_some_and(|version| version > store.version())
        {
            let refusal = Refusal::new(504, "Too large resource version");
            return Err(Refusal {
                retry_after: Some(1),
                ..refusal
            });
        }
        let (version, objects, from, kept) = match parameters.get("continue") {
            "" => {
                let mut objects = store.list(resource);
                objects.retain(|object| selectors.matches(object));
                (store.version(), Arc::new(objects), 0, None)
            }
            token => {
                let (id, from) = token
                    .split_once(':')
                    .and_then(|(id, from)| Some((id.parse().ok()?, from.parse().ok()?)))
                    .ok_or_else(|| Refusal::new(400, "continue key is not valid"))?;
                let (version, objects) = store.kept(id).map_err(|Gone| Refusal::gone())?;
                (version, objects, from, Some(id))
            }
        };
        let to = limit.map_or(objects.len(), |limit| {
            objects.len().min(from + limit as usize)
        });
        let token = (to < objects.len()).then(|| {
            let id = kept.unwrap_or_else(|| store.keep(Arc::clone(&objects)));
            (format!("{id}:{to}"), objects.len() - to)
        });
        (version, objects, from..to, token)
    };

    let twice = fault == Some(Fault::Duplicate);
    Ok(respond(server, fault, |mut writer| async move {
        let objects = objects.get(from).unwrap_or(&[]);
        write_list(&mut writer, resource, version, objects, token, twice).await
    }))
}

async fn write_list(
    writer: &mut Pipe,
    resource: Resource,
    version: u64,
    objects: &[Arc<Stored>],
    token: Option<(String, usize)>,
    twice: bool,
) -> Result<(), Closed> {
    let mut metadata = json!({ "resourceVersion": version.to_string() });
    if let Some((token, remaining)) = token {
        metadata["continue"] = token.into();
        metadata["remainingItemCount"] = remaining.into();
    }
    let mut piece = BytesMut::with_capacity(PIECE);
    piece.extend_from_slice(
        format!(
            r#"{{"kind":"{}List","apiVersion":"{}","metadata":{metadata},"items":["#,
            resource.kind(),
            resource.api_version(),
        )
        .as_bytes(),
    );
    let mut first = true;
    for object in objects {
        for _ in 0..if twice { 2 } else { 1 } {
            if !std::mem::take(&mut first) {
                piece.extend_from_slice(b",");
            }
            piece.extend_from_slice(&object.json);
        }
        if piece.len() >= PIECE {
            writer.write(piece.split().freeze()).await?;
        }
    }
    piece.extend_from_slice(b"]}\n");
    writer.write(piece.freeze()).await
}

/// A watch and its position.
struct Watcher {
    server: Arc<Server>,
    resource: Resource,
    selectors: Selectors,
    /// Position of the last change that was considered.
    sequence: u64,
    /// The version after which it starts.
    since: u64,
    bookmarks: bool,
    metadata_only: bool,
    fault: Option<Fault>,
    /// For [`Fault::Replay`].
    first: Option<Bytes>,
    piece: BytesMut,
}

/// Answers a watch.
pub(super) fn watch(
    server: &Arc<Server>,
    resource: Resource,
    parameters: &Parameters,
    fault: Option<Fault>,
) -> Result<Pieces, Refusal> {
    let selectors = parameters.selectors()?;
    let bookmarks = parameters.is_true("allowWatchBookmarks");
    let streaming = streaming_list(server, parameters)?;
    let timeout = parameters
        .number("timeoutSeconds")?
        .map_or(WATCH_TIMEOUT, Duration::from_secs);
    let from = if streaming {
        None
    } else {
        parameters
            .number("resourceVersion")?
            .filter(|version| *version > 0)
    };

    let (initial, sequence, version, gone) = {
        let store = server.store();
        let gone = from.is_some_and(|version| store.check_watch(resource, version).is_err());
        let initial = if from.is_none() {
            store.list(resource)
        } else {
            Vec::new()
        };
        // A resumed watch looks through the history; one with initial events starts after the present.
        let sequence = if from.is_none() {
            store.sequence()
        } else {
            store.forgotten(resource)
        };
        (initial, sequence, store.version(), gone)
    };
    if gone {
        return Err(Refusal::gone());
    }
    let mut watcher = Watcher {
        server: Arc::clone(server),
        resource,
        selectors,
        sequence,
        since: from.unwrap_or(0),
        bookmarks,
        metadata_only: parameters.metadata_only,
        fault,
        first: None,
        piece: BytesMut::with_capacity(PIECE),
    };
    Ok(respond(server, fault, |mut writer| async move {
        let deadline = Instant::now() + timeout;
        if let Some(Fault::ErrorEvent(code)) = fault {
            return watcher.fail(&mut writer, code).await;
        }
        watcher
            .initial(&mut writer, &initial, streaming.then_some(version))
            .await?;
        drop(initial);
        watcher.run(&mut writer, deadline).await
    }))
}

/// Answers with a body that `write` writes.
fn respond<F: Future<Output = Result<(), Closed>> + Send + 'static>(
    server: &Server,
    fault: Option<Fault>,
    write: impl FnOnce(Pipe) -> F,
) -> Pieces {
    let (writer, body) = pipe(fault, server.bytes());
    tokio::spawn(write(writer));
    body
}

/// Whether the initial events end with a bookmark. Refuses as servers without the feature do.
fn streaming_list(server: &Server, parameters: &Parameters) -> Result<bool, Refusal> {
    if !parameters.is_true("sendInitialEvents") {
        return Ok(false);
    }
    match server.settings().streaming_list {
        StreamingList::Ignored => Ok(false),
        StreamingList::Refused => Err(Refusal::new(
            422,
            "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList \
             feature gate is enabled",
        )),
        StreamingList::Served => {
            if parameters.get("resourceVersionMatch") != "NotOlderThan" {
                return Err(Refusal::new(
                    422,
                    "resourceVersionMatch: Forbidden: sendInitialEvents requires it",
                ));
            }
            // Without bookmarks nothing can end the list.
            Ok(parameters.is_true("allowWatchBookmarks"))
        }
    }
}

/// The `PartialObjectMetadata` of an object.
fn metadata_of(object: &[u8]) -> Vec<u8> {
    let object: Value = serde_json::from_slice(object).unwrap_or_default();
    let partial = json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"],
    });
    partial.to_string().into()
}

impl Watcher {
    async fn initial(
        &mut self,
        writer: &mut Pipe,
        objects: &[Arc<Stored>],
        end: Option<u64>,
    ) -> Result<(), Closed> {
        for object in objects {
            if self.selectors.matches(object) {
                self.event("ADDED", &object.json);
            }
            if self.piece.len() >= PIECE {
                self.flush(writer).await?;
            }
        }
        if let Some(version) = end {
            self.bookmark(
                version,
                r#","annotations":{"k8s.io/initial-events-end":"true"}"#,
            );
        }
        self.flush(writer).await
    }

    async fn run(&mut self, writer: &mut Pipe, deadline: Instant) -> Result<(), Closed> {
        let mut news = self.server.news();
        let mut bookmarks = tokio::time::interval(self.server.settings().bookmark_interval);
        bookmarks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        bookmarks.tick().await;
        loop {
            news.borrow_and_update();
            let Some(version) = self.drain(writer).await? else {
                return self.fail(writer, 410).await;
            };
            tokio::select! {
                _ = news.changed() => {}
                _ = bookmarks.tick(), if self.bookmarks => {
                    // The newest version of which this watcher has seen everything; never one before its start.
                    self.bookmark(version.max(self.since), "");
                    self.flush(writer).await?;
                }
                () = tokio::time::sleep_until(deadline) => return Ok(()),
                () = writer.closed() => return Err(Closed),
            }
        }
    }

    /// Writes all pending changes. Returns the version up to which everything is written; `None` if changes were forgotten
    /// before.
    async fn drain(&mut self, writer: &mut Pipe) -> Result<Option<u64>, Closed> {
        loop {
            let (changes, version) = {
                let store = self.server.store();
                if store.lost(self.resource, self.sequence) {
                    return Ok(None);
                }
                (
                    store.changes(self.resource, self.sequence, self.since, 256),
                    store.version(),
                )
            };
            if changes.is_empty() {
                return Ok(Some(version));
            }
            for change in changes {
                self.sequence = change.sequence;
                match (self.classify(&change), &change.before) {
                    // The version that the watcher knew, not the one that it does not select.
                    (Some("DELETED"), Some(before)) if !change.deleted => {
                        let last = before.at_version(self.resource, change.version);
                        self.event("DELETED", &last);
                    }
                    (Some(kind), _) => self.event(kind, &change.object.json),
                    (None, _) => {}
                }
            }
            self.flush(writer).await?;
        }
    }

    /// What a change looks like through the selector.
    fn classify(&self, change: &Change) -> Option<&'static str> {
        let before = change
            .before
            .as_ref()
            .is_some_and(|object| self.selectors.matches(object));
        let now = !change.deleted && self.selectors.matches(&change.object);
        match (before, now) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }

    fn event(&mut self, kind: &str, object: &Bytes) {
        let start = self.piece.len();
        self.piece
            .extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
        match self.metadata_only {
            true => self.piece.extend_from_slice(&metadata_of(object)),
            false => self.piece.extend_from_slice(object),
        }
        self.piece.extend_from_slice(b"}\n");
        let again = match self.fault {
            Some(Fault::Duplicate) => Bytes::copy_from_slice(&self.piece[start..]),
            Some(Fault::Replay) => {
                let event = &self.piece[start..];
                self.first
                    .get_or_insert_with(|| Bytes::copy_from_slice(event))
                    .clone()
            }
            _ => return,
        };
        self.piece.extend_from_slice(&again);
    }

    fn bookmark(&mut self, version: u64, annotations: &str) {
        let (kind, api_version) = (self.resource.kind(), self.resource.api_version());
        self.piece.extend_from_slice(
            format!(
                r#"{{"type":"BOOKMARK","object":{{"kind":"{kind}","apiVersion":"{api_version}","metadata":{{"resourceVersion":"{version}","creationTimestamp":null{annotations}}}}}}}"#
            )
            .as_bytes(),
        );
        self.piece.extend_from_slice(b"\n");
    }

    async fn fail(&mut self, writer: &mut Pipe, code: u16) -> Result<(), Closed> {
        let status = Refusal::new(code, "error event").status();
        self.piece
            .extend_from_slice(format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n").as_bytes());
        self.flush(writer).await
    }

    async fn flush(&mut self, writer: &mut Pipe) -> Result<(), Closed> {
        writer.write(self.piece.split().freeze()).await
    }
}
