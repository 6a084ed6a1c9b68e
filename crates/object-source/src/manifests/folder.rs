//! The files of a folder as they were last readable: reads files, and leaves their meaning to `contents`.
//!
//! A file is read after a notification that it was written, and when it differs from what was read before, but not while it
//! is known to be written. A file that cannot be read keeps its last good contents. A difference without a
//! notification must last for [`GRACE`]: some editors move the old file aside before they write the new one, and the
//! notification that a write has begun may arrive after the poll that finds half a file.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{DirEntry, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use service_model::wire::ConversionContext;

use super::ManifestsConfig;
use super::contents::{self, Contents, Rules, Text};
use crate::Problem;

/// A file larger than this is refused: 100,000 endpoints take about 15 MB.
const MAX_FILE: u64 = 64 << 20;
/// Texts of this size together are in memory at a time, and are parsed together.
const BATCH: usize = 16 << 20;
/// See the module.
pub(super) const GRACE: Duration = Duration::from_millis(30);

/// What notifications say about files.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Written: read even if the file looks the same, as two edits may fall into one tick of the file system's clock.
    pub(super) written: BTreeSet<OsString>,
    /// Being written.
    pub(super) being_written: BTreeSet<OsString>,
}

/// The folder.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    rules: Rules,
    /// By name: the order decides which of two files owns an object.
    files: BTreeMap<OsString, FileState>,
    /// Files that differ from what was read: how they look now (`None`: the file is gone), and since when.
    differing: BTreeMap<OsString, (Option<Fingerprint>, Instant)>,
    /// No file has been read yet, so there are no last good contents to keep.
    first: bool,
}

/// A file as it was last readable.
#[derive(Debug, Default)]
pub(super) struct FileState {
    seen: Option<Fingerprint>,
    /// The last valid contents.
    pub(super) contents: Contents,
    /// The present problem of the file itself.
    pub(super) problem: Option<Problem>,
}

/// Identifies a version of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Fingerprint {
    fn of(metadata: &Metadata) -> Self {
        Fingerprint {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// What to do about a file.
enum Action {
    /// Keep what was read.
    Keep,
    /// Keep what was read until the difference has lasted.
    Wait,
    /// Read the file, or remove it if it is gone.
    Update,
}

/// The result of a refresh.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refreshed {
    /// The state of a file has changed.
    pub(super) changed: bool,
    /// A file differs for less than [`GRACE`]: refresh again then.
    pub(super) unsettled: bool,
}

/// The folder cannot be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the directory of --manifests {dir:?}")]
pub(super) struct Unlisted {
    dir: PathBuf,
    source: io::Error,
}

impl Folder {
    pub(super) fn new(config: &ManifestsConfig) -> Self {
        Folder {
            dir: config.dir.clone(),
            rules: Rules::new(
                config.node_ports.clone(),
                ConversionContext::new(config.proxy_name.clone()),
            ),
            files: BTreeMap::new(),
            differing: BTreeMap::new(),
            first: true,
        }
    }

    pub(super) fn files(&self) -> impl Iterator<Item = (PathBuf, &FileState)> {
        self.files
            .iter()
            .map(|(name, file)| (self.dir.join(name), file))
    }

    /// Compares the folder with what was read, and reads what differs. Fails when the folder cannot be listed; then nothing
    /// changes.
    pub(super) fn refresh(&mut self, hints: &Hints, now: Instant) -> Result<Refreshed, Unlisted> {
        let present = self.list().map_err(|source| Unlisted {
            dir: self.dir.clone(),
            source,
        })?;
        let mut refreshed = Refreshed {
            changed: false,
            unsettled: false,
        };
        self.differing
            .retain(|name, _| present.contains_key(name) || self.files.contains_key(name));
        let names: BTreeSet<_> = present.keys().chain(self.files.keys()).cloned().collect();
        let mut to_read = Vec::new();
        for name in names {
            let there = present.get(&name).copied();
            match self.action(&name, there, hints, now) {
                Action::Keep => {
                    self.differing.remove(&name);
                    continue;
                }
                Action::Wait => {
                    refreshed.unsettled = true;
                    continue;
                }
                Action::Update => {}
            }
            self.differing.remove(&name);
            refreshed.changed = true;
            if there.is_some() {
                to_read.push(name);
            } else {
                self.files.remove(&name);
            }
        }
        self.read(to_read);
        self.first = false;
        Ok(refreshed)
    }

    /// What to do about a file that looks like `there` now.
    fn action(
        &mut self,
        name: &OsStr,
        there: Option<Fingerprint>,
        hints: &Hints,
        now: Instant,
    ) -> Action {
        let known = self.files.get(name);
        let same = known.is_some_and(|file| there.is_some() && file.seen == there);
        if there.is_some() && hints.being_written.contains(name) {
            return Action::Keep;
        }
        if there.is_some() && (self.first || hints.written.contains(name)) {
            return Action::Update;
        }
        if same {
            return Action::Keep;
        }
        let (looked, since) = self
            .differing
            .entry(name.to_owned())
            .or_insert((there, now));
        if *looked != there {
            (*looked, *since) = (there, now);
        }
        if now.saturating_duration_since(*since) < GRACE {
            Action::Wait
        } else {
            Action::Update
        }
    }

    fn list(&self) -> io::Result<BTreeMap<OsString, Fingerprint>> {
        let mut present = BTreeMap::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let entry: DirEntry = entry?;
            let name = entry.file_name();
            if !is_manifest(&name) {
                continue;
            }
            // Follows links. A dangling one is a file that is gone: a ConfigMap's key, between two steps of
            // its removal.
            match std::fs::metadata(entry.path()) {
                Ok(metadata) if metadata.is_file() => {
                    present.insert(name, Fingerprint::of(&metadata));
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                // A loop of links, for example: reading it gives the reason.
                Err(_) => {
                    present.insert(name, Fingerprint::default());
                }
            }
        }
        Ok(present)
    }

    fn read(&mut self, names: Vec<OsString>) {
        let (mut loaded, mut size) = (Vec::new(), 0);
        for name in names {
            let path = self.dir.join(&name);
            match load(&path) {
                Ok((seen, text)) => {
                    size += text.len();
                    loaded.push(Loaded { name, seen, text });
                }
                Err((seen, reason)) => {
                    let file = self.files.entry(name).or_default();
                    file.seen = seen;
                    let line = 0;
                    file.problem = Some(Problem::File { path, line, reason });
                }
            }
            if size >= BATCH {
                self.parse(std::mem::take(&mut loaded));
                size = 0;
            }
        }
        self.parse(loaded);
    }

    fn parse(&mut self, loaded: Vec<Loaded>) {
        let nothing = Contents::default();
        let known = |name: &OsString| self.files.get(name).map(|file| &file.contents);
        let texts: Vec<Text<'_>> = loaded
            .iter()
            .map(|Loaded { name, text, .. }| Text {
                text,
                known: known(name).unwrap_or(&nothing),
            })
            .collect();
        let drafts = contents::read(&texts, &self.rules);
        for (Loaded { name, seen, .. }, draft) in loaded.into_iter().zip(drafts) {
            let path = self.dir.join(&name);
            let file = self.files.entry(name).or_default();
            file.seen = Some(seen);
            file.problem = None;
            let ignored = file.contents.ignored();
            let before: BTreeSet<String> = ignored.map(|(_, kind)| kind.to_owned()).collect();
            file.contents.apply(draft);
            warn_of_ignored(&path, &file.contents, before);
        }
    }
}

/// A file whose text is in memory.
struct Loaded {
    name: OsString,
    seen: Fingerprint,
    text: String,
}

/// Once for each file and kind.
fn warn_of_ignored(path: &Path, contents: &Contents, mut warned: BTreeSet<String>) {
    for (line, kind) in contents.ignored() {
        if !warned.contains(kind) {
            warned.insert(kind.to_owned());
            tracing::warn!(?path, line, kind, "objects of this kind are ignored");
        }
    }
}

/// The text of a regular file, and which version of it that is.
fn load(path: &Path) -> Result<(Fingerprint, String), (Option<Fingerprint>, String)> {
    let io_error = |error: io::Error| (None, format!("cannot be read: {error}"));
    // Opening a pipe for reading would wait for a writer.
    let flags = nix::fcntl::OFlag::O_NONBLOCK.bits();
    let file: File = OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    let seen = Fingerprint::of(&metadata);
    let refuse = |reason: String| (Some(seen), reason);
    if !metadata.is_file() {
        return Err(refuse("is not a regular file".into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(io_error)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(refuse(format!("is larger than {} MiB", MAX_FILE >> 20)));
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| refuse(format!("is not UTF-8: {}", error.utf8_error())))?;
    // A byte order mark is no part of the text.
    Ok((
        seen,
        text.strip_prefix('\u{feff}')
            .map(str::to_owned)
            .unwrap_or(text),
    ))
}

/// Whether a file has a manifest's ending and is neither hidden nor left by an editor.
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let path = Path::new(name);
    let ending = path.extension().and_then(OsStr::to_str);
    let first = name.as_encoded_bytes().first();
    matches!(ending, Some("yaml" | "yml" | "json")) && !matches!(first, Some(b'.' | b'#'))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tests::{config, service};
    use super::*;

    /// Notifications arrive on another thread: a poll may be faster.
    #[test]
    fn half_a_file_without_a_notification_is_not_read() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("web.yaml");
        fs::write(&file, service("web", "10.96.0.1", 80)).unwrap();
        let mut folder = Folder::new(&config(dir.path()));
        let start = Instant::now();
        let unnotified = Hints::default();
        let refresh = |folder: &mut Folder, hints: &Hints, after: Duration| {
            let refreshed = folder.refresh(hints, start + after).unwrap();
            let services: usize = folder
                .files()
                .map(|(_, file)| file.contents.objects().count())
                .sum();
            (refreshed.changed, refreshed.unsettled, services)
        };
        let ms = Duration::from_millis;
        assert_eq!(refresh(&mut folder, &unnotified, ms(0)), (true, false, 1));

        fs::write(&file, "").unwrap();
        assert_eq!(refresh(&mut folder, &unnotified, ms(1)), (false, true, 1));
        fs::write(&file, "apiVersion: v1\n").unwrap();
        // Another difference: its time starts again.
        assert_eq!(refresh(&mut folder, &unnotified, ms(40)), (false, true, 1));
        fs::write(&file, service("web", "10.96.0.1", 81)).unwrap();
        let notified = Hints {
            written: [OsString::from("web.yaml")].into(),
            being_written: BTreeSet::new(),
        };
        assert_eq!(refresh(&mut folder, &notified, ms(41)), (true, false, 1));
        assert_eq!(refresh(&mut folder, &unnotified, ms(42)), (false, false, 1));

        // A difference that lasts counts, with or without a notification.
        fs::write(&file, "").unwrap();
        assert_eq!(refresh(&mut folder, &unnotified, ms(50)), (false, true, 1));
        assert_eq!(refresh(&mut folder, &unnotified, ms(80)), (true, false, 0));
    }

    #[test]
    fn temporary_files_of_editors_are_not_manifests() {
        for name in ["a.yaml", "a.b.yml", "x.json"] {
            assert!(is_manifest(OsStr::new(name)), "{name}");
        }
        for name in [
            ".a.yaml",
            ".a.yaml.swp",
            "a.yaml~",
            "#a.yaml#",
            "#a.yaml",
            "4913",
            "..data",
            "a.txt",
            "sedX1.bak",
        ] {
            assert!(!is_manifest(OsStr::new(name)), "{name}");
        }
    }
}
