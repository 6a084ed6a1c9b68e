//! The static program of each architecture, linked with musl.
//!
//! Owns targets, compilers for the parts in C, and the flags that keep paths and the time of the build out of the program.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::control_plane::cache_folder;
use crate::run::{cargo, output, root, run};
use crate::tools;

/// An architecture, by Go's and OCI's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// x86-64
    Amd64,
    /// AArch64
    Arm64,
}

impl Arch {
    /// The architecture of this machine.
    pub(crate) fn host() -> Result<Arch> {
        match std::env::consts::ARCH {
            "x86_64" => Ok(Arch::Amd64),
            "aarch64" => Ok(Arch::Arm64),
            other => bail!("there is no image for {other}"),
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
        }
    }

    /// Rust's name.
    pub(crate) fn target(self) -> &'static str {
        match self {
            Arch::Amd64 => "x86_64-unknown-linux-musl",
            Arch::Arm64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The C compiler, and the packages of Debian and Ubuntu that it needs. The parts in C (ring, mimalloc) need a
    /// compiler for the architecture; the headers of either C library do.
    fn compiler(self) -> (&'static str, &'static [&'static str]) {
        match self {
            _ if Arch::host().is_ok_and(|host| host == self) => ("musl-gcc", &["musl-tools"]),
            Arch::Amd64 => (
                "x86_64-linux-gnu-gcc",
                &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            ),
            Arch::Arm64 => (
                "aarch64-linux-gnu-gcc",
                &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
            ),
        }
    }
}

/// Keeps the time of the build out of the program: mimalloc prints it in its verbose mode. Cargo builds the parts in C again when
/// these flags change, but not when SOURCE_DATE_EPOCH does.
const WITHOUT_TIME: [&str; 3] = [
    "-Wno-builtin-macro-redefined",
    "-D__DATE__=\"\"",
    "-D__TIME__=\"\"",
];

/// Builds the program and returns where it is. With a commit's number, the program knows that it was built from there.
pub(super) fn build(arch: Arch, revision: Option<&str>) -> Result<PathBuf> {
    ensure_target(arch)?;
    let (compiler, packages) = arch.compiler();
    let needed: Vec<_> = packages
        .iter()
        .map(|package| (compiler, *package))
        .collect();
    tools::ensure_also(&needed)
        .with_context(|| format!("no C compiler for {}: {compiler}", arch.name()))?;
    let target = arch.target();
    let variable = target.replace('-', "_");
    let moved = moved_paths()?;
    let rust_flags: Vec<String> = moved
        .iter()
        .map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display()))
        .collect();
    let mut c_flags: Vec<String> = moved
        .iter()
        .take(2)
        .map(|(from, to)| format!("-ffile-prefix-map={}={to}", from.display()))
        .collect();
    c_flags.extend(WITHOUT_TIME.map(str::to_owned));
    let mut build = cargo(&["build", "--release", "--locked", "--package", "portolan"])?;
    build
        .args(["--bin", "portolan", "--target", target])
        .env("PORTOLAN_COMMIT", revision.unwrap_or_default())
        .env("CARGO_ENCODED_RUSTFLAGS", rust_flags.join("\u{1f}"))
        .env(format!("CC_{variable}"), compiler)
        .env(format!("CFLAGS_{variable}"), c_flags.join(" "));
    if compiler != "musl-gcc" {
        // The cross compiler's own linker would take its C library.
        let variable = variable.to_uppercase();
        build.env(format!("CARGO_TARGET_{variable}_LINKER"), "rust-lld");
    }
    run(&mut build).with_context(|| format!("build the program for {}", arch.name()))?;
    let folder = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => root()?.join("target"),
    };
    Ok(folder.join(target).join("release/portolan"))
}

/// Installs the target of the standard library unless the tool chain has it.
fn ensure_target(arch: Arch) -> Result<()> {
    let target = arch.target();
    let libraries = rustc(&["--print", "target-libdir", "--target", target])?;
    if Path::new(&libraries).is_dir() {
        return Ok(());
    }
    // Of two rustups that download one component at the same time, one fails.
    let cache = cache_folder("rustup")?;
    fs::create_dir_all(&cache).with_context(|| format!("make {}", cache.display()))?;
    let lock = File::create(cache.join("lock"))?;
    lock.lock()
        .context("wait for another command that installs a target")?;
    if Path::new(&libraries).is_dir() {
        return Ok(());
    }
    let added = Command::new("rustup")
        .args(["target", "add", target])
        .status();
    ensure!(
        added.as_ref().is_ok_and(|status| status.success()),
        "NO IMAGE FOR {}: `rustup target add {target}` failed ({added:?}); install that target, or build the others only (--arch)",
        arch.name()
    );
    Ok(())
}

/// Folders of this machine whose paths the compilers would write into the program, and what to write instead: the checkout,
/// the registry's sources, the sources of the standard library (where they are installed).
fn moved_paths() -> Result<[(PathBuf, String); 3]> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo_home = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home);
    let version = rustc(&["--version", "--verbose"])?;
    let number = version
        .lines()
        .find_map(|line| line.strip_prefix("commit-hash: "))
        .unwrap_or("unknown");
    let sysroot = PathBuf::from(rustc(&["--print", "sysroot"])?);
    Ok([
        (root()?, "/portolan".to_owned()),
        (
            cargo_home.context("neither CARGO_HOME nor HOME is set")?,
            "/cargo".to_owned(),
        ),
        (
            sysroot.join("lib/rustlib/src/rust"),
            format!("/rustc/{number}"),
        ),
    ])
}

/// What the compiler prints.
fn rustc(args: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let printed = output(Command::new(rustc).args(args).current_dir(root()?))?;
    Ok(String::from_utf8(printed)?.trim().to_owned())
}
