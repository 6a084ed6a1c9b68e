//! Brings the overlay's nftables table in step with the plan, and keeps it there.
//!
//! What was committed last is believed until somebody else changes it; then the table is read and repaired. It is
//! remembered by the plan it follows from, which is shared: the elements of thousands of peers would take several times
//! as much.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nft::{Backend, Family, Kernel, KernelConfig, Notice, TableContents, Tables};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use vxlan_overlay::{Config, Plan, RuleOptions, TABLE, table};

use super::OverlayConfig;

/// How long the listener goes without looking whether it is still wanted.
const LISTEN: Duration = Duration::from_millis(500);

/// The table in the kernel.
pub(super) struct OverlayTable {
    kernel: Kernel,
    config: Config,
    options: RuleOptions,
    /// The plan that the table of each family was last made for.
    believed: [Option<Arc<Plan>>; 2],
    changed: Arc<Notify>,
}

impl OverlayTable {
    /// Opens the kernel, and notifies of foreign changes until cancelled.
    pub(super) fn open(
        config: &OverlayConfig,
        changed: Arc<Notify>,
        cancel: CancellationToken,
    ) -> Result<Self> {
        let tables = Tables::open(KernelConfig {
            table: TABLE.into(),
            owner: config.own_tables,
        });
        let Tables {
            kernel,
            mut monitor,
        } = tables.context("opening the nftables sockets")?;
        let heard = changed.clone();
        let work = move || {
            while !cancel.is_cancelled() {
                match monitor.wait(LISTEN) {
                    Ok(None) => {}
                    Ok(Some(Notice::Changed(_) | Notice::Overrun)) => heard.notify_one(),
                    Err(error) => {
                        tracing::warn!(%error, "nftables notifications unreadable: comparing twice a second instead");
                        heard.notify_one();
                        std::thread::sleep(LISTEN);
                    }
                }
            }
        };
        std::thread::Builder::new()
            .name("overlay-nft".into())
            .spawn(work)
            .context("starting the listener")?;
        Ok(OverlayTable {
            kernel,
            config: config.config.clone(),
            options: config.rules,
            believed: [None, None],
            changed,
        })
    }

    /// The tables may not be what they were: read them before the next change.
    pub(super) fn doubt(&mut self) {
        self.believed = [None, None];
    }

    /// Makes the tables as planned; a family without a tunnel stays as it is. How many steps it took.
    pub(super) fn sync(&mut self, plan: &Arc<Plan>) -> Result<usize> {
        if self
            .believed
            .iter()
            .zip(&plan.tunnels)
            .all(|(believed, tunnel)| {
                tunnel.is_none() || believed.as_ref().is_some_and(|believed| believed == plan)
            })
        {
            return Ok(0);
        }
        let mut steps = 0;
        for family in Family::ALL {
            let Some(wanted) = table(&self.config, self.options, plan, family) else {
                continue;
            };
            let result = self.sync_one(family, &wanted, plan);
            if result.is_err() {
                self.doubt();
                self.changed.notify_one();
            }
            steps += result?;
        }
        Ok(steps)
    }

    fn sync_one(
        &mut self,
        family: Family,
        wanted: &TableContents,
        plan: &Arc<Plan>,
    ) -> Result<usize> {
        let [v4, v6] = &mut self.believed;
        let believed = if family == Family::Ip { v4 } else { v6 };
        let transaction = match believed.take() {
            Some(before) => {
                let before = table(&self.config, self.options, &before, family);
                nft::diff::diff(before.as_ref(), wanted)
            }
            None => self.kernel.difference(wanted)?,
        };
        if !transaction.operations.is_empty() {
            self.kernel.commit(&transaction)?;
        }
        *believed = Some(plan.clone());
        Ok(transaction.operations.len())
    }
}
