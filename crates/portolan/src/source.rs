//! Where the watched objects come from, and what every source owes the control loop.
//!
//! A source sends one `Reset` per kind once that kind is completely known, then changes. It validates:
//! whatever arrives as an object is usable, whatever is not arrives as a [`Problem`] and is kept out
//! (inside a `Reset`: named in `invalid`). Sources never wait for each other's kinds; that readers act only
//! on a whole view is the control loop's business.
//!
//! Two sources exist: a Kubernetes API server ([`api`]) and a folder of manifests ([`manifests`]).

use std::fmt;
use std::path::PathBuf;

use service_model::{EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, Service, ServiceCidr};

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
    /// File and line (from 1), where the source has them.
    pub place: Option<(PathBuf, usize)>,
    /// Object, field and reason.
    pub invalid: Invalid,
    /// The whole object is left out, not a part of it.
    pub whole_object: bool,
}

impl fmt::Display for Problem {
    /// `"web.yaml":7: Service default/web: spec.ports[0].port: ...`, with the file name escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((path, line)) = &self.place {
            write!(f, "{path:?}:{line}: ")?;
        }
        self.invalid.fmt(f)
    }
}

/// The stream of a source's events. A source ends when its receiver is dropped.
pub type Events = tokio::sync::mpsc::Receiver<SourceEvent>;
