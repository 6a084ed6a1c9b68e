//! The OCI image layout, as a folder and as one tar archive.
//!
//! Owns digests and descriptors; what the documents say is the caller's. Invariant: a blob's name is the digest of its bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{Builder, Header};

/// Blobs by their digest.
#[derive(Default)]
pub(crate) struct Layout {
    blobs: BTreeMap<String, Vec<u8>>,
}

impl Layout {
    /// Adds a blob and returns its descriptor.
    pub(crate) fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        let digest = digest(&content);
        let descriptor = json!({
            "mediaType": media_type,
            "digest": digest,
            "size": content.len(),
        });
        self.blobs.insert(digest, content);
        descriptor
    }

    /// Adds a document and returns its descriptor.
    pub(crate) fn add_json(&mut self, media_type: &str, document: &Value) -> Result<Value> {
        Ok(self.add(media_type, serde_json::to_vec(document)?))
    }

    /// Writes the folder anew, and the archive. `image` is the descriptor that gets the name.
    pub(super) fn write(
        &self,
        folder: &Path,
        archive: &Path,
        image: Value,
        name: &str,
        seconds: u64,
    ) -> Result<()> {
        let files = self.files(image, name)?;
        write_folder(folder, &files).with_context(|| format!("write {}", folder.display()))?;
        let packed = pack(&files, seconds)?;
        fs::write(archive, packed).with_context(|| format!("write {}", archive.display()))
    }

    /// The archive alone.
    pub(crate) fn archive(&self, image: Value, name: &str) -> Result<Vec<u8>> {
        pack(&self.files(image, name)?, 0)
    }

    /// What both hold, by path.
    fn files(&self, mut image: Value, name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        // containerd reads the first; podman and skopeo read the second.
        image["annotations"] = json!({
            "io.containerd.image.name": name,
            "org.opencontainers.image.ref.name": name,
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [image],
        });
        let mut files = vec![
            (
                "oci-layout".to_owned(),
                br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec(),
            ),
            ("index.json".to_owned(), serde_json::to_vec(&index)?),
        ];
        for (digest, content) in &self.blobs {
            files.push((
                format!("blobs/{}", digest.replace(':', "/")),
                content.clone(),
            ));
        }
        Ok(files)
    }
}

fn write_folder(folder: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder.join("blobs/sha256"))?;
    for (path, content) in files {
        fs::write(folder.join(path), content)?;
    }
    Ok(())
}

fn pack(files: &[(String, Vec<u8>)], seconds: u64) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(seconds);
        builder.append_data(&mut header, path, content.as_slice())?;
    }
    Ok(builder.into_inner()?)
}

/// The digest of the image in a layout: what `image@sha256:...` names.
pub(super) fn digest_of_index(folder: &Path) -> Result<String> {
    let index: Value = serde_json::from_slice(&fs::read(folder.join("index.json"))?)?;
    let digest = index["manifests"][0]["digest"].as_str();
    digest.map(str::to_owned).context("no digest in index.json")
}

/// `sha256:` and the digest in hexadecimal.
pub(crate) fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hexadecimal(content))
}

/// The SHA-256 of these bytes in hexadecimal.
pub(crate) fn hexadecimal(content: &[u8]) -> String {
    let digest = Sha256::digest(content);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
