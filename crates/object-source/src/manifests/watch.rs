//! Word that something in the folder may have changed. Owns the inotify watches and what they mean.
//!
//! A file counts as changed when its writer closes it, when it is moved or linked into place, and when it
//! goes; until then it is being written and better left alone. The folder's parent is watched as well, because
//! a folder may be replaced as a whole or be reached through a link that is turned round. Notifications
//! can be lost and folders can be where inotify does not reach: whoever waits here also looks by himself now
//! and then.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::folder::{Attention, is_manifest};

/// The watches of one folder.
#[derive(Debug)]
pub(super) struct Watch {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory that is watched.
    watched: Option<(u64, u64)>,
    news: Arc<News>,
}

/// What the watcher's thread has heard.
#[derive(Debug, Default)]
struct News {
    attention: Mutex<Attention>,
    arrived: Notify,
}

impl Watch {
    /// `dir` is absolute. Without inotify (limits, most likely) there are no notifications, and a warning.
    pub(super) fn new(dir: PathBuf) -> Self {
        let news = Arc::new(News::default());
        let (heard, folder) = (news.clone(), dir.clone());
        let mut watcher = notify::recommended_watcher(move |event| heard.take(&folder, event))
            .inspect_err(|error| tracing::warn!(%error, "no notifications about manifests: looking every second"))
            .ok();
        if let (Some(watcher), Some(parent)) = (&mut watcher, dir.parent()) {
            // Failing here costs the promptness of one rare case.
            let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
        }
        Watch {
            dir,
            watcher,
            watched: None,
            news,
        }
    }

    /// Makes sure that the directory now found at the path is the one that is watched. To be called before
    /// reading it, so that no change falls between.
    pub(super) fn renew(&mut self) {
        let there = std::fs::metadata(&self.dir)
            .ok()
            .map(|metadata| (metadata.dev(), metadata.ino()));
        if there == self.watched {
            return;
        }
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        // The old directory's watch, if it is left.
        let _ = watcher.unwatch(&self.dir);
        self.watched = None;
        self.news.lock(|attention| attention.leave.clear());
        if there.is_some() {
            match watcher.watch(&self.dir, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = there,
                Err(error) => {
                    tracing::warn!(%error, "manifests cannot be watched: looking every second")
                }
            }
        }
    }

    /// Waits for news. What they are is learnt from [`Watch::attention`].
    pub(super) async fn news(&self) {
        self.news.arrived.notified().await;
    }

    /// What to look at. The files to read are handed out once; those being written stay on the list.
    pub(super) fn attention(&self) -> Attention {
        self.news.lock(|attention| Attention {
            read: std::mem::take(&mut attention.read),
            leave: attention.leave.clone(),
        })
    }
}

impl News {
    /// On the watcher's thread.
    fn take(&self, dir: &Path, event: notify::Result<Event>) {
        let Ok(event) = event else {
            return self.arrived.notify_one();
        };
        if event.need_rescan() {
            // What became of the files being written is lost: they may be read.
            self.lock(|attention| attention.leave.clear());
            return self.arrived.notify_one();
        }
        for path in &event.paths {
            let within = path.parent() == Some(dir);
            match path.file_name() {
                Some(name) if within && is_manifest(name) => self.file(path, name, event.kind),
                // `..data`, where a ConfigMap's files are; other hidden files are nobody's manifests.
                Some(name) if within && !name.as_encoded_bytes().starts_with(b"..") => {}
                _ if (within || path == dir) && !matches!(event.kind, EventKind::Access(_)) => {
                    self.arrived.notify_one()
                }
                _ => {}
            }
        }
    }

    fn file(&self, path: &Path, name: &OsStr, kind: EventKind) {
        let (read, leave) = match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (true, false),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (true, false),
            // What is found at its name afterwards may be half written already, and is not meant.
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                (false, false)
            }
            // A link is whole from the start, a new file is closed when it is.
            EventKind::Create(_) if is_link(path) => (true, false),
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => (false, true),
            EventKind::Modify(ModifyKind::Metadata(_)) => return self.arrived.notify_one(),
            _ => return,
        };
        self.lock(|attention| {
            if leave {
                attention.leave.insert(name.to_owned());
            } else {
                attention.leave.remove(name);
            }
            if read {
                attention.read.insert(name.to_owned());
            } else {
                attention.read.remove(name);
            }
        });
        if !leave {
            self.arrived.notify_one();
        }
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Attention) -> T) -> T {
        look(
            &mut self
                .attention
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }
}

fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is at the name by the time that somebody looks may be half of the next version.
    #[test]
    fn a_file_moved_aside_is_no_file_to_read() {
        let (dir, news) = (Path::new("/manifests"), News::default());
        let names = |news: &News| news.lock(|attention| attention.read.len());
        let hear = |kind| news.take(dir, Ok(Event::new(kind).add_path(dir.join("web.yaml"))));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        for gone in [
            EventKind::Modify(ModifyKind::Name(RenameMode::From)),
            EventKind::Remove(notify::event::RemoveKind::File),
        ] {
            hear(closed);
            assert_eq!(names(&news), 1);
            hear(gone);
            assert_eq!(names(&news), 0, "{gone:?}");
        }
        hear(EventKind::Modify(ModifyKind::Name(RenameMode::To)));
        assert_eq!(names(&news), 1);
    }
}
