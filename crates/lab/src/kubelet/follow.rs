//! Follows the objects of one kind: lists, watches, and lists again whenever the watch ends.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Pause before the next list. Short, so that a test which restarts the API server need not wait for kubelets.
const PAUSE: Duration = Duration::from_millis(300);

/// A change of the followed objects.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// A complete list.
    All(Vec<K>),
    /// A new or changed object.
    Applied(K),
    /// A deleted object.
    Deleted(K),
}

/// Follows the objects that a field selector names, until the receiver is gone.
pub(super) async fn follow<K>(api: Api<K>, fields: Option<String>, changes: mpsc::Sender<Change<K>>)
where
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    while !changes.is_closed() {
        // The next list replaces whatever an error has left incomplete.
        let _ = once(&api, fields.as_deref(), &changes).await;
        tokio::time::sleep(PAUSE).await;
    }
}

async fn once<K>(
    api: &Api<K>,
    fields: Option<&str>,
    changes: &mpsc::Sender<Change<K>>,
) -> Result<()>
where
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (mut list, mut watch) = (ListParams::default(), WatchParams::default());
    if let Some(fields) = fields {
        (list, watch) = (list.fields(fields), watch.fields(fields));
    }
    let all = api.list(&list).await?;
    let version = all.metadata.resource_version.unwrap_or_default();
    changes.send(Change::All(all.items)).await?;
    let mut events = pin!(api.watch(&watch, &version).await?);
    while let Some(event) = events.next().await {
        let change = match event? {
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Applied(object),
            WatchEvent::Deleted(object) => Change::Deleted(object),
            WatchEvent::Bookmark(_) => continue,
            WatchEvent::Error(status) => bail!("{}", status.message),
        };
        changes.send(change).await?;
    }
    Ok(())
}
