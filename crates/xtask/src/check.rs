//! `cargo xtask check`: formatting, lints, and the direction of dependencies between our crates.

use anyhow::Result;

use crate::run::{cargo, run};

pub(crate) mod dependencies;
mod directions;

/// Runs all checks, cheap ones first.
pub(crate) fn all() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])?)?;
    directions::check()?;
    run(
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet"])?
            .args(["--", "-D", "warnings"]),
    )
}
