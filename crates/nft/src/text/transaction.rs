//! Transactions as text for people: traces, dry runs, failed assertions. nft does not read this text.

use std::fmt;

use super::{DeclarationText, ElementText, RuleText, set_keyword};
use crate::model::{Data, Element, Family, Set};
use crate::transaction::{Operation, Transaction};

/// A transaction step by step, one line for each declaration, rule and element, for traces and dry runs.
///
/// Element keys are readable where `declaration` knows the set, and hexadecimal elsewhere.
/// [`Transaction`]'s own `Display` knows the sets that the transaction itself adds.
pub struct TransactionText<'a, F> {
    /// The transaction.
    pub transaction: &'a Transaction,
    /// Finds the declaration of a set that exists already.
    pub declaration: F,
}

impl<'a, F: Fn(Family, &str) -> Option<&'a Set>> fmt::Display for TransactionText<'a, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let declaration = |family: Family, name: &str| {
            let added = self
                .transaction
                .operations
                .iter()
                .find_map(|step| match step {
                    (its, Operation::AddSet(set)) if *its == family && set.name == name => {
                        Some(set)
                    }
                    _ => None,
                });
            added.or_else(|| (self.declaration)(family, name))
        };
        for (family, operation) in &self.transaction.operations {
            write_operation(f, *family, operation, &declaration)?;
        }
        Ok(())
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        TransactionText {
            transaction: self,
            declaration: |_, _: &str| None,
        }
        .fmt(f)
    }
}

fn write_operation<'a>(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    operation: &Operation,
    declaration: &dyn Fn(Family, &str) -> Option<&'a Set>,
) -> fmt::Result {
    match operation {
        Operation::AddTable(table) => writeln!(f, "add table {family} {}", table.name),
        Operation::DeleteTable => writeln!(f, "delete table {family}"),
        Operation::AddSet(set) => {
            let (keyword, text) = (set_keyword(set), DeclarationText { family, set });
            let flags = if set.interval { "; flags interval" } else { "" };
            writeln!(f, "add {keyword} {family} {} {{ {text}{flags} }}", set.name)
        }
        Operation::DeleteSet(name) => writeln!(f, "delete set {family} {name}"),
        Operation::AddChain(chain) => {
            write!(f, "add chain {family} {}", chain.name)?;
            chain
                .hook
                .map_or(Ok(()), |hook| write!(f, " {{ {hook} }}"))?;
            writeln!(f)
        }
        Operation::DeleteChain(name) => writeln!(f, "delete chain {family} {name}"),
        Operation::SetRules(chain) => {
            writeln!(f, "set rules {family} {}", chain.name)?;
            chain
                .rules
                .iter()
                .try_for_each(|rule| writeln!(f, "\t{}", RuleText { family, rule }))
        }
        Operation::AddElements { set, elements } => {
            writeln!(f, "add elements {family} {set}")?;
            write_elements(f, family, elements, declaration(family, set))
        }
        Operation::DeleteElements { set, elements } => {
            writeln!(f, "delete elements {family} {set}")?;
            write_elements(f, family, elements, declaration(family, set))
        }
    }
}

fn write_elements(
    f: &mut fmt::Formatter<'_>,
    family: Family,
    elements: &[Element],
    set: Option<&Set>,
) -> fmt::Result {
    elements.iter().try_for_each(|element| match set {
        Some(set) => writeln!(
            f,
            "\t{}",
            ElementText {
                family,
                set,
                element
            }
        ),
        None => {
            write!(f, "\t{:?}", element.key)?;
            element
                .last
                .as_ref()
                .map_or(Ok(()), |last| write!(f, "-{last:?}"))?;
            match &element.data {
                Data::None => writeln!(f),
                Data::Value(value) => writeln!(f, " : {value:?}"),
                Data::Verdict(verdict) => writeln!(f, " : {verdict}"),
            }
        }
    })
}
