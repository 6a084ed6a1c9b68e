//! Counts connections, packets and bytes of Services from conntrack, for Prometheus (`--service-traffic`).
//!
//! A thread of its own receives entries that end, and lists the others at a pace ([`LISTING`], [`REST`]); the control loop only
//! queues which Service has which frontend. Sums of all ports of Services are kept, and of endpoints where a Service is annotated;
//! [`Exposed`] has the metrics of the busiest Services, so the number of series is bounded. When the kernel drops notifications the sums are too small, and a metric says how often.
//!
//! Invariant: each packet of an entry counts at most once, however often the entry is listed ([`ledger`]).

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netfilter::{Conntrack, EndedFlows};
use service_dataplane::Update;
use service_model::{NodeFacts, ObjectName};

use crate::observer::{Commit, Observer};
use crate::parts::Parts;

mod exposed;
mod frontends;
mod ledger;

pub(crate) use exposed::Exposed;
use frontends::{Frontends, Request};
use ledger::Ledger;

/// Pause between two listings.
const LISTING: Duration = Duration::from_secs(10);
/// The same, as a multiple of the time that the last listing took.
const REST: u32 = 100;
/// Pause before ended entries are received together: at thousands a second most of the cost would be waking up.
const GATHERING: Duration = Duration::from_millis(20);
/// Longest wait for an ended entry: changes of Services and the end of the daemon are noticed then.
const WAIT: Duration = Duration::from_secs(1);
/// Pause after a failure.
const RETRY: Duration = Duration::from_secs(10);

/// What the control loop has changed.
enum Change {
    /// What a Service requests.
    Request(ObjectName, Request),
    /// The facts in force.
    Facts(Box<NodeFacts>),
}

/// Queues what the control loop changes.
pub(crate) struct Follower {
    queue: Sender<Change>,
    facts: Option<NodeFacts>,
}

impl Observer for Follower {
    fn planned(&mut self, updates: &[Update]) {
        for Update { service, intent } in updates {
            let request = intent.as_ref().map(|intent| Request::of(&intent.frontends));
            let change = Change::Request(service.clone(), request.unwrap_or_default());
            // The receiver ends with the daemon.
            let _ = self.queue.send(change);
        }
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        if self.facts.as_ref() != Some(commit.facts) {
            self.facts = Some(commit.facts.clone());
            let _ = self
                .queue
                .send(Change::Facts(Box::new(commit.facts.clone())));
        }
    }
}

/// Starts counting into the ledger that [`Exposed`] reads. The follower that is returned has to be an observer of the control
/// loop.
pub(crate) fn start(parts: &Parts, exposed: &Exposed) -> Result<Follower> {
    let (queue, changes) = mpsc::channel();
    let ledger = exposed.ledger();
    let cancel = parts.cancel();
    parts.thread("traffic", move || {
        let mut failed = false;
        while !cancel.is_cancelled() {
            let Err(error) = count(&changes, &ledger, || cancel.is_cancelled()) else {
                break;
            };
            if !std::mem::replace(&mut failed, true) {
                let error = format!("{error:#}");
                tracing::warn!(error, "cannot count the traffic of Services; retrying");
            }
            wait(RETRY, || cancel.is_cancelled());
        }
        Ok(())
    })?;
    Ok(Follower { queue, facts: None })
}

/// Waits, but not beyond the end of the daemon.
fn wait(time: Duration, is_over: impl Fn() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !is_over() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Counts until it is over.
fn count(
    changes: &Receiver<Change>,
    ledger: &Mutex<Ledger>,
    is_over: impl Fn() -> bool,
) -> Result<()> {
    let mut ended = EndedFlows::open().context("listening to ended connections")?;
    let mut conntrack = Conntrack::open().context("opening conntrack")?;
    let locked = || ledger.lock().unwrap_or_else(PoisonError::into_inner);
    locked().begin();
    let mut due = Instant::now();
    while !is_over() {
        apply(changes, &mut locked().frontends);
        receive(&mut ended, &mut locked())?;
        let start = Instant::now();
        if start >= due && locked().frontends.are_known() {
            locked().begin_listing();
            let mut listed = Vec::new();
            let is_whole = conntrack.list_translated(|flow, volume| {
                listed.push((*flow, volume));
            })?;
            let mut ledger = locked();
            for (flow, volume) in &listed {
                ledger.listed(flow, *volume);
            }
            receive(&mut ended, &mut ledger)?;
            ledger.end_listing(is_whole);
            due = start + (start.elapsed() * REST).max(LISTING);
        }
        let patience = due.saturating_duration_since(Instant::now());
        if ended.wait(patience.clamp(GATHERING, WAIT))? {
            std::thread::sleep(GATHERING);
        }
    }
    Ok(())
}

fn apply(changes: &Receiver<Change>, frontends: &mut Frontends) {
    for change in changes.try_iter() {
        match change {
            Change::Request(service, request) => frontends.set(service, request),
            Change::Facts(facts) => frontends.set_node_addresses(&facts.node_addresses),
        }
    }
}

fn receive(ended: &mut EndedFlows, ledger: &mut Ledger) -> Result<()> {
    let has_lost = ended.receive(|flow, volume| ledger.ended(flow, volume))?;
    if has_lost {
        ledger.lost();
    }
    Ok(())
}
