//! A transaction is a value: it can be printed, compared, sent to the kernel or to the fake.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::{Chain, Element, Family, Name, Set, Table};

/// One step of a transaction. Steps are carried out in order, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the table, adopts an orphaned one, or does nothing when it is ours already.
    AddTable(Table),
    /// Deletes the table with all that is in it.
    DeleteTable,
    /// Creates a set or map.
    AddSet(Set),
    /// Deletes a set or map that no rule refers to.
    DeleteSet(Name),
    /// Creates a chain **without** its rules (rules may name chains created later in the transaction
    /// only after those exist: first all chains, then all rules).
    AddChain(Chain),
    /// Deletes a chain with its rules; nothing may jump to it.
    DeleteChain(Name),
    /// Replaces all rules of an existing chain by those given here.
    SetRules(Chain),
    /// Adds elements. An existing key with the same data is no error, with other data EEXIST.
    AddElements {
        /// Set or map.
        set: Name,
        /// Elements.
        elements: Vec<Element>,
    },
    /// Deletes elements. A missing one is ENOENT.
    DeleteElements {
        /// Set or map.
        set: Name,
        /// Elements; data is ignored.
        elements: Vec<Element>,
    },
}

/// Steps on the two tables of ours, carried out in one kernel transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Steps, each on the table of its family.
    pub operations: Vec<(Family, Operation)>,
}

impl Transaction {
    /// Nothing to do.
    pub fn new() -> Self {
        Transaction::default()
    }

    /// Appends a step.
    pub fn push(&mut self, family: Family, operation: Operation) {
        self.operations.push((family, operation));
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.operations.is_empty()
    }

    /// Number of elements added and deleted.
    pub fn element_count(&self) -> usize {
        self.operations
            .iter()
            .map(|(_, operation)| match operation {
                Operation::AddElements { elements, .. }
                | Operation::DeleteElements { elements, .. } => elements.len(),
                _ => 0,
            })
            .sum()
    }
}

/// All of one table: as it should be, or as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableContents {
    /// The table.
    pub table: Table,
    /// Sets by name.
    pub sets: BTreeMap<Name, Set>,
    /// Chains by name.
    pub chains: BTreeMap<Name, Chain>,
    /// Elements by set name, sorted. A set without elements may be absent.
    pub elements: BTreeMap<Name, Vec<Element>>,
}

/// Which step a refused transaction failed at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Index into [`Transaction::operations`].
    pub operation: usize,
    /// Family of that step.
    pub family: Family,
    /// For element steps: set name and, when the kernel points at one, the element.
    pub element: Option<(Name, Option<Element>)>,
}

/// Why a transaction was not carried out. Nothing of it was.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// The kernel refused a step.
    #[error("kernel refused {culprit}: {errno}{}", .message.as_deref().map(|m| format!(" ({m})")).unwrap_or_default())]
    Refused {
        /// Error number.
        errno: nix::errno::Errno,
        /// Step at fault.
        culprit: Box<Culprit>,
        /// Text of the kernel's extended acknowledgement.
        message: Option<String>,
    },
    /// The socket failed, or the kernel did not answer as its protocol says; nothing is known of the
    /// kernel's state until it is read again.
    #[error("netlink {action} failed: {errno}")]
    Socket {
        /// What was attempted.
        action: &'static str,
        /// Error number.
        errno: nix::errno::Errno,
    },
    /// A reply that does not decode.
    #[error("undecodable netlink reply: {0}")]
    Reply(String),
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {} on table {}", self.operation, self.family)?;
        match &self.element {
            Some((set, Some(element))) => write!(f, ", element {:?} of {set}", element.key),
            Some((set, None)) => write!(f, ", elements of {set}"),
            None => Ok(()),
        }
    }
}

/// What became of [`Backend::adopt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// There is no table.
    NoTable,
    /// There is one, and it can be changed in place.
    Ours,
    /// There is one that cannot be made ours in place: [`Operation::DeleteTable`] and
    /// [`Operation::AddTable`] in one transaction replace it.
    Replace,
}

/// A state of the whole ruleset, any table: each transaction makes the next (`nft_base_seq`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(pub u32);

impl Generation {
    /// The one that the next transaction makes.
    pub fn next(self) -> Generation {
        // Zero is left out (`nf_tables_commit`).
        Generation(self.0.checked_add(1).unwrap_or(1))
    }

    /// Whether it is `other` or came after it. The kernel's count wraps around.
    pub fn is_since(self, other: Generation) -> bool {
        self.0.wrapping_sub(other.0) <= u32::MAX / 2
    }
}

/// Where tables live: the kernel, or the fake that obeys its rules.
pub trait Backend {
    /// Carries out all steps or none. An empty transaction sends nothing.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError>;

    /// The ruleset's present state.
    fn generation(&mut self) -> Result<Generation, CommitError>;

    /// Reads one of our tables whole; `None` when there is none.
    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError>;

    /// What rules have put into a map of [`crate::SetKind::Learned`], sorted; empty when there is no such map. While
    /// others change the table all the time, what several readings find together.
    fn learned(&mut self, family: Family, map: &Name) -> Result<Vec<Element>, CommitError>;

    /// Takes over a table that an earlier process left behind, without touching what is in it. A table in
    /// which somebody has switched off the rules, or which has not the flags we ask for, must be replaced.
    ///
    /// Errors: EPERM while another living process owns it.
    fn adopt(&mut self, family: Family) -> Result<Adoption, CommitError>;
}
