//! A transaction is a value: it can be printed, compared, sent to the kernel or to the fake.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::{Chain, Element, Family, Name, Set, Table};

/// One step of a transaction. Steps are carried out in order, all or none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Creates the table, adopts an orphaned one, or does nothing when the table is ours already.
    AddTable(Table),
    /// Deletes the table with its contents.
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

/// Steps on our two tables, carried out in one kernel transaction.
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

/// The step at which a transaction was refused.
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
        /// The step that was refused.
        culprit: Box<Culprit>,
        /// Text of the kernel's extended acknowledgement.
        message: Option<String>,
    },
    /// The table cannot be adopted while another process lives that owns it.
    #[error("another process owns the {0} table")]
    Owned(Family),
    /// The socket failed, or the kernel did not answer as its protocol says; the kernel's state is unknown until it is
    /// read again.
    #[error(transparent)]
    Netlink(#[from] netlink::Error),
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

/// Number of a state of the whole ruleset, any table: each transaction makes the next (`nft_base_seq`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Generation(pub u32);

impl Generation {
    /// The generation that the next transaction makes.
    pub fn next(self) -> Generation {
        // Zero is skipped (`nf_tables_commit`).
        Generation(self.0.checked_add(1).unwrap_or(1))
    }

    /// Whether this generation is `other` or a later one. The kernel's count wraps around.
    pub fn is_since(self, other: Generation) -> bool {
        self.0.wrapping_sub(other.0) <= u32::MAX / 2
    }
}
