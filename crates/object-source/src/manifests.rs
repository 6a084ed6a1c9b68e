//! A folder of manifests as the source of objects: for trying the program, for tests, and for machines that
//! run no cluster.
//!
//! The folder's files (`*.yaml`, `*.yml`, `*.json`, not those in folders below it) together are the view. They
//! hold Services, EndpointSlices, Nodes and ServiceCIDRs, in several documents or lists, as `kubectl get -o
//! yaml` prints them; a Service or EndpointSlice without a namespace is in `default`. There is no API server to
//! keep its rules, so the range of node ports is checked here.
//!
//! * [`watch`] says when to look, [`folder`] reads files, [`document`] and [`line`] understand them, [`view`]
//!   compares what they say with what has been told.
//!
//! Whatever happens to a file or to the whole folder, what was last good keeps being served; objects go when a
//! file that can be read no longer holds them.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use service_model::ObjectKind;
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

use crate::{Outage, SourceEvent};

mod document;
mod folder;
mod line;
mod view;
mod watch;

use folder::{Attention, Folder, GRACE, Unlisted};
use view::View;
use watch::Watch;

/// Lets the parts of one edit (a file moved away, another moved in) come together.
const SETTLE: Duration = Duration::from_millis(2);
/// How often the folder is compared without having been told to.
const TICK: Duration = Duration::from_secs(1);

/// Which folder, and what an API server would have refused.
#[derive(Clone, Debug)]
pub struct ManifestsConfig {
    /// The folder.
    pub dir: PathBuf,
    /// Node ports that a Service may ask for.
    pub node_ports: RangeInclusive<u16>,
    /// Whose Services to read (`--service-proxy-name`).
    pub proxy_name: Option<Arc<str>>,
}

/// Reads the folder once: a `Reset` of each kind, then the problems. Fails when it cannot be listed.
pub fn read(config: &ManifestsConfig) -> anyhow::Result<Vec<SourceEvent>> {
    let mut folder = Folder::new(config);
    folder.refresh(&Attention::default(), Instant::now())?;
    Ok(View::default().tell_all(&folder))
}

/// Reads the folder and follows it until `cancel`led or nobody listens. Fails when it cannot be listed at the
/// start; later that is reported, and the last view keeps serving.
pub async fn run(
    config: ManifestsConfig,
    events: Sender<SourceEvent>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let dir = std::path::absolute(&config.dir).context("finding the manifest folder")?;
    let mut source = Source {
        watch: Watch::new(dir),
        folder: Folder::new(&config),
        view: View::default(),
        told: Told::Nothing,
    };
    loop {
        let looked;
        (source, looked) = source.look().await?;
        let (news, pause) = looked?;
        for event in news {
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                sent = events.send(event) => if sent.is_err() { return Ok(()) },
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            () = source.watch.news() => tokio::time::sleep(SETTLE).await,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The state of the source.
#[derive(Debug)]
struct Source {
    watch: Watch,
    folder: Folder,
    view: View,
    told: Told,
}

/// What has been told of the folder itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Nothing yet.
    Nothing,
    /// It can be read.
    Readable,
    /// It cannot be read at present.
    Unreadable,
}

/// What there is to tell, and how long to wait before the next look.
type Looked = Result<(Vec<SourceEvent>, Duration), Unlisted>;

impl Source {
    /// Looks off the runtime's threads: a big file takes a while to read.
    async fn look(mut self) -> anyhow::Result<(Self, Looked)> {
        let task = tokio::task::spawn_blocking(move || {
            let looked = self.look_now();
            (self, looked)
        });
        task.await.context("reading the manifests")
    }

    /// Fails only at the first look.
    fn look_now(&mut self) -> Looked {
        self.watch.renew();
        let refreshed = match self.folder.refresh(&self.watch.attention(), Instant::now()) {
            Ok(refreshed) => refreshed,
            Err(error) if self.told == Told::Nothing => return Err(error),
            Err(error) if self.told == Told::Readable => {
                self.told = Told::Unreadable;
                let outage = Outage {
                    reason: format!("{:#}", anyhow::Error::from(error)),
                    retry_after: TICK,
                };
                return Ok((connection(&Err(outage)), TICK));
            }
            Err(_) => return Ok((Vec::new(), TICK)),
        };
        let mut events = Vec::new();
        if self.told != Told::Readable {
            events.extend(connection(&Ok(())));
        }
        if self.told == Told::Nothing {
            events.extend(self.view.tell_all(&self.folder));
        } else if refreshed.changed {
            events.extend(self.view.tell_changes(&self.folder));
        }
        self.told = Told::Readable;
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
