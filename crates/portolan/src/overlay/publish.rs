//! Tells the cluster where this node is: flannel's annotations and the condition `NetworkUnavailable`.
//!
//! Both are patches of the Node's status subresource, as flannel's are, so that the same role (patch nodes/status) is
//! enough. Nothing is sent while the Node says it already.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Between two attempts, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const TIMEOUT: Duration = Duration::from_secs(5);

/// What is to be known of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publication {
    /// Annotations that the Node has not, or has otherwise.
    pub(super) annotations: BTreeMap<Box<str>, Box<str>>,
    /// Pods can be carried.
    pub(super) ready: bool,
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
        let mut published = Publication::default();
        loop {
            let wish = wanted.borrow_and_update().clone();
            let mut pause = RETRY.0;
            loop {
                match publish(&client, &node, set_condition, &wish, &published).await {
                    Ok(()) => break,
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
            published.ready |= wish.ready;
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
    set_condition: bool,
    wish: &Publication,
    done: &Publication,
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
    if set_condition && wish.ready && !done.ready {
        let now = k8s_openapi::jiff::Timestamp::now()
            .strftime("%Y-%m-%dT%H:%M:%SZ")
            .to_string();
        let condition = json!({
            "type": "NetworkUnavailable", "status": "False", "reason": "PortolanIsUp",
            "message": "Portolan is running on this node", "lastTransitionTime": now, "lastHeartbeatTime": now,
        });
        let patch = json!({ "status": { "conditions": [condition] } });
        patch_status(client, node, &patch)
            .await
            .context("setting the condition NetworkUnavailable")?;
    }
    Ok(())
}

async fn patch_status(client: &Client, node: &str, patch: &Value) -> anyhow::Result<()> {
    let request =
        http::Request::patch(format!("/api/v1/nodes/{node}/status?fieldManager=portolan"))
            .header(
                http::header::CONTENT_TYPE,
                "application/strategic-merge-patch+json",
            )
            // A kept connection is dead when the node has changed its address, which is just when to publish.
            .header(http::header::CONNECTION, "close")
            .header(
                http::header::USER_AGENT,
                concat!("portolan/", env!("CARGO_PKG_VERSION")),
            )
            .body(Body::from(serde_json::to_vec(patch)?))?;
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
        let message: String = message
            .chars()
            .take(200)
            .flat_map(char::escape_debug)
            .collect();
        bail!("the API server answers {status}: {message}");
    }
    Ok(())
}
