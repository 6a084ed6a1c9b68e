//! Tells the cluster where this node is: flannel's annotations and the condition `NetworkUnavailable`.
//!
//! Both are patches of the Node's status subresource, as flannel's are, so that the same role (get nodes, patch
//! nodes/status) is enough. Nothing is sent while the Node says it already.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use object_source::api::{ApiClient, Limits};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::condition::{Condition, Decision, Verdict, decide};

/// Between two attempts, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(5),
    total: Duration::from_secs(5),
};

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
    client: ApiClient,
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
    client: &ApiClient,
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
                reason = service_model::printable(&reason, 200),
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

async fn conditions(client: &ApiClient, node: &str) -> anyhow::Result<Vec<Condition>> {
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
    let request = http::Request::get(format!("/api/v1/nodes/{node}")).body(Vec::new())?;
    let answer = client.call(request, LIMITS).await?;
    let node: Node = serde_json::from_slice(&answer).context("the answer is no Node")?;
    Ok(node.status.conditions.unwrap_or_default())
}

async fn patch_status(client: &ApiClient, node: &str, patch: &Value) -> anyhow::Result<()> {
    let request =
        http::Request::patch(format!("/api/v1/nodes/{node}/status?fieldManager=portolan"))
            .header(
                http::header::CONTENT_TYPE,
                "application/strategic-merge-patch+json",
            )
            .body(serde_json::to_vec(patch)?)?;
    client.call(request, LIMITS).await?;
    Ok(())
}
