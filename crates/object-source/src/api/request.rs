//! One request and its answer, each step under a limit on silence.
//!
//! Owns sizes, time limits and what an error answer says; leaves to `follow` what a failure means.

use std::error::Error;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::header::{ACCEPT, HeaderValue, RETRY_AFTER, USER_AGENT};
use http::{HeaderMap, Request};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::decode::printable;

/// What we call ourselves.
const AGENT: &str = concat!("portolan/", env!("CARGO_PKG_VERSION"));
/// No page of a list is as long; what is, is not kept in memory.
const MAX_PAGE: usize = 256 << 20;
/// No event is as long: etcd refuses objects of more than 1.5 MiB.
const MAX_EVENT: usize = 16 << 20;
/// Of an error answer, only the beginning is read.
const MAX_ERROR: usize = 64 << 10;
/// A server cannot send us away for longer.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Why there is no answer, or no more of it. `Display` is for an operator; it holds no control characters.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    /// The server answered with an error.
    #[error("the API server answers {code}: {message}")]
    Status {
        code: u16,
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// Nothing came back: the connection was refused, or it ended before an answer.
    #[error("{0}")]
    Unanswered(String),
    /// No byte in the time a living server takes.
    #[error("the API server is silent")]
    Silent,
    /// Anything else between the server and us.
    #[error("{0}")]
    Broken(String),
}

/// How much of its objects an answer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// All.
    Whole,
    /// Their metadata (API concepts, "Metadata-only fetches"; all servers from 1.15 on have it).
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

/// Sends a request, and returns the body of a good answer.
async fn send(
    client: &Client,
    request: Request<Vec<u8>>,
    extent: Extent,
    silence: Duration,
) -> Result<Body, Failure> {
    let mut request = request.map(Body::from);
    let headers = request.headers_mut();
    headers.insert(ACCEPT, extent.accept());
    headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
    let response = timeout(silence, client.send(request))
        .await
        .map_err(|_| Failure::Silent)?
        .map_err(|error| Failure::Unanswered(with_causes("request failed", &error)))?;
    if response.status().is_success() {
        return Ok(response.into_body());
    }
    let code = response.status().as_u16();
    let retry_after = retry_after(response.headers());
    let limit = Instant::now() + silence;
    let text = read(response.into_body(), MAX_ERROR, silence, limit).await;
    let message = text
        .ok()
        .and_then(|text| serde_json::from_slice::<Status>(&text).ok())
        .map_or_else(
            || "without a reason".to_owned(),
            |status| printable(&status.message),
        );
    Err(Failure::Status {
        code,
        message,
        retry_after,
    })
}

/// The whole body of an answer that comes within `limit`.
pub(super) async fn whole(
    client: &Client,
    request: Request<Vec<u8>>,
    silence: Duration,
    limit: Duration,
) -> Result<Bytes, Failure> {
    let limit = Instant::now() + limit;
    let body = send(client, request, Extent::Whole, silence).await?;
    read(body, MAX_PAGE, silence, limit).await
}

async fn read(
    mut body: Body,
    most: usize,
    silence: Duration,
    limit: Instant,
) -> Result<Bytes, Failure> {
    let mut bytes = BytesMut::new();
    while let Some(piece) = next_piece(&mut body, silence, limit).await? {
        if bytes.len() + piece.len() > most {
            return Err(Failure::Broken(format!(
                "the answer is longer than {most} bytes"
            )));
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(bytes.freeze())
}

async fn next_piece(
    body: &mut Body,
    silence: Duration,
    limit: Instant,
) -> Result<Option<Bytes>, Failure> {
    let limit = limit.min(Instant::now() + silence);
    match timeout_at(limit, body.frame()).await {
        Err(_) => Err(Failure::Silent),
        Ok(None) => Ok(None),
        Ok(Some(Ok(frame))) => Ok(Some(frame.into_data().unwrap_or_default())),
        Ok(Some(Err(error))) => {
            let text = with_causes("the answer breaks off", &error);
            Err(Failure::Broken(text))
        }
    }
}

/// A stream of events, one to a line.
#[derive(Debug)]
pub(super) struct Lines {
    body: Body,
    silence: Duration,
    buffer: BytesMut,
    /// So much of the buffer holds no end of line.
    scanned: usize,
}

/// Opens a watch.
pub(super) async fn lines(
    client: &Client,
    request: Request<Vec<u8>>,
    extent: Extent,
    silence: Duration,
) -> Result<Lines, Failure> {
    let body = send(client, request, extent, silence).await?;
    Ok(Lines {
        body,
        silence,
        buffer: BytesMut::new(),
        scanned: 0,
    })
}

impl Lines {
    /// The next line, if one comes before `limit`; `None` at the end of the stream. A line that the end cuts
    /// short was never sent, as far as anybody here is concerned.
    pub(super) async fn next(&mut self, limit: Instant) -> Result<Option<Bytes>, Failure> {
        loop {
            let rest = self.buffer.get(self.scanned..).unwrap_or_default();
            if let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
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
                return Err(Failure::Broken(format!(
                    "an event is longer than {MAX_EVENT} bytes"
                )));
            }
            match next_piece(&mut self.body, self.silence, limit).await? {
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

/// Whole seconds; the other form of the header, a date, is not used by API servers.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

/// An error with its causes, each said once.
fn with_causes(what: &str, error: &(dyn Error + 'static)) -> String {
    let mut text = what.to_owned();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    printable(&text)
}
