//! Hands peers that answer nothing from the overlay's probes to failover, which looks at their nodes.

use std::collections::BTreeSet;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;

/// Peers that answered nothing in a round of the overlay's probes, from the thread of those to the one of failover.
#[derive(Clone, Debug, Default)]
pub struct SilentPeers(Arc<Silent>);

#[derive(Debug, Default)]
struct Silent {
    nodes: Mutex<BTreeSet<Arc<str>>>,
    added: Notify,
}

impl SilentPeers {
    /// Adds one.
    pub(crate) fn add(&self, node: &Arc<str>) {
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.insert(node.clone());
        self.0.added.notify_one();
    }

    /// Waits for some, and takes them.
    pub(crate) async fn take(&self) -> BTreeSet<Arc<str>> {
        self.0.added.notified().await;
        let mut nodes = self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        mem::take(&mut nodes)
    }
}
