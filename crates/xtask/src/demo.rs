//! `cargo xtask demo`: builds the daemon and the example `demo` of the tests' package, and runs the example.

use std::process::Command;

use anyhow::Result;

use crate::run::{built, cargo, run};
use crate::tools;

/// Runs the demo, which cleans up after itself.
pub(crate) fn demo() -> Result<()> {
    tools::ensure()?;
    // With the features of the whole workspace, so that the tests share what this builds.
    let build = [
        "build",
        "--workspace",
        "--bin",
        "portolan",
        "--example",
        "demo",
    ];
    run(&mut cargo(&build)?)?;
    run(Command::new(built("examples/demo")?).env("PORTOLAN_PROGRAM", built("portolan")?))
}
