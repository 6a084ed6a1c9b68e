//! Sources of the watched Kubernetes objects, and what every source owes its reader.
//!
//! A source sends one `Reset` per kind once that kind is completely known, then changes. It validates:
//! whatever arrives as an object is usable, whatever is not arrives as a [`Problem`] and is kept out
//! (inside a `Reset`: named in `invalid`). Sources never wait for each other's kinds; that readers act only
//! on a whole view is the reader's business.
//!
//! Two sources exist: a Kubernetes API server ([`api`]) and a folder of manifests ([`manifests`]).

use std::fmt;
use std::path::PathBuf;

use service_model::{
    EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service, ServiceCidr,
};

pub mod api;
pub mod manifests;

/// One thing a source has to tell.
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
    /// What was reported about this object holds no more, though the object was not told anew. (An object that
    /// is applied or deleted takes its problems back without this.)
    Solved {
        /// As in the problem.
        kind: ObjectKind,
        /// As in the problem.
        object: ObjectName,
    },
    /// The view's connection state, for health and metrics.
    Connection {
        /// The kind that is watched.
        kind: ObjectKind,
        /// Connected, or why not.
        state: Result<(), String>,
    },
}

/// Something in the watched objects that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// File and line (from 1; 0 for the file as a whole), where the source has them.
    pub place: Option<(PathBuf, usize)>,
    /// Object, field and reason.
    pub invalid: Invalid,
    /// The whole object is left out, not a part of it.
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
        let file: String = file.chars().flat_map(char::escape_debug).collect();
        let object = ObjectName::new("", file);
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
