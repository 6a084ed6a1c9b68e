//! Passes what the control loop does to the catalog of the commands: an observer that queues, and neither waits, locks nor wakes
//! the reader for each change.
//!
//! The receiver is woken once for [`BATCH`] notices; a request drains the queue first. So a change costs the control loop
//! the clone of a few `Arc`s, and the other thread nothing until a batch is full.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, SystemTime};

use object_source::SourceEvent;
use service_model::{NodeFacts, ObjectEvent, Socket, Suspects};
use tokio::sync::Notify;

use crate::observer::{Commit, Observer};

/// Notices that may be queued before the reader is woken; each may keep an old version of an object in memory.
const BATCH: usize = 64;

/// Something that the control loop did or received.
#[derive(Debug)]
pub(super) enum Notice {
    /// An event of the source.
    Event(SourceEvent, SystemTime),
    /// Nodes that do not answer.
    Suspects(Suspects),
    /// Sockets of this node's processes at which Services ask for external frontends.
    Listeners(Arc<BTreeSet<Socket>>),
    /// The facts in force since the last commit.
    Facts(Arc<NodeFacts>),
    /// A commit or repair that succeeded.
    Committed(Committed),
    /// A commit or repair that failed.
    Failed,
}

/// A commit or repair.
#[derive(Clone, Debug)]
pub(super) struct Committed {
    pub(super) at: SystemTime,
    pub(super) elapsed: Duration,
    /// Times of the changes that the commit contains, as far as EndpointSlices state them.
    pub(super) triggers: Vec<SystemTime>,
    /// Whether the commit repaired a foreign change.
    pub(super) repaired: bool,
}

/// The end of the queue in the control loop.
pub(crate) struct Follower {
    queue: mpsc::Sender<Notice>,
    waiting: Arc<AtomicUsize>,
    wake: Arc<Notify>,
    facts: Option<NodeFacts>,
    /// Whether there was a commit before. The first one reads the tables of an earlier process, which is no repair.
    has_committed: bool,
}

/// The end of the queue in the catalog's thread.
pub(super) struct Notices {
    queue: mpsc::Receiver<Notice>,
    waiting: Arc<AtomicUsize>,
    wake: Arc<Notify>,
}

/// Both ends of the queue.
pub(super) fn notices() -> (Follower, Notices) {
    let (sender, receiver) = mpsc::channel();
    let (waiting, wake) = (Arc::default(), Arc::new(Notify::new()));
    let follower = Follower {
        queue: sender,
        waiting: Arc::clone(&waiting),
        wake: wake.clone(),
        facts: None,
        has_committed: false,
    };
    let notices = Notices {
        queue: receiver,
        waiting,
        wake,
    };
    (follower, notices)
}

impl Notices {
    /// Everything that is queued.
    pub(super) fn drain(&self) -> impl Iterator<Item = Notice> {
        self.waiting.store(0, Ordering::Relaxed);
        self.queue.try_iter()
    }

    /// Wakes when the queue should be drained.
    pub(super) fn wake(&self) -> Arc<Notify> {
        self.wake.clone()
    }
}

impl Follower {
    fn send(&self, notice: Notice, is_large: bool) {
        // The receiver ends with the daemon.
        if self.queue.send(notice).is_ok() {
            let waiting = self.waiting.fetch_add(1, Ordering::Relaxed) + 1;
            if waiting == BATCH || is_large {
                self.wake.notify_one();
            }
        }
    }
}

fn is_list(event: &SourceEvent) -> bool {
    match event {
        SourceEvent::Service(event) => matches!(event, ObjectEvent::Reset { .. }),
        SourceEvent::EndpointSlice(event) => matches!(event, ObjectEvent::Reset { .. }),
        SourceEvent::Node(event) => matches!(event, ObjectEvent::Reset { .. }),
        SourceEvent::ServiceCidr(event) => matches!(event, ObjectEvent::Reset { .. }),
        SourceEvent::Problem(_) | SourceEvent::Solved(_) | SourceEvent::Connection { .. } => false,
    }
}

impl Observer for Follower {
    fn event(&mut self, event: &SourceEvent) {
        let is_list = is_list(event);
        self.send(Notice::Event(event.clone(), SystemTime::now()), is_list);
    }

    fn suspects(&mut self, suspects: &Suspects) {
        self.send(Notice::Suspects(suspects.clone()), false);
    }

    fn listeners(&mut self, listeners: &Arc<BTreeSet<Socket>>) {
        self.send(Notice::Listeners(Arc::clone(listeners)), false);
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        if self.facts.as_ref() != Some(commit.facts) {
            self.facts = Some(commit.facts.clone());
            self.send(Notice::Facts(Arc::new(commit.facts.clone())), false);
        }
        let triggers = commit.triggers.iter().map(|(_, at)| *at).collect();
        let had_committed = std::mem::replace(&mut self.has_committed, true);
        let committed = Committed {
            at: SystemTime::now(),
            elapsed: commit.elapsed,
            triggers,
            repaired: had_committed && commit.outcome.repaired > 0,
        };
        self.send(Notice::Committed(committed), false);
    }

    fn failed(&mut self) {
        self.send(Notice::Failed, false);
    }
}
