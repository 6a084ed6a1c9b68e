//! One netfilter netlink socket with its requests and answers: what [`crate::Kernel`], [`crate::Conntrack`] and
//! [`crate::Foreign`] share.
//!
//! Owns the numbering of requests and the matching of answers to them. What is asked, and what an answer means, is the
//! caller's.

use std::time::Duration;

use nix::errno::Errno;

use crate::model::Family;
use crate::socket::Socket;
use crate::transaction::{CommitError, Generation};
use crate::wire::abi::{control, flag, message};
use crate::wire::attribute::Writer;
use crate::wire::frame::{Answer, generation};
use crate::wire::{Malformed, Message, messages};

/// The kernel works through a request before `send` returns, so that answers are there already; this is
/// for what should never happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The socket and its numbering of requests.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) socket: Socket,
    /// Of the next request.
    pub(crate) sequence: u32,
    request: Writer,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Done,
    /// What was dumped changed during the dump.
    Interrupted,
    Refused(Errno),
}

impl Asked {
    /// `false` when it must be asked anew. What vanished between two questions counts as that.
    pub(crate) fn settle(self) -> Result<bool, CommitError> {
        match self {
            Asked::Done => Ok(true),
            Asked::Interrupted | Asked::Refused(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {
                Ok(false)
            }
            Asked::Refused(errno) => Err(failed("read the table")(errno)),
        }
    }
}

impl Link {
    /// A socket in the calling thread's network namespace with room for so many bytes of unread answers.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN there.
    pub(crate) fn open(receive_space: usize) -> Result<Self, CommitError> {
        let socket = Socket::open(0).map_err(failed("open"))?;
        socket
            .set_receive_space(receive_space)
            .map_err(failed("set receive space"))?;
        Ok(Link {
            socket,
            sequence: 1,
            request: Writer::default(),
        })
    }

    /// Sends one request and hands each message of the reply to `absorb`.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: Option<Family>,
        fill: impl FnOnce(&mut Writer),
        mut absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Asked, CommitError> {
        let sequence = self.sequence;
        self.sequence = sequence.wrapping_add(1);
        self.request.bytes.clear();
        self.request.request(kind, flags, sequence, family, fill);
        self.socket
            .send(&self.request.bytes)
            .map_err(failed("send"))?;
        let mut interrupted = false;
        loop {
            let Some(datagram) = self.socket.try_receive().map_err(failed("receive"))? else {
                self.wait()?;
                continue;
            };
            for message in messages(datagram) {
                let message = message.map_err(undecodable)?;
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & flag::DUMP_INTR != 0;
                match message.kind {
                    control::DONE | control::ERROR => {
                        let answer = Answer::of(&message).map_err(undecodable)?;
                        return Ok(match (answer.errno, interrupted) {
                            (0, false) => Asked::Done,
                            (0, true) => Asked::Interrupted,
                            (errno, _) => Asked::Refused(Errno::from_raw(errno)),
                        });
                    }
                    _ => absorb(&message).map_err(undecodable)?,
                }
            }
        }
    }

    /// Sends requests that were written with sequence numbers from `first` to `last`, of which the last asks for its
    /// acknowledgement, and names each that the kernel refuses, counted from the first. `refused` answers whether more
    /// answers are to come: none do when a batch is refused as a whole.
    pub(crate) fn tell(
        &mut self,
        datagram: &[u8],
        first: u32,
        last: u32,
        mut refused: impl FnMut(u32, Errno) -> bool,
    ) -> Result<(), CommitError> {
        self.sequence = last.wrapping_add(1);
        self.socket.send(datagram).map_err(failed("send"))?;
        loop {
            let Some(datagram) = self.socket.try_receive().map_err(failed("receive"))? else {
                self.wait()?;
                continue;
            };
            for message in messages(datagram) {
                let message = message.map_err(undecodable)?;
                let position = message.sequence.wrapping_sub(first);
                if message.kind != control::ERROR || position > last.wrapping_sub(first) {
                    continue;
                }
                let answer = Answer::of(&message).map_err(undecodable)?;
                let goes_on = answer.errno == 0 || refused(position, Errno::from_raw(answer.errno));
                if !goes_on || message.sequence == last {
                    return Ok(());
                }
            }
        }
    }

    /// Number of the ruleset's present state, any table (`NFT_MSG_GETGEN`).
    pub(crate) fn generation(&mut self) -> Result<Generation, CommitError> {
        let mut found = None;
        let asked = self.ask(
            message::GET_GENERATION,
            flag::ACK,
            None,
            |_| {},
            |message| {
                found = Some(generation(message)?);
                Ok(())
            },
        )?;
        match (asked, found) {
            (Asked::Done, Some(generation)) => Ok(generation),
            (Asked::Refused(errno), _) => Err(failed("read the generation")(errno)),
            _ => Err(undecodable(Malformed::Missing("NFTA_GEN_ID"))),
        }
    }

    /// Waits for the next datagram.
    pub(crate) fn wait(&self) -> Result<(), CommitError> {
        match self
            .socket
            .wait(Some(ANSWER_TIMEOUT))
            .map_err(failed("wait"))?
        {
            true => Ok(()),
            false => Err(failed("await acknowledgement")(Errno::ETIMEDOUT)),
        }
    }
}

pub(crate) fn failed(action: &'static str) -> impl Fn(Errno) -> CommitError {
    move |errno| CommitError::Socket { action, errno }
}

pub(crate) fn undecodable(malformed: Malformed) -> CommitError {
    CommitError::Reply(malformed.to_string())
}
