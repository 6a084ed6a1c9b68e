//! Accepts connections and answers requests on one address, with limits for every client: on the time for headers, the
//! number of connections and their lifetime.
//!
//! Invariant: a new connection is always accepted at once. When all places are taken, the client with the most
//! connections loses its oldest one; so neither silent, slow nor many clients keep a probe from its answer.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
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
/// Maximum number of open connections per address. The next one replaces another.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// A response without its connection.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: StatusCode,
    pub(crate) content_type: &'static str,
    /// `X-Load-Balancing-Endpoint-Weight`
    pub(crate) weight: Option<usize>,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn text(code: StatusCode, text: impl Into<String>) -> Self {
        Answer {
            code,
            content_type: "text/plain; charset=utf-8",
            weight: None,
            body: Bytes::from(text.into()),
        }
    }

    pub(crate) fn json(code: StatusCode, body: &serde_json::Value) -> Self {
        Answer {
            code,
            content_type: "application/json",
            weight: None,
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
        if let Some(weight) = self.weight {
            headers.insert("x-load-balancing-endpoint-weight", weight.into());
        }
        response
    }
}

/// Answers GET and HEAD requests for a path, with these headers.
pub(crate) type Answers = Arc<dyn Fn(&str, &HeaderMap) -> Answer + Send + Sync>;

/// An open connection.
struct Open {
    client: IpAddr,
    task: AbortHandle,
}

/// Accepts forever. Connections end with this future.
pub(crate) async fn accept(listener: TcpListener, answers: Answers) {
    let mut tasks = JoinSet::new();
    let mut open = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                while tasks.try_join_next().is_some() {}
                open.retain(|connection: &Open| !connection.task.is_finished());
                if open.len() >= MAX_CONNECTIONS {
                    evict(&mut open);
                }
                open.push_back(Open {
                    client: client(from.ip()),
                    task: tasks.spawn(connection(stream, answers.clone())),
                });
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

/// Ends the oldest connection of the client that has the most.
fn evict(open: &mut VecDeque<Open>) {
    let count = |client: IpAddr| open.iter().filter(|other| other.client == client).count();
    // Of equals the last in the iteration is taken: the oldest.
    let heaviest = open
        .iter()
        .rev()
        .max_by_key(|connection| count(connection.client));
    let Some(heaviest) = heaviest.map(|connection| connection.client) else {
        return;
    };
    let oldest = open
        .iter()
        .position(|connection| connection.client == heaviest);
    if let Some(connection) = oldest.and_then(|oldest| open.remove(oldest)) {
        connection.task.abort();
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, answers: Answers) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let answer = match *request.method() {
            Method::GET | Method::HEAD => answers(request.uri().path(), request.headers()),
            _ => Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n"),
        };
        async move { Ok::<_, Infallible>(answer.into_response()) }
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[test]
    fn mutated_requests_do_no_harm() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/requests");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().build().unwrap();
        let answers: Answers = Arc::new(|path, headers| {
            let accept = headers.get(header::ACCEPT).is_some();
            Answer::text(StatusCode::OK, format!("{} {accept}", path.len()))
        });
        fuzz::fuzz(&corpus, [], |bytes| {
            runtime.block_on(async {
                let (mut client, server) = duplex(1 << 17);
                let serving = connection(server, answers.clone());
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
