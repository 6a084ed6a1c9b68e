//! What the probes are told: a function of the published status and the time.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::StatusCode;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use service_model::ObjectName;

use super::listener::Answer;
use overlay_probe::ProbeStatus;

use crate::overlay::OverlayStatus;
use crate::status::{Health, Status};

/// 200 when the table holds everything that is known, and the node is one that load balancers may send to (KEP-3836).
/// The body has kube-proxy's keys, and its meaning of them: `healthy` is said of the proxy alone.
pub(super) fn healthz(status: &Status, now: Instant, wall: SystemTime) -> Answer {
    let healthy = status.health(now) == Health::Healthy;
    verdict(healthy, Some(status.node_eligible), status, wall)
}

/// 200 unless a change has been stuck: what a liveness probe may rely on, whatever becomes of the node. A start that
/// waits for the source is alive; restarting would not help it.
pub(super) fn livez(status: &Status, now: Instant, wall: SystemTime) -> Answer {
    verdict(status.health(now) != Health::Stuck, None, status, wall)
}

fn verdict(
    healthy: bool,
    node_eligible: Option<bool>,
    status: &Status,
    wall: SystemTime,
) -> Answer {
    let passes = healthy && node_eligible != Some(false);
    // As kube-proxy: when all is well, what was last updated is as new as the question.
    let updated = match passes {
        true => Some(wall),
        false => status.in_step_at,
    };
    let mut body = json!({
        "lastUpdated": updated.map(rfc3339),
        "currentTime": rfc3339(wall),
        "healthy": healthy,
    });
    if let Some(eligible) = node_eligible {
        body["nodeEligible"] = eligible.into();
    }
    // Both families are written together, so what holds for one holds for the other.
    if let Some(at) = status.in_step_at {
        let family = json!({ "lastUpdated": rfc3339(at), "healthy": healthy });
        body["status"] = json!({ "IPv4": family, "IPv6": family });
    }
    Answer::json(code(passes), &body)
}

/// What a load balancer is told of a Service under external policy Local: 200 when there are ready endpoints on this
/// node and the proxy is well. Body and headers are kube-proxy's (row 18).
pub(crate) fn health_check(service: &ObjectName, local: usize, status: &Status) -> Answer {
    let healthy = status.health(Instant::now()) != Health::Stuck;
    let body = json!({
        "service": { "namespace": service.namespace, "name": service.name },
        "localEndpoints": local,
        "serviceProxyHealthy": healthy,
    });
    Answer {
        weight: Some(local),
        ..Answer::json(code(local > 0 && healthy), &body)
    }
}

fn code(passes: bool) -> StatusCode {
    match passes {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
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
