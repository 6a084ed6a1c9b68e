//! `cargo xtask bench`: criterion, one command.

use anyhow::Result;

use crate::run::{cargo, run};
use crate::tools;

/// Runs the benches whose name holds `filter`, or all.
pub(crate) fn bench(filter: Option<&str>) -> Result<()> {
    tools::ensure()?;
    run(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "portolan",
    ])?)?;
    run(cargo(&["bench", "--package", "portolan-benches"])?
        .args(filter.map(|f| vec!["--", f]).unwrap_or_default()))
}
