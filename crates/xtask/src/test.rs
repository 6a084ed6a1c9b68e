//! `cargo xtask test`: the gate.

use anyhow::Result;

use crate::run::{built, cargo, run};
use crate::{check, control_plane, kernels, tools};

/// How much of the random tests the gate runs; a developer's run has a taste of each.
const FULL_SIZE: [(&str, &str); 4] = [
    ("PORTOLAN_CLUSTERS", "10000"),
    ("PORTOLAN_KERNEL_CLUSTERS", "500"),
    ("PORTOLAN_HISTORIES", "5000"),
    ("PORTOLAN_PEER_CLUSTERS", "300"),
];

/// What a night has time for.
const NIGHTLY_SIZE: [(&str, &str); 4] = [
    ("PORTOLAN_CLUSTERS", "100000"),
    ("PORTOLAN_KERNEL_CLUSTERS", "2000"),
    ("PORTOLAN_HISTORIES", "20000"),
    ("PORTOLAN_PEER_CLUSTERS", "1000"),
];

/// Checks, then every test of the workspace; with `CI` set the random ones in full, and nightly in more than full. A
/// size that the environment sets is left as it is. With `CI` a few scenarios on the oldest and the newest kernel
/// follow, nightly all on all.
pub(crate) fn test(nightly: bool, args: &[String]) -> Result<()> {
    tools::ensure()?;
    check::check()?;
    let control_plane = control_plane::for_tests()?;
    let mut tests = cargo(&["test", "--workspace", "--no-fail-fast"])?;
    tests.arg("--").args(args);
    // Built by the same command, before the first test runs: the scenarios need not build it again.
    tests.env("PORTOLAN_PROGRAM", built("portolan")?);
    tests.envs(control_plane.map(|folder| (control_plane::VARIABLE, folder)));
    let is_ci = std::env::var_os("CI").is_some();
    let sizes = match (nightly, is_ci) {
        (true, _) => NIGHTLY_SIZE.as_slice(),
        (false, true) => &FULL_SIZE,
        (false, false) => &[],
    };
    let unset = |(name, _): &&(&str, &str)| std::env::var_os(name).is_none();
    tests.envs(sizes.iter().filter(unset).copied());
    run(&mut tests)?;
    match (nightly, is_ci) {
        (true, _) => kernels::kernels(&kernels::Options::default()),
        (false, true) => kernels::few(),
        (false, false) => Ok(()),
    }
}
