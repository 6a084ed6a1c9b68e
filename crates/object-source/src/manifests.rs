//! A folder of manifests as the source of objects: for trying the program, for tests, and for machines without a cluster.
//!
//! The view is the folder's files together (`*.yaml`, `*.yml`, `*.json`, not those in subfolders). They hold Services,
//! EndpointSlices, Nodes and ServiceCIDRs, in several documents or lists, as `kubectl get -o yaml` prints them; a Service or
//! EndpointSlice without a namespace is in `default`. Without an API server the range of node ports is checked here.
//!
//! [`watch`] receives notifications, [`folder`] reads files, [`contents`] keeps their documents, [`document`], [`value`] and
//! [`line`] parse them, [`view`] compares their contents with the events sent so far. `notify-debouncer-full` was considered: it waits for a pause between changes, which
//! also comes in the middle of a slowly written file, while [`watch`] knows which files are being written.
//!
//! Invariant: the last good version of a file keeps serving, whatever happens to the file or the folder. An object is deleted
//! when a readable file no longer holds it.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use service_model::ObjectKind;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use crate::{Outage, SourceEvent};

mod contents;
mod document;
mod folder;
mod line;
mod value;
mod view;
mod watch;

use folder::{Folder, GRACE, Hints, Unlisted};
use view::FolderView;
use watch::Watch;

/// Lets the parts of one edit (a file moved away, another moved in) come together.
const SETTLE: Duration = Duration::from_millis(2);
/// How often the folder is compared without a notification.
const TICK: Duration = Duration::from_secs(1);

/// Folder, and the settings that an API server would check.
#[derive(Clone, Debug)]
pub struct ManifestsConfig {
    /// The folder.
    pub dir: PathBuf,
    /// Node ports that a Service may ask for.
    pub node_ports: RangeInclusive<u16>,
    /// Read Services with this `service-proxy-name` label (`--service-proxy-name`).
    pub proxy_name: Option<Arc<str>>,
}

/// Reads the folder once: a `Reset` of each kind, then the problems. Fails when the folder cannot be listed.
pub fn read(config: &ManifestsConfig) -> anyhow::Result<Vec<SourceEvent>> {
    let mut folder = Folder::new(config);
    folder.refresh(&Hints::default(), Instant::now())?;
    Ok(FolderView::default().reset_events(&folder))
}

/// Reads the folder and follows it until canceled or until the receiver is dropped. Fails when the folder cannot be listed
/// at the start; later that is reported, and the last view keeps serving.
pub async fn run(
    config: ManifestsConfig,
    events: Sender<SourceEvent>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let dir = std::path::absolute(&config.dir).context("finding the manifest folder")?;
    let mut source = Source {
        watch: Watch::new(dir),
        folder: Folder::new(&config),
        view: FolderView::default(),
        folder_state: FolderState::Unknown,
    };
    loop {
        let polled;
        (source, polled) = source.poll().await?;
        let (changes, pause) = polled?;
        for event in changes {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                sent = events.send(event) => if sent.is_err() { return Ok(()) },
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = source.watch.changed() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The state of the source.
#[derive(Debug)]
struct Source {
    watch: Watch,
    folder: Folder,
    view: FolderView,
    folder_state: FolderState,
}

/// The last reported state of the folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FolderState {
    /// Not reported yet.
    Unknown,
    /// The folder can be listed.
    Readable,
    /// The folder cannot be listed at present.
    Unreadable,
}

/// Events to send, and how long to wait before the next poll.
type Polled = Result<(Vec<SourceEvent>, Duration), Unlisted>;

impl Source {
    /// Reads off the runtime's threads: a big file takes a while.
    async fn poll(mut self) -> anyhow::Result<(Self, Polled)> {
        let task = tokio::task::spawn_blocking(move || {
            let polled = self.poll_now();
            (self, polled)
        });
        task.await.context("reading the manifests")
    }

    /// Fails only at the first poll.
    fn poll_now(&mut self) -> Polled {
        self.watch.renew();
        let refreshed = match self.folder.refresh(&self.watch.hints(), Instant::now()) {
            Ok(refreshed) => refreshed,
            Err(error) if self.folder_state == FolderState::Unknown => return Err(error),
            Err(error) if self.folder_state == FolderState::Readable => {
                self.folder_state = FolderState::Unreadable;
                let outage = Outage {
                    reason: format!("{:#}", anyhow::Error::from(error)),
                    retry_after: TICK,
                };
                return Ok((connection(&Err(outage)), TICK));
            }
            Err(_) => return Ok((Vec::new(), TICK)),
        };
        let mut events = Vec::new();
        if self.folder_state != FolderState::Readable {
            events.extend(connection(&Ok(())));
        }
        if self.folder_state == FolderState::Unknown {
            events.extend(self.view.reset_events(&self.folder));
        } else if refreshed.changed {
            events.extend(self.view.change_events(&self.folder));
        }
        self.folder_state = FolderState::Readable;
        Ok((events, if refreshed.unsettled { GRACE } else { TICK }))
    }
}

fn connection(state: &Result<(), Outage>) -> Vec<SourceEvent> {
    let kinds = [
        ObjectKind::Node,
        ObjectKind::ServiceCidr,
        ObjectKind::Service,
        ObjectKind::EndpointSlice,
    ];
    kinds
        .map(|kind| SourceEvent::Connection {
            kind,
            state: state.clone(),
        })
        .into()
}

#[cfg(test)]
mod tests;
