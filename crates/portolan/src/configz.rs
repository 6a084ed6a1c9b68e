//! `/configz`, `/flagz` and `/statusz`: the configuration that counts, as kube-proxy shows its own.
//!
//! A change of the configuration file replaces the configuration whole.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use k8s_openapi::jiff::Timestamp;
use kube_proxy_config::Resolved;

/// The configuration that counts, shared by whoever changes it (writer) and the metrics port (reader).
#[derive(Debug)]
pub struct Configz {
    resolved: ArcSwap<Resolved>,
    started: (Instant, SystemTime),
}

impl Configz {
    /// The configuration of the start.
    pub fn new(resolved: Resolved) -> Self {
        Configz {
            resolved: ArcSwap::from_pointee(resolved),
            started: (Instant::now(), SystemTime::now()),
        }
    }

    /// Replaces the configuration.
    pub fn store(&self, resolved: Resolved) {
        self.resolved.store(Arc::new(resolved));
    }

    /// Both documents, under the names of their groups.
    pub(crate) fn document(&self) -> serde_json::Value {
        serde_json::to_value(self.resolved.load().configz()).unwrap_or_default()
    }

    /// All flags with their values.
    pub(crate) fn flagz(&self) -> String {
        let mut text = heading("flags");
        for (name, value) in self.resolved.load().flags() {
            let _ = writeln!(text, "{name}={value}");
        }
        text
    }

    /// Version, start and uptime.
    pub(crate) fn statusz(&self) -> String {
        let (since, at) = self.started;
        let at = Timestamp::try_from(at).unwrap_or_default();
        let (version, uptime) = (env!("CARGO_PKG_VERSION"), since.elapsed().as_secs());
        let paths = "/configz /flagz /healthz /metrics /proxyMode /statusz";
        let heading = heading("statusz");
        format!("{heading}Version: {version}\nStarted: {at}\nUp: {uptime} s\nPaths: {paths}\n")
    }
}

/// kube-proxy's words, by which people recognize the page.
fn heading(page: &str) -> String {
    format!(
        "portolan {page}\nWarning: This endpoint is not meant to be machine parseable and has no formatting compatibility guarantees.\n\n"
    )
}
