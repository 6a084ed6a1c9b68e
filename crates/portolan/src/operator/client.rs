//! Asks the daemon of this network namespace for a document.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use overlay_probe::local_socket;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::documents::Failure;
use super::server::SOCKET;

/// Time limit for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Exit code of a command that the daemon did not serve.
pub(super) const UNANSWERED: u8 = 2;

/// The daemon did not answer, or refused. `Display` is one line for the operator.
#[derive(Debug)]
pub(super) struct Unanswered(String);

impl Unanswered {
    /// Says why in one line.
    pub(super) fn because(reason: String) -> Unanswered {
        Unanswered(reason)
    }
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unanswered {}

/// Requests a path and returns the body of the answer.
///
/// # Errors
/// No daemon answers, it refuses the user, or it cannot serve the request.
pub(super) fn get(path: &str) -> Result<Bytes, Unanswered> {
    send(Method::GET, path, Bytes::new())
}

/// Changes what is at a path, and returns the document that is there then.
///
/// # Errors
/// As [`get`].
pub(super) fn put<T: DeserializeOwned>(path: &str, body: String) -> Result<T, Unanswered> {
    decode(&send(Method::PUT, path, body.into())?)
}

fn send(method: Method, path: &str, body: Bytes) -> Result<Bytes, Unanswered> {
    let stream = local_socket::connect(SOCKET).map_err(|error| {
        let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        Unanswered(match kind {
            Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound) => {
                "no portolan daemon answers on this node: is it running, and is this command in the host network namespace or \
                 in the daemon's pod?"
                    .to_owned()
            }
            _ => format!("cannot reach the portolan daemon: {error:#}"),
        })
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let asked = runtime
        .context("cannot start a runtime")
        .and_then(|runtime| {
            runtime.block_on(async {
                tokio::time::timeout(PATIENCE, ask(stream, method, path, body)).await
            })?
        });
    let (code, body) = asked
        .map_err(|error| Unanswered(format!("the portolan daemon did not answer: {error:#}")))?;
    if code.is_success() {
        return Ok(body);
    }
    let failure: Result<Failure, _> = serde_json::from_slice(&body);
    let error = failure.map(|failure| failure.error);
    Err(Unanswered(error.unwrap_or_else(|_| {
        format!("the portolan daemon answered {code}")
    })))
}

/// Requests a document.
///
/// # Errors
/// As [`get`].
pub(super) fn document<T: DeserializeOwned>(path: &str) -> Result<T, Unanswered> {
    decode(&get(path)?)
}

fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Unanswered> {
    serde_json::from_slice(body).map_err(|error| {
        Unanswered(format!(
            "cannot read the daemon's answer, which may be of another version: {error}"
        ))
    })
}

async fn ask(
    stream: std::os::unix::net::UnixStream,
    method: Method,
    path: &str,
    body: Bytes,
) -> anyhow::Result<(http::StatusCode, Bytes)> {
    stream.set_nonblocking(true)?;
    let stream = TokioIo::new(UnixStream::from_std(stream)?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "portolan")
        .body(Full::new(body))?;
    let response = sender.send_request(request).await?;
    let code = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok((code, body))
}

/// Encodes parameters as the query of a path.
pub(super) fn query(parameters: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::for_suffix("?".to_owned(), 1);
    query.extend_pairs(parameters);
    query.finish()
}

/// Prints why a command could not be served, on one line.
pub(super) fn complain(error: &Unanswered) {
    let _ = writeln!(std::io::stderr(), "portolan: {error}");
}

/// Prints why a command could not be served, and returns the command's exit code.
pub(super) fn unanswered(error: &Unanswered) -> ExitCode {
    complain(error);
    ExitCode::from(UNANSWERED)
}
