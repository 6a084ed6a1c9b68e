//! Tells the cluster where this node is: flannel's annotations and the condition `NetworkUnavailable`.
//!
//! Both are patches of the Node's status subresource, as flannel's are, so that the same role (get nodes, patch
//! nodes/status) is enough. Nothing is sent while the Node says it already.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::condition::{Condition, Decision, Verdict, decide};

/// Between two attempts, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be known of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publication {
    /// Annotations that the Node has not, or has otherwise.
    pub(super) annotations: BTreeMap<Box<str>, Box<str>>,
    /// Whether pods can be carried; `None` while nobody knows.
    pub(super) verdict: Option<Verdict>,
}

/// Publishes until cancelled.
pub(super) async fn run(
    client: Client,
    node: String,
    set_condition: bool,
    mut wanted: watch::Receiver<Publication>,
    cancel: CancellationToken,
) {
    let publish = async {
        let mut said = None;
        loop {
            let wish = wanted.borrow_and_update().clone();
            let mut pause = RETRY.0;
            loop {
                // A Node that lost its annotations may be a new one of the same name.
                let anew = !wish.annotations.is_empty();
                let verdict = wish.verdict.filter(|_| set_condition);
                let unsaid = verdict.filter(|verdict| anew || said != Some(*verdict));
                match publish(&client, &node, &wish, unsaid).await {
                    Ok(()) => {
                        said = verdict.or(said);
                        break;
                    }
                    Err(error) => tracing::warn!(
                        error = format!("{error:#}"),
                        "could not update the Node: trying again"
                    ),
                }
                if tokio::time::timeout(pause, wanted.changed())
                    .await
                    .is_ok_and(|changed| changed.is_err())
                {
                    return;
                }
                if wanted.has_changed().unwrap_or(true) {
                    break;
                }
                pause = (pause * 2).min(RETRY.1);
            }
            // What the Node says arrives by the watch; a wish that stays the same needs no second patch.
            if wanted.changed().await.is_err() {
                return;
            }
        }
    };
    cancel.run_until_cancelled(publish).await;
}

async fn publish(
    client: &Client,
    node: &str,
    wish: &Publication,
    verdict: Option<Verdict>,
) -> anyhow::Result<()> {
    if !wish.annotations.is_empty() {
        let patch = json!({ "metadata": { "annotations": wish.annotations } });
        patch_status(client, node, &patch)
            .await
            .context("publishing the annotations")?;
        tracing::info!(
            annotations = wish.annotations.len(),
            "published where this node is"
        );
    }
    if let Some(verdict) = verdict {
        let found = conditions(client, node)
            .await
            .context("reading the condition NetworkUnavailable")?;
        let now = k8s_openapi::jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        match decide(&found, verdict, &now) {
            Decision::Leave => {}
            Decision::Foreign(reason) => tracing::info!(
                reason = printable(&reason),
                "the condition NetworkUnavailable is somebody else's: left alone"
            ),
            Decision::Set(condition) => {
                let patch = json!({ "status": { "conditions": [condition] } });
                patch_status(client, node, &patch)
                    .await
                    .context("setting the condition NetworkUnavailable")?;
                tracing::info!(?verdict, "set the condition NetworkUnavailable");
            }
        }
    }
    Ok(())
}

async fn conditions(client: &Client, node: &str) -> anyhow::Result<Vec<Condition>> {
    #[derive(Deserialize)]
    struct Node {
        #[serde(default)]
        status: Status,
    }
    #[derive(Default, Deserialize)]
    struct Status {
        #[serde(default)]
        conditions: Option<Vec<Condition>>,
    }
    let request = http::Request::get(format!("/api/v1/nodes/{node}"));
    let answer = ask(client, request, Vec::new()).await?;
    let node: Node = serde_json::from_slice(&answer).context("the answer is no Node")?;
    Ok(node.status.conditions.unwrap_or_default())
}

async fn patch_status(client: &Client, node: &str, patch: &Value) -> anyhow::Result<()> {
    let request =
        http::Request::patch(format!("/api/v1/nodes/{node}/status?fieldManager=portolan")).header(
            http::header::CONTENT_TYPE,
            "application/strategic-merge-patch+json",
        );
    ask(client, request, serde_json::to_vec(patch)?)
        .await
        .map(drop)
}

async fn ask(
    client: &Client,
    request: http::request::Builder,
    body: Vec<u8>,
) -> anyhow::Result<Bytes> {
    let request = request
        .header(
            http::header::USER_AGENT,
            concat!("portolan/", env!("CARGO_PKG_VERSION")),
        )
        .body(Body::from(body))?;
    let answer = async {
        let response = client.send(request).await?;
        let status = response.status();
        let body = response
            .into_body()
            .collect()
            .await
            .map(http_body_util::Collected::to_bytes)?;
        anyhow::Ok((status, body))
    };
    let (status, body) = tokio::time::timeout(TIMEOUT, answer)
        .await
        .context("the API server is silent")??;
    if !status.is_success() {
        let message = serde_json::from_slice::<Value>(&body).ok();
        let message = message
            .as_ref()
            .and_then(|m| m["message"].as_str())
            .unwrap_or_default();
        bail!("the API server answers {status}: {}", printable(message));
    }
    Ok(body)
}

/// Foreign text as it may be logged.
fn printable(text: &str) -> String {
    text.chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect()
}
