//! Portolan's own image for a cluster: the archive that PORTOLAN_IMAGE names, otherwise one that is built from this checkout.
//!
//! Invariant: the name of an archive in the cache contains the hash of its sources, including uncommitted changes.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::archive::cached;
use crate::image;
use crate::run::root;

/// Largest JSON document of an archive that is read, in bytes.
const LARGEST_DOCUMENT: u64 = 1 << 20;

/// Files and folders that the program in the image is built from, below the root of the checkout.
const SOURCES: [&str; 16] = [
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
    "crates/wireguard",
    "crates/xtask/src/image",
    "crates/xtask/src/image.rs",
];

/// The archive. Building the program takes minutes the first time, and shows cargo's progress.
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

/// The commit that an archive's labels name.
pub(super) fn revision(archive: &Path) -> Result<Option<String>> {
    let file = fs::File::open(archive).with_context(|| format!("open {}", archive.display()))?;
    for entry in tar::Archive::new(file).entries()? {
        let mut entry = entry?;
        // Layers are larger; of the documents, index and manifests have the labels as annotations.
        if entry.size() > LARGEST_DOCUMENT {
            continue;
        }
        let mut text = String::new();
        let document = entry.read_to_string(&mut text).ok();
        let document = document.and_then(|_| serde_json::from_str::<Value>(&text).ok());
        let revision = document.as_ref().and_then(|document| {
            document.pointer("/annotations/org.opencontainers.image.revision")
        });
        if let Some(revision) = revision.and_then(Value::as_str) {
            return Ok(Some(revision.to_owned()));
        }
    }
    Ok(None)
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
    use serde_json::json;

    use super::*;
    use crate::image::layout::Layout;

    #[test]
    fn the_commit_is_read_from_the_labels_of_an_archive() -> Result<()> {
        let mut layout = Layout::default();
        let labels = json!({"org.opencontainers.image.revision": "0123abc"});
        let index = layout.add_json("index", &json!({"annotations": labels}))?;
        layout.add("layer", vec![b'0'; 1 << 21]);
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("image.tar");
        fs::write(&path, layout.archive(index, "name")?)?;
        assert_eq!(revision(&path)?.as_deref(), Some("0123abc"));
        fs::write(&path, Layout::default().archive(json!({}), "name")?)?;
        assert_eq!(revision(&path)?, None);
        Ok(())
    }

    #[test]
    fn every_crate_of_the_program_is_a_source() -> Result<()> {
        let lock = fs::read_to_string(root()?.join("Cargo.lock"))?;
        // What is only for tests and for these commands.
        let others = [
            "crates/fuzz",
            "crates/lab",
            "crates/scenario",
            "crates/xtask",
        ];
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
