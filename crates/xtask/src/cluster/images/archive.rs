//! Makes an image as an archive for `ctr images import`: a layer of programs and Debian packages. Archives are cached.
//!
//! Invariant: an archive in the cache is complete, and its name contains a hash of its inputs.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use crate::control_plane::cache_folder;
use crate::image::Arch;
use crate::image::layout::{Layout, digest};

/// Part of the key. Raise it when this file starts to make other images of the same inputs.
const MADE_AS: u32 = 2;

/// Folders that Debian has below `/usr`, and the links in their old places.
const MERGED: [&str; 4] = ["bin", "lib", "lib64", "sbin"];

/// An image to make.
#[derive(Default)]
pub(in crate::cluster) struct Spec {
    pub(in crate::cluster) name: String,
    /// Unpacked packages of Debian.
    pub(in crate::cluster) trees: Vec<PathBuf>,
    /// Path in the image, and the program.
    pub(in crate::cluster) programs: Vec<(String, PathBuf)>,
    /// Path in the image, and the target of the link.
    pub(in crate::cluster) links: Vec<(String, String)>,
    /// Path in the image, and the text.
    pub(in crate::cluster) texts: Vec<(String, String)>,
    pub(in crate::cluster) entrypoint: Vec<String>,
    /// Default arguments.
    pub(in crate::cluster) arguments: Vec<String>,
}

impl Spec {
    /// An image that starts one program.
    pub(in crate::cluster) fn of(name: String, path: &str, file: PathBuf) -> Spec {
        Spec {
            name,
            programs: vec![(path.to_owned(), file)],
            entrypoint: vec![format!("/{path}")],
            ..Spec::default()
        }
    }

    /// The archive, from the cache if it is there.
    pub(in crate::cluster) fn make(&self) -> Result<PathBuf> {
        let last = self.name.rsplit('/').next().unwrap_or_default();
        let name = format!("{}-{:016x}.tar", last.replace(':', "-"), self.key()?);
        cached(&name, |draft| {
            let content = self.pack();
            let content = content.with_context(|| format!("make the image {}", self.name))?;
            Ok(fs::write(draft, content)?)
        })
    }

    /// A hash of all inputs. Programs count by size and time, trees by name.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        (MADE_AS, &self.name, &self.trees, &self.links).hash(&mut hasher);
        (&self.texts, &self.entrypoint, &self.arguments).hash(&mut hasher);
        for (path, file) in &self.programs {
            let file = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
            (path, file.len(), file.modified()?).hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn pack(&self) -> Result<Vec<u8>> {
        let layer = self.layer()?;
        let mut layout = Layout::default();
        let architecture = Arch::host()?.name();
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Entrypoint": self.entrypoint,
                "Cmd": self.arguments,
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let oci = |kind: &str| format!("application/vnd.oci.image.{kind}");
        // Not compressed: it is imported on this machine only.
        let layer = layout.add(&oci("layer.v1.tar"), layer);
        let manifest: Value = json!({
            "schemaVersion": 2,
            "mediaType": oci("manifest.v1+json"),
            "config": layout.add_json(&oci("config.v1+json"), &config)?,
            "layers": [layer],
        });
        let mut image = layout.add_json(&oci("manifest.v1+json"), &manifest)?;
        image["platform"] = json!({"architecture": architecture, "os": "linux"});
        layout.archive(image, &self.name)
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = LayerOfFiles::default();
        for (folder, mode) in [("etc", 0o755), ("tmp", 0o1777), ("usr", 0o755)] {
            layer.folder(folder, mode)?;
        }
        for folder in MERGED {
            layer.folder(&format!("usr/{folder}"), 0o755)?;
            layer.link(folder, &format!("usr/{folder}"))?;
        }
        for (path, file) in &self.programs {
            layer.file(path, 0o755, &read(file)?)?;
        }
        for (path, text) in &self.texts {
            layer.file(path, 0o644, text.as_bytes())?;
        }
        for (path, target) in &self.links {
            layer.link(path, target)?;
        }
        for tree in &self.trees {
            layer.tree(tree, tree)?;
        }
        Ok(layer.builder.into_inner()?)
    }
}

/// A file of the cache. If it does not exist, `make` writes a draft, which is then renamed. A second caller waits for the first.
pub(super) fn cached(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let cache = cache_folder("cluster-images")?;
    fs::create_dir_all(&cache)?;
    let archive = cache.join(name);
    // A lock for each image: to build Portolan takes minutes, and other clusters may not need it.
    let lock = File::create(archive.with_extension("lock"))?;
    lock.lock()
        .context("wait for another command that makes this image")?;
    if archive.exists() {
        return Ok(archive);
    }
    eprintln!("         making {name}");
    let draft = archive.with_extension("draft");
    make(&draft)?;
    fs::rename(&draft, &archive)?;
    Ok(archive)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("read {}", file.display()))
}

/// A layer that is being written. If two entries have the same path, the first is kept.
struct LayerOfFiles {
    builder: Builder<Vec<u8>>,
    paths: BTreeSet<String>,
}

impl Default for LayerOfFiles {
    fn default() -> LayerOfFiles {
        LayerOfFiles {
            builder: Builder::new(Vec::new()),
            paths: BTreeSet::new(),
        }
    }
}

impl LayerOfFiles {
    fn folder(&mut self, path: &str, mode: u32) -> Result<()> {
        if self.paths.insert(path.to_owned()) {
            let mut header = header(EntryType::Directory, mode, 0);
            let path = format!("{path}/");
            self.builder
                .append_data(&mut header, path, std::io::empty())?;
        }
        Ok(())
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        let path = merged(path);
        if self.paths.insert(path.clone()) {
            let mut header = header(EntryType::Regular, mode, content.len() as u64);
            self.builder.append_data(&mut header, path, content)?;
        }
        Ok(())
    }

    fn link(&mut self, path: &str, target: &str) -> Result<()> {
        let path = match MERGED.contains(&path) {
            true => path.to_owned(),
            false => merged(path),
        };
        if self.paths.insert(path.clone()) {
            let mut header = header(EntryType::Symlink, 0o777, 0);
            self.builder.append_link(&mut header, path, target)?;
        }
        Ok(())
    }

    /// Adds everything below a folder except documentation.
    fn tree(&mut self, tree: &Path, folder: &Path) -> Result<()> {
        let mut entries = fs::read_dir(folder)
            .with_context(|| format!("list {}", folder.display()))?
            .collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let file = entry.path();
            let path = file.strip_prefix(tree)?.to_string_lossy().into_owned();
            let kind = entry.file_type()?;
            if kind.is_dir() {
                if path != "usr/share" && !MERGED.contains(&&*path) {
                    self.folder(&merged(&path), 0o755)?;
                }
                if path != "usr/share" {
                    self.tree(tree, &file)?;
                }
            } else if kind.is_symlink() {
                self.link(&path, &fs::read_link(&file)?.to_string_lossy())?;
            } else if path != "complete" {
                self.file(&path, 0o755, &read(&file)?)?;
            }
        }
        Ok(())
    }
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

/// `lib/x` is `usr/lib/x`.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    match MERGED.contains(&first) {
        true => format!("usr/{path}"),
        false => path.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_places_of_debians_folders_are_below_usr() {
        assert_eq!(
            merged("lib/x86_64-linux-gnu/a"),
            "usr/lib/x86_64-linux-gnu/a"
        );
        assert_eq!(merged("usr/lib/a"), "usr/lib/a");
        assert_eq!(merged("library/a"), "library/a");
    }

    #[test]
    fn a_path_that_two_parts_have_is_packed_once() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for (path, text) in [
            ("lib/one", "one"),
            ("usr/lib/one", "two"),
            ("usr/share/doc", ""),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("no parent")?)?;
            fs::write(path, text)?;
        }
        let spec = Spec {
            trees: vec![folder.path().to_owned()],
            ..Spec::default()
        };
        let layer = spec.layer()?;
        let mut archive = tar::Archive::new(layer.as_slice());
        let mut paths = Vec::new();
        for entry in archive.entries()? {
            paths.push(entry?.path()?.to_string_lossy().into_owned());
        }
        assert_eq!(
            paths.iter().filter(|path| *path == "usr/lib/one").count(),
            1
        );
        assert!(
            !paths.iter().any(|path| path.contains("share")),
            "{paths:?}"
        );
        Ok(())
    }
}
