//! Accepts connections and answers requests on one address, with limits for every client: on the time for headers, the
//! number of connections and their lifetime.
//!
//! Invariant: a new connection is always accepted at once. When all places are taken, the client with the most
//! connections loses one, first one that has had an answer; so neither silent, slow nor many clients keep a probe from its
//! answer.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tracing::debug;

/// Time for a request line and headers, and between two requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// Lifetime of a connection, so that a client that never reads cannot hold one forever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's body.
const BODY_SPACE: usize = 1024;
/// Maximum number of open connections per address. The next one replaces another. So many must come between a probe's
/// connection and its request to keep it from its answer, while the task of each connection runs in turn.
pub(super) const MAX_CONNECTIONS: usize = 256;

/// A response without its connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) content_type: &'static str,
    /// `X-Load-Balancing-Endpoint-Weight`
    pub(crate) weight: Option<usize>,
    /// `Content-Security-Policy`
    pub(crate) policy: Option<&'static str>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Self {
        Answer {
            code,
            content_type: "text/plain; charset=utf-8",
            weight: None,
            policy: None,
            body: Bytes::from(text.into()),
        }
    }

    pub(crate) fn json(code: StatusCode, body: &serde_json::Value) -> Self {
        Answer {
            code,
            content_type: "application/json",
            weight: None,
            policy: None,
            body: Bytes::from(body.to_string()),
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        let content_type = HeaderValue::from_static(self.content_type);
        headers.insert(header::CONTENT_TYPE, content_type);
        let nosniff = HeaderValue::from_static("nosniff");
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        if self.code == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        }
        if let Some(policy) = self.policy {
            let policy = HeaderValue::from_static(policy);
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
            let no_store = HeaderValue::from_static("no-store");
            headers.insert(header::CACHE_CONTROL, no_store);
        }
        if let Some(weight) = self.weight {
            headers.insert("x-load-balancing-endpoint-weight", weight.into());
        }
        response
    }
}

/// A request, without its body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) path: &'a str,
    /// The query, without its question mark; empty without one.
    pub(crate) query: &'a str,
    pub(crate) headers: &'a HeaderMap,
    /// Address of the client.
    pub(crate) client: IpAddr,
}

/// An answer at once, or one that takes time.
pub(crate) enum Reply {
    Now(Answer),
    Later(BoxFuture<'static, Answer>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Reply::Now(answer)
    }
}

/// What a request that changes something does with its body.
pub(crate) type Change = Box<dyn FnOnce(Bytes) -> Answer + Send>;

/// Answers requests. A function answers GET and HEAD.
pub(crate) trait Answering: Send + Sync {
    /// Answers GET and HEAD.
    fn read(&self, asked: Asked<'_>) -> Reply;

    /// Answers any other method; `None` where there is only GET and HEAD.
    fn change(&self, _method: &Method, _asked: Asked<'_>) -> Option<Change> {
        None
    }
}

impl<F: Fn(Asked<'_>) -> Reply + Send + Sync> Answering for F {
    fn read(&self, asked: Asked<'_>) -> Reply {
        self(asked)
    }
}

/// Answers requests.
pub(crate) type Answers = Arc<dyn Answering>;

/// An open connection.
struct Open {
    /// Has had an answer: the client may be done with it.
    answered: Arc<AtomicBool>,
    task: AbortHandle,
}

/// The open connections of each client, the oldest first.
#[derive(Default)]
struct Clients {
    open: HashMap<IpAddr, VecDeque<Open>>,
    count: usize,
}

impl Clients {
    fn add(&mut self, client: IpAddr, connection: Open) {
        self.open.entry(client).or_default().push_back(connection);
        self.count += 1;
    }

    /// Forgets connections that have ended.
    fn forget_ended(&mut self) {
        let mut count = 0;
        self.open.retain(|_, connections| {
            connections.retain(|connection| !connection.task.is_finished());
            count += connections.len();
            !connections.is_empty()
        });
        self.count = count;
    }

    /// Ends a connection of the client that has the most: the oldest one that has had an answer, or else the oldest.
    fn evict(&mut self) {
        let heaviest = self.open.values_mut().max_by_key(|open| open.len());
        let Some(connections) = heaviest else { return };
        let mut answered = connections.iter();
        let answered = answered.position(|open| open.answered.load(Ordering::Relaxed));
        if let Some(connection) = connections.remove(answered.unwrap_or(0)) {
            connection.task.abort();
            self.count -= 1;
        }
    }
}

/// Accepts forever. Connections end with this future.
pub(crate) async fn accept(listener: TcpListener, answers: Answers) {
    let mut tasks = JoinSet::new();
    let mut clients = Clients::default();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                while tasks.try_join_next().is_some() {}
                clients.forget_ended();
                if clients.count >= MAX_CONNECTIONS {
                    clients.evict();
                }
                let answered = Arc::new(AtomicBool::new(false));
                let task = connection(stream, from.ip(), answers.clone(), answered.clone());
                let task = tasks.spawn(task);
                clients.add(client(from.ip()), Open { answered, task });
                // A flood of connections must not be accepted in one go: the requests that are there are answered between.
                tokio::task::yield_now().await;
            }
            // Most likely out of file descriptors: wait until others are closed.
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Whom connections count for: an IPv4 address, or an IPv6 /64, of which one host may have every address.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        ipv4 => ipv4,
    }
}

async fn connection(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    client: IpAddr,
    answers: Answers,
    answered: Arc<AtomicBool>,
) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let asked = Asked {
            path: request.uri().path(),
            query: request.uri().query().unwrap_or_default(),
            headers: request.headers(),
            client: client.to_canonical(),
        };
        let reply = match request.method() {
            &Method::GET | &Method::HEAD => answers.read(asked),
            method => match answers.change(method, asked) {
                Some(change) => Reply::Later(Box::pin(changed(request.into_body(), change))),
                None => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n").into(),
            },
        };
        answered.store(true, Ordering::Relaxed);
        async move {
            let answer = match reply {
                Reply::Now(answer) => answer,
                Reply::Later(answer) => answer.await,
            };
            Ok::<_, Infallible>(answer.into_response())
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(CONNECTION_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "connection ended early"),
        Err(_) => debug!("connection closed at its maximum age"),
    }
}

/// The answer to a request with a body.
async fn changed(body: Incoming, change: Change) -> Answer {
    match Limited::new(body, BODY_SPACE).collect().await {
        Ok(body) => change(body.to_bytes()),
        Err(error) => {
            let text = format!("error reading request body: {error}\n");
            Answer::text(StatusCode::BAD_REQUEST, text)
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn mutated_requests_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/requests");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        let answers: Answers = Arc::new(|asked: Asked<'_>| -> Reply {
            let accept = asked.headers.get(header::ACCEPT).is_some();
            Answer::text(StatusCode::OK, format!("{} {accept}", asked.path.len())).into()
        });
        fuzz::fuzz(&corpus, [], |bytes| {
            runtime.block_on(async {
                let (mut client, server) = duplex(1 << 17);
                let serving = connection(
                    server,
                    IpAddr::from([127, 0, 0, 1]),
                    answers.clone(),
                    Arc::default(),
                );
                let asking = async {
                    // The server may have hung up already.
                    let _ = client.write_all(bytes).await;
                    let _ = client.shutdown().await;
                    let mut answered = Vec::new();
                    let _ = client.read_to_end(&mut answered).await;
                    answered
                };
                let (answered, ()) = tokio::join!(asking, serving);
                let line = answered.split(|byte| *byte == b'\n').next();
                fuzz::outcome((line.map(<[u8]>::to_vec), answered.len() / 64 % 16))
            })
        });
    }
}
