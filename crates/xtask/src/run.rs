//! Running other programs, with their command line shown.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The root of the checkout.
pub(crate) fn root() -> Result<PathBuf> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .nth(2)
        .map(Path::to_path_buf)
        .context("the root of the checkout is two folders up from xtask")
}

/// A program of the workspace, where a build with the development profile puts it.
pub(crate) fn built(program: &str) -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or(root()?.join("target"), PathBuf::from);
    Ok(target.join("debug").join(program))
}

/// `cargo` with the tool chain that runs us, at the root of the checkout.
pub(crate) fn cargo(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args).current_dir(root()?);
    Ok(command)
}

/// `git` at the root of the checkout, whoever owns that: root may run the gate in a clone of another user.
pub(crate) fn git(args: &[&str]) -> Result<Command> {
    let mut command = Command::new("git");
    command.args(["-c", "safe.directory=*"]).args(args);
    command.current_dir(root()?);
    Ok(command)
}

/// Runs it, showing what is run and how long it took; fails when it fails.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("+ {}", shown(command));
    let start = Instant::now();
    let status = command
        .status()
        .with_context(|| format!("could not start {}", shown(command)))?;
    if !status.success() {
        bail!("{} ended with {status}", shown(command));
    }
    eprintln!(
        "  {:.0} s: {}",
        start.elapsed().as_secs_f64(),
        shown(command)
    );
    Ok(())
}

/// Runs it and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .output()
        .with_context(|| format!("could not start {}", shown(command)))?;
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output.stdout)
}

/// Name and arguments, without the folder.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program())
        .file_name()
        .unwrap_or(command.get_program())
        .to_string_lossy();
    let args = command
        .get_args()
        .map(|arg| format!(" {}", arg.to_string_lossy()));
    std::iter::once(program.into_owned()).chain(args).collect()
}

/// Builds by a command of cargo, and says where the programs of these targets of a kind (`test`, `bench`) are, in the same
/// order.
pub(crate) fn executables(
    mut build: Command,
    kind: &str,
    targets: &[&str],
) -> Result<Vec<PathBuf>> {
    build.args(["--message-format", "json-render-diagnostics"]);
    build.stderr(std::process::Stdio::inherit());
    let messages = output(&mut build)?;
    let messages = String::from_utf8_lossy(&messages);
    let messages: Vec<Value> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let executable = |target: &&str| {
        let found = messages.iter().find_map(|message| {
            let is_it =
                message["target"]["name"] == *target && message["target"]["kind"][0] == kind;
            is_it.then(|| message["executable"].as_str().map(PathBuf::from))?
        });
        found.with_context(|| format!("cargo built no {kind} {target:?}"))
    };
    targets.iter().map(executable).collect()
}
