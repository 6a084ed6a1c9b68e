//! The link between one collection of the API server and the reader of its events: requests, decoding, delivery.
//!
//! Leaves to `follow` when to ask, and what an error means. Invariant: a list is delivered as one `Reset`, complete or not
//! at all.

use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use kube::core::Request;
use kube::core::params::{GetParams, ListParams, WatchParams};
use rand::Rng;
use service_model::wire::{ConversionContext, Object};
use service_model::{ObjectEvent, ObjectName};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::ApiConfig;
use super::batches::SharedContext;
use super::decode::{self, Decoded, Event, is_behind};
use super::gathered::{Gathered, Pages};
use super::learner::Learner;
use super::outline::Outlines;
use super::position::{Position, Stop};
use super::request::{ApiClient, Extent, Limits, Lines, RequestError};
use crate::{Problem, SourceEvent};

/// How the event of an object begins in a streaming list.
const ADDED: &[u8] = br#"{"type":"ADDED""#;
/// A server that does not end a watch when asked to gets this much longer.
const OVERTIME: Duration = Duration::from_secs(10);

/// A collection to watch.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) path: &'static str,
    pub(super) label_selector: Option<String>,
    pub(super) field_selector: Option<String>,
    /// Old servers lack the kind, and a role may not include it: then it counts as empty.
    pub(super) optional: bool,
}

/// An open watch.
pub(super) struct Watch {
    lines: Lines,
    pub(super) opened: Instant,
    /// When the last event was received; before the first one, when the answer began.
    received: Instant,
    /// When the server was asked to end the watch.
    pub(super) asked_until: Instant,
    /// When the watch ends at the latest.
    until: Instant,
}

impl Watch {
    /// The next event, if it arrives before `limit`; `None` at the end of the watch.
    async fn next(&mut self, limit: Instant) -> Result<Option<Bytes>, RequestError> {
        let line = self.lines.next(limit).await?;
        self.received = Instant::now();
        Ok(line)
    }
}

/// Requests and delivery for one collection.
pub(super) struct Link<O: Object> {
    pub(super) client: ApiClient,
    pub(super) target: Target,
    pub(super) config: ApiConfig,
    pub(super) wrap: fn(ObjectEvent<O::Model>) -> SourceEvent,
    pub(super) events: mpsc::Sender<SourceEvent>,
    pub(super) context: SharedContext,
    /// Present if the watch brings metadata only.
    pub(super) outlines: Option<Outlines<O::Model>>,
    /// Present if the events say where API servers are.
    pub(super) learner: Option<Learner>,
}

impl<O: Object> Link<O> {
    pub(super) fn watches_metadata(&self) -> bool {
        self.outlines.is_some()
    }

    /// Begins a streaming list, which goes on as a watch.
    pub(super) async fn streaming_list(&self) -> Result<Watch, Stop> {
        self.open("", true, Extent::Whole).await
    }

    fn context(&self) -> MutexGuard<'_, ConversionContext> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads one event of a streaming list. Returns the list's version after the last event.
    pub(super) async fn next_initial_event(
        &mut self,
        gathered: &mut Gathered<O::Model>,
        watch: &mut Watch,
    ) -> Result<Option<String>, Stop> {
        let limit = watch.opened + self.config.list_limit;
        let limit = limit.min(Instant::now() + self.config.silence);
        let Some(line) = watch.next(limit).await? else {
            return Err(unreadable("the list breaks off before its end"));
        };
        let is_added = line.starts_with(ADDED);
        let is_full = gathered.batches.add(line);
        if is_added && !is_full {
            return Ok(None);
        }
        let decode = decode::event::<O>;
        let mut events = gathered.batches.begin(&self.context, decode).await?;
        if !is_added {
            events.extend(gathered.batches.finish().await?);
        }
        for event in events {
            match event.map_err(unreadable)? {
                Event::Applied(object) => gathered.add(object),
                Event::Deleted { name, .. } => gathered.remove(&name),
                Event::Bookmark {
                    version,
                    initial_events_end: true,
                } => return checked(version).map(Some),
                Event::Error { code, message } => {
                    return Err(watch.lines.error_event(code, message).into());
                }
                Event::Bookmark { .. } | Event::Unknown => {}
            }
        }
        Ok(None)
    }

    /// Reads one page of a list. Returns the list's version after the last page.
    pub(super) async fn next_page(
        &mut self,
        pages: &mut Pages<O::Model>,
    ) -> Result<Option<String>, Stop> {
        let token = pages.continue_token.take();
        let answer = self.list(self.config.page_size, token).await?;
        let page = decode::page(&answer).map_err(unreadable)?;
        let gathered = &mut pages.gathered;
        for item in page.items {
            gathered
                .batches
                .add(answer.slice_ref(item.get().as_bytes()));
        }
        let decode = decode::item::<O>;
        let mut events = gathered.batches.begin(&self.context, decode).await?;
        if page.next.is_none() {
            events.extend(gathered.batches.finish().await?);
        }
        for event in events {
            if let Event::Applied(object) = event.map_err(unreadable)? {
                gathered.add(object);
            }
        }
        let version = pages.version.get_or_insert(page.version);
        if page.next.is_none() {
            return checked(std::mem::take(version)).map(Some);
        }
        pages.continue_token = page.next;
        Ok(None)
    }

    /// Delivers a complete list.
    pub(super) async fn deliver(&mut self, gathered: Gathered<O::Model>) -> Result<(), Stop> {
        let (objects, invalid, problems) = gathered.finish();
        if let Some(outlines) = &mut self.outlines {
            outlines.reset(objects.iter().map(Arc::as_ref));
        }
        let reset = ObjectEvent::Reset { objects, invalid };
        self.send((self.wrap)(reset)).await?;
        self.send_problems(problems).await
    }

    /// Makes sure that the server is not behind `version`.
    pub(super) async fn verify(&self, version: &str) -> Result<(), Stop> {
        // One object is enough to learn the version, and a list without a version is never served stale.
        let answer = self.list(1, None).await?;
        let page = decode::page(&answer).map_err(unreadable)?;
        match is_behind(&page.version, version) {
            true => Err(Stop::Lost("the server's version is behind ours")),
            false => Ok(()),
        }
    }

    /// Opens a watch from `version`.
    pub(super) async fn watch(&self, version: &str) -> Result<Watch, Stop> {
        let extent = match self.outlines {
            Some(_) => Extent::Metadata,
            None => Extent::Whole,
        };
        self.open(version, false, extent).await
    }

    /// Delivers one event of a watch.
    pub(super) async fn next_event(
        &mut self,
        position: &mut Position,
        watch: &mut Watch,
    ) -> Result<(), Stop> {
        if self.deliver_postponed().await? {
            return Ok(());
        }
        // Not from now on: postponed reads and contended Nodes may interrupt the wait for as long as the watch is open.
        let limit = watch.until.min(watch.received + self.config.watch_silence);
        let postponed = self.outlines.as_ref().and_then(Outlines::next_postponed);
        let until = postponed.map_or(limit, |(due, _)| due.min(limit));
        let contended = async {
            match &mut self.outlines {
                Some(outlines) => outlines.contended_changed().await,
                None => std::future::pending().await,
            }
        };
        let line = tokio::select! {
            biased;
            line = watch.next(until) => line,
            () = contended => return Ok(()),
        };
        let line = match line {
            Ok(Some(line)) => line,
            Ok(None) => return Err(Stop::Ended),
            Err(RequestError::Silent { .. }) if until < limit => return Ok(()),
            Err(RequestError::Silent { .. }) => return Err(Stop::Quiet),
            Err(error) => return Err(error.into()),
        };
        let event = decode::event::<O>(&line, &mut self.context());
        match event.map_err(unreadable)? {
            Event::Applied(object) => self.apply(object, position).await,
            Event::Deleted { name, version } => {
                position.advance(version)?;
                self.forget(&name);
                self.send((self.wrap)(ObjectEvent::Delete(name))).await
            }
            Event::Bookmark { version, .. } => position.advance(version),
            Event::Error { code, message } => Err(watch.lines.error_event(code, message).into()),
            Event::Unknown => Ok(()),
        }
    }

    async fn apply(
        &mut self,
        object: Decoded<O::Model>,
        position: &mut Position,
    ) -> Result<(), Stop> {
        let version = object.version.clone();
        // Read before the position advances: if reading fails, the event must come again.
        let object = match (&self.outlines, &object.model) {
            (Some(_), Some(outline)) => self.read(&object.name, outline).await?,
            _ => Some(object),
        };
        position.advance(version)?;
        match object {
            Some(object) => self.deliver_one(object).await,
            None => Ok(()),
        }
    }

    async fn deliver_one(&mut self, object: Decoded<O::Model>) -> Result<(), Stop> {
        if let Some(model) = object.model {
            self.send((self.wrap)(ObjectEvent::Apply(model))).await?;
        }
        self.send_problems(object.problems).await
    }

    /// Reads the whole object. Returns `None` if its metadata (`outline`) are as delivered, or if the object is gone.
    async fn read(
        &mut self,
        name: &ObjectName,
        outline: &O::Model,
    ) -> Result<Option<Decoded<O::Model>>, Stop> {
        let Some(outlines) = self.outlines.as_mut().filter(|o| !o.suffices(outline)) else {
            return Ok(None);
        };
        match outlines.may_read(outline, Instant::now()) {
            true => self.read_whole(name).await,
            false => Ok(None),
        }
    }

    /// Reads and delivers an object whose reading was postponed and is due. Whether there was one.
    async fn deliver_postponed(&mut self) -> Result<bool, Stop> {
        let now = Instant::now();
        let Some(outlines) = &mut self.outlines else {
            return Ok(false);
        };
        let due = outlines.next_postponed().filter(|(due, _)| *due <= now);
        let Some(name) = due.map(|(_, name)| name.clone()) else {
            return Ok(false);
        };
        outlines.charge(&name, now);
        if let Some(object) = self.read_whole(&name).await? {
            self.deliver_one(object).await?;
        }
        Ok(true)
    }

    async fn read_whole(&mut self, name: &ObjectName) -> Result<Option<Decoded<O::Model>>, Stop> {
        let request = Request::new(self.target.path)
            .get(&name.name, &GetParams::default())
            .map_err(unreadable)?;
        let answer = match self.client.call(request, limits(&self.config)).await {
            Ok(answer) => answer,
            // The DELETED event will follow.
            Err(RequestError::Status { code: 404, .. }) => {
                self.forget(name);
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let text = std::str::from_utf8(&answer).map_err(unreadable)?;
        let object = decode::object::<O>(text, &mut self.context());
        match (&object.model, self.outlines.as_mut()) {
            (Some(model), Some(outlines)) => outlines.delivered(model),
            (None, Some(outlines)) => outlines.forget(name),
            (_, None) => {}
        }
        Ok(Some(object))
    }

    fn forget(&mut self, name: &ObjectName) {
        if let Some(outlines) = &mut self.outlines {
            outlines.forget(name);
        }
    }

    async fn open(
        &self,
        version: &str,
        initial_events: bool,
        extent: Extent,
    ) -> Result<Watch, Stop> {
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
            .map_err(unreadable)?;
        let opened = Instant::now();
        let asked_until = opened + Duration::from_secs(seconds.into());
        let lines = self
            .client
            .lines(request, extent, self.config.silence)
            .await?;
        Ok(Watch {
            lines,
            opened,
            received: Instant::now(),
            asked_until,
            until: asked_until + OVERTIME,
        })
    }

    async fn list(&self, limit: u32, continue_token: Option<String>) -> Result<Bytes, Stop> {
        let parameters = ListParams {
            label_selector: self.target.label_selector.clone(),
            field_selector: self.target.field_selector.clone(),
            limit: Some(limit),
            continue_token,
            ..ListParams::default()
        };
        let request = Request::new(self.target.path)
            .list(&parameters)
            .map_err(unreadable)?;
        Ok(self.client.call(request, limits(&self.config)).await?)
    }

    async fn send_problems(&mut self, problems: Vec<Problem>) -> Result<(), Stop> {
        for problem in problems {
            self.send(SourceEvent::Problem(problem)).await?;
        }
        Ok(())
    }

    pub(super) async fn send(&mut self, event: SourceEvent) -> Result<(), Stop> {
        if let Some(learner) = &mut self.learner {
            learner.event(&event);
        }
        self.events.send(event).await.map_err(|_| Stop::Closed)
    }
}

fn limits(config: &ApiConfig) -> Limits {
    Limits {
        silence: config.silence,
        total: config.list_limit,
    }
}

/// The version of a list, which must have one.
fn checked(version: String) -> Result<String, Stop> {
    match version.is_empty() {
        true => Err(unreadable("the list has no version")),
        false => Ok(version),
    }
}

fn unreadable(reason: impl ToString) -> Stop {
    Stop::Failed(RequestError::Unreadable(reason.to_string()))
}
