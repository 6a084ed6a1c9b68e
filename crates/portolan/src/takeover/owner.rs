//! Whose chains a take-over removes, and its result: shared by both variants of iptables.

use std::fmt;

/// The base chain of table `filter` that routed packets pass.
pub(super) const FORWARD: &str = "FORWARD";

/// The program whose chains are removed.
pub(crate) struct ChainOwner {
    /// The tables that the program writes.
    pub(crate) tables: &'static [&'static str],
    /// Whether a chain of a table is the program's.
    pub(crate) owns: fn(table: &str, chain: &str) -> bool,
    /// The chain that accepts packets where `FORWARD` drops by default. It is kept then: no rule of another table can
    pub(crate) permits: Option<&'static str>,
}

impl ChainOwner {
    pub(super) fn is_removable(&self, table: &str, chain: &str, forward_drops: bool) -> bool {
        (self.owns)(table, chain) && !self.is_kept(chain, forward_drops)
    }

    pub(super) fn is_kept(&self, chain: &str, forward_drops: bool) -> bool {
        forward_drops && self.permits == Some(chain)
    }
}

/// Result of a removal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Chains in the nft variant.
    pub chains: usize,
    /// Chains in the legacy variant.
    pub legacy_chains: usize,
    /// Chains that are kept because other rules jump to them.
    pub kept: Vec<String>,
    /// A chain is kept because `FORWARD` would drop what it accepts.
    pub permitting: bool,
    /// Legacy tables in which the program's chains may be, without a program to look.
    pub unreadable: Vec<String>,
    /// Failures, each with its reason.
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
