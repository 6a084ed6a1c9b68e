//! Tables written over netlink or as text into the calling thread's network namespace, and what the kernel then holds.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nft::{Backend, Family, Kernel, KernelConfig, TableContents, Transaction};

/// One table in both families, as a kernel holds it.
pub type Held = [Option<TableContents>; 2];

/// A connection to the kernel for a table.
pub fn kernel(table: &'static str, owner: bool) -> Result<Kernel> {
    let table = table.into();
    Ok(Kernel::open(KernelConfig { table, owner })?)
}

/// Both families of a table.
pub fn held(table: &'static str) -> Result<Held> {
    let mut kernel = kernel(table, false)?;
    Ok([kernel.list(Family::Ip)?, kernel.list(Family::Ip6)?])
}

/// Writes a table that is not there over netlink, and returns what the kernel holds.
pub fn write(table: &'static str, contents: &[TableContents; 2]) -> Result<Held> {
    let mut transaction = Transaction::new();
    for contents in contents {
        let difference = nft::diff::diff(None, contents);
        transaction.operations.extend(difference.operations);
    }
    kernel(table, false)?.commit(&transaction)?;
    held(table)
}

/// Runs a program `nft` and returns what it prints.
pub fn nft(program: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("{program:?}"))?;
    ensure!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Loads text by a program `nft`, and returns what the kernel then holds of a table.
pub fn load(program: &Path, text: &str, table: &'static str) -> Result<Held> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    nft(program, &["-f", &file.path().display().to_string()])?;
    held(table)
}
