//! Writes this node's VTEP annotations and the condition `NetworkUnavailable` to the API server.
//!
//! Both are patches of the Node's status subresource, as flannel's are, so that the same role (get nodes, patch
//! nodes/status) is enough. Nothing is sent while the Node has the wanted values.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use object_source::api::{ApiClient, Limits};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::condition::{Condition, Decision, NetworkState, decide};

/// Pause between two attempts: the first and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
const LIMITS: Limits = Limits {
    silence: Duration::from_secs(5),
    total: Duration::from_secs(5),
};

/// What the Node should state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Publication {
    /// Annotations that the Node lacks or has with another value.
    pub(super) annotations: BTreeMap<Box<str>, Box<str>>,
    /// Whether pod traffic can be carried; `None` while unknown.
    pub(super) verdict: Option<NetworkState>,
}

/// Publishes until the sender of what is wanted is dropped.
pub(super) async fn run(
    client: ApiClient,
    node: String,
    set_condition: bool,
    mut wanted: watch::Receiver<Publication>,
) -> anyhow::Result<()> {
    let mut published = None;
    let mut pause = RETRY.0;
    loop {
        let publication = wanted.borrow_and_update().clone();
        // A Node that lost its annotations may be a new one of the same name.
        let anew = !publication.annotations.is_empty();
        let verdict = publication.verdict.filter(|_| set_condition);
        let unpublished = verdict.filter(|verdict| anew || published != Some(*verdict));
        let limit = match publish(&client, &node, &publication, unpublished).await {
            Ok(()) => {
                published = verdict.or(published);
                // The watch delivers what was written, and the publication then has no annotations. A Node that another
                // program spoiled again in between looks as before, and nothing else would write it again.
                if anew { pause } else { Duration::MAX }
            }
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "cannot update the Node; retrying"
                );
                pause
            }
        };
        pause = match tokio::time::timeout(limit, wanted.changed()).await {
            Ok(Err(_)) => return Ok(()),
            Ok(Ok(())) => RETRY.0,
            Err(_) => (pause * 2).min(RETRY.1),
        };
    }
}

async fn publish(
    client: &ApiClient,
    node: &str,
    publication: &Publication,
    verdict: Option<NetworkState>,
) -> anyhow::Result<()> {
    if !publication.annotations.is_empty() {
        let patch = json!({ "metadata": { "annotations": publication.annotations } });
        patch_status(client, node, &patch)
            .await
            .context("publishing the annotations")?;
        tracing::info!(
            annotations = publication.annotations.len(),
            "published VTEP annotations"
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
                "not setting the condition NetworkUnavailable: it is maintained by another component"
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
    let node: Node = serde_json::from_slice(&answer).context("decoding the Node")?;
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
