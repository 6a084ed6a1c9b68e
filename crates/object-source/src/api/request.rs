//! Requests to the API servers: the one path of lists, watches, reads, patches and Events.
//!
//! Owns headers, sizes, time limits and what an error answer says. Leaves to the caller what a failure means and when to try
//! again. Invariant: every step has a limit on silence.

use std::error::Error;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT, DATE, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use super::decode::printable;
use super::server::{Clients, Server};
use super::servers::Servers;

/// The User-Agent of every request.
const AGENT: &str = concat!("portolan/", env!("CARGO_PKG_VERSION"));
/// Upper bound of a page of a list, which is kept in memory.
const MAX_PAGE: usize = 256 << 20;
/// Upper bound of an event: etcd refuses objects of more than 1.5 MiB.
const MAX_EVENT: usize = 16 << 20;
/// How much of an error answer is read.
const MAX_ERROR: usize = 64 << 10;
/// Upper bound of what `Retry-After` may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why a request has no complete answer. `Display` is one line for an operator, without control characters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The server answered with an error.
    #[error("the API server at {server} answered {code}: {message}")]
    Status {
        /// URL of the server.
        server: Arc<str>,
        /// HTTP status.
        code: u16,
        /// The message of the `Status` object.
        message: String,
        /// When the server wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or it ended before an answer: each address that was dialed, with the error of the operating system,
    /// of TLS or of HTTP.
    #[error("cannot reach the API server at {0}")]
    Unreachable(String),
    /// No byte within the limit.
    #[error("the API server at {server} did not answer in time")]
    Silent {
        /// URL of the server.
        server: Arc<str>,
    },
    /// The answer breaks off, is too long or has another form than expected.
    #[error("{0}")]
    Unreadable(String),
}

/// Time limits of a request.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest time without a byte.
    pub silence: Duration,
    /// Longest time until the answer is complete.
    pub total: Duration,
}

/// What became of a request to one server.
#[derive(Debug)]
pub struct RequestOutcome<'a> {
    /// Host and port of the server, as in its URL.
    pub host: &'a str,
    /// The method.
    pub method: &'a Method,
    /// HTTP status; `None` without an answer.
    pub code: Option<u16>,
    /// Time until the head of the answer, or until the failure.
    pub elapsed: Duration,
}

/// Called after each request, on the thread of the request: must not block.
pub type RequestObserver = Arc<dyn Fn(&RequestOutcome<'_>) + Send + Sync>;

/// Sends requests to the API servers of one cluster: to the one that answered last, or to the next that can be reached.
#[derive(Clone)]
pub struct ApiClient {
    servers: Arc<Servers>,
    client: fn(&Clients) -> &Client,
    observer: RequestObserver,
}

impl ApiClient {
    /// URLs of the API servers, in the order in which they are asked.
    pub fn server_names(&self) -> Vec<String> {
        let servers = self.servers.in_turn().into_iter();
        servers.map(|server| server.name.to_string()).collect()
    }

    /// This node's clock minus that of the API server that answered last, in seconds, as of that answer; `None` before the
    /// first one. The server tells whole seconds.
    pub fn clock_difference(&self) -> Option<i64> {
        self.servers.clock_difference()
    }

    /// Keeps connections for the next request.
    pub(super) fn reader(servers: Arc<Servers>, observer: RequestObserver) -> Self {
        ApiClient {
            servers,
            client: |clients| &clients.reader,
            observer,
        }
    }

    /// Opens a connection for each request.
    pub(super) fn writer(servers: Arc<Servers>, observer: RequestObserver) -> Self {
        ApiClient {
            servers,
            client: |clients| &clients.writer,
            observer,
        }
    }

    pub(super) fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// Sends a request and returns the body of a successful answer.
    pub async fn call(
        &self,
        request: Request<Vec<u8>>,
        limits: Limits,
    ) -> Result<Bytes, RequestError> {
        let limit = Instant::now() + limits.total;
        let body = self.send(request, Extent::Whole, limits.silence, limit);
        body.await?.read(MAX_PAGE, limit).await
    }

    /// Sends a request whose answer is a stream of events.
    pub(super) async fn lines(
        &self,
        request: Request<Vec<u8>>,
        extent: Extent,
        silence: Duration,
    ) -> Result<Lines, RequestError> {
        let limit = Instant::now() + silence;
        Ok(Lines {
            answer: self.send(request, extent, silence, limit).await?,
            buffer: BytesMut::new(),
            scanned: 0,
        })
    }

    async fn send(
        &self,
        request: Request<Vec<u8>>,
        extent: Extent,
        silence: Duration,
        limit: Instant,
    ) -> Result<Answer, RequestError> {
        let limit = limit.min(Instant::now() + silence);
        let (parts, body) = request.into_parts();
        let mut failures: Vec<(Arc<Server>, String)> = Vec::new();
        for server in self.servers.in_turn() {
            let mut request = Request::from_parts(parts.clone(), Body::from(body.clone()));
            let headers = request.headers_mut();
            headers.insert(ACCEPT, extent.accept());
            headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
            server.authorize(headers);
            let http = (self.client)(&server.clients()).clone();
            let start = Instant::now();
            let answer = timeout_at(limit, http.send(request)).await;
            let response = answer.as_ref().ok().and_then(|answer| answer.as_ref().ok());
            (self.observer)(&RequestOutcome {
                host: server.host(),
                method: &parts.method,
                code: response.map(|response| response.status().as_u16()),
                elapsed: start.elapsed(),
            });
            match answer {
                Ok(Ok(response)) => {
                    match is_unwell(response.status()) {
                        true => self.servers.failed(&server),
                        false => self.servers.answered(&server),
                    }
                    if let Some(difference) = clock_difference(response.headers()) {
                        self.servers.tells_time(difference);
                    }
                    return read_status(server.name.clone(), response, silence).await;
                }
                Ok(Err(error)) => {
                    self.servers.failed(&server);
                    failures.push((server, reason(&error)));
                    // A request that may have arrived is not sent to another server.
                    if !is_connect_error(&error) {
                        break;
                    }
                }
                Err(_) => {
                    self.servers.failed(&server);
                    let server = server.name.clone();
                    return Err(RequestError::Silent { server });
                }
            }
        }
        let may_be_unserved = !self.servers.have_answered();
        Err(RequestError::Unreachable(describe(
            &failures,
            may_be_unserved,
        )))
    }
}

/// Whether a server that answers so cannot serve at present, so that the next request goes to another one.
fn is_unwell(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS
}

/// This node's clock minus the time of an answer (RFC 9110, section 6.6.1), in seconds.
fn clock_difference(headers: &HeaderMap) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let now = SystemTime::now();
    let seconds = |later: SystemTime, earlier| {
        let between = later.duration_since(earlier).ok()?;
        i64::try_from(between.as_secs()).ok()
    };
    seconds(now, date).or_else(|| seconds(date, now).map(|ahead| -ahead))
}

/// The addresses that were dialed, and why each failed. `may_be_unserved`: no API server has answered yet, so nothing may
/// serve cluster IPs on this node.
fn describe(failures: &[(Arc<Server>, String)], may_be_unserved: bool) -> String {
    let is_unserved = |server: &Server| server.is_cluster_ip && may_be_unserved;
    let each = failures.iter().map(|(server, reason)| {
        let why = match is_unserved(server) {
            true => ": this is a cluster IP, which nothing serves on this node yet",
            false => "",
        };
        format!("{} ({reason}{why})", server.name)
    });
    let each: Vec<String> = each.collect();
    let advice = match failures.iter().any(|(server, _)| is_unserved(server)) {
        true => "; set --kubeconfig, --master or apiServerFrom",
        false => "",
    };
    format!("{}{advice}", each.join(", "))
}

/// Turns an answer with an error status into an error.
async fn read_status(
    server: Arc<str>,
    response: Response<Body>,
    silence: Duration,
) -> Result<Answer, RequestError> {
    let (parts, body) = response.into_parts();
    let mut answer = Answer {
        server: server.clone(),
        body,
        silence,
    };
    if parts.status.is_success() {
        return Ok(answer);
    }
    let text = answer
        .read(MAX_ERROR, Instant::now() + silence)
        .await
        .unwrap_or_default();
    let message = serde_json::from_slice::<Status>(&text).map_or_else(
        |_| "no reason given".to_owned(),
        |status| printable(&status.message),
    );
    Err(RequestError::Status {
        server,
        code: parts.status.as_u16(),
        message,
        retry_after: retry_after(&parts.headers),
    })
}

/// How much of each object an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// The whole object.
    Whole,
    /// The metadata (API concepts, "Metadata-only fetches"; all servers from 1.15 on have it).
    Metadata,
}

impl Extent {
    const fn accept(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Extent::Whole => "application/json",
            Extent::Metadata => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
        })
    }
}

/// A body that is arriving.
#[derive(Debug)]
struct Answer {
    server: Arc<str>,
    body: Body,
    silence: Duration,
}

impl Answer {
    /// The next piece, if it arrives before `limit`; `None` at the end.
    async fn next(&mut self, limit: Instant) -> Result<Option<Bytes>, RequestError> {
        match timeout_at(limit, self.body.frame()).await {
            Err(_) => Err(RequestError::Silent {
                server: self.server.clone(),
            }),
            Ok(None) => Ok(None),
            Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
            Ok(Some(Err(error))) => {
                let server = &self.server;
                let reason = reason(&error);
                Err(RequestError::Unreadable(format!(
                    "the answer of the API server at {server} breaks off ({reason})"
                )))
            }
        }
    }

    async fn read(&mut self, max: usize, limit: Instant) -> Result<Bytes, RequestError> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = self.next(limit.min(Instant::now() + self.silence)).await? {
            if bytes.len() + piece.len() > max {
                return Err(RequestError::Unreadable(format!(
                    "the answer is longer than {max} bytes"
                )));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }
}

/// A stream of events, one a line.
#[derive(Debug)]
pub(super) struct Lines {
    answer: Answer,
    buffer: BytesMut,
    /// How many bytes of the buffer are known to hold no end of line.
    scanned: usize,
}

impl Lines {
    /// The error of an ERROR event.
    pub(super) fn error_event(&self, code: u16, message: String) -> RequestError {
        RequestError::Status {
            server: self.answer.server.clone(),
            code,
            message,
            retry_after: None,
        }
    }

    /// The next line, if it arrives before `limit`; `None` at the end of the stream. A line that the end cuts short is
    /// dropped.
    pub(super) async fn next(&mut self, limit: Instant) -> Result<Option<Bytes>, RequestError> {
        loop {
            let rest = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = memchr::memchr(b'\n', rest) {
                let line = self.buffer.split_to(self.scanned + end).freeze();
                self.buffer.advance(1);
                self.scanned = 0;
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                return Ok(Some(line));
            }
            self.scanned = self.buffer.len();
            if self.scanned > MAX_EVENT {
                return Err(RequestError::Unreadable(format!(
                    "an event is longer than {MAX_EVENT} bytes"
                )));
            }
            match self.answer.next(limit).await? {
                Some(piece) => self.buffer.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }
}

#[derive(Deserialize)]
struct Status {
    #[serde(default)]
    message: String,
}

/// Whole seconds; API servers do not use the other form of the header, a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// Whether the connection failed, so that no request can have arrived.
fn is_connect_error(error: &(dyn Error + 'static)) -> bool {
    let mut causes = anyhow::Chain::new(error);
    causes.any(|error| {
        let http = error.downcast_ref::<hyper_util::client::legacy::Error>();
        http.is_some_and(hyper_util::client::legacy::Error::is_connect)
    })
}

/// Describes a failed connection by the operating system's error, and any other failure by all its causes, each once.
fn reason(error: &(dyn Error + 'static)) -> String {
    let causes = || anyhow::Chain::new(error);
    let connection = causes()
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .map(io::Error::kind)
        .find(|kind| {
            use ErrorKind::*;
            matches!(
                kind,
                ConnectionRefused
                    | ConnectionReset
                    | ConnectionAborted
                    | HostUnreachable
                    | NetworkUnreachable
                    | NetworkDown
                    | AddrNotAvailable
                    | TimedOut
            )
        });
    if let Some(kind) = connection {
        return kind.to_string();
    }
    let mut text = String::new();
    for words in causes().map(ToString::to_string) {
        if !text.contains(&words) {
            text = match text.is_empty() {
                true => words,
                false => format!("{text}: {words}"),
            };
        }
    }
    printable(&text)
}
