//! Whether one commit gives one image: two whole builds, from clones in two folders, compared byte for byte.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Arch, VERSION, hexadecimal};
use crate::run::{cargo, git, output, root, run};

/// Builds the image of this machine's architecture twice from what is committed. Takes the time of two builds from nothing.
///
/// # Errors
/// When a build fails, or the two archives differ.
pub(crate) fn reproduce() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let commit = String::from_utf8(output(&mut git(&["rev-parse", "HEAD"])?)?)?;
    // Of different length and depth: neither may be in the program, nor decide the order of anything.
    let first = digest(commit.trim(), &folder.path().join("first"))?;
    let second = digest(
        commit.trim(),
        &folder.path().join("second/with/a/longer/name"),
    )?;
    ensure!(
        first == second,
        "two builds of one commit differ: {first} and {second}"
    );
    eprintln!("two builds in two folders have the same bytes: {first}");
    Ok(())
}

/// Clones this commit to a folder, builds the image there, and removes the folder again.
fn digest(commit: &str, place: &Path) -> Result<String> {
    run(git(&["clone", "--quiet", "--no-checkout"])?
        .arg(root()?)
        .arg(place))?;
    run(git(&["checkout", "--quiet", "--detach", commit])?.current_dir(place))?;
    let arch = Arch::host()?.name();
    let image = place.join("image");
    let mut build = cargo(&["run", "--quiet", "--package", "xtask", "--", "image"])?;
    build
        .args(["--arch", arch, "--output"])
        .arg(&image)
        .current_dir(place)
        .env_remove("CARGO_TARGET_DIR");
    run(&mut build)?;
    let archive = image.join(format!("portolan-{VERSION}-image.tar"));
    let bytes = fs::read(&archive).with_context(|| format!("read {archive:?}"))?;
    fs::remove_dir_all(place)?;
    Ok(hexadecimal(&bytes))
}
