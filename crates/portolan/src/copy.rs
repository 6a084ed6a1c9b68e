//! Copies a file so that readers see the old one or the new one: `install-conf` and `cp -f`, as flannel's manifests call
//! them in init containers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use object_source::replace_file;

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
        bail!("usage: {program} [-f] SOURCE TARGET");
    };
    if let Some(flag) = words.iter().find(|word| word.starts_with('-')) {
        bail!("{program}: unknown flag {flag}; usage: {program} [-f] SOURCE TARGET");
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
    let source = std::fs::File::open(from)?;
    let mode = source.metadata()?.permissions().mode();
    replace_file(to, mode & 0o777, source)
}

/// Writes a file, so that readers see the old one or the new one. A pipe or a device, as `/dev/stdout`, is written to.
pub(crate) fn write(to: &Path, contents: &[u8]) -> std::io::Result<()> {
    match std::fs::metadata(to) {
        Ok(found) if !found.is_file() && !found.is_dir() => std::fs::write(to, contents),
        _ => replace_file(to, 0o644, contents),
    }
}
