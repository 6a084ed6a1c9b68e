//! Copies a file so that readers see the old one or the new one: `install-conf` and `cp -f`, as flannel's manifests call
//! them in init containers.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// `install-conf SRC DST`, or `cp -f SRC DST`. The target may be a directory.
///
/// # Errors
/// For other arguments, or if the file cannot be copied.
pub fn run(program: &str, arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments
        .iter()
        .map(String::as_str)
        .filter(|word| !matches!(*word, "-f" | "--force" | "--"))
        .collect();
    let [from, to] = words.as_slice() else {
        bail!("usage: {program} SOURCE TARGET");
    };
    if let Some(flag) = words.iter().find(|word| word.starts_with('-')) {
        bail!("{program}: unknown flag {flag}; usage: {program} SOURCE TARGET");
    }
    let (from, to) = (Path::new(from), target(Path::new(from), Path::new(to)));
    copy(from, &to).with_context(|| format!("cannot copy {from:?} to {to:?}"))
}

fn target(from: &Path, to: &Path) -> PathBuf {
    match from.file_name().filter(|_| to.is_dir()) {
        Some(name) => to.join(name),
        None => to.to_owned(),
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let draft = draft(to);
    std::fs::copy(from, &draft)?;
    finish(&draft, to)
}

/// Writes a file, so that readers see the old one or the new one.
pub(crate) fn write(to: &Path, contents: &[u8]) -> std::io::Result<()> {
    let draft = draft(to);
    std::fs::File::create(&draft)?.write_all(contents)?;
    finish(&draft, to)
}

/// In the same directory, so that it can be renamed, under a name that no CNI runtime reads.
fn draft(to: &Path) -> PathBuf {
    let name = to.file_name().unwrap_or_default().to_string_lossy();
    to.with_file_name(format!(".{name}.portolan"))
}

fn finish(draft: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(draft, to).inspect_err(|_| {
        let _ = std::fs::remove_file(draft);
    })
}
