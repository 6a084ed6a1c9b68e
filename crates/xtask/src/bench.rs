//! `cargo xtask bench`: runs the benchmarks with criterion.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{cargo, root, run};
use crate::{control_plane, image, tools};

/// The bench that needs the program linked with glibc as well.
const C_LIBRARY: &str = "c_library";

/// Runs the benches whose name holds `filter`, or all.
pub(crate) fn bench(filter: Option<&str>) -> Result<()> {
    tools::ensure()?;
    // This bench alone renders manifests: no control plane has to be built for it, and no other bench.
    let alone = filter == Some(C_LIBRARY);
    let control_plane = match alone {
        true => None,
        false => control_plane::for_tests(control_plane::Versions::All)?,
    };
    // What is shipped: linked with musl, and mimalloc as its allocator.
    let program = image::program()?;
    let mut glibc = None;
    if filter.is_none_or(|filter| C_LIBRARY.contains(filter)) {
        run(&mut cargo(&[
            "build",
            "--release",
            "--locked",
            "--package",
            "portolan",
        ])?)?;
        let target = std::env::var_os("CARGO_TARGET_DIR");
        let target = target.map_or(root()?.join("target"), PathBuf::from);
        glibc = Some(target.join("release/portolan"));
    }
    run(cargo(&["bench", "--package", "portolan-benches"])?
        .args(
            alone
                .then_some(["--bench", C_LIBRARY])
                .into_iter()
                .flatten(),
        )
        .args(filter.map(|f| vec!["--", f]).unwrap_or_default())
        .env("PORTOLAN_PROGRAM", program)
        .envs(glibc.map(|program| ("PORTOLAN_GLIBC_PROGRAM", program)))
        .envs(image::ALLOCATOR)
        .envs(control_plane.map(|folder| (control_plane::VARIABLE, folder))))
}
