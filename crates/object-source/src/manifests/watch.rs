//! Notifications that the folder may have changed. Owns the inotify watches and what their events mean.
//!
//! A file has changed when its writer closes it, when it is moved or linked into place, and when it is removed; until then
//! it is being written. The folder's parent is watched as well, because a folder may be replaced as a whole or be reached
//! through a link that changes. Notifications can be lost, and inotify does not reach every file system: the caller also
//! polls.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use super::folder::{Hints, is_manifest};

/// The watches of one folder.
#[derive(Debug)]
pub(super) struct Watch {
    dir: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of the directory that is watched.
    watched: Option<(u64, u64)>,
    notifications: Arc<Notifications>,
}

/// What the watcher's thread has received.
#[derive(Debug, Default)]
struct Notifications {
    hints: Mutex<Hints>,
    arrived: Notify,
}

impl Watch {
    /// `dir` is absolute. Without inotify (limits, most likely) there are no notifications, and a warning.
    pub(super) fn new(dir: PathBuf) -> Self {
        let notifications = Arc::new(Notifications::default());
        let (receiver, folder) = (notifications.clone(), dir.clone());
        let mut watcher = notify::recommended_watcher(move |event| receiver.receive(&folder, event))
            .inspect_err(|error| tracing::warn!(%error, "cannot use inotify; polling the manifests every second"))
            .ok();
        if let (Some(watcher), Some(parent)) = (&mut watcher, dir.parent()) {
            // Failing here costs the promptness of one rare case.
            let _ = watcher.watch(parent, RecursiveMode::NonRecursive);
        }
        Watch {
            dir,
            watcher,
            watched: None,
            notifications,
        }
    }

    /// Makes sure that the directory now at the path is the watched one. Call before reading it, so that no change is missed.
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
        self.notifications.lock(|hints| hints.being_written.clear());
        if there.is_some() {
            match watcher.watch(&self.dir, RecursiveMode::NonRecursive) {
                Ok(()) => self.watched = there,
                Err(error) => {
                    tracing::warn!(%error, "cannot watch the manifests; polling them every second")
                }
            }
        }
    }

    /// Waits for a notification; [`Watch::hints`] says which files.
    pub(super) async fn changed(&self) {
        self.notifications.arrived.notified().await;
    }

    /// What notifications say about files. Written files are returned once; files being written stay on the list.
    pub(super) fn hints(&self) -> Hints {
        self.notifications.lock(|hints| Hints {
            written: std::mem::take(&mut hints.written),
            being_written: hints.being_written.clone(),
        })
    }
}

impl Notifications {
    /// On the watcher's thread.
    fn receive(&self, dir: &Path, event: notify::Result<Event>) {
        let Ok(event) = event else {
            return self.arrived.notify_one();
        };
        if event.need_rescan() {
            // The ends of writes are lost: the files may be read.
            self.lock(|hints| hints.being_written.clear());
            return self.arrived.notify_one();
        }
        for path in &event.paths {
            let within = path.parent() == Some(dir);
            match path.file_name() {
                Some(name) if within && is_manifest(name) => self.file(path, name, event.kind),
                // `..data`, where a ConfigMap's files are; other hidden files are not manifests.
                Some(name) if within && !name.as_encoded_bytes().starts_with(b"..") => {}
                _ if (within || path == dir) && !matches!(event.kind, EventKind::Access(_)) => {
                    self.arrived.notify_one()
                }
                _ => {}
            }
        }
    }

    fn file(&self, path: &Path, name: &OsStr, kind: EventKind) {
        let (is_written, is_being_written) = match kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => (true, false),
            EventKind::Modify(ModifyKind::Name(RenameMode::To)) => (true, false),
            // A later file of that name may be half written.
            EventKind::Modify(ModifyKind::Name(RenameMode::From)) | EventKind::Remove(_) => {
                (false, false)
            }
            // A link is whole from the start, a new file is closed when it is.
            EventKind::Create(_) if is_link(path) => (true, false),
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => (false, true),
            EventKind::Modify(ModifyKind::Metadata(_)) => return self.arrived.notify_one(),
            _ => return,
        };
        self.lock(|hints| {
            if is_being_written {
                hints.being_written.insert(name.to_owned());
            } else {
                hints.being_written.remove(name);
            }
            if is_written {
                hints.written.insert(name.to_owned());
            } else {
                hints.written.remove(name);
            }
        });
        if !is_being_written {
            self.arrived.notify_one();
        }
    }

    fn lock<T>(&self, look: impl FnOnce(&mut Hints) -> T) -> T {
        look(&mut self.hints.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn is_link(path: &Path) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|metadata| metadata.is_symlink() || metadata.nlink() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file of that name may be half of the next version by the next poll.
    #[test]
    fn a_file_moved_aside_is_not_read() {
        let (dir, notifications) = (Path::new("/manifests"), Notifications::default());
        let names = |notifications: &Notifications| notifications.lock(|hints| hints.written.len());
        let receive =
            |kind| notifications.receive(dir, Ok(Event::new(kind).add_path(dir.join("web.yaml"))));
        let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
        for gone in [
            EventKind::Modify(ModifyKind::Name(RenameMode::From)),
            EventKind::Remove(notify::event::RemoveKind::File),
        ] {
            receive(closed);
            assert_eq!(names(&notifications), 1);
            receive(gone);
            assert_eq!(names(&notifications), 0, "{gone:?}");
        }
        receive(EventKind::Modify(ModifyKind::Name(RenameMode::To)));
        assert_eq!(names(&notifications), 1);
    }
}
