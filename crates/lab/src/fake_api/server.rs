//! The listening side: connections, routes, counters. One thread of its own, so that neither a test's runtime
//! nor its network namespace matters.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::{self, Parameters, Refusal};
use super::body::Pieces;
use super::discovery;
use super::faults::{Fault, Faults, Verb};
use super::nodes;
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

/// How the server says that a version is too old for a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoneAs {
    /// HTTP status 410.
    Status,
    /// Status 200 and an ERROR event with code 410.
    Event,
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When.
    pub at: Instant,
    /// What was asked for.
    pub resource: Resource,
    /// How.
    pub verb: Verb,
    /// The parameters, decoded.
    pub parameters: BTreeMap<String, String>,
    /// `User-Agent`.
    pub user_agent: String,
    /// Objects are wanted as `PartialObjectMetadata` (API concepts, "Metadata-only fetches").
    pub metadata_only: bool,
}

/// What a test can set.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) streaming_list: StreamingList,
    pub(super) gone: GoneAs,
    pub(super) bookmark_interval: Duration,
    pub(super) node_patches: bool,
    pub(super) token: Option<String>,
    pub(super) reachable: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            streaming_list: StreamingList::Served,
            gone: GoneAs::Status,
            bookmark_interval: Duration::from_secs(60),
            node_patches: false,
            token: None,
            reachable: true,
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    seen: Vec<Seen>,
    forbidden: u64,
    connections: u64,
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
    /// Ticks when every connection shall break.
    breaks: watch::Sender<()>,
}

type Reply = Response<Either<Full<Bytes>, Pieces>>;

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

    /// Changes the store and tells the watches.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let result = change(&mut self.store());
        self.news.send_replace(());
        result
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

    pub(super) fn seen(&self) -> Vec<Seen> {
        lock(&self.tally).seen.clone()
    }

    /// Requests refused because nobody may make them, connections, and bytes of bodies.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let tally = lock(&self.tally);
        (
            tally.forbidden,
            tally.connections,
            self.bytes.load(Ordering::Relaxed),
        )
    }

    /// Accepts until `stop` resolves.
    pub(super) async fn accept(
        self: Arc<Self>,
        listener: TcpListener,
        mut stop: watch::Receiver<bool>,
    ) {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(_) => continue,
                },
                _ = stop.changed() => return,
            };
            lock(&self.tally).connections += 1;
            if self.settings().reachable {
                tokio::spawn(Arc::clone(&self).connection(stream));
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let mut breaks = self.breaks.subscribe();
        let server = Arc::clone(&self);
        let service = service_fn(move |request| Arc::clone(&server).answer(request));
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            _ = connection => {}
            _ = breaks.changed() => {}
        }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Reply, Infallible> {
        if request.method() == Method::GET
            && let Some(document) = discovery::document(request.uri().path())
        {
            return Ok(reply(200, None, Either::Left(document.to_string().into())));
        }
        if self.settings().node_patches
            && let Some(name) = nodes::node_of(request.uri().path()).map(str::to_owned)
        {
            let answer = self.answer_about_node(&name, request).await;
            return Ok(answer.unwrap_or_else(|refusal| refused(&refusal)));
        }
        if request.method() == Method::POST && request.uri().path() == nodes::EVENTS {
            return Ok(self.take_event(request).await);
        }
        let outcome = match self.route(&request) {
            Ok((resource, verb, parameters)) => self.serve(resource, verb, &parameters).await,
            Err(refusal) => Err(refusal),
        };
        Ok(match outcome {
            Ok(body) => reply(200, None, Either::Right(body)),
            Err(refusal) => refused(&refusal),
        })
    }

    async fn answer_about_node(
        &self,
        name: &str,
        request: Request<Incoming>,
    ) -> Result<Reply, Refusal> {
        let node = match *request.method() {
            Method::GET => {
                self.saw(&request, Resource::Nodes, Verb::Get, BTreeMap::new());
                self.strike(Resource::Nodes, Verb::Get).await?;
                nodes::get(self, name)
            }
            Method::PATCH => {
                let body = request
                    .into_body()
                    .collect()
                    .await
                    .map(http_body_util::Collected::to_bytes);
                match body.map(|body| serde_json::from_slice(&body)) {
                    Ok(Ok(patch)) => nodes::patch(self, name, &patch),
                    _ => Err(Refusal::new(400, "not a patch")),
                }
            }
            _ => Err(Refusal::new(405, "read and patched only")),
        }?;
        let body = Bytes::from(node.to_string());
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok(reply(200, None, Either::Left(body.into())))
    }

    async fn take_event(&self, request: Request<Incoming>) -> Reply {
        let body = request.into_body().collect().await;
        let body = body.map(http_body_util::Collected::to_bytes);
        let answer = match body.map(|body| serde_json::from_slice::<Value>(&body)) {
            Ok(Ok(event)) => {
                lock(&self.events).push(event.clone());
                (201, event.to_string())
            }
            _ => (400, Refusal::new(400, "not an event").status()),
        };
        reply(answer.0, None, Either::Left(answer.1.into()))
    }

    fn route(&self, request: &Request<Incoming>) -> Result<(Resource, Verb, Parameters), Refusal> {
        let path = request.uri().path();
        let resource = Resource::ALL
            .into_iter()
            .find(|resource| resource.path() == path);
        let Some(resource) = resource.filter(|_| request.method() == Method::GET) else {
            lock(&self.tally).forbidden += 1;
            return Err(Refusal::new(
                403,
                format!("{} {path} is not allowed", request.method()),
            ));
        };
        let parameters = Parameters {
            query: parameters(request.uri().query().unwrap_or_default()),
            metadata_only: metadata_only(request),
        };
        let verb = if parameters.is_true("watch") {
            Verb::Watch
        } else {
            Verb::List
        };
        self.saw(request, resource, verb, parameters.query.clone());
        let settings = self.settings();
        if settings
            .token
            .as_ref()
            .is_some_and(|t| text(request.headers(), AUTHORIZATION) != format!("Bearer {t}"))
        {
            return Err(Refusal::new(401, "Unauthorized"));
        }
        Ok((resource, verb, parameters))
    }

    fn saw(
        &self,
        request: &Request<Incoming>,
        resource: Resource,
        verb: Verb,
        parameters: BTreeMap<String, String>,
    ) {
        lock(&self.tally).seen.push(Seen {
            at: Instant::now(),
            resource,
            verb,
            parameters,
            user_agent: text(request.headers(), USER_AGENT),
            metadata_only: metadata_only(request),
        });
    }

    /// Draws the fault that befalls a request: one without an answer is refused or waits for ever here, others are returned.
    async fn strike(&self, resource: Resource, verb: Verb) -> Result<Option<Fault>, Refusal> {
        let fault = lock(&self.faults).draw(resource, verb);
        match fault {
            Some(Fault::Status { code, retry_after }) => Err(Refusal {
                retry_after,
                ..Refusal::new(code, "refused on purpose")
            }),
            Some(Fault::Hang) => std::future::pending().await,
            fault => Ok(fault),
        }
    }

    async fn serve(
        self: &Arc<Self>,
        resource: Resource,
        verb: Verb,
        parameters: &Parameters,
    ) -> Result<Pieces, Refusal> {
        let fault = self.strike(resource, verb).await?;
        match verb {
            Verb::List => answer::list(self, resource, parameters, fault),
            _ => answer::watch(self, resource, parameters, fault),
        }
    }
}

fn reply(code: u16, retry_after: Option<u64>, body: Either<Full<Bytes>, Pieces>) -> Reply {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(
        CONTENT_TYPE,
        http::HeaderValue::from_static("application/json"),
    );
    if let Some(seconds) = retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn refused(refusal: &Refusal) -> Reply {
    let body = Either::Left(refusal.status().into());
    reply(refusal.code, refusal.retry_after, body)
}

fn metadata_only(request: &Request<Incoming>) -> bool {
    text(request.headers(), ACCEPT).contains("as=PartialObjectMetadata")
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

/// The parameters of a query.
fn parameters(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (decoded(name), decoded(value))
        })
        .collect()
}

/// Undoes percent encoding, and `+` for a space.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|&digit| (digit as char).to_digit(16));
        rest = tail;
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = tail.get(2..).unwrap_or_default();
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
