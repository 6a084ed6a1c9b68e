//! Lists one kind, then watches it, for ever: a state machine with the states of kube-rs' `watcher`.
//!
//! Owns the state, the pauses between attempts and what the end of a connection means. Leaves requests and the delivery of
//! events to [`Link`]. Invariant: a version is only moved forward by what has been delivered, and is given up when the
//! server cannot vouch for it, which leads to a complete list.

use std::time::Duration;

use rand::Rng;
use service_model::ObjectKind;
use service_model::wire::Object;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::gathered::{Gathered, Pages};
use super::link::{Link, Watch};
use super::position::{Position, Stop};
use super::request::RequestError;
use crate::{Outage, SourceEvent};

/// Where the follower is with its kind. An error leads to `Empty`, or to `InitListed` where a version can be resumed from.
enum State<M> {
    /// There is no version to resume from. Leads to `InitialWatch`, or to `InitPage` if the server has no streaming lists.
    Empty,
    /// The server lacks an optional kind or denies access to it, and an empty list was delivered. Leads where `Empty` does.
    Absent,
    /// Some pages of a list have arrived. Leads to `InitListed` with the last page.
    InitPage(Pages<M>),
    /// A streaming list has begun (KEP-3157). Leads to `Watching` with the bookmark that ends the list, or to `InitListed`
    /// if the watch is to bring metadata only.
    InitialWatch(Gathered<M>, Watch),
    /// Everything up to a version is delivered, and no watch is open. Leads to `Watching`, or to `Empty` if the server is
    /// behind that version.
    InitListed(Position),
    /// A watch is open. Leads to `InitListed` when the watch ends, to `Empty` when the server has forgotten the version.
    Watching(Position, Watch),
}

impl<M> State<M> {
    /// What is left when the connection ends.
    fn disconnected(self) -> Self {
        match self {
            State::Empty | State::InitPage(_) | State::InitialWatch(..) => State::Empty,
            State::Absent => State::Absent,
            State::InitListed(position) | State::Watching(position, _) => {
                State::InitListed(position)
            }
        }
    }
}

/// How the next list is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListMode {
    /// As a stream (KEP-3157).
    Streaming,
    /// By pages, once, since the last stream did not finish.
    PagesOnce,
    /// By pages: the server has no streaming lists.
    Pages,
}

/// Lists and watches one kind.
pub(super) struct Follower<O: Object> {
    link: Link<O>,
    state: State<O::Model>,
    list_mode: ListMode,
    /// The last connection state that was reported.
    reported: Option<Result<(), String>>,
    backoff: Backoff,
    /// For lists after a lost version. Separate, since a server that has forgotten our version works: earlier failures must
    /// not delay that list.
    relist_backoff: Backoff,
}

impl<O: Object> Follower<O> {
    pub(super) fn new(link: Link<O>) -> Self {
        Follower {
            state: State::Empty,
            list_mode: ListMode::Streaming,
            reported: None,
            backoff: Backoff::new(&link.config),
            relist_backoff: Backoff::new(&link.config),
            link,
        }
    }

    /// Runs until the receiver of its events is gone.
    pub(super) async fn run(mut self) {
        loop {
            let Err(stop) = self.step().await else {
                continue;
            };
            match self.recover(stop).await {
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(Closed) => return,
            }
        }
    }

    /// One transition, or one event of a watch.
    async fn step(&mut self) -> Result<(), Stop> {
        match &mut self.state {
            State::Empty | State::Absent if self.list_mode == ListMode::Streaming => {
                self.start_streaming_list().await
            }
            State::Empty | State::Absent => self.next_page(Pages::default()).await,
            State::InitPage(pages) => {
                let pages = std::mem::take(pages);
                self.next_page(pages).await
            }
            State::InitialWatch(gathered, watch) => {
                match self.link.next_initial_event(gathered, watch).await {
                    Ok(None) => Ok(()),
                    Ok(Some(version)) => self.finish_streaming_list(version).await,
                    Err(stop) => self.without_streaming(stop),
                }
            }
            State::InitListed(position) => {
                let is_verified = position
                    .verified
                    .is_some_and(|at| at.elapsed() < self.link.config.verify_every);
                if !is_verified {
                    self.link.verify(&position.version).await?;
                    position.verified = Some(Instant::now());
                }
                let watch = self.link.watch(&position.version).await?;
                self.watching(watch).await
            }
            State::Watching(position, watch) => self.link.next_event(position, watch).await,
        }
    }

    async fn start_streaming_list(&mut self) -> Result<(), Stop> {
        // Until the stream has finished, it counts as failed.
        self.list_mode = ListMode::PagesOnce;
        match self.link.streaming_list().await {
            Ok(watch) => {
                self.state = State::InitialWatch(Gathered::default(), watch);
                Ok(())
            }
            Err(stop) => self.without_streaming(stop),
        }
    }

    /// Continues by pages if the server refuses streaming lists, and by a stream if it has too much to do: it would refuse pages as
    /// well, and they are more.
    fn without_streaming(&mut self, stop: Stop) -> Result<(), Stop> {
        match stop {
            Stop::Failed(RequestError::Status { code, .. }) if is_refusal(code) => {
                tracing::debug!(kind = %O::KIND, code, "the server refuses streaming lists; listing by pages");
                self.list_mode = ListMode::Pages;
                self.state = std::mem::replace(&mut self.state, State::Empty).disconnected();
                Ok(())
            }
            Stop::Failed(RequestError::Status { code: 429, .. }) => {
                self.list_mode = ListMode::Streaming;
                Err(stop)
            }
            stop => Err(stop),
        }
    }

    async fn finish_streaming_list(&mut self, version: String) -> Result<(), Stop> {
        let State::InitialWatch(gathered, watch) = std::mem::replace(&mut self.state, State::Empty)
        else {
            return Ok(());
        };
        self.link.deliver(gathered).await?;
        self.state = State::InitListed(Position::listed(version));
        self.list_mode = ListMode::Streaming;
        if self.link.watches_metadata() {
            return Ok(());
        }
        self.watching(watch).await
    }

    async fn next_page(&mut self, mut pages: Pages<O::Model>) -> Result<(), Stop> {
        self.state = match self.link.next_page(&mut pages).await? {
            None => State::InitPage(pages),
            Some(version) => {
                self.link.deliver(pages.gathered).await?;
                if self.list_mode == ListMode::PagesOnce {
                    self.list_mode = ListMode::Streaming;
                }
                State::InitListed(Position::listed(version))
            }
        };
        Ok(())
    }

    /// A watch has opened at the position.
    async fn watching(&mut self, watch: Watch) -> Result<(), Stop> {
        if let State::InitListed(position) = std::mem::replace(&mut self.state, State::Empty) {
            self.state = State::Watching(position, watch);
        }
        self.backoff.serving(Instant::now());
        self.relist_backoff.serving(Instant::now());
        self.report(Ok(())).await
    }

    /// What a failed step means, and how long to pause before the next.
    async fn recover(&mut self, stop: Stop) -> Result<Duration, Closed> {
        let now = Instant::now();
        let kind = O::KIND;
        tracing::debug!(%kind, ?stop, "the connection to the API server ended");
        let (was_short, is_early) = match &self.state {
            State::Watching(_, watch) => (
                now - watch.opened < self.link.config.retry_base,
                now < watch.asked_until,
            ),
            _ => (false, false),
        };
        self.state = std::mem::replace(&mut self.state, State::Empty).disconnected();
        // The server of a watch that ends early or stays silent may have been restored from a backup.
        if let State::InitListed(position) = &mut self.state
            && (is_early || matches!(stop, Stop::Quiet | Stop::Failed(_)))
        {
            position.verified = None;
        }
        match stop {
            Stop::Closed => Err(Closed),
            // Treat a watch that ends immediately as a failure.
            Stop::Ended if was_short => Ok(self.backoff.failed(now, None, &mut rand::rng())),
            Stop::Ended | Stop::Quiet => Ok(Duration::ZERO),
            Stop::Lost(reason) => {
                tracing::info!(%kind, reason, "cannot resume the watch; listing all objects again");
                self.state = State::Empty;
                Ok(self.relist_backoff.failed(now, None, &mut rand::rng()))
            }
            Stop::Failed(error) if self.is_absence(&error) => self.without_any(error).await,
            Stop::Failed(error) => {
                // Do not report a forbidden optional kind until `is_absence` is sure.
                let is_pending = self.link.target.optional
                    && !self.has_version()
                    && matches!(error, RequestError::Status { code: 403, .. });
                let pause = self.pause(&error, now);
                if !is_pending {
                    let outage = Outage {
                        reason: error.to_string(),
                        retry_after: pause,
                    };
                    self.report(Err(outage)).await.map_err(|_| Closed)?;
                }
                Ok(pause)
            }
        }
    }

    fn pause(&mut self, error: &RequestError, now: Instant) -> Duration {
        let mut rng = rand::rng();
        match error {
            RequestError::Status {
                code: 401 | 403,
                retry_after,
                ..
            } => self.backoff.refused(now, *retry_after, &mut rng),
            RequestError::Status { retry_after, .. } => {
                self.backoff.failed(now, *retry_after, &mut rng)
            }
            RequestError::Unreadable(_) => self.backoff.failed(now, None, &mut rng),
            // Waiting for the answer was a pause already, so the small limit applies.
            RequestError::Unreachable(_) | RequestError::Silent { .. } => {
                self.backoff.unanswered(&mut rng)
            }
        }
    }

    fn has_version(&self) -> bool {
        matches!(self.state, State::InitListed(_) | State::Watching(..))
    }

    /// Whether the server lacks the kind or denies access to it. A server that is starting denies everything.
    fn is_absence(&self, error: &RequestError) -> bool {
        let is_denied = match error {
            RequestError::Status { code: 404, .. } => true,
            RequestError::Status { code: 403, .. } => !self.backoff.may_be_starting(),
            _ => false,
        };
        self.link.target.optional && !self.has_version() && is_denied
    }

    /// Delivers an empty list of an optional kind, once, reports the kind as connected, since the server has answered, and
    /// pauses for long.
    async fn without_any(&mut self, error: RequestError) -> Result<Duration, Closed> {
        if !matches!(self.state, State::Absent) {
            let kind = O::KIND;
            match error {
                RequestError::Status { code: 404, .. } => {
                    tracing::debug!(%kind, %error, "the server does not have this kind; continuing without");
                }
                _ => {
                    tracing::warn!(%kind, %error, "continuing without this kind; grant list and watch to use it");
                }
            }
            self.link
                .deliver(Gathered::default())
                .await
                .map_err(|_| Closed)?;
            self.state = State::Absent;
        }
        self.report(Ok(())).await.map_err(|_| Closed)?;
        let spread = rand::rng().random_range(0.5..=1.0);
        Ok(self.link.config.absent_retry.mul_f64(spread))
    }

    /// Reports the connection state if it has changed.
    async fn report(&mut self, state: Result<(), Outage>) -> Result<(), Stop> {
        let brief = state.as_ref().map(|_| ()).map_err(|o| o.reason.clone());
        if self.reported.as_ref() == Some(&brief) {
            return Ok(());
        }
        self.reported = Some(brief);
        let kind: ObjectKind = O::KIND;
        self.link
            .send(SourceEvent::Connection { kind, state })
            .await
    }
}

/// The receiver of events is gone.
#[derive(Debug)]
struct Closed;

/// Codes of servers that do not know or allow a parameter; the other codes have a meaning of their own.
fn is_refusal(code: u16) -> bool {
    (400..500).contains(&code) && !matches!(code, 401 | 403 | 404 | 408 | 409 | 410 | 429)
}
