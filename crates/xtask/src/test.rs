//! `cargo xtask test`: the gate.

use anyhow::Result;

use crate::run::{cargo, run};
use crate::{check, tools};

/// Checks, then every test of the workspace.
pub(crate) fn test(args: &[String]) -> Result<()> {
    tools::ensure()?;
    check::check()?;
    run(cargo(&["test", "--workspace", "--no-fail-fast"])?
        .arg("--")
        .args(args))
}
