//! Objects of one kind as they are and as they change, for ever: lists, watches, and lists again after any end.

use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Result, bail};
use futures::StreamExt;
use kube::Api;
use kube::api::{ListParams, WatchEvent, WatchParams};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Between an end and the next list. An API server that a test has just started shall not wait for kubelets.
const PAUSE: Duration = Duration::from_millis(300);

/// News.
#[derive(Debug)]
pub(super) enum Change<K> {
    /// These are all there are.
    All(Vec<K>),
    /// It is new, or it has changed.
    Applied(K),
    Deleted(K),
}

/// Follows the objects that a field selector names, until the receiver is gone.
pub(super) async fn follow<K>(api: Api<K>, fields: Option<String>, changes: mpsc::Sender<Change<K>>)
where
    K: Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    while !changes.is_closed() {
        // Whatever ended it is over with the next list.
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
