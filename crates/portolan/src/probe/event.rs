//! Events of the own Node (events.k8s.io/v1), for what changes in what the probes find.
//!
//! The role of the service account needs the verb `create` of events. An event that cannot be written is
//! tried a few times and then left: the same is in the log and in the metrics.

use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Events that may wait; more are left out.
const WAITING: usize = 32;
/// Between two events, after a few at once.
const PAUSE: Duration = Duration::from_secs(2);
const TRIES: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(5);
/// The API server takes no more (`noteLengthLimit`).
const NOTE: usize = 1000;

/// Where events go.
pub(super) struct Events(mpsc::Sender<(&'static str, String)>);

impl Events {
    /// Says something, in time.
    pub(super) fn tell(&self, reason: &'static str, text: &str) {
        // So many waiting events say enough.
        let _ = self.0.try_send((reason, text.to_owned()));
    }
}

/// Starts the writer, on the caller's runtime.
pub(super) fn start(client: Client, node: String, cancel: CancellationToken) -> Events {
    let (sender, mut waiting) = mpsc::channel::<(&'static str, String)>(WAITING);
    let work = async move {
        while let Some((reason, text)) = waiting.recv().await {
            let mut pause = PAUSE;
            for _ in 0..TRIES {
                match write(&client, &node, reason, &text).await {
                    Ok(()) => break,
                    Err(error) => tracing::debug!(
                        error = format!("{error:#}"),
                        "an event could not be written"
                    ),
                }
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::spawn(async move { cancel.run_until_cancelled(work).await });
    Events(sender)
}

async fn write(client: &Client, node: &str, reason: &str, text: &str) -> anyhow::Result<()> {
    let now = k8s_openapi::jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string();
    let kind = match reason {
        "OverlayReachable" => "Normal",
        _ => "Warning",
    };
    let note = text.get(..text.floor_char_boundary(NOTE));
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        // As client-go names them: the object, and something that no other event has.
        "metadata": { "name": format!("{node}.{:016x}", rand::random::<u64>()), "namespace": "default" },
        "eventTime": now, "type": kind, "reason": reason, "note": note, "action": "Probe",
        // A Node's uid is its name here, as in kubelet's events: `kubectl describe node` asks for that.
        "regarding": { "kind": "Node", "apiVersion": "v1", "name": node, "uid": node },
        "reportingController": "portolan", "reportingInstance": node,
    });
    let request = http::Request::post(
        "/apis/events.k8s.io/v1/namespaces/default/events?fieldManager=portolan",
    )
    .header(http::header::CONTENT_TYPE, "application/json")
    .header(
        http::header::USER_AGENT,
        concat!("portolan/", env!("CARGO_PKG_VERSION")),
    )
    .body(Body::from(serde_json::to_vec(&event)?))?;
    let answer = async {
        let response = client.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        anyhow::Ok((status, body))
    };
    let (status, body) = tokio::time::timeout(TIMEOUT, answer)
        .await
        .context("the API server is silent")??;
    if !status.is_success() {
        let message: String = String::from_utf8_lossy(&body).chars().take(200).collect();
        bail!(
            "the API server answers {status}: {}",
            message.escape_debug()
        );
    }
    Ok(())
}
