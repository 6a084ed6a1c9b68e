//! A second table that keeps established connections translated while the main table is missing.
//!
//! When the last NAT chain leaves a network namespace, the kernel takes its NAT hooks out (`nf_nat_unregister_fn`), and
//! with the last expression that uses conntrack the conntrack hooks (`nf_ct_netns_put`). Packets of established
//! connections are then not translated: 53 of 100 busy ones were lost over 20 foreign flushes, though each was repaired
//! within 50 ms. Where tables can be owned but not outlive their socket (Linux 5.12 to 6.8), a second table that is
//! owned stays through every flush. It holds one of each: a NAT chain (alone, it left 71 of 100 to be lost) and in it a
//! rule about connections. So the hooks stay, and conntrack goes on translating. The guard ends with the daemon; the
//! main table, which is not owned, stays.
//!
//! Where tables can be owned for good, the table itself survives and needs no guard; where they cannot be owned at
//! all, a guard would be flushed with the rest.

use std::collections::BTreeMap;

use nft::{
    Backend, Chain, CommitError, Family, Hook, Statement, Table, TableContents, Transaction,
    Verdict,
};

/// Name of the guard's table in both families.
pub const TABLE: &str = "portolan_guard";

/// The guard of one family.
pub fn contents(family: Family) -> TableContents {
    let chain = Chain {
        name: "guard".into(),
        hook: Some(Hook::NatPrerouting),
        comment: "Does nothing: that it is hooked keeps NAT and conntrack switched on".into(),
        rules: vec![
            vec![
                Statement::ConnectionIsDnat,
                Statement::Verdict(Verdict::Accept),
            ]
            .into(),
        ],
    };
    TableContents {
        table: Table {
            family,
            name: TABLE.into(),
            comment: "Portolan: keeps established connections translated while others flush".into(),
        },
        sets: BTreeMap::new(),
        chains: BTreeMap::from([(chain.name.clone(), chain)]),
        elements: BTreeMap::new(),
    }
}

/// The guard's tables. They exist as long as the backend's socket is open.
#[derive(Debug)]
pub struct Guard<B> {
    backend: B,
}

impl<B: Backend> Guard<B> {
    /// Sets the guard up, in one transaction. The backend must be for tables that are tied to it
    /// (`Kernel::open_tied` with [`TABLE`]).
    ///
    /// Errors: as the backend's; EPERM where another process has a guard already.
    pub fn install(mut backend: B) -> Result<Self, CommitError> {
        let mut transaction = Transaction::new();
        for family in Family::ALL {
            let difference = backend.difference(&contents(family))?;
            transaction.operations.extend(difference.operations);
        }
        if !transaction.is_empty() {
            backend.commit(&transaction)?;
        }
        Ok(Guard { backend })
    }

    /// The backend that holds the tables.
    pub fn backend(&self) -> &B {
        &self.backend
    }
}

#[cfg(test)]
mod tests {
    use nft::Fake;

    use super::*;

    #[test]
    fn a_guard_is_set_up_once_in_one_transaction() {
        let guard = Guard::install(Fake::new()).unwrap();
        for family in Family::ALL {
            assert_eq!(guard.backend().contents(family), Some(contents(family)));
        }
        let again = Guard::install(guard.backend).unwrap();
        assert_eq!(again.backend().counters().transactions, 1);
    }
}
