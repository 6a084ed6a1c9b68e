//! Reports legacy iptables rules of kube-proxy that cannot be removed, because iptables' programs are not installed.
//!
//! Only these programs can read legacy tables. Without them, kube-proxy's rules are suspected where all three tables exist
//! that its iptables mode writes. The rules would precede Portolan's, with endpoints of the moment kube-proxy ended.

use std::sync::Arc;

use arc_swap::ArcSwapOption;

use super::TakeoverReport;
use crate::events::{Recorder, Severity, Subject};
use crate::metrics::Metrics;

/// What is to be said on `/readyz`, if anything.
pub(crate) type SharedAlarm = Arc<ArcSwapOption<String>>;

/// Where the alarm is raised.
#[derive(Clone)]
pub(crate) struct Alarm {
    pub(crate) shared: SharedAlarm,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recorder: Recorder,
}

impl Alarm {
    /// Raises or ends the alarm. The log and an Event say so when it is raised.
    pub(super) fn judge(&self, report: &TakeoverReport) {
        let tables = &report.iptables.unreadable;
        self.metrics.set_foreign_legacy(tables.len());
        let text = (!tables.is_empty()).then(|| {
            format!(
                "legacy iptables tables of kube-proxy may precede Portolan's rules ({}), and no iptables-legacy program is \
                 installed to look: run `kube-proxy --cleanup` from kube-proxy's image, or `iptables-legacy-save | grep KUBE-` \
                 on the node and then reboot it",
                tables.join(", ")
            )
        });
        let before = self.shared.swap(text.clone().map(Arc::new));
        if let Some(text) = text.filter(|text| before.as_deref() != Some(text)) {
            tracing::error!("{text}");
            let words = ("LegacyIptablesRules", "RemoveLeftovers");
            self.recorder
                .record(Subject::Node, Severity::Warning, words, &text);
        }
    }
}
