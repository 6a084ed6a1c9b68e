//! Statements that several chains of the table have.

use nft::{Operand, Statement, Verdict};

use super::SetId;

/// Goes to a chain of the constant part.
pub(super) fn goto(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Goto(chain.into()))
}

/// Calls a chain of the constant part.
pub(super) fn jump(chain: &'static str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.into()))
}

/// Matches packets whose `key` is in the set.
pub(super) fn in_set(key: Vec<Operand>, set: SetId) -> Statement {
    Statement::InSet {
        key,
        set: set.name(),
        negate: false,
    }
}
