//! The kernel's nf_tables in memory, for tests of everything above it.
//!
//! Owns the tables that the kernel would hold, and undoes refused transactions. `rules` and `elements` decide which
//! steps are refused, and with which error; a property test compares them with the running kernel.
//!
//! Invariant: a commit is applied whole or not at all, in time proportional to the transaction, and the tables
//! always obey the kernel's rules, except after [`Fake::change_as_foreign`].

use std::collections::BTreeMap;
use std::fmt;

use nix::errno::Errno;

use crate::backend::{Adoption, Backend};
use crate::model::{Bytes, Chain, Data, Element, Family, Name, Set, SetKind, Table};
use crate::transaction::{CommitError, Culprit, Generation, Operation, TableContents, Transaction};

mod elements;
mod rules;

/// A [`Backend`] in memory that obeys the kernel's rules.
#[derive(Default)]
pub struct Fake {
    tables: BTreeMap<Family, HeldTable>,
    refusals: Vec<Refusal>,
    failure: Option<Errno>,
    is_owned_elsewhere: bool,
    generation: u32,
    counters: Counters,
}

/// Counts of what a [`Fake`] has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Applied transactions.
    pub transactions: usize,
    /// Steps of the applied transactions.
    pub operations: usize,
    /// Elements that the applied transactions added or deleted.
    pub elements: usize,
    /// Transactions that were refused or failed.
    pub refused: usize,
    /// Times a table was read.
    pub lists: usize,
}

/// Whether an element of a set is to be refused.
type Concerns = dyn Fn(&Name, &Element) -> bool + Send;

/// Elements that are refused although the rules allow them.
struct Refusal {
    concerns: Box<Concerns>,
    errno: Errno,
}

/// A table like [`TableContents`], with elements that can be looked up by key.
struct HeldTable {
    table: Table,
    sets: BTreeMap<Name, HeldSet>,
    chains: BTreeMap<Name, Chain>,
    /// The table cannot be adopted.
    is_dormant: bool,
}

struct HeldSet {
    set: Set,
    /// Ends of ranges and data by key.
    elements: BTreeMap<Bytes, Held>,
}

#[derive(Clone, PartialEq, Eq)]
struct Held {
    last: Option<Box<Bytes>>,
    data: Data,
}

/// What a step replaced, to undo the step.
enum Undo {
    Table(Option<HeldTable>),
    Set(Name, Option<HeldSet>),
    Chain(Name, Option<Chain>),
    Elements(Name, Vec<(Bytes, Option<Held>)>),
}

/// Why a step is refused, and the element at fault.
struct Fault {
    errno: Errno,
    element: Option<Box<(Name, Option<Element>)>>,
}

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Fault {
            errno,
            element: None,
        }
    }
}

impl Fake {
    /// No tables.
    pub fn new() -> Self {
        Fake::default()
    }

    /// Starts with a table.
    pub fn holding(contents: TableContents) -> Self {
        let mut fake = Fake::new();
        fake.change_as_foreign(contents.table.family, |held| *held = Some(contents));
        fake
    }

    /// Returns a table, if it exists. Sets without elements are absent from its elements.
    pub fn contents(&self, family: Family) -> Option<TableContents> {
        self.tables.get(&family).map(HeldTable::contents)
    }

    /// Returns the counts so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Refuses, from now on, to add elements for which `concerns(set, element)` is true, as the kernel
    /// refuses an element: the transaction fails with `errno` and the element as its culprit.
    pub fn refuse(
        &mut self,
        concerns: impl Fn(&Name, &Element) -> bool + Send + 'static,
        errno: Errno,
    ) {
        self.refusals.push(Refusal {
            concerns: Box::new(concerns),
            errno,
        });
    }

    /// Ends every [`Fake::refuse`].
    pub fn refuse_nothing(&mut self) {
        self.refusals.clear();
    }

    /// Makes the next commit fail as a socket fails, without effect.
    pub fn fail_next(&mut self, errno: Errno) {
        self.failure = Some(errno);
    }

    /// From now on another process owns the tables, or none does any more.
    pub fn own_elsewhere(&mut self, is_owned_elsewhere: bool) {
        self.is_owned_elsewhere = is_owned_elsewhere;
    }

    /// Changes a table as another process would, even against the rules. `None` is no table.
    pub fn change_as_foreign(
        &mut self,
        family: Family,
        change: impl FnOnce(&mut Option<TableContents>),
    ) {
        self.generation = self.generation.wrapping_add(1);
        let mut contents = self.tables.remove(&family).map(|held| held.contents());
        change(&mut contents);
        if let Some(contents) = contents {
            self.tables.insert(family, HeldTable::from(contents));
        }
    }

    /// Makes a table dormant, as another process can: it cannot be adopted and must be replaced.
    pub fn make_dormant(&mut self, family: Family) {
        if let Some(table) = self.tables.get_mut(&family) {
            table.is_dormant = true;
        }
    }

    /// Applies all steps. With `watchful`, checks hooks and loops after each step, so that the error names the first
    /// step at fault, as the kernel's error does when it tries a refused batch again.
    fn carry_out(
        &mut self,
        transaction: &Transaction,
        undo: &mut Vec<(Family, Undo)>,
        watchful: bool,
    ) -> Result<(), CommitError> {
        for (index, (family, operation)) in transaction.operations.iter().enumerate() {
            let family = *family;
            self.apply(family, operation, undo)
                .and_then(|()| match watchful {
                    true => self.check_hooks(family).map_err(Fault::from),
                    false => Ok(()),
                })
                .map_err(|fault| refused(index, family, fault))?;
        }
        Ok(())
    }

    fn apply(
        &mut self,
        family: Family,
        operation: &Operation,
        undo: &mut Vec<(Family, Undo)>,
    ) -> Result<(), Fault> {
        match operation {
            Operation::AddTable(table) => {
                if self.tables.contains_key(&family) {
                    return Ok(());
                }
                rules::check_table(family, table)?;
                undo.push((family, Undo::Table(None)));
                self.tables.insert(family, HeldTable::new(table.clone()));
                return Ok(());
            }
            Operation::DeleteTable => {
                let table = self.tables.remove(&family).ok_or(Errno::ENOENT)?;
                undo.push((family, Undo::Table(Some(table))));
                return Ok(());
            }
            _ => {}
        }
        let table = self.tables.get_mut(&family).ok_or(Errno::ENOENT)?;
        match operation {
            Operation::AddElements { set, elements } => {
                let mut changes = Vec::with_capacity(elements.len());
                let added = table.add_elements(set, elements, &self.refusals, &mut changes);
                undo.push((family, Undo::Elements(set.clone(), changes)));
                added
            }
            Operation::DeleteElements { set, elements } => {
                let mut changes = Vec::with_capacity(elements.len());
                let deleted = table.delete_elements(set, elements, &mut changes);
                undo.push((family, Undo::Elements(set.clone(), changes)));
                deleted
            }
            declaration => {
                undo.extend(table.declare(declaration)?.map(|undo| (family, undo)));
                Ok(())
            }
        }
    }

    fn roll_back(&mut self, undo: Vec<(Family, Undo)>) {
        for (family, undo) in undo.into_iter().rev() {
            match (undo, self.tables.get_mut(&family)) {
                (Undo::Table(table), _) => put_back(&mut self.tables, family, table),
                (Undo::Set(name, set), Some(table)) => put_back(&mut table.sets, name, set),
                (Undo::Chain(name, chain), Some(table)) => put_back(&mut table.chains, name, chain),
                (Undo::Elements(name, changes), Some(table)) => {
                    let Some(held) = table.sets.get_mut(&name) else {
                        continue;
                    };
                    for (key, before) in changes.into_iter().rev() {
                        put_back(&mut held.elements, key, before);
                    }
                }
                (_, None) => {}
            }
        }
    }

    fn check_hooks(&self, family: Family) -> Result<(), Errno> {
        self.tables
            .get(&family)
            .map_or(Ok(()), HeldTable::check_hooks)
    }

    fn try_commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let mut undo = Vec::new();
        let mut outcome = self.carry_out(transaction, &mut undo, false);
        let unsettled = transaction
            .operations
            .iter()
            .any(|(_, step)| may_unsettle(step));
        let unsound = |fake: &Self| Family::ALL.iter().any(|f| fake.check_hooks(*f).is_err());
        if outcome.is_ok() && unsettled && unsound(self) {
            self.roll_back(std::mem::take(&mut undo));
            outcome = self.carry_out(transaction, &mut undo, true);
        }
        if outcome.is_err() {
            self.roll_back(undo);
        }
        outcome
    }
}

/// Whether a step can make a chain reachable where it must not be. All elements of a map count alike.
fn may_unsettle(step: &Operation) -> bool {
    match step {
        Operation::SetRules(_) => true,
        Operation::AddElements { elements, .. } => elements
            .first()
            .is_some_and(|element| matches!(element.data, Data::Verdict(_))),
        _ => false,
    }
}

fn put_back<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, before: Option<V>) {
    match before {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn refused(operation: usize, family: Family, fault: Fault) -> CommitError {
    let culprit = Culprit {
        operation,
        family,
        element: fault.element.map(|element| *element),
    };
    CommitError::Refused {
        errno: fault.errno,
        culprit: Box::new(culprit),
        message: None,
    }
}

impl Backend for Fake {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let outcome = match self.failure.take() {
            Some(errno) => Err(netlink::failed("send")(errno).into()),
            None => self.try_commit(transaction),
        };
        match outcome {
            Ok(()) => {
                self.generation = self.generation.wrapping_add(1);
                self.counters.transactions += 1;
                self.counters.operations += transaction.operations.len();
                self.counters.elements += transaction.element_count();
            }
            Err(_) => self.counters.refused += 1,
        }
        outcome
    }

    fn generation(&mut self) -> Result<Generation, CommitError> {
        Ok(Generation(self.generation))
    }

    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError> {
        self.counters.lists += 1;
        Ok(self.contents(family))
    }

    fn dynamic_elements(
        &mut self,
        family: Family,
        map: &Name,
    ) -> Result<Vec<Element>, CommitError> {
        let held = self
            .tables
            .get(&family)
            .and_then(|table| table.sets.get(map));
        Ok(held.map(HeldSet::elements).unwrap_or_default())
    }

    fn adopt(&mut self, family: Family) -> Result<Adoption, CommitError> {
        if self.is_owned_elsewhere {
            return Err(CommitError::Owned(family));
        }
        Ok(
            match self.tables.get(&family).map(|table| table.is_dormant) {
                None => Adoption::NoTable,
                Some(false) => Adoption::Ours,
                Some(true) => Adoption::Replace,
            },
        )
    }
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fake")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl HeldTable {
    fn new(table: Table) -> Self {
        HeldTable {
            table,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            is_dormant: false,
        }
    }

    fn contents(&self) -> TableContents {
        TableContents {
            table: self.table.clone(),
            sets: self
                .sets
                .iter()
                .map(|(name, held)| (name.clone(), held.set.clone()))
                .collect(),
            chains: self.chains.clone(),
            elements: self
                .sets
                .iter()
                .filter(|(_, held)| !held.elements.is_empty() && !held.is_dynamic())
                .map(|(name, held)| (name.clone(), held.elements()))
                .collect(),
        }
    }
}

impl HeldSet {
    fn is_dynamic(&self) -> bool {
        matches!(self.set.kind, SetKind::Dynamic(_))
    }

    fn elements(&self) -> Vec<Element> {
        let element = |(key, held): (&Bytes, &Held)| Element {
            key: *key,
            last: held.last.clone(),
            data: held.data.clone(),
        };
        self.elements.iter().map(element).collect()
    }
}

impl From<TableContents> for HeldTable {
    fn from(mut contents: TableContents) -> Self {
        let mut hold = |set: Set| {
            let elements = contents.elements.remove(&set.name).unwrap_or_default();
            let held = |e: Element| {
                (
                    e.key,
                    Held {
                        last: e.last,
                        data: e.data,
                    },
                )
            };
            HeldSet {
                set,
                elements: elements.into_iter().map(held).collect(),
            }
        };
        let sets = contents
            .sets
            .into_iter()
            .map(|(name, set)| (name, hold(set)))
            .collect();
        HeldTable {
            table: contents.table,
            sets,
            chains: contents.chains,
            is_dormant: false,
        }
    }
}

#[cfg(test)]
mod tests;
