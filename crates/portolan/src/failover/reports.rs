//! Reports suspects: in the log, as metrics, on `/readyz` and as Events of this Node.
//!
//! Names of nodes come from EndpointSlices, which any tenant can write: they are printed only escaped and cut.

use std::collections::BTreeMap;
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

const SUSPECTED: (&str, &str) = ("NodeUnanswering", "SkipEndpoints");
const RETURNED: (&str, &str) = ("NodeAnswering", "UseEndpoints");

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
    lines: BTreeMap<Arc<str>, String>,
    recorded: BTreeMap<Arc<str>, Instant>,
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
    pub(super) fn suspected(&mut self, node: &Arc<str>, evidence: &str, now: Instant) {
        let name = printable(node, NAME);
        tracing::warn!(
            node = name,
            evidence,
            "node does not answer; its endpoints get no new connections while others are eligible"
        );
        self.metrics().failover.suspected();
        let since = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        let note = format!("node {name} does not answer ({evidence})");
        self.event(node, Severity::Warning, SUSPECTED, &note, now);
        let line = format!("failover: {note} since {since}");
        self.lines.insert(node.clone(), line);
        self.publish();
    }

    /// Reports that a node is not a suspect any longer, and why.
    pub(super) fn ended(&mut self, node: &Arc<str>, lasted: Option<Duration>, why: &str) {
        let name = printable(node, NAME);
        let suspected_seconds = lasted.map(|lasted| lasted.as_secs_f64());
        tracing::info!(
            node = name,
            suspected_seconds,
            "{why}; its endpoints get new connections again"
        );
        let note = format!("node {name}: {why}");
        if self.recorded.contains_key(node) {
            let subject = Subject::Node;
            let recorder = &self.reports.recorder;
            drop(recorder.record(subject, Severity::Normal, RETURNED, &note));
        }
        self.lines.remove(node);
        self.publish();
    }

    fn event(
        &mut self,
        node: &Arc<str>,
        severity: Severity,
        words: (&'static str, &'static str),
        note: &str,
        now: Instant,
    ) {
        self.recorded
            .retain(|_, at| now.saturating_duration_since(*at) < EACH);
        if self.recorded.len() < MOST_RECORDED && !self.recorded.contains_key(node) {
            self.recorded.insert(node.clone(), now);
            let recorder = &self.reports.recorder;
            drop(recorder.record(Subject::Node, severity, words, note));
        }
    }

    fn publish(&self) {
        self.metrics().failover.set_suspects(self.lines.len());
        let mut lines: Vec<String> = self.lines.values().take(NAMED).cloned().collect();
        let more = self.lines.len().saturating_sub(NAMED);
        lines.extend((more > 0).then(|| format!("failover: {more} more nodes do not answer")));
        self.reports.status.store(Arc::new(lines));
    }
}
