//! Packets with their outcome: one connection attempt, what came of it, and the count of many.
//!
//! Invariant: an outcome is what the network did. What the tester did wrong (port taken, no such
//! protocol, no descriptors left) is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::PollFlags;

use crate::echo::{self, MAX_ANSWER_BYTES};
use crate::socket::{self, Connected, Protocol};

/// How long an attempt waits by default. Longer than TCP's first retry (1 s, RFC 6298), so that one
/// lost packet is not taken for a drop.
pub const DEFAULT_PATIENCE: Duration = Duration::from_millis(2_500);

/// One connection attempt to an echo server: to be sent by [`Host::probe`](crate::Host::probe).
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    protocol: Protocol,
    to: SocketAddr,
    source_port: Option<u16>,
    patience: Duration,
}

/// What came of a [`Probe`].
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

    /// Waits so long for an answer.
    pub fn within(self, patience: Duration) -> Probe {
        Probe { patience, ..self }
    }

    /// Sends from the calling thread's namespace.
    pub(crate) fn send(&self) -> Result<Outcome> {
        let deadline = Instant::now() + self.patience;
        let connected = socket::connected(self.protocol, self.to, self.source_port, deadline)?;
        let socket = match connected {
            Connected::Yes(socket) => socket,
            Connected::No(error) => return self.outcome_of(error),
            Connected::Late => return Ok(Outcome::TimedOut),
        };
        if self.protocol == Protocol::Udp {
            return self.ask(&UdpSocket::from(socket), deadline);
        }
        if !socket::wait_ready(&socket, PollFlags::POLLIN, deadline)? {
            return Ok(Outcome::TimedOut);
        }
        let mut line = String::new();
        match BufReader::new(socket::into_stream(socket)?).read_line(&mut line) {
            Ok(_) => answered(&line),
            Err(error) => {
                Err(error).with_context(|| format!("{} {} broke off", self.protocol, self.to))
            }
        }
    }

    fn ask(&self, socket: &UdpSocket, deadline: Instant) -> Result<Outcome> {
        let mut answer = [0; MAX_ANSWER_BYTES];
        if let Err(error) = socket.send(b"?") {
            return self.outcome_of(errno(&error));
        }
        if !socket::wait_ready(socket, PollFlags::POLLIN, deadline)? {
            return Ok(Outcome::TimedOut);
        }
        match socket.recv(&mut answer) {
            Ok(length) => {
                let line = answer.get(..length).unwrap_or_default();
                answered(std::str::from_utf8(line).context("an answer that is not text")?)
            }
            // A datagram with a bad checksum wakes the poll and is not there to be read.
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Outcome::TimedOut),
            Err(error) => self.outcome_of(errno(&error)),
        }
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

fn errno(error: &std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

fn answered(line: &str) -> Result<Outcome> {
    let (server, peer) = echo::parse_answer(line)?;
    Ok(Outcome::Answered { server, peer })
}

/// How often each thing came of many attempts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// Answers by server.
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
    /// Counts one outcome.
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
