//! The only layer of the image: a tree of files as a tar archive, compressed.
//!
//! Invariant: the bytes are a function of the entries and their time. Folders come first, then files, then links, each sorted.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use flate2::{Compression, GzBuilder};
use tar::{Archive, Builder, EntryType, Header};

/// The extended attribute of file capabilities as PAX header; containerd, podman and GNU tar read it.
const CAPABILITY: &str = "SCHILY.xattr.security.capability";

/// CAP_NET_ADMIN and CAP_NET_RAW in a `vfs_cap_data` of revision 2 (linux/capability.h): permitted, and not effective.
///
/// With the effective bit execve(2) fails with EPERM wherever one of the two is not in the bounding set, for root as well.
/// Measured with runc 1.1 and no_new_privs: with `+ep`, a container with NET_ADMIN alone, or with none (flannel's
/// `install-conf`), does not start. With `+p` it starts, uid 65532 has NET_ADMIN permitted, and the program makes that
/// effective (portolan/src/capabilities.rs).
const NET_ADMIN_AND_NET_RAW: [u8; 20] = {
    let mut data = [0; 20];
    // VFS_CAP_REVISION_2 is 0x02000000; bits 12 and 13 of the permitted set follow. Little-endian on every machine.
    data[3] = 0x02;
    data[5] = 0x30;
    data
};

/// A file of the tree, by its path from the root.
pub(super) struct Entry {
    path: String,
    content: Content,
}

enum Content {
    File(Vec<u8>),
    /// With file capabilities.
    Program(Vec<u8>),
    /// A symbolic link to this path. containerd calls lchown(2) for each hard link, and that takes the file's capabilities.
    Link(&'static str),
}

impl Entry {
    pub(super) fn file(path: &str, content: impl Into<Vec<u8>>) -> Entry {
        Entry {
            path: path.to_owned(),
            content: Content::File(content.into()),
        }
    }

    pub(super) fn program(path: &str, content: Vec<u8>) -> Entry {
        Entry {
            path: path.to_owned(),
            content: Content::Program(content),
        }
    }

    pub(super) fn link(path: &str, to: &'static str) -> Entry {
        Entry {
            path: path.to_owned(),
            content: Content::Link(to),
        }
    }
}

/// A layer, as the digest of its content and as it is distributed.
pub(super) struct Layer {
    pub(super) unpacked: Vec<u8>,
    pub(super) compressed: Vec<u8>,
}

impl Layer {
    /// Packs the entries and the folders that hold them.
    pub(super) fn pack(entries: &[Entry], seconds: u64) -> Result<Layer> {
        let mut builder = Builder::new(Vec::new());
        for folder in folders(entries) {
            append(
                &mut builder,
                EntryType::Directory,
                0o755,
                &folder,
                &[],
                seconds,
            )?;
        }
        let mut sorted: Vec<&Entry> = entries.iter().collect();
        // A link can only be unpacked after what it links to.
        sorted.sort_by_key(|entry| (matches!(entry.content, Content::Link(_)), &entry.path));
        for Entry { path, content } in sorted {
            match content {
                Content::File(bytes) => {
                    append(
                        &mut builder,
                        EntryType::Regular,
                        0o644,
                        path,
                        bytes,
                        seconds,
                    )?;
                }
                Content::Program(bytes) => {
                    builder.append_pax_extensions([(CAPABILITY, &NET_ADMIN_AND_NET_RAW[..])])?;
                    append(
                        &mut builder,
                        EntryType::Regular,
                        0o755,
                        path,
                        bytes,
                        seconds,
                    )?;
                }
                Content::Link(to) => {
                    let mut header = header(EntryType::Symlink, 0o777, 0, seconds);
                    let up = "../".repeat(path.matches('/').count());
                    builder.append_link(&mut header, path, format!("{up}{to}"))?;
                }
            }
        }
        let unpacked = builder.into_inner()?;
        // No name, no time in the header of gzip.
        let mut gzip = GzBuilder::new()
            .operating_system(255)
            .write(Vec::new(), Compression::best());
        gzip.write_all(&unpacked)?;
        let compressed = gzip.finish()?;
        Ok(Layer {
            unpacked,
            compressed,
        })
    }

    /// Writes the tree into a new folder.
    pub(super) fn unpack(&self, folder: &Path) -> Result<()> {
        ensure!(!folder.exists(), "{} exists", folder.display());
        let mut archive = Archive::new(self.unpacked.as_slice());
        archive.set_unpack_xattrs(true);
        archive.set_preserve_permissions(true);
        archive
            .unpack(folder)
            .with_context(|| format!("unpack the layer into {}", folder.display()))
    }
}

/// The files below a folder as a compressed archive, in which `name` is the folder's.
pub(crate) fn pack_folder(folder: &Path, name: &str, seconds: u64) -> Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut folders = vec![(folder.to_owned(), name.to_owned())];
    while let Some((folder, name)) = folders.pop() {
        let files = std::fs::read_dir(&folder);
        for file in files.with_context(|| format!("read {}", folder.display()))? {
            let file = file?;
            let path = format!("{name}/{}", file.file_name().to_string_lossy());
            match file.file_type()?.is_dir() {
                true => folders.push((file.path(), path)),
                false => entries.push(Entry::file(&path, std::fs::read(file.path())?)),
            }
        }
    }
    Ok(Layer::pack(&entries, seconds)?.compressed)
}

/// Every folder above an entry.
fn folders(entries: &[Entry]) -> BTreeSet<String> {
    let above = |entry: &Entry| {
        let parts: Vec<&str> = entry.path.split('/').collect();
        (1..parts.len())
            .map(|depth| {
                parts
                    .iter()
                    .take(depth)
                    .map(|part| format!("{part}/"))
                    .collect()
            })
            .collect::<Vec<String>>()
    };
    entries.iter().flat_map(above).collect()
}

fn append(
    builder: &mut Builder<Vec<u8>>,
    kind: EntryType,
    mode: u32,
    path: &str,
    content: &[u8],
    seconds: u64,
) -> Result<()> {
    let mut header = header(kind, mode, content.len() as u64, seconds);
    builder
        .append_data(&mut header, path, content)
        .with_context(|| format!("pack {path}"))
}

fn header(kind: EntryType, mode: u32, size: u64, seconds: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(seconds);
    header
}
