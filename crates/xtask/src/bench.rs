//! `cargo xtask bench`: criterion, one command.

use anyhow::Result;

use crate::run::{cargo, run};
use crate::{control_plane, image, tools};

/// Runs the benches whose name holds `filter`, or all.
pub(crate) fn bench(filter: Option<&str>) -> Result<()> {
    tools::ensure()?;
    let control_plane = control_plane::for_tests(control_plane::Versions::All)?;
    // What is shipped: linked with musl, and mimalloc as its allocator.
    let program = image::program()?;
    run(cargo(&["bench", "--package", "portolan-benches"])?
        .args(filter.map(|f| vec!["--", f]).unwrap_or_default())
        .env("PORTOLAN_PROGRAM", program)
        .envs(image::ALLOCATOR)
        .envs(control_plane.map(|folder| (control_plane::VARIABLE, folder))))
}
