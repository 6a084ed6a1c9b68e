//! Portolan's own image for a cluster: the archive that PORTOLAN_IMAGE names, else one of this checkout.
//!
//! Invariant: an archive in the cache is of the sources that its name has the hash of, whatever is committed.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::cached;
use crate::image;
use crate::run::root;

/// What the program in the image is built of, below the root of the checkout.
const SOURCES: [&str; 15] = [
    "Cargo.lock",
    "Cargo.toml",
    "crates/kube-proxy-config",
    "crates/net-types",
    "crates/netfilter",
    "crates/netlink",
    "crates/nft",
    "crates/object-source",
    "crates/overlay-probe",
    "crates/portolan",
    "crates/service-dataplane",
    "crates/service-model",
    "crates/vxlan-overlay",
    "crates/xtask/src/image",
    "crates/xtask/src/image.rs",
];

/// The archive. Building the program shows cargo's progress, and takes minutes the first time.
pub(super) fn archive() -> Result<PathBuf> {
    if let Some(archive) = std::env::var_os(image::VARIABLE) {
        return Ok(archive.into());
    }
    let name = format!("portolan-{:016x}.tar", key(&root()?)?);
    cached(&name, |draft| {
        let made = image::for_tests()?;
        fs::copy(&made, draft).with_context(|| format!("copy {}", made.display()))?;
        Ok(())
    })
}

/// A hash of the sources.
fn key(root: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for source in SOURCES {
        hash(&root.join(source), &mut hasher)?;
    }
    Ok(hasher.finish())
}

fn hash(path: &Path, hasher: &mut DefaultHasher) -> Result<()> {
    if path.is_file() {
        let content = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        content.hash(hasher);
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("list {}", path.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        name.hash(hasher);
        hash(&path.join(name), hasher)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_crate_of_the_program_is_a_source() -> Result<()> {
        let lock = fs::read_to_string(root()?.join("Cargo.lock"))?;
        // What is only for tests and for these commands.
        let others = ["crates/lab", "crates/scenario", "crates/xtask"];
        for crate_folder in fs::read_dir(root()?.join("crates"))? {
            let name = crate_folder?.file_name().to_string_lossy().into_owned();
            let path = format!("crates/{name}");
            let is_listed = SOURCES.contains(&&*path);
            assert!(lock.contains(&format!("name = \"{name}\"")), "{name}");
            assert!(is_listed != others.contains(&&*path), "{path}");
        }
        Ok(())
    }
}
