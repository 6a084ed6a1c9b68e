//! Responses to probes: a function of the published status and the time.

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

/// 200 when everything known is committed and load balancers may send to this node (KEP-3836). The body has kube-proxy's
/// keys with kube-proxy's meaning: `healthy` is about the proxy alone. Until the first sync, tables of an earlier process
/// count as healthy, as all nodes would lose their load balancers if they restarted during an outage of the API server;
/// `adopted` then says how old the tables are.
///
/// Without a service proxy, no load balancer is concerned.
pub(super) fn healthz(status: Option<&Arc<Status>>, now: Instant, wall: SystemTime) -> Answer {
    let Some(status) = status else {
        return Answer::text(StatusCode::OK, "ok");
    };
    let healthy = status.health(now) == Health::Healthy;
    verdict(healthy, Some(status.node_eligible), status, wall)
}

/// 200 unless a change is stuck: for liveness probes, independent of the Node object. A daemon that waits for its source
/// is alive; a restart would not help.
pub(super) fn livez(status: Option<&Arc<Status>>, now: Instant, wall: SystemTime) -> Answer {
    let Some(status) = status else {
        return Answer::text(StatusCode::OK, "ok");
    };
    verdict(status.health(now) != Health::Stuck, None, status, wall)
}

fn verdict(
    healthy: bool,
    node_eligible: Option<bool>,
    status: &Status,
    wall: SystemTime,
) -> Answer {
    let passes = healthy && node_eligible != Some(false);
    // As kube-proxy does: `lastUpdated` is the current time when healthy.
    let updated = match passes {
        true => Some(wall),
        false => status.synced_at,
    };
    let mut body = json!({
        "lastUpdated": updated.map(rfc3339),
        "currentTime": rfc3339(wall),
        "healthy": healthy,
    });
    if let Some(eligible) = node_eligible {
        body["nodeEligible"] = eligible.into();
    }
    let adopted = status.serving_adopted();
    if let Some(adopted) = adopted {
        body["adopted"] = json!({
            "lastSync": adopted.synced_at.map(rfc3339),
            "ageSeconds": adopted.age(wall).map(|age| age.as_secs()),
        });
    }
    // Both families are committed together.
    let synced_at = status
        .synced_at
        .or(adopted.and_then(|adopted| adopted.synced_at));
    if let Some(at) = synced_at {
        let family = json!({ "lastUpdated": rfc3339(at), "healthy": healthy });
        body["status"] = json!({ "IPv4": family, "IPv6": family });
    }
    Answer::json(code(passes), &body)
}

/// Response to a load balancer about a Service with externalTrafficPolicy Local: 200 when this node has ready endpoints
/// and the proxy is healthy. Body and headers are kube-proxy's (docs/kube-proxy-parity.md, row 18).
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

/// 200 once the first sync of Services and of the overlay is complete; before, the reasons why not. A process that stands
/// by is ready: a rollout that starts the new pod before the end of the old one (`maxSurge`) waits for that.
pub(super) fn readyz(
    status: Option<&Arc<Status>>,
    overlay: Option<&Arc<OverlayStatus>>,
    alarm: Option<&str>,
    failover: &[String],
    probes: &ProbeStatus,
) -> Answer {
    if let Some(overlay) = overlay.filter(|overlay| !overlay.ready) {
        let reasons = overlay.faults().join("; ");
        let text = format!("waiting for the overlay: {reasons}\n");
        return Answer::text(StatusCode::SERVICE_UNAVAILABLE, text);
    }
    let faults = overlay.map_or_else(Vec::new, |overlay| overlay.faults());
    let faults = faults.iter().chain(&probes.faults);
    let faults: String = faults.map(|fault| format!("overlay: {fault}\n")).collect();
    let notes = status.map_or(&[][..], |status| &status.notes);
    let notes: String = notes.iter().map(|note| format!("{note}\n")).collect();
    let Some(status) = status.filter(|status| !status.synced && !status.standby) else {
        // Problems of peers make no node unready: a partition would make all nodes unready.
        let found = probes.findings.iter().map(|finding| &finding.text);
        let lines = found.chain(&probes.remedies).chain(&probes.notes);
        let lines: String = lines.map(|text| format!("overlay: {text}\n")).collect();
        let alarm = alarm.map(|text| format!("{text}\n")).unwrap_or_default();
        let failover: String = failover.iter().map(|text| format!("{text}\n")).collect();
        let text = format!("ok\n{notes}{alarm}{failover}{faults}{lines}");
        return Answer::text(StatusCode::OK, text);
    };
    let missing: Vec<String> = status.waiting_for.iter().map(ToString::to_string).collect();
    let reason = if missing.is_empty() {
        "waiting for the first sync".to_owned()
    } else {
        format!("waiting for the first list of {}", missing.join(", "))
    };
    let adopted = status.serving_adopted().map(|adopted| {
        let age = match adopted.age(SystemTime::now()) {
            Some(age) => format!("last in sync {} s ago", age.as_secs()),
            None => "of unknown age".to_owned(),
        };
        format!("; the tables of an earlier process serve meanwhile, {age}")
    });
    let text = format!("{reason}{}\n", adopted.unwrap_or_default());
    Answer::text(StatusCode::SERVICE_UNAVAILABLE, text)
}

fn rfc3339(time: SystemTime) -> String {
    Timestamp::try_from(time).unwrap_or_default().to_string()
}
