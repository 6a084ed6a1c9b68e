//! Makes the overlay's nftables table equal to the plan, and repairs foreign changes.
//!
//! The last committed table is trusted until another program changes it; then the table is read and repaired. Only the
//! shared plan that the table follows from is kept: the elements of thousands of peers would take several times as much.

use std::sync::Arc;

use anyhow::{Context, Result};
use net_types::{Family, PerFamily};
use nft::{Backend, Kernel, KernelConfig, TableContents, Tables};
use tokio::sync::Notify;
use vxlan_overlay::{Config, Plan, RuleOptions, TABLE, table};

use super::OverlayConfig;
use crate::parts::Parts;

/// The table in the kernel.
pub(super) struct OverlayTable {
    kernel: Kernel,
    config: Config,
    options: RuleOptions,
    /// The plan of the last commit of each family, as long as nothing else has changed the table.
    committed: PerFamily<Option<Arc<Plan>>>,
}

impl OverlayTable {
    /// Opens the kernel. The second value notifies of foreign changes.
    pub(super) fn open(parts: &Parts, config: &OverlayConfig) -> Result<(Self, Arc<Notify>)> {
        let tables = Tables::open(KernelConfig {
            table: TABLE.into(),
            owner: config.own_tables,
        });
        let Tables {
            kernel,
            mut monitor,
        } = tables.context("cannot open the nftables sockets")?;
        let changed = Arc::new(Notify::new());
        let notifier = changed.clone();
        let notify = move |_| {
            notifier.notify_one();
            true
        };
        parts.monitor("overlay-nft", move |limit| monitor.wait(limit), notify)?;
        let table = OverlayTable {
            kernel,
            config: config.config.clone(),
            options: config.rules,
            committed: PerFamily::default(),
        };
        Ok((table, changed))
    }

    /// Makes the next sync read the tables: another program may have changed them.
    pub(super) fn invalidate(&mut self) {
        self.committed = PerFamily::default();
    }

    /// Makes the tables as planned; a family without tunnel and barrier stays as it is. Returns the number of steps.
    ///
    /// After an error the next sync reads the tables; when that is due is left to the caller, who backs off.
    pub(super) fn sync(&mut self, plan: &Arc<Plan>) -> Result<usize> {
        let mut steps = 0;
        for family in Family::ALL {
            if self.committed[family].as_ref() == Some(plan) || self.is_sealed(family, plan)? {
                continue;
            }
            let Some(wanted) = table(&self.config, self.options, plan, family) else {
                continue;
            };
            let result = self.sync_one(family, &wanted, plan);
            if result.is_err() {
                self.invalidate();
            }
            steps += result?;
        }
        Ok(steps)
    }

    /// Whether the table of a tunnel stands where only a barrier is planned. The device stays when a tunnel is planned no longer,
    /// and so does its table: it drops the same, and filters what arrives.
    fn is_sealed(&mut self, family: Family, plan: &Plan) -> Result<bool> {
        if plan.tunnels[family].is_some() || plan.barriers[family].is_none() {
            return Ok(false);
        }
        if let Some(before) = &self.committed[family] {
            return Ok(before.tunnels[family]
                .as_ref()
                .is_some_and(|tunnel| tunnel.sealed));
        }
        let found = self.kernel.list(family)?;
        let has = |name: &str| {
            found
                .as_ref()
                .is_some_and(|found| found.chains.contains_key(name))
        };
        Ok(has("raw_prerouting") && has("sealed"))
    }

    fn sync_one(
        &mut self,
        family: Family,
        wanted: &TableContents,
        plan: &Arc<Plan>,
    ) -> Result<usize> {
        let transaction = match self.committed[family].take() {
            Some(before) => {
                let before = table(&self.config, self.options, &before, family);
                nft::diff::diff(before.as_ref(), wanted)
            }
            None => self.kernel.difference(wanted)?,
        };
        if !transaction.operations.is_empty() {
            self.kernel.commit(&transaction)?;
        }
        self.committed[family] = Some(plan.clone());
        Ok(transaction.operations.len())
    }
}
