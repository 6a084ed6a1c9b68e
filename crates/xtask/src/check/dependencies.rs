//! Licenses, bans, sources and advisories of dependencies, by cargo-deny.

use std::path::PathBuf;

use anyhow::Result;

use crate::run::{cargo, run};

/// The version to install.
const CARGO_DENY: &str = "0.20.2";

/// Licenses, bans and sources of dependencies by cargo-deny; also advisories where their database is on this machine.
/// With `CI` set a missing cargo-deny is installed.
pub(crate) fn check() -> Result<()> {
    let is_installed = || -> Result<bool> {
        let version = cargo(&["deny", "--version"])?.output();
        Ok(version.is_ok_and(|output| output.status.success()))
    };
    if !is_installed()? {
        if std::env::var_os("CI").is_none() {
            eprintln!("SKIPPED: dependencies: no cargo-deny (`cargo install --locked cargo-deny`)");
            return Ok(());
        }
        let install = ["install", "--locked", "--quiet", "cargo-deny", "--version"];
        run(cargo(&install)?.arg(CARGO_DENY))?;
    }
    run(&mut cargo(&[
        "deny", "check", "bans", "licenses", "sources",
    ])?)?;
    let home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| {
            let home = std::env::var_os("HOME")?;
            Some(PathBuf::from(home).join(".cargo"))
        });
    // Where cargo-deny keeps clones of advisory databases.
    let databases = home.map(|home| home.join("advisory-dbs"));
    if databases.is_some_and(|databases| databases.is_dir()) {
        return run(&mut cargo(&["deny", "--offline", "check", "advisories"])?);
    }
    eprintln!("SKIPPED: advisories of dependencies: no database (`cargo deny fetch db` brings it)");
    Ok(())
}
