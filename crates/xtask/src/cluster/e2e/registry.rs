//! What `fake-registry-server` of agnhost serves: a pause image made here, in the folders that upstream's `prepare_registry.sh`
//! makes for the image that it downloads.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::images;

/// The image's folder in the image of agnhost, and its tag (`images.txt` of agnhost).
const IMAGE: (&str, &str) = ("var/registry/pause", "testing");

/// A tree with these folders, in the cache beside the image's archive.
pub(super) fn tree() -> Result<PathBuf> {
    let archive = images::pause_of("localhost/pause:testing")?.make()?;
    let tree = archive.with_extension("registry");
    if !tree.exists() {
        let draft = archive.with_extension("registry-draft");
        let _ = fs::remove_dir_all(&draft);
        unpack(&archive, &draft.join(IMAGE.0))
            .with_context(|| format!("unpack {}", archive.display()))?;
        fs::rename(&draft, &tree)?;
    }
    Ok(tree)
}

/// Writes each blob of an archive, and the file of the tag, which has the digest of the manifest.
fn unpack(archive: &Path, folder: &Path) -> Result<()> {
    for entry in tar::Archive::new(File::open(archive)?).entries()? {
        let mut entry = entry?;
        let path = entry.path()?.to_string_lossy().into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content)?;
        if path == "index.json" {
            let index: Value = serde_json::from_slice(&content)?;
            let digest = index.pointer("/manifests/0/digest");
            let digest = digest.and_then(Value::as_str).context("no manifest")?;
            write(&folder.join("manifests").join(IMAGE.1), digest.as_bytes())?;
        } else if let Some(digest) = path.strip_prefix("blobs/sha256/") {
            let start = digest.get(..2).context("no digest")?;
            // A registry has manifests apart. The other files are never asked for.
            for kind in ["manifests", "blobs"] {
                let file = folder.join(kind).join("sha256").join(start).join(digest);
                write(&file.join("data"), &content)?;
            }
        }
    }
    Ok(())
}

fn write(file: &Path, content: &[u8]) -> Result<()> {
    fs::create_dir_all(file.parent().context("no folder")?)?;
    Ok(fs::write(file, content)?)
}
