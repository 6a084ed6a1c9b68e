//! What may follow the control loop: the one door for metrics, relays, health checks, conntrack and later parts.
//!
//! Observers run on the control loop's thread, so they must not block: what takes time is handed to a part of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_source::{Problem, SourceEvent};
use service_dataplane::{SyncOutcome, Update};
use service_model::{Family, NodeFacts, Socket, Suspects};

/// A commit or repair that succeeded.
#[derive(Debug)]
pub struct Commit<'a> {
    pub outcome: &'a SyncOutcome,
    /// The facts in force since then.
    pub facts: &'a NodeFacts,
    /// Changes that came before the call wait for a later one.
    pub pending: bool,
    /// Duration of the call.
    pub elapsed: Duration,
    /// All rules were compared with the kernel, not only those of changed Services.
    pub full: bool,
    /// Times of the committed changes of EndpointSlices, from their trigger-time annotations.
    pub triggers: &'a [(Family, SystemTime)],
}

/// Follows the control loop.
pub trait Observer: Send {
    /// Called with each event of the source.
    fn event(&mut self, _event: &SourceEvent) {}

    /// Called with the suspects when they change.
    fn suspects(&mut self, _suspects: &Suspects) {}

    /// Called with the sockets of this node's processes at which Services ask for external frontends, when they change.
    fn listeners(&mut self, _listeners: &Arc<BTreeSet<Socket>>) {}

    /// Called when an object, or a part of one, is ignored.
    fn problem(&mut self, _problem: &Problem) {}

    /// Called when a problem is reported for the first time since its object was valid.
    fn new_problem(&mut self, _problem: &Problem) {}

    /// Called before a commit with what the changed Services need now, and after it with what Services have in the tables whose
    /// changes the kernel has refused.
    fn planned(&mut self, _updates: &[Update]) {}

    /// Called after a commit or repair that succeeded.
    fn committed(&mut self, _commit: &Commit<'_>) {}

    /// Called after a commit or repair that failed.
    fn failed(&mut self) {}
}
