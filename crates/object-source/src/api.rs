//! A Kubernetes API server as the source of objects.
//!
//! One task per kind lists and then watches it ([`follow`]). Whatever the server or the network does:
//!
//! * A list is delivered as one `Reset`, complete or not at all, so that an interrupted list never looks like a smaller
//!   cluster.
//! * Every request and every open stream has a limit on silence, so a peer that died silently is found within
//!   [`ApiConfig::silence`], or [`ApiConfig::watch_silence`].
//! * The API server is found without Services ([`locate`]), behind HTTP proxies ([`proxy`]), and at any of its addresses
//!   ([`servers`]), also those that the cluster named before a reboot ([`remembered`]).
//! * Credentials in files are read again, since they are renewed while this process runs ([`token`], [`certificate`]).
//! * An object that cannot be decoded is named and skipped; the other objects are delivered.
//! * For an overlay, watches of Nodes bring their metadata, and a Node is read whole when that may matter ([`outline`]).
//! * After a failure, the server's version is compared with ours: a server that is behind (etcd restored from a backup) is
//!   listed again, since a watch from a version in its future would stay silent (kubernetes issue 107457).
//!
//! kube brings configuration, TLS, credentials and the form of requests; the loop is our own. `kube::runtime`'s `watcher`
//! (5.0.0) was considered: it renews a watch that ends immediately without a pause and without reporting it, has no limit on
//! a list that hangs and no fallback when streaming lists are refused, and hides both the reconnects at which versions are to
//! be compared and `Retry-After`. Its `DeserializeGuard` buffers and clones every object; decoding borrowed text does not,
//! and names the field.
//!
//! Deciding when the view is complete, and remembering last good versions, are left to the reader of the events.

mod backoff;
mod batches;
mod certificate;
mod client;
mod decode;
mod follow;
mod gathered;
mod kubelet;
mod learner;
mod link;
mod locate;
mod outline;
mod position;
mod proxy;
mod remembered;
mod request;
mod server;
mod servers;
#[cfg(test)]
mod tests;
mod token;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use service_model::ObjectEvent;
use service_model::wire::{self, ConversionContext, Object, label_selector};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::SourceEvent;
use follow::Follower;
use learner::Learner;
use link::{Link, Target};
use outline::Outlines;

pub use client::{ApiServer, connect};
pub use kubelet::{KUBELET_KUBECONFIGS, without_credentials};
pub use locate::ServerSource;
pub use request::{ApiClient, Limits, RequestError, RequestObserver, RequestOutcome};

/// Times and sizes of the source. The defaults are for clusters, other values for tests.
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// Objects per page of a list.
    pub page_size: u32,
    /// Longest time without a byte of an answer, or of a list.
    pub silence: Duration,
    /// Longest silence of a watch, which is then renewed. Servers send a bookmark each minute, so an idle cluster is silent
    /// for no longer; TCP keep-alive finds a dead peer earlier.
    pub watch_silence: Duration,
    /// Longest time for one page, or for a whole streaming list.
    pub list_limit: Duration,
    /// Seconds after which the server is asked to end a watch; drawn for each watch, so that nodes spread.
    pub watch_seconds: RangeInclusive<u32>,
    /// How often the server's version is compared with ours while nothing fails.
    pub verify_every: Duration,
    /// Upper end of the first pause after a failure; each further one is twice as long.
    pub retry_base: Duration,
    /// Upper end of a pause. A server's `Retry-After` may ask for more.
    pub retry_limit: Duration,
    /// Upper end of a pause while the server does not answer.
    pub away_limit: Duration,
    /// How long the server must serve until pauses begin with `retry_base` again.
    pub stable_after: Duration,
    /// How often to ask for an optional kind that the server lacks or denies.
    pub absent_retry: Duration,
    /// Watch Services, EndpointSlices and ServiceCIDRs; an overlay alone needs only Nodes.
    pub services: bool,
    /// Watch all Nodes, for an overlay: their metadata, and a whole Node when that matters.
    pub all_nodes: bool,
    /// How often a Node of which only metadata are watched is read whole, at least.
    pub read_again: Duration,
    /// How often an object is read whole that keeps changing.
    pub read_every: Duration,
    /// Names of Nodes that are read whole at each change, since more of them matters than metadata say.
    pub contended: Option<watch::Receiver<BTreeSet<Arc<str>>>>,
    /// Watch Services with this `service-proxy-name` label (`--service-proxy-name`).
    pub proxy_name: Option<Arc<str>>,
}

impl Default for ApiConfig {
    fn default() -> Self {
        ApiConfig {
            // What client-go asks for.
            page_size: 500,
            silence: Duration::from_secs(35),
            watch_silence: Duration::from_secs(80),
            list_limit: Duration::from_secs(120),
            // With the comparisons of versions, an idle node must not send more requests than kube-proxy, whose client-go
            // takes 300 to 600.
            watch_seconds: 560..=600,
            verify_every: Duration::from_secs(2000),
            retry_base: Duration::from_millis(800),
            retry_limit: Duration::from_secs(30),
            away_limit: Duration::from_secs(3),
            stable_after: Duration::from_secs(60),
            absent_retry: Duration::from_secs(300),
            services: true,
            all_nodes: false,
            read_again: Duration::from_secs(6 * 3600),
            read_every: Duration::from_secs(10),
            contended: None,
            proxy_name: None,
        }
    }
}

/// Watches what the node named `node_name` needs and sends it, until canceled or until the receiver is dropped. Failures of
/// the server are reported as [`SourceEvent::Connection`] and retried for ever.
pub async fn run(
    client: ApiClient,
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
    if start.config.services {
        let services =
            start.link::<wire::Service>(selected("/api/v1/services"), SourceEvent::Service);
        tasks.spawn(start.follow(services));
        let mut slices = start.link::<wire::EndpointSlice>(
            selected("/apis/discovery.k8s.io/v1/endpointslices"),
            SourceEvent::EndpointSlice,
        );
        slices.learner = Some(Learner::new(start.client.servers().clone()));
        tasks.spawn(start.follow(slices));
        tasks.spawn(start.follow(start.link::<wire::ServiceCidr>(cidrs, SourceEvent::ServiceCidr)));
    }
    let mut nodes = start.link::<wire::Node>(nodes, SourceEvent::Node);
    if start.config.all_nodes {
        nodes.outlines = Some(Outlines::of_nodes(node_name, &start.config));
    }
    tasks.spawn(start.follow(nodes));
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
    client: ApiClient,
    config: ApiConfig,
    events: mpsc::Sender<SourceEvent>,
    cancel: CancellationToken,
}

impl Start {
    fn link<O: Object>(
        &self,
        target: Target,
        wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
    ) -> Link<O> {
        Link {
            client: self.client.clone(),
            target,
            config: self.config.clone(),
            wrap,
            events: self.events.clone(),
            context: Arc::new(Mutex::new(ConversionContext::new(
                self.config.proxy_name.clone(),
            ))),
            outlines: None,
            learner: None,
        }
    }

    fn follow<O: Object>(&self, link: Link<O>) -> impl Future<Output = ()> + Send + use<O> {
        let cancel = self.cancel.clone();
        async move {
            cancel.run_until_cancelled(Follower::new(link).run()).await;
        }
    }
}
