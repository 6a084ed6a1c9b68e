//! Reports suspects: in the log, as metrics, on `/readyz` and as Events of this Node.
//!
//! Names of nodes come from EndpointSlices, which any tenant can write: they are printed only escaped and cut.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::jiff::Timestamp;
use service_model::printable;

use crate::events::{Recorder, Severity, Subject};
use crate::metrics::Metrics;

/// Lines for `/readyz`, shared with its readers.
pub type SharedFailoverStatus = Arc<ArcSwap<Vec<String>>>;

/// Longest name of a node that is printed.
const NAME: usize = 63;
/// Suspects that `/readyz` names.
const NAMED: usize = 16;
/// Pause between two Events about one node, and nodes with one in that time.
const EACH: Duration = Duration::from_secs(60);
const MOST_RECORDED: usize = 16;

/// A suspect as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Suspect {
    Node(Arc<str>),
    Endpoint(SocketAddr),
}

impl Suspect {
    /// Reason and action of the Event at the start, and of the one at the end.
    fn words(&self) -> [(&'static str, &'static str); 2] {
        match self {
            Suspect::Node(_) => [
                ("NodeUnanswering", "SkipEndpoints"),
                ("NodeAnswering", "UseEndpoints"),
            ],
            Suspect::Endpoint(_) => [
                ("EndpointUnanswering", "SkipEndpoint"),
                ("EndpointAnswering", "UseEndpoint"),
            ],
        }
    }
}

impl fmt::Display for Suspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Suspect::Node(name) => write!(f, "node {}", printable(name, NAME)),
            Suspect::Endpoint(endpoint) => write!(f, "endpoint {endpoint}"),
        }
    }
}

/// Where suspects are reported.
#[derive(Clone)]
pub struct FailoverReports {
    /// Lines for `/readyz`.
    pub status: SharedFailoverStatus,
    /// Counts suspicions and what finding them costs.
    pub metrics: Arc<Metrics>,
    /// Creates Events of this Node.
    pub recorder: Recorder,
}

/// Reports, and what was reported lately.
pub(super) struct Reporter {
    reports: FailoverReports,
    lines: BTreeMap<Suspect, String>,
    recorded: BTreeMap<Suspect, Instant>,
}

impl Reporter {
    pub(super) fn new(reports: FailoverReports) -> Self {
        Reporter {
            reports,
            lines: BTreeMap::new(),
            recorded: BTreeMap::new(),
        }
    }

    pub(super) fn metrics(&self) -> &Metrics {
        &self.reports.metrics
    }

    /// Reports a new suspect.
    pub(super) fn suspected(&mut self, suspect: Suspect, evidence: &str, now: Instant) {
        match &suspect {
            Suspect::Node(name) => tracing::warn!(
                node = printable(name, NAME),
                evidence,
                "node does not answer; its endpoints get no new connections while others are eligible"
            ),
            Suspect::Endpoint(endpoint) => tracing::warn!(
                %endpoint,
                evidence,
                "endpoint does not answer; it gets no new connections while others are eligible"
            ),
        }
        self.metrics().failover.suspected();
        let since = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        let note = format!("{suspect} does not answer ({evidence})");
        self.event(&suspect, &note, now);
        let line = format!("failover: {note} since {since}");
        self.lines.insert(suspect, line);
        self.publish();
    }

    /// Reports that something is not a suspect any longer, and why.
    pub(super) fn ended(&mut self, suspect: &Suspect, lasted: Option<Duration>, why: &str) {
        let suspected_seconds = lasted.map(|lasted| lasted.as_secs_f64());
        match suspect {
            Suspect::Node(name) => tracing::info!(
                node = printable(name, NAME),
                suspected_seconds,
                "node {why}; its endpoints get new connections again"
            ),
            Suspect::Endpoint(endpoint) => tracing::info!(
                %endpoint,
                suspected_seconds,
                "endpoint {why}; it gets new connections again"
            ),
        }
        if self.recorded.contains_key(suspect) {
            let [_, words] = suspect.words();
            let note = format!("{suspect} {why}");
            let recorder = &self.reports.recorder;
            drop(recorder.record(Subject::Node, Severity::Normal, words, &note));
        }
        self.lines.remove(suspect);
        self.publish();
    }

    fn event(&mut self, suspect: &Suspect, note: &str, now: Instant) {
        self.recorded
            .retain(|_, at| now.saturating_duration_since(*at) < EACH);
        if self.recorded.len() < MOST_RECORDED && !self.recorded.contains_key(suspect) {
            self.recorded.insert(suspect.clone(), now);
            let [words, _] = suspect.words();
            let recorder = &self.reports.recorder;
            drop(recorder.record(Subject::Node, Severity::Warning, words, note));
        }
    }

    fn publish(&self) {
        let is_node = |suspect: &&Suspect| matches!(suspect, Suspect::Node(_));
        let nodes = self.lines.keys().filter(is_node).count();
        let endpoints = self.lines.len() - nodes;
        self.metrics().failover.set_suspects(nodes, endpoints);
        let mut lines: Vec<String> = self.lines.values().take(NAMED).cloned().collect();
        let more = self.lines.len().saturating_sub(NAMED);
        lines.extend((more > 0).then(|| format!("failover: {more} more do not answer")));
        self.reports.status.store(Arc::new(lines));
    }
}
