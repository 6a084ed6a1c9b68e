//! Parts of the daemon: the threads and tasks that must live as long as the daemon does.
//!
//! Owns the one way to start a part. What a part does is left to its module. Invariant: a part that panics, fails or
//! ends early ends the daemon with an error that names the part, so that no daemon stays half alive.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use futures::FutureExt;
use tokio::runtime::{Builder, Handle};
use tokio::sync::mpsc::{
    UnboundedReceiver, UnboundedSender, WeakUnboundedSender, unbounded_channel,
};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Time for all parts to end after a signal, or after the first part has ended.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Interval at which a monitor checks whether it is canceled. Nothing waits for the end of a monitor.
const MONITOR_WAIT: Duration = Duration::from_secs(60);
/// Pause of a monitor after an error.
const MONITOR_PAUSE: Duration = Duration::from_secs(1);

type End = (&'static str, Result<()>);

/// Starts parts.
#[derive(Debug)]
pub struct Parts {
    cancel: CancellationToken,
    ends: UnboundedSender<End>,
}

/// Starts the tasks of a part that come and go, one for each port for instance. A panic in one of them ends the daemon, as a
/// panic of the part would.
#[derive(Clone, Debug)]
pub struct Tasks {
    name: &'static str,
    ends: WeakUnboundedSender<End>,
}

impl Tasks {
    /// Starts a task on the caller's runtime. The task ends when what is returned is dropped.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortOnDropHandle<()> {
        let Tasks { name, ends } = self.clone();
        AbortOnDropHandle::new(tokio::spawn(async move {
            let end = AssertUnwindSafe(task).catch_unwind().await.map(Ok);
            if let (Err(error), Some(ends)) = (end_of(end), ends.upgrade()) {
                let _ = ends.send((name, Err(error)));
            }
        }))
    }
}

/// Receives the end of each part.
#[derive(Debug)]
pub struct Ends {
    cancel: CancellationToken,
    ends: UnboundedReceiver<End>,
}

/// A daemon without parts yet. Its parts end when `cancel` is canceled.
pub fn parts(cancel: CancellationToken) -> (Parts, Ends) {
    let (sender, ends) = unbounded_channel();
    let parts = Parts {
        cancel: cancel.clone(),
        ends: sender,
    };
    (parts, Ends { cancel, ends })
}

impl Parts {
    /// Canceled when all parts have to end.
    pub fn cancel(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// The starter of tasks that belong to the part of this name.
    pub fn tasks(&self, name: &'static str) -> Tasks {
        Tasks {
            name,
            ends: self.ends.downgrade(),
        }
    }

    /// Starts a part on a thread of its own. The part has to end when canceled.
    pub fn thread(
        &self,
        name: &'static str,
        part: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let ends = self.ends.clone();
        spawn(name, move || {
            let _ = ends.send((name, end_of(catch_unwind(AssertUnwindSafe(part)))));
        })
    }

    /// Starts a part on a thread with a runtime of its own. The part has to end when canceled.
    pub fn runtime<F: Future<Output = Result<()>>>(
        &self,
        name: &'static str,
        part: impl FnOnce() -> F + Send + 'static,
    ) -> Result<Handle> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .with_context(|| format!("cannot start {name}"))?;
        let handle = runtime.handle().clone();
        self.thread(name, move || {
            let end = runtime.block_on(part());
            // Do not wait for blocking work that is still going on.
            runtime.shutdown_background();
            end
        })?;
        Ok(handle)
    }

    /// Starts a part as a task, which is dropped when canceled.
    pub fn task(
        &self,
        name: &'static str,
        runtime: &Handle,
        part: impl Future<Output = Result<()>> + Send + 'static,
    ) {
        let (ends, cancel) = (self.ends.clone(), self.cancel.clone());
        runtime.spawn(async move {
            // Cancellation comes first: other parts then close their channels, which is no failure of this one.
            tokio::select! {
                biased;
                () = cancel.cancelled() => {}
                end = AssertUnwindSafe(part).catch_unwind() => {
                    let _ = ends.send((name, end_of(end)));
                }
            }
        });
    }

    /// Starts a thread that passes the kernel's notifications on. `wait` blocks for the given time at most. `notify` gets
    /// each notice, or `None` when notices may be lost, and returns whether a receiver is left.
    ///
    /// The end of the daemon does not wait for monitors.
    pub fn monitor<N, E: Display>(
        &self,
        name: &'static str,
        mut wait: impl FnMut(Duration) -> Result<Option<N>, E> + Send + 'static,
        mut notify: impl FnMut(Option<N>) -> bool + Send + 'static,
    ) -> Result<()> {
        let (ends, cancel) = (self.ends.downgrade(), self.cancel.clone());
        let watch = move || {
            while !cancel.is_cancelled() {
                let has_receiver = match wait(MONITOR_WAIT) {
                    Ok(None) => true,
                    Ok(notice) => notify(notice),
                    Err(error) => {
                        tracing::warn!(monitor = name, %error, "cannot read kernel notifications; comparing every second instead");
                        std::thread::sleep(MONITOR_PAUSE);
                        notify(None)
                    }
                };
                if !has_receiver {
                    break;
                }
            }
            Ok(())
        };
        spawn(name, move || {
            let end = end_of(catch_unwind(AssertUnwindSafe(watch)));
            if let (Err(_), Some(ends)) = (&end, ends.upgrade()) {
                let _ = ends.send((name, end));
            }
        })
    }
}

impl Ends {
    /// Waits until a part ends or the daemon is canceled, ends all other parts, and returns why: an error that names the
    /// part, unless the daemon was canceled and no part failed.
    pub async fn wait(mut self) -> Result<()> {
        let (mut failed, mut early) = (None, None);
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => {}
            end = self.ends.recv() => match end {
                Some((name, Err(error))) => failed = Some(named(name, error)),
                Some((name, Ok(()))) => early = Some(name),
                None => {}
            },
        }
        self.cancel.cancel();
        // A part that fails closes its channels, so another part may have ended before the failure arrives here.
        let others = async {
            while let Some((name, end)) = self.ends.recv().await {
                if let Err(error) = end {
                    failed.get_or_insert(named(name, error));
                }
            }
        };
        if tokio::time::timeout(STOP_LIMIT, others).await.is_err() {
            tracing::warn!(timeout_seconds = STOP_LIMIT.as_secs(), "shutdown timed out");
        }
        match (failed, early) {
            (Some(error), _) => Err(error),
            (None, Some(name)) => Err(anyhow!("{name} ended unexpectedly")),
            (None, None) => Ok(()),
        }
    }
}

fn spawn(name: &'static str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .with_context(|| format!("cannot start the thread {name}"))?;
    Ok(())
}

fn named(name: &str, error: Error) -> Error {
    error.context(format!("{name} failed"))
}

fn end_of(end: Result<Result<()>, Box<dyn Any + Send>>) -> Result<()> {
    end.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        Err(anyhow!("panicked: {}", text.unwrap_or("no message")))
    })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Runs `start` beside a part that waits, and returns the message that the daemon ends with.
    fn end(start: impl FnOnce(&Parts)) -> Option<String> {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (parts, ends) = parts(CancellationToken::new());
            let cancel = parts.cancel();
            let waits = async move || {
                cancel.cancelled().await;
                Ok(())
            };
            parts.runtime("bystander", waits).unwrap();
            start(&parts);
            drop(parts);
            let end = tokio::time::timeout(Duration::from_secs(10), ends.wait());
            let end = end.await.expect("the daemon ends");
            end.err().map(|error| format!("{error:#}"))
        })
    }

    fn dies() -> Result<()> {
        panic!("out of luck")
    }

    #[test]
    fn a_panic_in_any_part_ends_the_daemon_and_names_the_part() {
        let message = Some("doomed failed: panicked: out of luck".to_owned());
        assert_eq!(end(|parts| parts.thread("doomed", dies).unwrap()), message);
        let runtime = end(|parts| {
            parts.runtime("doomed", async || dies()).unwrap();
        });
        assert_eq!(runtime, message);
        let task = end(|parts| parts.task("doomed", &Handle::current(), async { dies() }));
        assert_eq!(task, message);
        let of_a_part = end(|parts| {
            let tasks = parts.tasks("doomed");
            let part = async move {
                let _port = tasks.spawn(async { dies().unwrap_or_default() });
                std::future::pending().await
            };
            parts.task("its part", &Handle::current(), part);
        });
        assert_eq!(of_a_part, message);
        let monitor = end(|parts| {
            let wait = |_| dies().map(|()| None::<()>).map_err(|_| "no");
            parts.monitor("doomed", wait, |_| true).unwrap();
        });
        assert_eq!(monitor, message);
    }

    #[test]
    fn an_early_end_is_an_error_unless_another_part_failed() {
        let early = end(|parts| parts.thread("source", || Ok(())).unwrap());
        assert_eq!(early.as_deref(), Some("source ended unexpectedly"));
        let (failing, source) = std::sync::mpsc::channel::<()>();
        let failed = end(|parts| {
            parts
                .thread("source", move || {
                    let _ = source.recv();
                    Ok(())
                })
                .unwrap();
            let fails = move || {
                drop(failing);
                std::thread::sleep(Duration::from_millis(50));
                Err(anyhow!("no rights"))
            };
            parts.thread("control", fails).unwrap();
        });
        assert_eq!(failed.as_deref(), Some("control failed: no rights"));
    }

    #[test]
    fn channel_closed_by_cancellation_is_no_failure_of_a_task() {
        let end = end(|parts| {
            let (open, closed) = tokio::sync::oneshot::channel::<()>();
            let waits = async { closed.await.context("the channel is closed") };
            parts.task("reader", &Handle::current(), waits);
            parts.cancel().cancel();
            drop(open);
        });
        assert_eq!(end, None);
    }

    #[test]
    fn a_canceled_daemon_ends_well_without_its_monitors() {
        let end = end(|parts| {
            let wait = |limit| {
                std::thread::sleep(limit);
                Ok::<Option<()>, Infallible>(None)
            };
            parts.monitor("monitor", wait, |_| true).unwrap();
            parts.cancel().cancel();
        });
        assert_eq!(end, None);
    }

    #[test]
    fn a_monitor_that_cannot_read_asks_for_a_comparison() {
        let (sender, notices) = std::sync::mpsc::channel();
        let end = end(|parts| {
            let cancel = parts.cancel();
            let notify = move |notice: Option<()>| {
                cancel.cancel();
                sender.send(notice).is_ok()
            };
            parts.monitor("monitor", |_| Err("gone"), notify).unwrap();
        });
        assert_eq!(end, None);
        assert_eq!(notices.recv(), Ok(None));
    }
}
