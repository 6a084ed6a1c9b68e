//! What tables are written to: the kernel, or the fake that obeys its rules.

use crate::diff::diff;
use crate::model::{Element, Family, Name};
use crate::transaction::{CommitError, Generation, Operation, TableContents, Transaction};

/// Result of [`Backend::adopt`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adoption {
    /// There is no table.
    NoTable,
    /// The table can be changed in place.
    Ours,
    /// The table cannot be changed in place: [`Operation::DeleteTable`] and [`Operation::AddTable`] in one transaction
    /// replace it.
    Replace,
}

/// Tables of one name, one for each family.
pub trait Backend {
    /// Carries out all steps or none. An empty transaction sends nothing.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError>;

    /// Generation of the ruleset.
    fn generation(&mut self) -> Result<Generation, CommitError>;

    /// Reads the table of a family; `None` when there is none.
    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError>;

    /// Elements that rules have added to a map of [`crate::SetKind::Dynamic`], sorted; empty when there is no such
    /// map. While other processes keep changing the table, the union of several attempts.
    fn dynamic_elements(&mut self, family: Family, map: &Name)
    -> Result<Vec<Element>, CommitError>;

    /// Adopts the table that an earlier process left, without changing its contents.
    ///
    /// Errors: [`CommitError::Owned`] while another living process owns the table.
    fn adopt(&mut self, family: Family) -> Result<Adoption, CommitError>;

    /// Adopts the table of `wanted`'s family, reads it, and returns the steps that make it as wanted.
    ///
    /// Errors: as [`Backend::adopt`] and [`Backend::list`].
    fn difference(&mut self, wanted: &TableContents) -> Result<Transaction, CommitError> {
        let family = wanted.table.family;
        let mut transaction = Transaction::new();
        let found = match self.adopt(family)? {
            Adoption::NoTable => None,
            Adoption::Ours => self.list(family)?,
            Adoption::Replace => {
                transaction.push(family, Operation::DeleteTable);
                None
            }
        };
        transaction
            .operations
            .extend(diff(found.as_ref(), wanted).operations);
        Ok(transaction)
    }
}
