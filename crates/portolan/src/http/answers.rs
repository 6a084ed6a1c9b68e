//! What the probes are told: a function of the published status and the time.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use crate::metrics;
use crate::overlay::OverlayStatus;
use crate::probe::ProbeStatus;
use crate::status::{Health, Status};

/// A response without its connection.
#[derive(Debug)]
pub(super) struct Answer {
    /// Status code
    pub(super) code: StatusCode,
    /// `Content-Type`
    pub(super) content_type: &'static str,
    /// Body
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn text(code: StatusCode, text: impl Into<String>) -> Self {
        Answer {
            code,
            content_type: "text/plain; charset=utf-8",
            body: Bytes::from(text.into()),
        }
    }

    pub(super) fn metrics(text: String) -> Self {
        Answer {
            code: StatusCode::OK,
            content_type: metrics::CONTENT_TYPE,
            body: Bytes::from(text),
        }
    }

    fn json(code: StatusCode, body: &serde_json::Value) -> Self {
        Answer {
            code,
            content_type: "application/json",
            body: Bytes::from(body.to_string()),
        }
    }
}

/// 200 when the table holds everything that is known: what a load balancer may rely on. The body has
/// kube-proxy's keys.
pub(super) fn healthz(status: &Status, now: Instant, wall: SystemTime) -> Answer {
    verdict(status.health(now) == Health::Healthy, status, wall)
}

/// 200 unless a change has been stuck: what a liveness probe may rely on. A start that waits for the source
/// is alive; restarting would not help it.
pub(super) fn livez(status: &Status, now: Instant, wall: SystemTime) -> Answer {
    verdict(status.health(now) != Health::Stuck, status, wall)
}

fn verdict(healthy: bool, status: &Status, wall: SystemTime) -> Answer {
    // As kube-proxy: when all is well, what was last updated is as new as the question.
    let updated = if healthy {
        Some(wall)
    } else {
        status.last_commit.map(|c| c.at)
    };
    let body = json!({
        "lastUpdated": updated.map(rfc3339),
        "currentTime": rfc3339(wall),
        "healthy": healthy,
    });
    Answer::json(
        if healthy {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        &body,
    )
}

/// 200 once the first complete view is in the kernel, Services and overlay; before, what is missing.
pub(super) fn readyz(
    status: &Status,
    overlay: Option<&Arc<OverlayStatus>>,
    probes: &ProbeStatus,
) -> Answer {
    if let Some(overlay) = overlay.filter(|overlay| !overlay.ready) {
        let trouble = overlay.trouble.clone();
        let problems = overlay.plan.problems.iter().map(ToString::to_string);
        let reasons: Vec<String> = trouble.into_iter().chain(problems).collect();
        let text = format!("waiting for the overlay: {}\n", reasons.join("; "));
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    if status.synced {
        // Others' troubles make no node unready: a partition would take all of them.
        let found = probes.findings.iter().map(|finding| &finding.text);
        let lines = found.chain(&probes.remedies).chain(&probes.notes);
        let lines: String = lines.map(|text| format!("overlay: {text}\n")).collect();
        return Answer::text(StatusCode::OK, format!("ok\n{lines}"));
    }
    let missing: Vec<String> = status.waiting_for.iter().map(ToString::to_string).collect();
    let reason = if missing.is_empty() {
        "waiting for the first commit\n".to_owned()
    } else {
        format!("waiting for the first list of {}\n", missing.join(", "))
    };
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, reason)
}

fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}
