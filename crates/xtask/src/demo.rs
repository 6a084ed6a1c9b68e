//! `cargo xtask demo`.

use anyhow::Result;

/// The demo.
pub(crate) fn demo() -> Result<()> {
    crate::tools::ensure()
}
