//! What the API server was asked by Portolan's service account, from its own audit log.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result};
use serde_json::Value;

use super::ControlPlane;

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
}

impl ControlPlane {
    /// All that Portolan's service account has asked and was answered, oldest first: at the beginning of the answer
    /// for a watch, and again at its end.
    pub fn audit(&self) -> Result<Vec<AuditEvent>> {
        let log =
            fs::read_to_string(self.files.audit_log()).context("could not read the audit log")?;
        // The last line may not be whole yet.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(event).collect()
    }

    /// What Portolan's service account has used.
    pub fn rights_used(&self) -> Result<BTreeSet<Right>> {
        Ok(self.audit()?.into_iter().map(|event| event.right).collect())
    }
}

fn event(line: &str) -> Result<AuditEvent> {
    let event: Value = serde_json::from_str(line).context("a line of the audit log")?;
    let text = |pointer: &str| {
        let value = event.pointer(pointer).and_then(Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    let mut resource = text("/objectRef/resource");
    match text("/objectRef/subresource").as_str() {
        "" if resource.is_empty() => resource = text("/requestURI"),
        "" => {}
        subresource => resource = format!("{resource}/{subresource}"),
    }
    let code = event
        .pointer("/responseStatus/code")
        .and_then(Value::as_u64);
    Ok(AuditEvent {
        right: Right {
            group: text("/objectRef/apiGroup"),
            resource,
            verb: text("/verb"),
        },
        uri: text("/requestURI"),
        code: u16::try_from(code.unwrap_or_default())?,
    })
}
