//! When the tables were last in sync with the cluster, kept in a file for the next process on this node.
//!
//! A process that starts while no API server answers serves the tables of an earlier process, and says with this file how
//! old they are. The time is the file's modification time: it cannot be torn, and need not be flushed, since
//! the tables do not outlive the kernel either. Where the folder does not exist, as outside of pods, nothing is written.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::runtime::Handle;

use crate::parts::Parts;
use crate::status::{Adopted, SharedStatus};

/// In the folder for state, which manifests mount.
const FILE: &str = "/run/portolan/last-sync";
/// Interval between two looks at the status while the tables are not in sync.
const INTERVAL: Duration = Duration::from_secs(1);
/// Interval between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(10);

/// Tables of an earlier process, with the time from its file.
pub(crate) fn adopted() -> Adopted {
    let modified = std::fs::metadata(FILE).and_then(|metadata| metadata.modified());
    let adopted = Adopted {
        synced_at: modified.ok(),
    };
    let age_seconds = adopted.age(SystemTime::now()).map(|age| age.as_secs());
    tracing::info!(
        age_seconds,
        "the tables of an earlier process serve until the first sync"
    );
    adopted
}

/// Starts keeping the file up to date.
pub(crate) fn start(parts: &Parts, status: Arc<SharedStatus>) {
    parts.task("last-sync", &Handle::current(), async move {
        loop {
            let pause = match status.load().is_in_sync() {
                true => match write(Path::new(FILE), SystemTime::now()) {
                    Ok(()) => WRITE_INTERVAL,
                    Err(error) => break report(&error),
                },
                false => INTERVAL,
            };
            tokio::time::sleep(pause).await;
        }
        // A part must not end before the daemon does.
        std::future::pending().await
    });
}

fn write(path: &Path, now: SystemTime) -> io::Result<()> {
    File::create(path)?.set_modified(now)
}

fn report(error: &io::Error) {
    match error.kind() {
        io::ErrorKind::NotFound => {
            tracing::debug!(path = FILE, %error, "not writing the time of the last sync");
        }
        _ => tracing::warn!(
            path = FILE,
            %error,
            "cannot write the time of the last sync: /healthz cannot say how old adopted tables are; mount a directory \
             that uid {} can write at /run/portolan",
            nix::unistd::geteuid()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_written_time_is_the_one_that_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-sync");
        for seconds in [1_000, 2_000] {
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            write(&path, time).unwrap();
            let read = std::fs::metadata(&path).unwrap().modified().unwrap();
            assert_eq!(read, time);
        }
        let missing = folder.path().join("missing/last-sync");
        let error = write(&missing, SystemTime::now()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!missing.exists());
    }
}
