//! A Kubernetes API server as the source of objects.
//!
//! One task per kind lists and then watches it ([`follow`]). What holds, whatever the server or the network
//! does:
//!
//! * A list is delivered as one `Reset`, whole or not at all. Nothing partial ever leaves this module, so a
//!   reader can never mistake a list that broke off for a cluster that shrank.
//! * Every request and every open stream has a limit on silence, so a peer that died without a word is
//!   found within [`ApiConfig::silence`].
//! * One object that cannot be decoded is named and left out; its neighbours are delivered.
//! * For an overlay, watches of Nodes bring their metadata, and a Node is read whole when that may matter ([`outline`]).
//! * After trouble, the server's version is compared with ours: one that is behind (etcd restored from a
//!   backup) is listed anew, since a watch from a version in its future would stay silent
//!   (kubernetes issue 107457).
//!
//! kube brings configuration, TLS, credentials and the requests; the loop is our own. `kube::runtime`'s
//! `watcher` (5.0.0) was read and left aside: it renews a watch that ends at once without any pause and
//! without telling, has no limit on a list that hangs and no fall-back when streaming lists are refused, and
//! hides both the reconnects at which versions are to be compared and what `Retry-After` says. Its
//! `DeserializeGuard` buffers and clones every object; decoding borrowed text does not, and names the field.
//!
//! Deciding when the view is whole, and remembering last good versions, are left to the control loop.

mod backoff;
mod client;
mod decode;
mod follow;
mod gathered;
mod outline;
mod request;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use service_model::ObjectEvent;
use service_model::wire::{self, Object, label_selector};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::SourceEvent;
use follow::{Follower, Target};
use outline::Outlines;

pub use client::{Server, client};

/// Times and sizes of the source. The defaults are for clusters, other values for tests.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Objects per page of a list.
    pub page_size: u32,
    /// Longest silence on a connection in use: a request without answer, a body without a byte, a watch
    /// without an event. A silent watch is renewed, since nothing else tells a quiet cluster from a dead
    /// peer: bookmarks are promised no rhythm.
    pub silence: Duration,
    /// Longest time for one page, or for a whole streaming list.
    pub list_limit: Duration,
    /// Seconds after which the server is asked to end a watch; drawn anew for each, so that nodes spread.
    pub watch_seconds: RangeInclusive<u32>,
    /// How long a comparison of versions is good for, while no trouble makes another necessary.
    pub check_every: Duration,
    /// Mean of the first pause after a failure, times two; each further one is twice as long.
    pub retry_base: Duration,
    /// Upper end of a pause. A server's `Retry-After` may ask for more.
    pub retry_limit: Duration,
    /// Upper end of a pause while nobody answers.
    pub away_limit: Duration,
    /// How long all must be well before pauses begin small again.
    pub stable_after: Duration,
    /// How often to look for a kind that the server does not have, or does not let us see.
    pub absent_retry: Duration,
    /// Watch the Nodes of the whole cluster, for an overlay: their metadata, and a whole one when it matters.
    pub all_nodes: bool,
    /// How long a Node of which only metadata are watched goes unread, at most.
    pub read_again: Duration,
    /// Whose Services to watch (`--service-proxy-name`).
    pub proxy_name: Option<Arc<str>>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            // What client-go asks for.
            page_size: 500,
            silence: Duration::from_secs(35),
            list_limit: Duration::from_secs(120),
            watch_seconds: 240..=285,
            check_every: Duration::from_secs(200),
            retry_base: Duration::from_millis(800),
            retry_limit: Duration::from_secs(30),
            away_limit: Duration::from_secs(3),
            stable_after: Duration::from_secs(60),
            absent_retry: Duration::from_secs(300),
            all_nodes: false,
            read_again: Duration::from_secs(6 * 3600),
            proxy_name: None,
        }
    }
}

/// Watches what the node named `node_name` needs and sends it, until `cancel`led or until the receiver is
/// dropped. Failures of the server are reported as [`SourceEvent::Connection`] and tried again for ever.
pub async fn run(
    client: Client,
    node_name: String,
    config: ApiConfig,
    events: mpsc::Sender<SourceEvent>,
    cancel: CancellationToken,
) {
    let selector = label_selector(config.proxy_name.as_deref());
    let selected = |path| Target {
        path,
        label_selector: Some(selector.clone()),
        field_selector: None,
        optional: false,
    };
    let own_node = (!config.all_nodes).then(|| format!("metadata.name={node_name}"));
    let nodes = Target {
        path: "/api/v1/nodes",
        label_selector: None,
        field_selector: own_node,
        optional: false,
    };
    let cidrs = Target {
        path: "/apis/networking.k8s.io/v1/servicecidrs",
        label_selector: None,
        field_selector: None,
        optional: true,
    };
    let start = Start {
        client,
        config,
        events,
        cancel,
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(start.follow::<wire::Service>(selected("/api/v1/services"), SourceEvent::Service));
    tasks.spawn(start.follow::<wire::EndpointSlice>(
        selected("/apis/discovery.k8s.io/v1/endpointslices"),
        SourceEvent::EndpointSlice,
    ));
    let of_nodes = start.follower::<wire::Node>(nodes, SourceEvent::Node);
    tasks.spawn(start.run(match start.config.all_nodes {
        true => of_nodes.by_metadata(Outlines::of_nodes(node_name, start.config.read_again)),
        false => of_nodes,
    }));
    tasks.spawn(start.follow::<wire::ServiceCidr>(cidrs, SourceEvent::ServiceCidr));
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

/// What the tasks share.
struct Start {
    client: Client,
    config: ApiConfig,
    events: mpsc::Sender<SourceEvent>,
    cancel: CancellationToken,
}

impl Start {
    fn follow<O: Object>(
        &self,
        target: Target,
        wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
    ) -> impl Future<Output = ()> + Send + 'static {
        self.run(self.follower::<O>(target, wrap))
    }

    fn follower<O: Object>(
        &self,
        target: Target,
        wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
    ) -> Follower<O> {
        let (client, config) = (self.client.clone(), self.config.clone());
        Follower::new(client, target, config, wrap, self.events.clone())
    }

    fn run<O: Object>(&self, follower: Follower<O>) -> impl Future<Output = ()> + Send + use<O> {
        let cancel = self.cancel.clone();
        async move {
            cancel.run_until_cancelled(follower.run()).await;
        }
    }
}
