//! `/configz`, `/flagz` and `/statusz`: the configuration that counts, as kube-proxy shows its own.
//!
//! A change of the configuration file replaces the configuration whole.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::jiff::Timestamp;
use kube_proxy_config::Documents;

use crate::build_info;

/// The configuration that counts, shared by whoever changes it (writer) and the metrics port (reader).
#[derive(Debug)]
pub struct Configz {
    documents: ArcSwap<Documents>,
    started: (Instant, SystemTime),
}

impl Configz {
    /// The configuration of the start.
    pub fn new(documents: Documents) -> Self {
        Configz {
            documents: ArcSwap::from_pointee(documents),
            started: (Instant::now(), SystemTime::now()),
        }
    }

    /// Shows these fields as `changed` has them. All others wait for a restart, and stay as they are.
    pub fn apply(&self, changed: &Documents, fields: &[&str]) {
        let mut documents = Documents::clone(&self.documents.load());
        documents.apply(changed, fields);
        self.documents.store(Arc::new(documents));
    }

    /// Both documents, under the names of their groups.
    pub(crate) fn document(&self) -> serde_json::Value {
        serde_json::to_value(self.documents.load().configz()).unwrap_or_default()
    }

    /// All flags with their values.
    pub(crate) fn flagz(&self) -> String {
        let mut text = heading("flags");
        for (name, value) in self.documents.load().flags() {
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }

    /// Time since the start.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.0.elapsed()
    }

    /// Version, start, uptime and the paths of the port; `changing`: those that change something.
    pub(crate) fn statusz(&self, changing: &[&str]) -> String {
        let (since, at) = self.started;
        let at = Timestamp::try_from(at).unwrap_or_default();
        let build = build_info::get();
        let (version, commit, uptime) =
            (build.version, build.git_commit, since.elapsed().as_secs());
        let reading = "/configz /flagz /healthz /metrics /metrics/slis /proxyMode /statusz";
        let paths = [&[reading], changing].concat().join(" ");
        let heading = heading("statusz");
        format!(
            "{heading}Version: {version}\nCommit: {commit}\nStarted: {at}\nUp: {uptime} s\nPaths: {paths}\n"
        )
    }
}

/// kube-proxy's words, by which people recognize the page.
fn heading(page: &str) -> String {
    format!(
        "portolan {page}\nWarning: This endpoint is not meant to be machine parseable and has no formatting compatibility guarantees.\n\n"
    )
}
