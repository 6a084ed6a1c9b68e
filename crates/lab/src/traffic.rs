//! Traffic that goes on while a test does something: long connections that exchange numbered bytes
//! ([`Held`]) and a stream of new connections ([`ConnectionStream`]). Both report what was lost; the
//! test decides what may be lost.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::echo;
use crate::lock;
use crate::namespace::Namespace;
use crate::probe::{Outcome, Probe, Tally};
use crate::socket::{self, Connected, Protocol};

/// A held connection without an echo for this time is lost.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// What became of held connections.
#[derive(Debug, Clone, Default)]
pub struct HeldReport {
    /// Connections by the server they went to.
    pub servers: BTreeMap<String, usize>,
    /// Numbers that went out and came back.
    pub exchanges: u64,
    /// The longest time between a number and its echo.
    pub longest_echo: Duration,
    /// The connections that broke: when, counted from the start, and how.
    pub lost: Vec<(Duration, String)>,
}

/// Long-lived TCP connections to an echo server, made by [`Host::hold`](crate::Host::hold).
#[must_use = "dropping the handle closes the connections"]
pub struct Held {
    report: Arc<Mutex<HeldReport>>,
    stop: watch::Sender<bool>,
    ended: mpsc::Receiver<()>,
}

impl Held {
    /// Connects `count` times, and exchanges a number on each connection every `every`.
    pub(crate) fn start(
        namespace: &Namespace,
        to: SocketAddr,
        count: usize,
        every: Duration,
    ) -> Result<Held> {
        let connections = namespace.run(move || {
            (0..count)
                .map(|_| connect_long(to))
                .collect::<Result<Vec<_>>>()
        })??;
        let start = Instant::now();
        let report = Arc::new(Mutex::new(HeldReport::default()));
        let (stop, stopping) = watch::channel(false);
        let (running, ended) = mpsc::channel();
        let runtime = echo::runtime()?;
        for (stream, server) in connections {
            *lock(&report).servers.entry(server).or_default() += 1;
            let (report, stopping, running) =
                (Arc::clone(&report), stopping.clone(), running.clone());
            runtime.spawn(async move {
                let _running: mpsc::Sender<()> = running;
                if let Err(error) = exchange(stream, every, stopping, &report).await {
                    let lost = (start.elapsed(), format!("{error:#}"));
                    lock(&report).lost.push(lost);
                }
            });
        }
        Ok(Held {
            report,
            stop,
            ended,
        })
    }

    /// The report so far.
    pub fn report(&self) -> HeldReport {
        lock(&self.report).clone()
    }

    /// Lets the exchanges under way come to their end, closes the connections, and reports.
    pub fn stop(self) -> HeldReport {
        self.stop.send_replace(true);
        // All senders gone is the signal.
        let _ = self.ended.recv();
        self.report()
    }
}

/// A connection and the server that greeted.
fn connect_long(to: SocketAddr) -> Result<(TcpStream, String)> {
    // As patient as what follows: where packets are lost, so may be the first ones.
    let deadline = Instant::now() + SILENCE_LIMIT;
    let socket = socket::connecting(Protocol::Tcp, to, None)?;
    match socket::connect(&socket, to, deadline)? {
        Connected::Yes => {}
        Connected::No(error) => return Err(error).with_context(|| format!("connect to {to}")),
        Connected::Late => bail!("connect to {to}: no answer"),
    }
    let stream = TcpStream::from(socket);
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE_LIMIT))?;
    let mut line = String::new();
    // The server sends nothing more until it receives something, so the reader buffers no later byte.
    BufReader::new(&stream)
        .read_line(&mut line)
        .with_context(|| format!("greeting from {to}"))?;
    stream.set_nonblocking(true)?;
    Ok((stream, echo::parse_answer(&line)?.0))
}

async fn exchange(
    stream: TcpStream,
    every: Duration,
    mut stopping: watch::Receiver<bool>,
    report: &Mutex<HeldReport>,
) -> Result<()> {
    let mut stream = tokio::net::TcpStream::from_std(stream)?;
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 0u64.. {
        tokio::select! {
            biased;
            // The sender gone means stopping as well.
            _ = stopping.wait_for(|&stop| stop) => return Ok(()),
            _ = ticks.tick() => {}
        }
        let sent = Instant::now();
        let echoed = timeout(SILENCE_LIMIT, async {
            stream.write_u64(number).await?;
            stream.read_u64().await
        })
        .await
        .with_context(|| format!("number {number} had no echo"))?
        .with_context(|| format!("at number {number}"))?;
        if echoed != number {
            bail!("sent {number}, received {echoed}");
        }
        let mut report = lock(report);
        report.exchanges += 1;
        report.longest_echo = report.longest_echo.max(sent.elapsed());
    }
    Ok(())
}

/// What became of a stream of new connections.
#[derive(Debug, Clone, Default)]
pub struct StreamReport {
    /// Every attempt by its outcome.
    pub tally: Tally,
    /// Attempts that were not answered: when, counted from the start, and what came instead.
    pub failures: Vec<(Duration, String)>,
    /// The longest attempt that was answered.
    pub slowest: Duration,
}

/// New connections one after another, made by
/// [`Host::stream_connections`](crate::Host::stream_connections).
#[must_use = "dropping the handle ends the stream"]
pub struct ConnectionStream {
    started: Instant,
    report: Arc<Mutex<StreamReport>>,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ConnectionStream {
    pub(crate) fn start(
        namespace: &Namespace,
        probe: Probe,
        every: Duration,
    ) -> Result<ConnectionStream> {
        let report = Arc::new(Mutex::new(StreamReport::default()));
        let (stop, stopping) = mpsc::channel();
        let (shared, start) = (Arc::clone(&report), Instant::now());
        let thread = namespace.thread(move || {
            while let Err(RecvTimeoutError::Timeout) = stopping.recv_timeout(every) {
                attempt(&probe, start, &shared);
            }
        })?;
        Ok(ConnectionStream {
            started: start,
            report,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// What the times of its report are counted from.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The report so far.
    pub fn report(&self) -> StreamReport {
        lock(&self.report).clone()
    }

    /// Lets the attempt under way come to its end, and reports.
    pub fn stop(mut self) -> StreamReport {
        self.end();
        self.report()
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has nothing that panics, and its results are in the report.
            let _ = thread.join();
        }
    }
}

impl Drop for ConnectionStream {
    fn drop(&mut self) {
        self.end();
    }
}

fn attempt(probe: &Probe, start: Instant, report: &Mutex<StreamReport>) {
    let sent = Instant::now();
    let outcome = probe.send();
    let mut report = lock(report);
    match outcome {
        Ok(outcome) => {
            if matches!(outcome, Outcome::Answered { .. }) {
                report.slowest = report.slowest.max(sent.elapsed());
            } else {
                let failure = (sent - start, format!("{outcome:?}"));
                report.failures.push(failure);
            }
            report.tally.add(outcome);
        }
        Err(error) => {
            let failure = (sent - start, format!("{error:#}"));
            report.failures.push(failure);
        }
    }
}
