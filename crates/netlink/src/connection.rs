//! Requests and their replies on one socket.
//!
//! Owns sequence numbers and the matching of replies to requests. What is requested, and what a reply means, is left
//! to the caller.
//!
//! Invariant: when a function returns, the kernel has answered the request, or the connection has failed.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;
use rustix::param::page_size;

use crate::attribute::Writer;
use crate::message::{Answer, Message, control, flag, messages};
use crate::socket::{NetlinkFamily, Socket, small_datagram};
use crate::{Error, Malformed, failed};

/// The kernel answers before `send` returns; this time-out is for what should never happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// A socket in the network namespace of the thread that opened it, and the numbering of its requests.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    next_sequence: u32,
    request: Writer,
    /// Receiving has failed: a dump may be going on, and the kernel refuses another one meanwhile (EBUSY).
    unfinished: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The kernel has done it, or listed everything.
    Done,
    /// What was listed changed meanwhile: objects may be missing.
    Interrupted,
    /// The kernel refused.
    Refused(Errno),
}

/// A dump that is read in parts, by the number of its request.
#[derive(Debug)]
pub struct DumpUnderWay(u32);

impl Reply {
    /// Whether a dump is complete; `false` when it has to be repeated, as also when an object vanished between two
    /// requests.
    ///
    /// Errors: any other refusal, as that of `action`.
    pub fn settle(self, action: &'static str) -> Result<bool, Error> {
        match self {
            Reply::Done => Ok(true),
            Reply::Interrupted | Reply::Refused(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {
                Ok(false)
            }
            Reply::Refused(errno) => Err(failed(action)(errno)),
        }
    }
}

impl Connection {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN there, in families that require it.
    pub fn open(family: NetlinkFamily) -> Result<Self, Error> {
        Ok(Connection {
            socket: Socket::open(family)?,
            next_sequence: 1,
            request: Writer::default(),
            unfinished: false,
        })
    }

    /// Opens one for dumps that are read in small parts ([`Connection::read_on`]): a datagram holds a page of messages, or 8 kB
    /// where pages are longer.
    ///
    /// Errors: as [`Connection::open`].
    pub fn open_for_small_parts(family: NetlinkFamily) -> Result<Self, Error> {
        let mut connection = Self::open(family)?;
        connection.socket.receive_small(small_datagram(page_size()));
        Ok(connection)
    }

    /// The socket, for its options.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sequence number of the next request, or of the first message of a batch.
    pub fn next_sequence(&self) -> u32 {
        self.next_sequence
    }

    /// Sends one request: the protocol's `header`, then the attributes that `fill` writes. Hands each message of the
    /// reply to `absorb`. An acknowledgement is requested unless `flags` ask for a dump, which ends by itself.
    pub fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Writer),
        mut absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Reply, Error> {
        let is_dump = flags & flag::DUMP == flag::DUMP;
        let ack = if is_dump { 0 } else { flag::ACK };
        #[cfg(feature = "faults")]
        if let Some(errno) = crate::faults::due() {
            return Ok(Reply::Refused(errno));
        }
        let sequence = self.request(kind, flags | ack, header, fill)?;
        let mut interrupted = false;
        let reply = self.receive(|message| {
            if message.sequence != sequence {
                return Ok(None);
            }
            interrupted |= is_dump && message.flags & flag::DUMP_INTR != 0;
            match message.kind {
                control::DONE | control::ERROR => Ok(Some(match Answer::of(message)?.errno {
                    0 if interrupted => Reply::Interrupted,
                    0 => Reply::Done,
                    errno => Reply::Refused(Errno::from_raw(errno)),
                })),
                _ => absorb(message).map(|()| None),
            }
        })?;
        reply.ok_or(failed("receive the reply")(Errno::ENOBUFS))
    }

    /// Sends a request for a dump that [`Connection::read_on`] reads in parts. Until its end, the kernel refuses other dumps on
    /// this socket.
    pub fn begin_dump(
        &mut self,
        kind: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Writer),
    ) -> Result<DumpUnderWay, Error> {
        self.request(kind, flag::DUMP, header, fill)
            .map(DumpUnderWay)
    }

    /// Hands messages of a dump to `absorb`, a datagram at a time, until there were at least `least`. Returns the end of the
    /// dump, if it has come.
    ///
    /// Errors: EMSGSIZE if a datagram was longer than any before, and is lost; the dump can be read on.
    pub fn read_on(
        &mut self,
        dump: &DumpUnderWay,
        least: usize,
        mut absorb: impl FnMut(&Message<'_>),
    ) -> Result<Option<Reply>, Error> {
        let mut seen = 0;
        while seen < least {
            let received = self.socket.try_receive();
            self.unfinished = received.is_err();
            let Some(datagram) = received.map_err(failed("receive"))? else {
                if !self.socket.wait(ANSWER_TIMEOUT)? {
                    return Err(failed("await the reply")(Errno::ETIMEDOUT));
                }
                continue;
            };
            for message in messages(datagram) {
                let message = message?;
                match message.kind {
                    _ if message.sequence != dump.0 => {}
                    control::DONE | control::ERROR => {
                        return Ok(Some(match Answer::of(&message)?.errno {
                            0 => Reply::Done,
                            errno => Reply::Refused(Errno::from_raw(errno)),
                        }));
                    }
                    _ => {
                        seen += 1;
                        absorb(&message);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sends one request and returns its number.
    fn request(
        &mut self,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Writer),
    ) -> Result<u32, Error> {
        self.finish_dump()?;
        let sequence = self.next_sequence;
        self.next_sequence = sequence.wrapping_add(1);
        self.request.bytes.clear();
        let start = self.request.start(kind, flags, sequence, header);
        fill(&mut self.request);
        self.request.finish(start);
        self.socket.send(&self.request.bytes)?;
        Ok(sequence)
    }

    /// Reads and drops what is left of a dump that ended with an error. Receiving is what lets the kernel go on with it.
    fn finish_dump(&mut self) -> Result<(), Error> {
        while self.unfinished {
            match self.socket.try_receive() {
                Ok(Some(_)) | Err(Errno::ENOBUFS | Errno::EMSGSIZE) => {}
                Ok(None) => self.unfinished = false,
                Err(errno) => return Err(failed("finish a dump")(errno)),
            }
        }
        Ok(())
    }

    /// Sends messages numbered from [`Connection::next_sequence`] to `last`, of which `last` requests its
    /// acknowledgement; one more may follow, the end of a batch. Hands each refusal to `refused` with the position of
    /// its message, until that returns `false` because no more answers will come.
    ///
    /// Returns whether the last message was answered: answers that exceed the receive space are lost.
    pub fn send_batch(
        &mut self,
        datagram: &[u8],
        last: u32,
        mut refused: impl FnMut(u32, Answer) -> bool,
    ) -> Result<bool, Error> {
        self.finish_dump()?;
        let first = self.next_sequence;
        self.next_sequence = last.wrapping_add(2);
        self.socket.send(datagram)?;
        let answered = self.receive(|message| {
            let position = message.sequence.wrapping_sub(first);
            // Late answers to an earlier batch are skipped.
            if message.kind != control::ERROR || position > last.wrapping_sub(first) {
                return Ok(None);
            }
            let answer = Answer::of(message)?;
            let is_end = answer.errno != 0 && !refused(position, answer);
            Ok((is_end || message.sequence == last).then_some(()))
        })?;
        Ok(answered.is_some())
    }

    /// Sends one request for each item in one datagram, in order; the kernel goes on after one that it refuses.
    /// `write` starts and finishes the request of an item with a sequence number, and returns where it starts.
    pub fn send_each<T>(
        &mut self,
        items: &[T],
        mut write: impl FnMut(&T, u32, &mut Writer) -> usize,
        mut refused: impl FnMut(&T, Errno),
    ) -> Result<(), Error> {
        let mut out = Writer::default();
        let (mut last, mut start) = (self.next_sequence, 0);
        for (position, item) in (0..).zip(items) {
            #[cfg(feature = "faults")]
            if position > 0
                && let Some(errno) = crate::faults::due()
            {
                refused(item, errno);
                continue;
            }
            last = self.next_sequence.wrapping_add(position);
            start = write(item, last, &mut out);
        }
        if items.is_empty() {
            return Ok(());
        }
        out.acknowledge(start);
        let answered = self.send_batch(&out.bytes, last, |position, answer| {
            if let Some(item) = items.get(position as usize) {
                refused(item, Errno::from_raw(answer.errno));
            }
            true
        })?;
        match answered {
            true => Ok(()),
            false => Err(failed("await the acknowledgement")(Errno::ENOBUFS)),
        }
    }

    /// Hands messages to `absorb` until it returns something; `None` when the answer was lost in an overrun.
    fn receive<T>(
        &mut self,
        absorb: impl FnMut(&Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<T>, Error> {
        let received = self.receive_until(absorb);
        self.unfinished |= received.is_err();
        received
    }

    fn receive_until<T>(
        &mut self,
        mut absorb: impl FnMut(&Message<'_>) -> Result<Option<T>, Malformed>,
    ) -> Result<Option<T>, Error> {
        let mut overrun = false;
        loop {
            match self.socket.try_receive() {
                Ok(Some(datagram)) => {
                    for message in messages(datagram) {
                        if let Some(end) = absorb(&message?)? {
                            return Ok(Some(end));
                        }
                    }
                }
                Ok(None) if overrun => return Ok(None),
                Ok(None) => {
                    if !self.socket.wait(ANSWER_TIMEOUT)? {
                        return Err(failed("await the reply")(Errno::ETIMEDOUT));
                    }
                }
                // The answers that fit come first.
                Err(Errno::ENOBUFS) => overrun = true,
                Err(errno) => return Err(failed("receive the reply")(errno)),
            }
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GET_LINK: u16 = 18;
    const NEW_ROUTE: u16 = 24;

    #[test]
    fn a_dump_hands_over_its_objects_and_ends() {
        let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
        for _ in 0..2 {
            let mut loopback = false;
            let absorb = |message: &Message<'_>| {
                // IFLA_IFNAME
                let name = message.attributes(16)?.find(3)?;
                loopback |= name == Some(b"lo\0");
                Ok(())
            };
            let reply = connection.ask(GET_LINK, flag::DUMP, &[0; 16], |_| {}, absorb);
            assert_eq!((reply, loopback), (Ok(Reply::Done), true));
        }
    }

    #[test]
    fn a_dump_that_fails_does_not_block_the_next() {
        const GET_ROUTE: u16 = 26;
        // More routes than fit into two datagrams.
        let test = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("tests run as root");
            let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
            let ip = |words: &[&str]| {
                let status = std::process::Command::new("ip")
                    .args(words)
                    .status()
                    .unwrap();
                assert!(status.success());
            };
            ip(&["link", "set", "lo", "up"]);
            let lines: Vec<String> = (0..4000_u32)
                .map(|n| format!("route add 10.{}.{}.0/24 dev lo", n / 256, n % 256))
                .collect();
            let file = std::env::temp_dir().join(format!("routes-{}", std::process::id()));
            std::fs::write(&file, lines.join("\n")).unwrap();
            ip(&["-batch", &file.display().to_string()]);
            std::fs::remove_file(&file).unwrap();
            let mut dump = |fails: bool| {
                let mut seen = 0;
                let absorb = |_: &Message<'_>| {
                    seen += 1;
                    match fails {
                        true => Err(Malformed::Value("a test")),
                        false => Ok(()),
                    }
                };
                let reply = connection.ask(GET_ROUTE, flag::DUMP, &[0; 12], |_| {}, absorb);
                (reply, seen)
            };
            assert!(dump(true).0.is_err());
            let (reply, seen) = dump(false);
            assert_eq!(reply, Ok(Reply::Done));
            assert!(seen >= 4000, "{seen}");
        });
        test.join().unwrap();
    }

    #[test]
    fn a_dump_is_read_in_parts_until_its_end() {
        const GET_ROUTE: u16 = 26;
        let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
        for _ in 0..2 {
            let dump = connection.begin_dump(GET_ROUTE, &[0; 12], |_| {}).unwrap();
            let (mut seen, mut end) = (0, None);
            while end.is_none() {
                end = connection.read_on(&dump, 1, |_| seen += 1).unwrap();
            }
            assert_eq!((end, seen > 0), (Some(Reply::Done), true));
        }
    }

    #[test]
    fn a_datagram_that_was_cut_makes_room_for_the_next() {
        let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
        connection.socket.receive_small(16);
        let mut index = [0; 16];
        // Loopback.
        index[4..8].copy_from_slice(&1_i32.to_ne_bytes());
        let mut ask = || connection.ask(GET_LINK, 0, &index, |_| {}, |_| Ok(()));
        assert_eq!(ask(), Err(failed("receive the reply")(Errno::EMSGSIZE)));
        assert_eq!(ask(), Ok(Reply::Done));
    }

    #[test]
    fn a_refused_request_yields_the_error_number() {
        let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
        let mut index = [0; 16];
        index[4..8].copy_from_slice(&i32::MAX.to_ne_bytes());
        let reply = connection.ask(GET_LINK, 0, &index, |_| {}, |_| Ok(()));
        assert_eq!(reply, Ok(Reply::Refused(Errno::ENODEV)));
    }

    #[test]
    fn each_refused_request_is_named_by_its_item() {
        let mut connection = Connection::open(NetlinkFamily::Route).unwrap();
        let write = |kind: &u16, sequence, out: &mut Writer| {
            let start = out.start(*kind, 0, sequence, &[0; 16]);
            out.finish(start);
            start
        };
        let mut refused = Vec::new();
        // The header of a route is shorter than `struct rtmsg` in the second: both are refused, the last is not sent.
        let sent = connection.send_each(&[NEW_ROUTE, GET_LINK, NEW_ROUTE], write, |kind, _| {
            refused.push(*kind);
        });
        assert_eq!((sent, refused.len()), (Ok(()), 3));
    }
}
