//! What the API server was asked by the service proxies, from its own audit log.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::time::SystemTime;

use anyhow::{Context, Result};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde_json::Value;

use super::ControlPlane;

/// The user of Portolan's service account.
pub const PORTOLAN_USER: &str = "system:serviceaccount:kube-system:portolan";
/// The user of kube-proxy's service account ([`ControlPlane::kubeconfig_for_kube_proxy`]).
pub const KUBE_PROXY_USER: &str = "system:serviceaccount:kube-system:kube-proxy";

/// A right as a ClusterRole would give it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// API group; empty for the core.
    pub group: String,
    /// Plural, with `/subresource` where there is one. For a request that is about no object, its path.
    pub resource: String,
    /// `list`, `watch`, ...
    pub verb: String,
}

/// A request and its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEvent {
    pub right: Right,
    pub uri: String,
    /// HTTP status. A watch may be refused in its stream after a 200.
    pub code: u16,
    /// The same for all events of one request.
    pub request: String,
    /// Address of the client.
    pub source: Option<IpAddr>,
    /// When the server received the request, by the clock of this machine, in microseconds.
    pub received: SystemTime,
    /// When the answer began (a watch) or ended.
    pub answered: SystemTime,
    /// Whether this is the beginning of an answer that goes on.
    pub is_begin: bool,
}

impl ControlPlane {
    /// All that Portolan's service account has asked and was answered, oldest first: at the beginning of the answer
    /// for a watch, and again at its end.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        self.audit_of(PORTOLAN_USER)
    }

    /// The same of [`PORTOLAN_USER`] or [`KUBE_PROXY_USER`]; the log has no other users.
    pub fn audit_of(&self, user: &str) -> Result<Vec<AuditEvent>> {
        let log =
            fs::read_to_string(self.files.audit_log()).context("could not read the audit log")?;
        // The last line may not be whole yet.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        // Most lines of a large log are not worth parsing.
        let of_user = whole.lines().filter(|line| line.contains(user));
        let events = of_user.map(|line| event(line, user));
        events.filter_map(Result::transpose).collect()
    }

    /// What Portolan's service account has used.
    pub fn rights_used(&self) -> Result<BTreeSet<Right>> {
        Ok(self.audit()?.into_iter().map(|event| event.right).collect())
    }
}

/// The event of a line, if it is of this user.
fn event(line: &str, user: &str) -> Result<Option<AuditEvent>> {
    let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
    let text = |pointer: &str| {
        let value = event.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    if text("/user/username") != user {
        return Ok(None);
    }
    let mut resource = text("/objectRef/resource");
    match text("/objectRef/subresource").as_str() {
        "" if resource.is_empty() => resource = text("/requestURI"),
        "" => {}
        subresource => resource = format!("{resource}/{subresource}"),
    }
    let code = event
        .pointer("/responseStatus/code")
        .and_then(Value::as_u64);
    let time = |pointer: &str| -> Result<SystemTime> {
        let value = event.pointer(pointer).cloned().unwrap_or_default();
        let time: MicroTime = serde_json::from_value(value).context(pointer.to_owned())?;
        Ok(time.0.into())
    };
    Ok(Some(AuditEvent {
        right: Right {
            group: text("/objectRef/apiGroup"),
            resource,
            verb: text("/verb"),
        },
        uri: text("/requestURI"),
        code: u16::try_from(code.unwrap_or_default())?,
        request: text("/auditID"),
        source: text("/sourceIPs/0").parse().ok(),
        received: time("/requestReceivedTimestamp")?,
        answered: time("/stageTimestamp")?,
        is_begin: text("/stage") == "ResponseStarted",
    }))
}
