//! The socket: accepts commands of root and of the daemon's user, and answers from the catalog.

use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use overlay_probe::local_socket;
use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::LocalSet;

use super::Sources;
use super::documents::{Failure, LogLevel};
use super::knowledge::{Knowledge, Parameters};
use super::notices::Notices;
use super::questions::{Asked, Question};
use super::{checks, flows, services, status, trace, verify};
use crate::log;
use crate::metrics::Format;

/// The name of the socket.
pub(super) const SOCKET: &str = "portolan";
/// Pause before the next try while another daemon has the socket.
const RETRY: Duration = Duration::from_secs(2);
/// Time for a request line and headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// Lifetime of a connection: a command asks once.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of a log level.
const LEVEL_SPACE: usize = 4 * 1024;
/// Path of the log level, the one thing that a request may change.
const LOG_LEVEL: &str = "/v1/log-level";
/// Clients that are served at a time; others are closed.
const CLIENTS: usize = 32;

/// Serves forever.
pub(super) async fn run(sources: Sources, notices: Notices, asked: Asked) {
    let wake = notices.wake();
    let known = Rc::new(Knowledge::new(sources, notices));
    let clients = LocalSet::new();
    let serving = clients.run_until(listen(known.clone()));
    let updating = async {
        loop {
            wake.notified().await;
            known.update();
        }
    };
    tokio::select! {
        () = serving => {}
        () = updating => {}
        () = answer_parts(asked, &known) => {}
    }
}

/// Answers the questions of other parts, one after the other.
async fn answer_parts(Asked(mut asked): Asked, known: &Knowledge) {
    while let Some(Question { path, answer }) = asked.recv().await {
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let Answer { code, body, .. } = self::answer(known, path, query).await;
        // The asker may be gone.
        let _ = answer.send((code, body));
    }
    // Nobody asks in this configuration.
    std::future::pending().await
}

async fn listen(known: Rc<Knowledge>) {
    let mut is_refused = false;
    loop {
        match local_socket::listen(SOCKET) {
            Ok(listener) => accept(&listener, &known).await,
            Err(error) => {
                if !std::mem::replace(&mut is_refused, true) {
                    let error = format!("{error:#}");
                    tracing::info!(
                        error,
                        "cannot serve commands on @{SOCKET}, which another daemon may have; retrying"
                    );
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn accept(listener: &UnixListener, known: &Rc<Knowledge>) {
    let clients = Rc::new(());
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "cannot accept a command");
                return;
            }
        };
        let uid = stream.peer_cred().map(|credentials| credentials.uid());
        let refusal = match uid {
            Ok(uid) if !local_socket::may_ask(uid) => Some(format!(
                "user {uid} may not ask the daemon: run this command as root or as the daemon's user"
            )),
            Ok(_) if Rc::strong_count(&clients) > CLIENTS => {
                Some("too many commands at a time".into())
            }
            Ok(_) => None,
            Err(_) => Some("the user of the command is unknown".into()),
        };
        let (known, client) = (known.clone(), clients.clone());
        tokio::task::spawn_local(async move {
            let _client = client;
            let served = async {
                match refusal {
                    None => serve(stream, known).await,
                    Some(error) => refuse(stream, error).await,
                }
            };
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, served).await;
        });
    }
}

/// Answers whatever is asked with an error.
async fn refuse(mut stream: UnixStream, error: String) {
    let body = serde_json::to_string(&Failure { error }).unwrap_or_default();
    let length = body.len();
    let text = format!(
        "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let _ = stream.write_all(text.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn serve(stream: UnixStream, known: Rc<Knowledge>) {
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let known = known.clone();
        async move {
            let answer = match *request.method() {
                Method::GET => {
                    let uri = request.uri();
                    answer(&known, uri.path(), uri.query().unwrap_or_default()).await
                }
                Method::PUT if request.uri().path() == LOG_LEVEL => {
                    Answer::of(set_log_level(request.into_body()).await)
                }
                _ => {
                    let error = "only GET".to_owned();
                    Answer::json(StatusCode::METHOD_NOT_ALLOWED, &Failure { error })
                }
            };
            Ok::<_, Infallible>(answer.response())
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(16 * 1024)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a command ended early");
    }
}

/// An answer to a command.
struct Answer {
    code: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Answer {
    fn json(code: StatusCode, document: &impl Serialize) -> Answer {
        Answer {
            code,
            content_type: "application/json",
            body: serde_json::to_vec(document).unwrap_or_default(),
        }
    }

    fn of(result: anyhow::Result<impl Serialize>) -> Answer {
        match result {
            Ok(document) => Answer::json(StatusCode::OK, &document),
            Err(error) => {
                let error = format!("{error:#}");
                Answer::json(StatusCode::BAD_REQUEST, &Failure { error })
            }
        }
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(self.body.into()));
        *response.status_mut() = self.code;
        let content_type = http::HeaderValue::from_static(self.content_type);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// Changes the log level until the daemon ends, or the level in its file changes.
async fn set_log_level(body: Incoming) -> anyhow::Result<LogLevel> {
    let body = Limited::new(body, LEVEL_SPACE).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("cannot read the level: {error}"))?;
    let body = body.to_bytes();
    let level = std::str::from_utf8(&body)?.trim();
    let before = log::current();
    log::set_level(level)?;
    let level = log::current();
    tracing::info!(before, level, "log level changed by a command");
    Ok(LogLevel { level })
}

async fn answer(known: &Knowledge, path: &str, query: &str) -> Answer {
    known.update();
    let parameters: Parameters = form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect();
    match path {
        "/v1/services" | "/v1/flows" | "/v1/trace" | "/v1/verify"
            if known.sources.published.status.is_none() =>
        {
            let error = "this daemon serves no Services (--service-proxy=off)".to_owned();
            Answer::json(StatusCode::BAD_REQUEST, &Failure { error })
        }
        "/v1/status" => Answer::json(StatusCode::OK, &status::answer(known)),
        "/v1/services" => Answer::of(services::answer(known, &parameters)),
        "/v1/flows" => Answer::of(flows::answer(known, &parameters)),
        "/v1/trace" => Answer::of(trace::answer(known, &parameters).await),
        "/v1/checks" => Answer::json(StatusCode::OK, &checks::answer(known)),
        "/v1/verify" => Answer::of(verify::answer(known).await),
        LOG_LEVEL => Answer::json(
            StatusCode::OK,
            &LogLevel {
                level: log::current(),
            },
        ),
        "/v1/configz" => Answer::json(StatusCode::OK, &known.sources.published.configz.document()),
        "/v1/metrics" => Answer {
            code: StatusCode::OK,
            content_type: Format::Text.content_type(),
            body: known
                .sources
                .published
                .metrics
                .encode(Format::Text)
                .into_bytes(),
        },
        _ => {
            let error =
                "not found: the command and the daemon are of different versions".to_owned();
            Answer::json(StatusCode::NOT_FOUND, &Failure { error })
        }
    }
}
