//! Programs that the machine needs besides Rust: `nft` to read the tables independently, `ip` for the lab, `git`.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::run;

/// Programs that checks, tests and the demo call, by name or as a file, and the Debian or Ubuntu package of each.
const NEEDED: &[(&str, &str)] = &[
    ("git", "git"),
    ("nft", "nftables"),
    ("ip", "iproute2"),
    ("setpriv", "util-linux"),
    // Both variants come with one package.
    ("iptables-legacy", "iptables"),
    // By it `nft` names protocols; a kube-proxy that reads `6` for `tcp` deletes its own Services.
    ("/etc/protocols", "netbase"),
];

/// Installs missing programs on Debian and Ubuntu; elsewhere fails and names the packages.
pub(crate) fn ensure() -> Result<()> {
    if !nix::unistd::Uid::effective().is_root() {
        bail!("network namespaces need root: run this command as root (sudo -E cargo xtask ...)");
    }
    ensure_also(NEEDED)
}

/// The same for these programs.
pub(crate) fn ensure_also(needed: &[(&'static str, &'static str)]) -> Result<()> {
    let missing: Vec<&str> = missing(needed);
    if missing.is_empty() {
        return Ok(());
    }
    if find("apt-get").is_none() {
        bail!(
            "missing packages: {}; install them with your distribution's package manager",
            missing.join(" ")
        );
    }
    eprintln!("installing {}", missing.join(" "));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    let install = ["install", "-y", "-qq", "--no-install-recommends"];
    run(Command::new("apt-get")
        .args(install)
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))?;
    match self::missing(needed).as_slice() {
        [] => Ok(()),
        still => bail!("still missing after the installation: {}", still.join(" ")),
    }
}

fn missing(needed: &[(&'static str, &'static str)]) -> Vec<&'static str> {
    needed
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect()
}

/// Searches PATH and the two folders that the PATH of a Debian user lacks.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(|folder| Path::new(folder).to_path_buf());
    std::env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}
