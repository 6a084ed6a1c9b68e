//! A node from events to kernel, without a daemon around it: what the control loop does with each event.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nft::{
    Adoption, Backend, CommitError, Element, Family, Generation, Name, TableContents, Transaction,
};
use service_dataplane::{Dataplane, SyncOutcome, Update};
use service_model::{EndpointSlice, Index, NodeFacts, ObjectEvent, Service};

/// A backend that measures another one, and can keep its transactions.
#[derive(Debug)]
pub struct Timed<B> {
    inner: B,
    /// In [`Backend::commit`].
    pub committing: Duration,
    /// In [`Backend::list`].
    pub listing: Duration,
    /// Transactions committed, while [`Timed::record`] is set.
    pub recorded: Vec<Transaction>,
    /// Whether to keep transactions.
    pub record: bool,
    /// Time spent on keeping them, which is not part of the measurement.
    recording: Duration,
}

impl<B> Timed<B> {
    /// Starts at zero.
    pub fn new(inner: B) -> Self {
        Timed {
            inner,
            committing: Duration::ZERO,
            listing: Duration::ZERO,
            recorded: Vec::new(),
            record: false,
            recording: Duration::ZERO,
        }
    }

    /// The backend.
    pub fn inner(&self) -> &B {
        &self.inner
    }
}

impl<B: Backend> Backend for Timed<B> {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let start = Instant::now();
        let result = self.inner.commit(transaction);
        self.committing += start.elapsed();
        if self.record {
            let start = Instant::now();
            self.recorded.push(transaction.clone());
            self.recording += start.elapsed();
        }
        result
    }

    fn adopt(&mut self, family: Family) -> Result<Adoption, CommitError> {
        self.inner.adopt(family)
    }

    fn generation(&mut self) -> Result<Generation, CommitError> {
        self.inner.generation()
    }

    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError> {
        let start = Instant::now();
        let result = self.inner.list(family);
        self.listing += start.elapsed();
        result
    }

    fn dynamic_elements(
        &mut self,
        family: Family,
        map: &Name,
    ) -> Result<Vec<Element>, CommitError> {
        self.inner.dynamic_elements(family, map)
    }
}

/// The time of one commit, by stage.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Time of the index, until the dirty Services are known.
    pub indexing: Duration,
    /// Time of planning the dirty Services.
    pub planning: Duration,
    /// Time from the plan to the kernel's acknowledgement.
    pub dataplane: Duration,
    /// What was done.
    pub outcome: SyncOutcome,
}

impl Committed {
    /// From the event to the acknowledgement.
    pub fn total(&self) -> Duration {
        self.indexing + self.planning + self.dataplane
    }
}

/// Index and dataplane of a node.
#[derive(Debug)]
pub struct Node<B> {
    index: Index,
    facts: NodeFacts,
    /// The tables.
    pub dataplane: Dataplane<Timed<B>>,
}

impl<B: Backend> Node<B> {
    /// A node without objects.
    pub fn new(backend: B, facts: NodeFacts) -> Self {
        Node {
            index: Index::new(),
            dataplane: Dataplane::new(Timed::new(backend), facts.clone()),
            facts,
        }
    }

    /// The first lists, all at once.
    pub fn list(
        &mut self,
        services: Vec<Service>,
        slices: Vec<EndpointSlice>,
    ) -> Result<Committed> {
        self.commit(|index| {
            index.service_event(ObjectEvent::list(services));
            index.slice_event(ObjectEvent::list(slices));
        })
    }

    /// One slice added or changed.
    pub fn apply(&mut self, slice: EndpointSlice) -> Result<Committed> {
        self.commit(|index| index.slice_event(ObjectEvent::Apply(Arc::new(slice))))
    }

    fn commit(&mut self, take_in: impl FnOnce(&mut Index)) -> Result<Committed> {
        let start = Instant::now();
        take_in(&mut self.index);
        let dirty = self.index.take_dirty();
        let indexing = start.elapsed();

        let start = Instant::now();
        let updates: Vec<Update> = dirty
            .into_iter()
            .map(|service| {
                let plan = self.index.plan(&service, &self.facts);
                let intent = plan.map(|plan| plan.intent.into());
                Update { service, intent }
            })
            .collect();
        let planning = start.elapsed();

        let recorded = self.dataplane.backend().recording;
        let start = Instant::now();
        let outcome = self.dataplane.commit(updates)?;
        let elapsed = start.elapsed();
        let dataplane = elapsed.saturating_sub(self.dataplane.backend().recording - recorded);
        ensure!(
            outcome.quarantined.is_empty(),
            "the kernel refused {:?}",
            outcome.quarantined
        );
        Ok(Committed {
            indexing,
            planning,
            dataplane,
            outcome,
        })
    }
}

#[cfg(test)]
mod tests;
