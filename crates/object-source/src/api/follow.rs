//! Lists one kind, then watches it, for ever.
//!
//! Owns where we stand (the version up to which everything has been delivered) and what each end of a
//! connection means for it. Invariant: `version` is only ever moved forward by what has been delivered, and
//! whenever that cannot be vouched for it is dropped, which means a whole list.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::{GetParams, ListParams, WatchParams};
use kube::core::Request;
use rand::Rng;
use service_model::wire::{Interner, Object};
use service_model::{ObjectEvent, ObjectKind, ObjectName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ApiConfig;
use super::backoff::Backoff;
use super::decode::{self, Decoded, Event, is_behind};
use super::gathered::Gathered;
use super::outline::Outlines;
use super::request::{self, Extent, Failure, Lines};
use crate::{Problem, SourceEvent};

/// A server that does not end a watch when asked to gets this much longer.
const OVERTIME: Duration = Duration::from_secs(10);

/// What is watched.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: &'static str,
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
    /// Old servers do not have it, and a role may leave it out: then there simply are none.
    pub(super) optional: bool,
}

/// Why a connected period ended.
#[derive(Debug)]
enum Stop {
    /// The receiver of events is gone.
    Closed,
    /// The server ended the watch, as it does now and then.
    Ended,
    /// The watch says nothing. It may be dead, or nothing may happen.
    Quiet,
    /// Our version cannot be resumed from any more (410), or the server is behind it.
    Lost(&'static str),
    /// Trouble.
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Status { code: 410, .. } => Stop::Lost("the server has forgotten our version"),
            failure => Stop::Failed(failure),
        }
    }
}

fn broken(message: impl Into<String>) -> Stop {
    Stop::Failed(Failure::Broken(message.into()))
}

/// Whether the next list is asked for as a stream (KEP-3157).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Streaming {
    /// Yes.
    Wanted,
    /// The last one did not finish: by pages this time.
    Failed,
    /// The server does not do it.
    Refused,
}

/// See the module.
pub(super) struct Follower<O: Object> {
    client: Client,
    target: Target,
    config: ApiConfig,
    wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
    events: mpsc::Sender<SourceEvent>,
    interner: Interner,
    /// For watches that bring metadata only.
    outlines: Option<Outlines<O::Model>>,
    backoff: Backoff,
    /// Of its own, since a server that has forgotten our version is well: trouble before does not make the list wait.
    relists: Backoff,
    streaming: Streaming,
    /// Everything up to here has been delivered; `None` before the first list and when in doubt.
    version: Option<String>,
    /// When the server's version was last seen not to be behind ours.
    checked: Instant,
    /// Something went wrong since then.
    doubtful: bool,
    /// The last connection state that was told.
    told: Option<Result<(), String>>,
    /// The kind turned out to be absent, and an empty list was delivered for it.
    absent: bool,
}

impl<O: Object> Follower<O> {
    pub(super) fn new(
        client: Client,
        target: Target,
        config: ApiConfig,
        wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
        events: mpsc::Sender<SourceEvent>,
    ) -> Self {
        let backoff = || {
            Backoff::new(
                config.retry_base,
                config.retry_limit,
                config.away_limit,
                config.stable_after,
            )
        };
        Follower {
            backoff: backoff(),
            relists: backoff(),
            interner: Interner::for_proxy(config.proxy_name.clone()),
            outlines: None,
            client,
            target,
            config,
            wrap,
            events,
            streaming: Streaming::Wanted,
            version: None,
            checked: Instant::now(),
            doubtful: false,
            told: None,
            absent: false,
        }
    }

    /// Lets watches bring metadata only; whole objects are read where that does not suffice.
    pub(super) fn by_metadata(self, outlines: Outlines<O::Model>) -> Self {
        Follower {
            outlines: Some(outlines),
            ..self
        }
    }

    /// Runs until nobody receives its events.
    pub(super) async fn run(mut self) {
        loop {
            let began = Instant::now();
            let Err(stop) = self.connected().await;
            match self.after(stop, began).await {
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(Gone) => return,
            }
        }
    }

    /// One period from a list, or from where we stood, until something ends it.
    async fn connected(&mut self) -> Result<Infallible, Stop> {
        let watch = match self.version.clone() {
            None => self.list().await?,
            Some(version) => {
                self.compare(&version).await?;
                None
            }
        };
        let (mut lines, limit) = match watch {
            Some(watch) => watch,
            None => self.resume().await?,
        };
        self.backoff.well(Instant::now());
        self.relists.well(Instant::now());
        self.tell(Ok(())).await?;
        self.watch(&mut lines, limit).await
    }

    /// What the end of a period means, and how long to pause before the next.
    async fn after(&mut self, stop: Stop, began: Instant) -> Result<Duration, Gone> {
        let now = Instant::now();
        let kind = O::KIND;
        tracing::debug!(%kind, ?stop, version = self.version, "watch interrupted");
        let failure = match stop {
            Stop::Closed => return Err(Gone),
            // Ending watches as fast as they begin is no service.
            Stop::Ended if now - began < self.config.retry_base => None,
            Stop::Ended | Stop::Quiet => return Ok(Duration::ZERO),
            Stop::Lost(reason) => {
                tracing::info!(%kind, reason, "listing anew: the last view keeps serving");
                self.version = None;
                return Ok(self.relists.failed(now, None, &mut rand::rng()));
            }
            Stop::Failed(failure) => Some(failure),
        };
        let Some(failure) = failure else {
            return Ok(self.backoff.failed(now, None, &mut rand::rng()));
        };
        if self.is_absence(&failure) {
            return self.without_any(failure).await;
        }
        self.doubtful = true;
        // What we can do without is no news before it is certain.
        let is_optional = self.target.optional && self.version.is_none();
        if !(is_optional && matches!(failure, Failure::Status { code: 403, .. })) {
            self.tell(Err(failure.to_string()))
                .await
                .map_err(|_| Gone)?;
        }
        let mut chance = rand::rng();
        Ok(match failure {
            Failure::Status {
                code: 401 | 403,
                retry_after,
                ..
            } => self.backoff.refused(now, retry_after, &mut chance),
            Failure::Status { retry_after, .. } => {
                self.backoff.failed(now, retry_after, &mut chance)
            }
            Failure::Broken(_) => self.backoff.failed(now, None, &mut chance),
            // Silence has taken its time already.
            Failure::Unanswered(_) | Failure::Silent => self.backoff.unanswered(&mut chance),
        })
    }

    /// Whether the server does not have the kind, or does not let us see it. A server that is starting lets nobody see
    /// anything.
    fn is_absence(&self, failure: &Failure) -> bool {
        let is_away = match failure {
            Failure::Status { code: 404, .. } => true,
            Failure::Status { code: 403, .. } => !self.backoff.may_be_starting(),
            _ => false,
        };
        self.target.optional && self.version.is_none() && is_away
    }

    /// There are none of an optional kind; looks again after a long while.
    async fn without_any(&mut self, failure: Failure) -> Result<Duration, Gone> {
        if !self.absent {
            let kind = O::KIND;
            match failure {
                Failure::Status { code: 404, .. } => {
                    tracing::debug!(%kind, %failure, "the server has none of these: going on without");
                }
                _ => {
                    tracing::warn!(%kind, %failure, "going on without these: the role lacks list or watch")
                }
            }
            self.absent = true;
            let none = ObjectEvent::Reset {
                objects: Vec::new(),
                invalid: Vec::new(),
            };
            self.send((self.wrap)(none)).await.map_err(|_| Gone)?;
        }
        let spread = rand::rng().random_range(0.5..=1.0);
        Ok(self.config.absent_retry.mul_f64(spread))
    }

    /// Lists everything and delivers it. A streaming list goes on as a watch, which is returned if it brings what a watch
    /// should.
    async fn list(&mut self) -> Result<Option<(Lines, Instant)>, Stop> {
        if self.streaming == Streaming::Wanted {
            // Until it has finished, it counts as failed.
            self.streaming = Streaming::Failed;
            match self.list_as_stream().await {
                Ok(watch) => {
                    self.streaming = Streaming::Wanted;
                    return Ok(self.outlines.is_none().then_some(watch));
                }
                Err(Stop::Failed(Failure::Status { code, .. })) if is_refusal(code) => {
                    let kind = O::KIND;
                    tracing::debug!(%kind, code, "no streaming lists here: listing by pages");
                    self.streaming = Streaming::Refused;
                }
                Err(stop) => return Err(stop),
            }
        }
        self.list_by_pages().await?;
        if self.streaming == Streaming::Failed {
            self.streaming = Streaming::Wanted;
        }
        Ok(None)
    }

    async fn list_as_stream(&mut self) -> Result<(Lines, Instant), Stop> {
        let (mut lines, end) = self.open("", true, Extent::Whole).await?;
        let limit = end.min(Instant::now() + self.config.list_limit);
        let mut gathered = Gathered::default();
        loop {
            let Some(line) = lines.next(limit).await? else {
                return Err(broken("the list breaks off before its end"));
            };
            match decode::event::<O>(&line, &mut self.interner).map_err(broken)? {
                Event::Applied(object) => gathered.add(object),
                Event::Deleted { name, .. } => gathered.remove(&name),
                Event::Bookmark {
                    version,
                    initial_events_end: true,
                } => {
                    self.deliver(gathered, version).await?;
                    return Ok((lines, end));
                }
                Event::Error { code, message } => return Err(error_event(code, message)),
                Event::Bookmark { .. } | Event::Unknown => {}
            }
        }
    }

    async fn list_by_pages(&mut self) -> Result<(), Stop> {
        let mut gathered = Gathered::default();
        let mut parameters = self.list_parameters(self.config.page_size);
        let mut version = None;
        loop {
            let answer = self.get(&parameters).await?;
            let page = decode::page(&answer).map_err(broken)?;
            for item in page.items {
                gathered.add(decode::object::<O>(item.get(), &mut self.interner));
            }
            // All pages show the state of the first.
            let version = version.get_or_insert(page.version);
            match page.next {
                Some(token) => parameters.continue_token = Some(token),
                None => return self.deliver(gathered, std::mem::take(version)).await,
            }
        }
    }

    /// Hands on a complete list.
    async fn deliver(&mut self, gathered: Gathered<O::Model>, version: String) -> Result<(), Stop> {
        if version.is_empty() {
            return Err(broken("the list has no version"));
        }
        let (objects, invalid, problems) = gathered.finish();
        if let Some(outlines) = &mut self.outlines {
            outlines.reset(objects.iter().map(Arc::as_ref));
        }
        let reset = ObjectEvent::Reset { objects, invalid };
        self.send((self.wrap)(reset)).await?;
        for problem in problems {
            self.send(SourceEvent::Problem(problem)).await?;
        }
        self.version = Some(version);
        self.absent = false;
        self.checked = Instant::now();
        self.doubtful = false;
        Ok(())
    }

    /// Makes sure that the server is not behind us, if that is in doubt or was last seen long ago.
    async fn compare(&mut self, version: &str) -> Result<(), Stop> {
        if !self.doubtful && self.checked.elapsed() < self.config.check_every {
            return Ok(());
        }
        // One object is enough to learn the version; without a version of our own this is never served stale.
        let answer = self.get(&self.list_parameters(1)).await?;
        let page = decode::page(&answer).map_err(broken)?;
        if is_behind(&page.version, version) {
            return Err(Stop::Lost("the server's version is behind ours"));
        }
        self.checked = Instant::now();
        self.doubtful = false;
        Ok(())
    }

    /// Opens a watch from where we stand.
    async fn resume(&self) -> Result<(Lines, Instant), Stop> {
        let version = self.version.as_deref().unwrap_or_default();
        let extent = match self.outlines {
            Some(_) => Extent::Metadata,
            None => Extent::Whole,
        };
        self.open(version, false, extent).await
    }

    /// Delivers events until the watch ends, one way or the other.
    async fn watch(&mut self, lines: &mut Lines, limit: Instant) -> Result<Infallible, Stop> {
        loop {
            let line = match lines.next(limit).await {
                Ok(Some(line)) => line,
                Ok(None) => return Err(Stop::Ended),
                Err(Failure::Silent) => return Err(Stop::Quiet),
                Err(failure) => return Err(failure.into()),
            };
            match decode::event::<O>(&line, &mut self.interner).map_err(broken)? {
                Event::Applied(object) => self.applied(object).await?,
                Event::Deleted { name, version } => {
                    self.advance(version)?;
                    if let Some(outlines) = &mut self.outlines {
                        outlines.forget(&name);
                    }
                    self.send((self.wrap)(ObjectEvent::Delete(name))).await?;
                }
                Event::Bookmark { version, .. } => self.advance(version)?,
                Event::Error { code, message } => return Err(error_event(code, message)),
                Event::Unknown => {}
            }
        }
    }

    async fn applied(&mut self, object: Decoded<O::Model>) -> Result<(), Stop> {
        // Before the version is taken: if reading fails, the event must come again.
        let news = match (&self.outlines, &object.model) {
            (Some(_), Some(told)) => self.whole(&object.name, told).await?,
            _ => Some((object.model, object.problems)),
        };
        self.advance(object.version)?;
        let Some((model, problems)) = news else {
            return Ok(());
        };
        if let Some(model) = model {
            self.send((self.wrap)(ObjectEvent::Apply(model))).await?;
        }
        for problem in problems {
            self.send(SourceEvent::Problem(problem)).await?;
        }
        Ok(())
    }

    /// The whole object, and what is wrong with it, unless it is as `told` by its metadata and as delivered, or gone since.
    async fn whole(
        &mut self,
        name: &ObjectName,
        told: &O::Model,
    ) -> Result<Option<News<O::Model>>, Stop> {
        let Some(outlines) = self.outlines.as_mut().filter(|o| !o.suffices(told)) else {
            return Ok(None);
        };
        let request = Request::new(self.target.path)
            .get(&name.name, &GetParams::default())
            .map_err(|error| broken(error.to_string()))?;
        let ApiConfig {
            silence,
            list_limit,
            ..
        } = self.config;
        let answer = match request::whole(&self.client, request, silence, list_limit).await {
            Ok(answer) => answer,
            // Its end is an event that is under way.
            Err(Failure::Status { code: 404, .. }) => return Ok(None),
            Err(failure) => return Err(failure.into()),
        };
        let text = std::str::from_utf8(&answer).map_err(|error| broken(error.to_string()))?;
        let object = decode::object::<O>(text, &mut self.interner);
        match &object.model {
            Some(model) => outlines.delivered(model),
            None => outlines.forget(name),
        }
        Ok(Some((object.model, object.problems)))
    }

    /// Takes the version of an event. Within a kind they only grow; anything else means that we and the
    /// server do not talk about the same history.
    fn advance(&mut self, version: String) -> Result<(), Stop> {
        let ours = self.version.as_deref().unwrap_or_default();
        if version.is_empty() {
            return Err(Stop::Lost("an event has no version"));
        }
        let numbers = version.parse::<u64>().is_ok() && ours.parse::<u64>().is_ok();
        if numbers && is_behind(&version, ours) {
            return Err(Stop::Lost("an event's version is behind ours"));
        }
        self.version = Some(version);
        Ok(())
    }

    /// Opens a watch; also says until when it may last.
    async fn open(
        &self,
        version: &str,
        initial_events: bool,
        extent: Extent,
    ) -> Result<(Lines, Instant), Stop> {
        let seconds = rand::rng().random_range(self.config.watch_seconds.clone());
        let parameters = WatchParams {
            label_selector: self.target.label_selector.clone(),
            field_selector: self.target.field_selector.clone(),
            timeout: Some(seconds),
            bookmarks: true,
            send_initial_events: initial_events,
        };
        let request = Request::new(self.target.path)
            .watch(&parameters, version)
            .map_err(|error| broken(error.to_string()))?;
        let limit = Instant::now() + Duration::from_secs(seconds.into()) + OVERTIME;
        let lines = request::lines(&self.client, request, extent, self.config.silence).await?;
        Ok((lines, limit))
    }

    fn list_parameters(&self, limit: u32) -> ListParams {
        ListParams {
            label_selector: self.target.label_selector.clone(),
            field_selector: self.target.field_selector.clone(),
            limit: Some(limit),
            ..ListParams::default()
        }
    }

    async fn get(&self, parameters: &ListParams) -> Result<bytes::Bytes, Stop> {
        let request = Request::new(self.target.path)
            .list(parameters)
            .map_err(|error| broken(error.to_string()))?;
        let ApiConfig {
            silence,
            list_limit,
            ..
        } = self.config;
        Ok(request::whole(&self.client, request, silence, list_limit).await?)
    }

    /// Tells the connection state, if it is news.
    async fn tell(&mut self, state: Result<(), String>) -> Result<(), Stop> {
        if self.told.as_ref() == Some(&state) {
            return Ok(());
        }
        self.told = Some(state.clone());
        let kind: ObjectKind = O::KIND;
        self.send(SourceEvent::Connection { kind, state }).await
    }

    async fn send(&self, event: SourceEvent) -> Result<(), Stop> {
        self.events.send(event).await.map_err(|_| Stop::Closed)
    }
}

/// Nobody receives events any more.
#[derive(Debug)]
struct Gone;

/// An object, if it can be used, and what is wrong with it.
type News<M> = (Option<Arc<M>>, Vec<Problem>);

/// Codes with which servers answer parameters they do not have or allow; the others mean something else.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && !matches!(code, 401 | 403 | 404 | 408 | 409 | 410 | 429)
}

fn error_event(code: u16, message: String) -> Stop {
    Failure::Status {
        code,
        message,
        retry_after: None,
    }
    .into()
}
