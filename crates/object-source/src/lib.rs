//! Sources of the watched Kubernetes objects, and what every source owes its reader.
//!
//! A source sends one `Reset` per kind once that kind is completely known, then changes. It validates: an object that
//! arrives is usable; an invalid object arrives as a [`Problem`] and is skipped (inside a `Reset`: named in `invalid`).
//! Kinds do not wait for each other; acting only on a complete view is left to the reader.
//!
//! Two sources exist: a Kubernetes API server ([`api`]) and a folder of manifests ([`manifests`]).

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use service_model::{
    EndpointSlice, Invalid, Node, ObjectEvent, ObjectKind, ObjectName, Service, ServiceCidr,
};

pub mod api;
pub mod manifests;
mod replace;

pub use replace::replace_file;

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
    /// The subject has no problem any more, though no object was applied or deleted. (An object that is applied or
    /// deleted has none of its earlier problems any more, without this.)
    Solved(Subject),
    /// Whether a kind is being watched, for health and metrics.
    Connection {
        /// The kind.
        kind: ObjectKind,
        /// Connected, also where the server lacks an optional kind, or why not.
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

/// Something in the watched objects, or in a manifest file, that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// A file, or a document in it. Which objects it should have held is not known.
    File {
        /// The file.
        path: PathBuf,
        /// Line from 1; 0 for the file as a whole.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A whole object: its last good version keeps serving.
    Object {
        /// File and line, where the source has them.
        at: Option<(PathBuf, usize)>,
        /// Object, field and reason.
        invalid: Invalid,
    },
    /// A field of an object, which serves without it.
    Field {
        /// File and line, where the source has them.
        at: Option<(PathBuf, usize)>,
        /// Object, field and reason.
        invalid: Invalid,
    },
}

/// What a [`Problem`] is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A manifest file.
    File(PathBuf),
    /// An object.
    Object(ObjectKind, ObjectName),
}

impl Problem {
    /// What it is about.
    pub fn subject(&self) -> Subject {
        match self {
            Problem::File { path, .. } => Subject::File(path.clone()),
            Problem::Object { invalid, .. } | Problem::Field { invalid, .. } => {
                Subject::Object(invalid.kind, invalid.object.clone())
            }
        }
    }

    /// Object, field and reason, if it is about an object.
    pub fn invalid(&self) -> Option<&Invalid> {
        match self {
            Problem::File { .. } => None,
            Problem::Object { invalid, .. } | Problem::Field { invalid, .. } => Some(invalid),
        }
    }

    /// Whether nothing of its subject can be used.
    pub fn is_whole(&self) -> bool {
        !matches!(self, Problem::Field { .. })
    }

    /// The same without file and line of an object and without the line in a file: an edit elsewhere moves them.
    #[must_use]
    pub fn without_place(mut self) -> Problem {
        match &mut self {
            Problem::File { line, .. } => *line = 0,
            Problem::Object { at, .. } | Problem::Field { at, .. } => *at = None,
        }
        self
    }
}

impl fmt::Display for Problem {
    /// `"web.yaml":7: Service default/web: spec.ports[0].port: ...`, with the file name escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self {
            Problem::File { path, line, .. } => Some((path, *line)),
            Problem::Object { at, .. } | Problem::Field { at, .. } => {
                at.as_ref().map(|(path, line)| (path, *line))
            }
        };
        match place {
            Some((path, 0)) => write!(f, "{path:?}: ")?,
            Some((path, line)) => write!(f, "{path:?}:{line}: ")?,
            None => {}
        }
        match self {
            Problem::File { reason, .. } => f.write_str(reason),
            Problem::Object { invalid, .. } | Problem::Field { invalid, .. } => invalid.fmt(f),
        }
    }
}

/// The stream of a source's events. A source ends when its receiver is dropped.
pub type Events = tokio::sync::mpsc::Receiver<SourceEvent>;
