//! Connection attempts: one attempt, its outcome, and the outcomes of many.
//!
//! Invariant: an outcome is what the network did. A fault of the test (port in use, unsupported protocol, no
//! descriptors left) is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{MsgFlags, recv, send};

use crate::command;
use crate::echo::{self, MAX_ANSWER_BYTES};
use crate::socket::{self, Connected, Protocol};

/// How long an attempt waits by default. Longer than TCP's first retry (1 s, RFC 6298), so that one
/// lost packet does not count as a drop.
pub const DEFAULT_PATIENCE: Duration = Duration::from_millis(2_500);

/// One connection attempt to an echo server: to be sent by [`Host::probe`](crate::Host::probe).
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    protocol: Protocol,
    to: SocketAddr,
    source_port: Option<u16>,
    patience: Duration,
}

/// The outcome of a [`Probe`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// An echo server answered.
    Answered {
        /// `POD:PORT`, as the server calls itself.
        server: String,
        /// The address and port the server saw as the client's: after masquerading, if any.
        peer: SocketAddr,
    },
    /// A reset, or ICMP "port unreachable" (`ECONNREFUSED`).
    Refused,
    /// No route, or another ICMP "unreachable" (`ENETUNREACH`, `EHOSTUNREACH`, `EACCES`).
    Unreachable,
    /// No answer. Also a datagram dropped by the sender's own output hook, which the kernel reports
    /// at once (`EPERM`).
    TimedOut,
}

impl Outcome {
    /// The server that answered.
    pub fn server(&self) -> Option<&str> {
        match self {
            Outcome::Answered { server, .. } => Some(server),
            _ => None,
        }
    }

    /// The client's address as the server saw it.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Outcome::Answered { peer, .. } => Some(*peer),
            _ => None,
        }
    }
}

impl Probe {
    /// An attempt over `protocol`, from any port, with [`DEFAULT_PATIENCE`].
    pub fn new(protocol: Protocol, to: impl Into<SocketAddr>) -> Probe {
        Probe {
            protocol,
            to: to.into(),
            source_port: None,
            patience: DEFAULT_PATIENCE,
        }
    }

    /// Sends from this port.
    pub fn from_port(self, port: u16) -> Probe {
        Probe {
            source_port: Some(port),
            ..self
        }
    }

    /// Waits for an answer for this time.
    pub fn within(self, patience: Duration) -> Probe {
        Probe { patience, ..self }
    }

    /// Sends from the calling thread's namespace.
    pub(crate) fn send(&self) -> Result<Outcome> {
        let socket = socket::connecting(self.protocol, self.to, self.source_port)?;
        let outcome = self.attempt(&socket);
        if self.source_port.is_some() {
            // Keep the port free for the next attempt.
            command::while_none_forks(|| drop(socket));
        }
        outcome
    }

    fn attempt(&self, socket: &OwnedFd) -> Result<Outcome> {
        let deadline = Instant::now() + self.patience;
        match socket::connect(socket, self.to, deadline)? {
            Connected::Yes => {}
            Connected::No(error) => return self.outcome_of(error),
            Connected::Late => return Ok(Outcome::TimedOut),
        }
        let descriptor = socket.as_raw_fd();
        if self.protocol == Protocol::Udp
            && let Err(error) = send(descriptor, b"?", MsgFlags::empty())
        {
            return self.outcome_of(error);
        }
        let mut answer = Vec::new();
        let mut part = [0; MAX_ANSWER_BYTES];
        while !answer.ends_with(b"\n") {
            if !socket::wait_ready(socket, PollFlags::POLLIN, deadline)? {
                return Ok(Outcome::TimedOut);
            }
            match recv(descriptor, &mut part, MsgFlags::empty()) {
                Ok(0) => bail!("{} {} was closed without a word", self.protocol, self.to),
                Ok(length) => answer.extend_from_slice(part.get(..length).unwrap_or_default()),
                // A datagram with a bad checksum wakes the poll, but cannot be read.
                Err(Errno::EAGAIN) => {}
                Err(error) => return self.outcome_of(error),
            }
        }
        let line = std::str::from_utf8(&answer).context("an answer that is not text")?;
        let (server, peer) = echo::parse_answer(line)?;
        Ok(Outcome::Answered { server, peer })
    }

    fn outcome_of(&self, error: Errno) -> Result<Outcome> {
        Ok(match error {
            Errno::ECONNREFUSED => Outcome::Refused,
            Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES => Outcome::Unreachable,
            Errno::ETIMEDOUT | Errno::EPERM => Outcome::TimedOut,
            other => bail!("{} to {}: {other}", self.protocol, self.to),
        })
    }
}

/// The number of attempts with each outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    pub servers: BTreeMap<String, usize>,
    /// The client addresses that servers saw.
    pub peers: BTreeSet<IpAddr>,
    /// [`Outcome::Refused`].
    pub refused: usize,
    /// [`Outcome::Unreachable`].
    pub unreachable: usize,
    /// [`Outcome::TimedOut`].
    pub timed_out: usize,
}

impl Tally {
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered { server, peer } => {
                *self.servers.entry(server).or_default() += 1;
                self.peers.insert(peer.ip());
            }
            Outcome::Refused => self.refused += 1,
            Outcome::Unreachable => self.unreachable += 1,
            Outcome::TimedOut => self.timed_out += 1,
        }
    }

    /// Attempts that a server answered.
    pub fn answered(&self) -> usize {
        self.servers.values().sum()
    }

    /// Attempts that no server answered.
    pub fn failed(&self) -> usize {
        self.refused + self.unreachable + self.timed_out
    }

    /// The servers that answered, sorted.
    pub fn server_names(&self) -> Vec<&str> {
        self.servers.keys().map(String::as_str).collect()
    }
}
