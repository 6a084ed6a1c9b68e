//! Opens the nftables tables of Services: checks the kernel's features, sets up the guard, and receives foreign changes.

use anyhow::{Context, Result};
use nft::{Family, Feature, Kernel, KernelConfig, Notice};
use service_dataplane::guard::Guard;
use service_dataplane::layout;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::parts::Parts;
use crate::{features, guard};

/// The tables and what belongs to them.
pub(crate) struct Tables {
    /// Writes the tables.
    pub(crate) kernel: Kernel,
    /// Foreign changes of the tables.
    pub(crate) foreign: UnboundedReceiver<Notice>,
    /// Removed from the kernel when dropped.
    pub(crate) guard: Option<Guard<Kernel>>,
    /// An earlier process has left the tables of both families. Each of its commits was complete, so they are.
    pub(crate) are_adopted: bool,
    /// Missing kernel features and their fallbacks, one line each.
    pub(crate) fallbacks: Vec<String>,
}

/// Opens the tables in the network namespace of the calling thread. With `own`, the tables get the owner flag, so that no
/// foreign flush removes them. Features `without` are treated as absent.
pub(crate) fn open(parts: &Parts, own: bool, without: &[Feature]) -> Result<Tables> {
    let config = KernelConfig {
        table: layout::TABLE.into(),
        owner: own,
    };
    let opened = nft::Tables::open_probing(config, without);
    let (tables, features) =
        opened.context("cannot open the nftables sockets; run with CAP_NET_ADMIN")?;
    features::check(&features)?;
    let nft::Tables {
        mut kernel,
        mut monitor,
    } = tables;
    let guard = own.then(|| guard::set_up(&features)).flatten();
    let (sender, foreign) = unbounded_channel();
    let notify =
        move |notice: Option<Notice>| sender.send(notice.unwrap_or(Notice::Overrun)).is_ok();
    parts.monitor("nft-monitor", move |limit| monitor.wait(limit), notify)?;
    let mut are_adopted = true;
    for family in Family::ALL {
        are_adopted &= kernel.table_state(family)?.is_some();
    }
    let flags = kernel.table_flags();
    tracing::info!(
        owner = flags.owner,
        persist = flags.persist,
        "connected to nftables"
    );
    Ok(Tables {
        kernel,
        foreign,
        guard,
        are_adopted,
        fallbacks: features::fallbacks(&features),
    })
}
