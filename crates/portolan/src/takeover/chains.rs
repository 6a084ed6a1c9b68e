//! Removes a program's chains from the tables of iptables, in both variants.
//!
//! Owns the order of the two: the nft variant over netlink, one transaction a table and no program needed; the legacy
//! variant with iptables' own programs, where they are (see [`super::legacy`]). Whose chains they are is the caller's
//! word; a chain that somebody else's rules lead to stays in any case.

use std::fmt;

use nft::{CommitError, Family, Foreign, Leftovers};

use super::legacy;

/// The base chain of table `filter` that routed packets pass.
pub(super) const FORWARD: &str = "FORWARD";

/// Whose chains go.
pub(crate) struct Theirs {
    /// The tables that they write.
    pub(crate) tables: &'static [&'static str],
    /// Whether a chain of a table is theirs.
    pub(crate) owns: fn(table: &str, chain: &str) -> bool,
    /// The chain that lets packets through where `FORWARD` drops by default. There it stays: no rule of another table
    /// can do that in its place.
    pub(crate) permits: Option<&'static str>,
}

impl Theirs {
    pub(super) fn goes(&self, table: &str, chain: &str, forward_drops: bool) -> bool {
        (self.owns)(table, chain) && !self.stays(chain, forward_drops)
    }

    pub(super) fn stays(&self, chain: &str, forward_drops: bool) -> bool {
        forward_drops && self.permits == Some(chain)
    }
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Chains in the nft variant.
    pub chains: usize,
    /// Chains in the legacy variant.
    pub legacy_chains: usize,
    /// Chains that stay because somebody else's rules lead to them.
    pub kept: Vec<String>,
    /// A chain stays because `FORWARD` would drop what it lets through.
    pub permitting: bool,
    /// What could not be done, each with its reason.
    pub failures: Vec<String>,
}

impl Removed {
    /// Whether anything was removed.
    pub fn any(&self) -> bool {
        self.chains + self.legacy_chains > 0
    }
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} iptables chains, {} legacy iptables chains",
            self.chains, self.legacy_chains
        )
    }
}

/// Removes them once, of these families. Goes on after a failure, and reports each.
pub(crate) fn remove(foreign: &mut Foreign, theirs: &Theirs, families: &[Family]) -> Removed {
    let mut removed = Removed::default();
    for family in families.iter().copied() {
        for table in theirs.tables {
            match remove_from(foreign, theirs, family, table) {
                Ok((gone, permitting)) => {
                    removed.chains += gone.chains.len();
                    removed.kept.extend(gone.kept);
                    removed.permitting |= permitting;
                }
                Err(error) => removed
                    .failures
                    .push(format!("table {family} {table}: {error}")),
            }
        }
        legacy::remove(theirs, family, &mut removed);
    }
    removed
}

fn remove_from(
    foreign: &mut Foreign,
    theirs: &Theirs,
    family: Family,
    table: &str,
) -> Result<(Leftovers, bool), CommitError> {
    // Asked first, as reading all chains of a node costs more than one answer.
    if !foreign.has_table(family, table)? {
        return Ok(Default::default());
    }
    let permitting = match theirs.permits {
        Some(chain) => {
            foreign.has_chain(family, table, chain)?
                && foreign.drops_by_default(family, table, FORWARD)?
        }
        None => false,
    };
    let gone =
        foreign.remove_chains(family, table, |chain| theirs.goes(table, chain, permitting))?;
    Ok((gone, permitting))
}
