//! A kernel socket and the monitor of its tables, opened together.

use crate::features::{Feature, Features};
use crate::kernel::{Kernel, KernelConfig};
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

    /// Opens both sockets and tries all features; those that `without` names count as absent. The trial has no socket of its
    /// own: the end of a socket waits until the kernel has freed what was deleted last, for a grace period of RCU.
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open_probing(
        config: KernelConfig,
        without: &[Feature],
    ) -> Result<(Self, Features), CommitError> {
        let mut kernel = Kernel::connect(config.table.clone())?;
        let features = Features::probe_with(&mut kernel)?.without(without);
        kernel.set_features(&config, features.of_tables());
        Ok((Tables::with(kernel, config.table)?, features))
    }

    fn with(mut kernel: Kernel, table: Name) -> Result<Self, CommitError> {
        let monitor = Monitor::open(table, kernel.port())?;
        kernel.mute_during_large_commits(&monitor)?;
        Ok(Tables { kernel, monitor })
    }
}
