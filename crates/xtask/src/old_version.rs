//! An older version of the program, built from this repository's own history, for tests of upgrade and downgrade.
//!
//! Invariant: a returned program is complete. It is built under another name, renamed, and never changed afterwards, so that
//! any number of checkouts may share it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::control_plane;
use crate::run::{cargo, root, run};

/// Tells the tests where the program is.
pub(crate) const VARIABLE: &str = "PORTOLAN_OLD_PROGRAM";

/// The last commit of version 0.1.0.
const COMMIT: &str = "75600aa";

/// The program of version 0.1.0. `None`, with a warning, where the history does not have the commit (a shallow clone);
/// with `CI` set that is an error.
pub(crate) fn for_tests() -> Result<Option<PathBuf>> {
    let object = format!("{COMMIT}^{{commit}}");
    let mut look_up = Command::new("git");
    look_up
        .args(["cat-file", "-e", &object])
        .current_dir(root()?);
    if look_up
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
    {
        return build().map(Some);
    }
    if std::env::var_os("CI").is_some() {
        bail!(
            "the history has no commit {COMMIT} (a shallow clone?), and CI is set: nothing may be skipped"
        );
    }
    eprintln!("SKIPPED: upgrade and downgrade: the history has no commit {COMMIT}");
    Ok(None)
}

/// Builds it unless that has been done. A second caller waits for the first.
fn build() -> Result<PathBuf> {
    let cache = control_plane::cache_folder("versions")?;
    fs::create_dir_all(&cache).with_context(|| format!("make {cache:?}"))?;
    let done = cache.join(format!("portolan-{COMMIT}"));
    let lock = File::create(cache.join(format!("{COMMIT}.lock")))?;
    lock.lock().context("wait for another build")?;
    if done.exists() {
        return Ok(done);
    }
    eprintln!("building commit {COMMIT}, once");
    let folder = tempfile::tempdir()?;
    let (source, target) = (folder.path().join("source"), folder.path().join("target"));
    fs::create_dir(&source)?;
    let mut archive = Command::new("git");
    archive
        .args(["archive", "--format=tar", COMMIT])
        .current_dir(root()?);
    let mut archive = archive
        .stdout(Stdio::piped())
        .spawn()
        .context("start git")?;
    let stream = archive.stdout.take().context("no output of git")?;
    tar::Archive::new(stream)
        .unpack(&source)
        .context("unpack the old version")?;
    ensure!(archive.wait()?.success(), "git archive failed");
    let mut build = cargo(&[
        "build",
        "--locked",
        "--package",
        "portolan",
        "--bin",
        "portolan",
    ])?;
    run(build.current_dir(&source).env("CARGO_TARGET_DIR", &target))?;
    // Beside its place, since a rename cannot cross file systems.
    let draft = cache.join(format!("portolan-{COMMIT}.draft"));
    fs::copy(target.join("debug/portolan"), &draft)?;
    fs::rename(&draft, &done)?;
    Ok(done)
}
