//! Removes a program's chains from the tables of iptables, in both variants.
//!
//! Owns the order of the two: the nft variant over netlink, one transaction per table, without a program; the legacy
//! variant with iptables' own programs, where installed (see [`super::legacy`]). The caller says whose chains they are. A
//! chain that other rules jump to always stays.

use netfilter::{ForeignRuleset, Leftovers};
use nft::Family;

use super::legacy;
use super::owner::{ChainOwner, FORWARD, Removed};

/// Removes the chains of these families once. Continues after failures, and reports each.
pub(crate) fn remove(
    foreign: &mut ForeignRuleset,
    owner: &ChainOwner,
    families: &[Family],
) -> Removed {
    let mut removed = Removed::default();
    for family in families.iter().copied() {
        for table in owner.tables {
            match remove_from(foreign, owner, family, table) {
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
        legacy::remove(owner, family, &mut removed);
    }
    removed
}

fn remove_from(
    foreign: &mut ForeignRuleset,
    owner: &ChainOwner,
    family: Family,
    table: &str,
) -> Result<(Leftovers, bool), netlink::Error> {
    // Checked first, since reading all chains of a node costs more.
    if !foreign.has_table(family, table)? {
        return Ok(Default::default());
    }
    let permitting = match owner.permits {
        Some(chain) => {
            foreign.has_chain(family, table, chain)?
                && foreign.drops_by_default(family, table, FORWARD)?
        }
        None => false,
    };
    let gone = foreign.remove_chains(family, table, |chain| {
        owner.is_removable(table, chain, permitting)
    })?;
    Ok((gone, permitting))
}
