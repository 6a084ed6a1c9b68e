//! A kernel socket and the monitor of its tables, opened together.

use crate::kernel::{Kernel, KernelConfig, TableFeatures};
use crate::model::Name;
use crate::monitor::Monitor;
use crate::transaction::CommitError;

/// Writes our tables and watches for foreign changes to them. The two may live on different threads.
#[derive(Debug)]
pub struct Tables {
    /// Writes and reads the tables.
    pub kernel: Kernel,
    /// Reports foreign changes; muted during large commits of `kernel`.
    pub monitor: Monitor,
}

impl Tables {
    /// Opens both sockets in the network namespace of the calling thread.
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open(config: KernelConfig) -> Result<Self, CommitError> {
        let table = config.table.clone();
        Tables::with(Kernel::open(config)?, table)
    }

    /// Opens both sockets with features that are known ([`Kernel::open_with`]).
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open_with(config: KernelConfig, features: TableFeatures) -> Result<Self, CommitError> {
        let table = config.table.clone();
        Tables::with(Kernel::open_with(config, features)?, table)
    }

    fn with(mut kernel: Kernel, table: Name) -> Result<Self, CommitError> {
        let monitor = Monitor::open(table, kernel.port())?;
        kernel.mute_during_large_commits(&monitor)?;
        Ok(Tables { kernel, monitor })
    }
}
