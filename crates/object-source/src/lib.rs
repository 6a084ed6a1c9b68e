//! Sources of the watched Kubernetes objects, and what every source owes its reader.
//!
//! A source sends one `Reset` per kind once that kind is completely known, then changes. It validates: an object that
//! arrives is usable; an invalid object arrives as a [`Problem`] and is skipped (inside a `Reset`: named in `invalid`).
//! Kinds do not wait for each other; acting only on a complete view is left to the reader.
//!
//! Two sources exist: a Kubernetes API server ([`api`]) and a folder of manifests ([`manifests`]).

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use service_model::{
    EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service, ServiceCidr,
    printable,
};

pub mod api;
pub mod manifests;

/// Longest foreign text in a message, in characters.
const MAX_TEXT: usize = 200;

/// A change of the watched objects, or of the watch.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// About Services.
    Service(ObjectEvent<Service>),
    /// About EndpointSlices.
    EndpointSlice(ObjectEvent<EndpointSlice>),
    /// About the Node object of this node (others may arrive and are ignored).
    Node(ObjectEvent<Node>),
    /// About ServiceCIDRs.
    ServiceCidr(ObjectEvent<ServiceCidr>),
    /// An object or part of it cannot be used; its last good version keeps serving.
    Problem(Problem),
    /// The problems of this object are solved although the object itself did not change. (An object that is applied or deleted
    /// takes its problems back without this.)
    Solved {
        /// As in the problem.
        kind: ObjectKind,
        /// As in the problem.
        object: ObjectName,
    },
    /// Whether a kind is being watched, for health and metrics.
    Connection {
        /// The kind.
        kind: ObjectKind,
        /// Connected, or why not.
        state: Result<(), Outage>,
    },
}

/// Why a kind is not being watched at present. `Display` is for an operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// What failed, with the address that was dialed.
    pub reason: String,
    /// When the source tries again.
    pub retry_after: Duration,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.retry_after.as_secs_f32();
        write!(f, "{}; retrying in {seconds:.1} s", self.reason)
    }
}

/// Something in the watched objects that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File and line (from 1; 0 for the file as a whole), where the source has them.
    pub place: Option<(PathBuf, usize)>,
    /// Object, field and reason.
    pub invalid: Invalid,
    /// The whole object is skipped, not a part of it.
    pub whole_object: bool,
}

impl Problem {
    /// About a manifest file instead of an object in it. Its `invalid` has no field, and the file's name in the
    /// place of a Service's, without a namespace: no Service is called so.
    pub fn of_file(path: PathBuf, line: usize, reason: String) -> Self {
        let file = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy();
        let object = ObjectName::new("", printable(&file, MAX_TEXT));
        let invalid = Invalid {
            kind: ObjectKind::Service,
            object,
            field: String::new(),
            reason,
        };
        Problem {
            place: Some((path, line)),
            invalid,
            whole_object: true,
        }
    }
}

impl fmt::Display for Problem {
    /// `"web.yaml":7: Service default/web: spec.ports[0].port: ...`, with the file name escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Some((path, 0)) => write!(f, "{path:?}: ")?,
            Some((path, line)) => write!(f, "{path:?}:{line}: ")?,
            None => {}
        }
        if self.invalid.field.is_empty() {
            f.write_str(&self.invalid.reason)
        } else {
            self.invalid.fmt(f)
        }
    }
}

/// The stream of a source's events. A source ends when its receiver is dropped.
pub type Events = tokio::sync::mpsc::Receiver<SourceEvent>;
