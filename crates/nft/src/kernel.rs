//! The kernel as a [`Backend`]: one netlink socket that lives as long as the daemon.
//!
//! Owns sequence numbers, the matching of answers to steps, dumps that are repeated until they show one
//! generation, and what this kernel can do with owned tables. Bytes are left to [`crate::wire`].
//!
//! Invariant: every transaction is answered before [`Backend::commit`] returns; an `Ok` means the kernel
//! acknowledged its last step and refused none.

mod counted;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use nix::errno::Errno;

use crate::features::trial;
use crate::link::{Asked, Link, failed, undecodable};
use crate::model::{Bytes, Element, Family, Name, Table};
use crate::monitor::Membership;
use crate::transaction::{
    Adoption, Backend, CommitError, Culprit, Generation, Operation, TableContents, Transaction,
};
use crate::wire::abi::{self, control, flag, message};
use crate::wire::attribute::Writer;
use crate::wire::counts::read_counts;
use crate::wire::decode::{Reading, TableState};
use crate::wire::encode::{Batch, Encoder, TableFlags};
use crate::wire::frame::Answer;
use crate::wire::{Malformed, Message, messages};

/// Refused steps of one batch are answered one by one, with about 1 kB of kernel memory each.
const RECEIVE_SPACE: usize = 4 << 20;

/// A dump that other people's commits keep interrupting is given up after this many attempts, which take
/// 0.2 s and the time of the dumps.
const READ_ATTEMPTS: u32 = 20;

/// A transaction of this many bytes, some thousands of elements, is large.
const LARGE: usize = 128 << 10;

/// How to open the kernel.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Name of our table, the same in each family.
    pub table: Name,
    /// Own the table, so that nobody else's `nft flush ruleset` touches it, where the kernel can keep an
    /// owned table over our restarts (Linux 6.9).
    pub owner: bool,
}

/// What this kernel's tables can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFeatures {
    /// `flags owner` (Linux 5.12).
    pub owner: bool,
    /// `flags persist` (Linux 6.9).
    pub persist: bool,
}

/// What was sent in transactions so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Transactions.
    pub transactions: u64,
    /// Netlink messages in them, without the two that frame each.
    pub messages: u64,
    /// Bytes, all told.
    pub bytes: u64,
    /// Bytes of the last transaction.
    pub last_bytes: u64,
}

/// Our tables in the kernel of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    link: Link,
    batch: Batch,
    table: Name,
    features: TableFeatures,
    flags: TableFlags,
    sent: Sent,
    /// Of the monitor that is spared our large transactions.
    spared: Option<Membership>,
}

impl Kernel {
    /// Opens the socket and asks, without changing anything, what tables can do here.
    ///
    /// Errors: [`CommitError::Socket`]; EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open(config: KernelConfig) -> Result<Self, CommitError> {
        let mut kernel = Kernel::connect(config.table)?;
        let persist = kernel.would_make_table(TableFlags::PERSISTENT)?;
        let owner = persist || kernel.would_make_table(TableFlags::TIED)?;
        kernel.features = TableFeatures { owner, persist };
        if config.owner && persist {
            kernel.flags = TableFlags::PERSISTENT;
        }
        Ok(kernel)
    }

    /// Opens a socket for tables that are owned by it and go with it, however it ends (Linux 5.12; before,
    /// they are refused with EINVAL).
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open_tied(table: Name) -> Result<Self, CommitError> {
        let mut kernel = Kernel::connect(table)?;
        kernel.flags = TableFlags::TIED;
        Ok(kernel)
    }

    pub(crate) fn connect(table: Name) -> Result<Self, CommitError> {
        Ok(Kernel {
            link: Link::open(RECEIVE_SPACE)?,
            batch: Batch::default(),
            table,
            features: TableFeatures::default(),
            flags: TableFlags::default(),
            sent: Sent::default(),
            spared: None,
        })
    }

    /// From now on the monitor is not told of large transactions of ours, which it would leave unread. What others do
    /// meanwhile it is told as [`crate::Notice::Overrun`].
    pub fn spare(&mut self, monitor: Membership) {
        self.spared = Some(monitor);
    }

    /// What this kernel's tables can do.
    pub fn features(&self) -> TableFeatures {
        self.features
    }

    /// Flags that [`Operation::AddTable`] asks for: owner and persist, or neither. Owner alone would
    /// take the table away with this socket, at each restart.
    pub fn table_flags(&self) -> TableFlags {
        self.flags
    }

    /// Port id of the socket, by which its own changes are told from others'.
    pub fn port(&self) -> u32 {
        self.link.socket.port()
    }

    /// What was sent in transactions so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Whether a table is there, and whose it is. A table without the owner flag cannot be given it in
    /// place (EOPNOTSUPP): it takes [`Operation::DeleteTable`] and [`Operation::AddTable`] in one
    /// transaction. An orphaned one is adopted by [`Operation::AddTable`] alone.
    pub fn table_state(&mut self, family: Family) -> Result<Option<TableState>, CommitError> {
        let mut reading = Reading::new(family, self.table.clone());
        match self.ask_for_table(&mut reading)? {
            Asked::Refused(Errno::ENOENT) => Ok(None),
            Asked::Refused(errno) => Err(failed("read the table")(errno)),
            Asked::Done | Asked::Interrupted => Ok(reading.state()),
        }
    }

    /// Packets that the elements of a set of [`crate::SetKind::Counters`] have counted, by key; empty when there is no
    /// such set. When the table changes meanwhile, elements may be missing or come twice.
    pub fn counts(&mut self, family: Family, set: &Name) -> Result<Vec<(Bytes, u64)>, CommitError> {
        let table = self.table.clone();
        let fill = |out: &mut Writer| {
            out.put_str(abi::elements::TABLE, &table);
            out.put_str(abi::elements::SET, set);
        };
        let mut counts = Vec::new();
        let (kind, flags) = (message::GET_ELEMENTS, flag::DUMP);
        let asked = self.link.ask(kind, flags, Some(family), fill, |m| {
            counts.extend(read_counts(m)?);
            Ok(())
        })?;
        asked.settle()?;
        Ok(counts)
    }

    /// Whether the kernel would make a table with these flags.
    fn would_make_table(&mut self, flags: TableFlags) -> Result<bool, CommitError> {
        let trial = self.attempt(false, |out| trial::add_table(out, flags.bits(), ""))?;
        Ok(trial.is_ok())
    }

    /// Sends messages on the table of trials and returns the kernel's refusal of the first, if it refuses. Nothing
    /// is done, unless they are to be carried out.
    pub(crate) fn attempt(
        &mut self,
        carried_out: bool,
        fill: impl FnOnce(&mut Encoder<'_>),
    ) -> Result<Result<(), Answer>, CommitError> {
        let sequence = self.link.sequence;
        self.batch
            .encode_trial(trial::TABLE, sequence, carried_out, fill);
        Ok(match self.exchange()? {
            Outcome::Acknowledged => Ok(()),
            Outcome::Refused { answer, .. } => Err(answer),
        })
    }

    /// Sends one request outside of batches and returns the kernel's refusal, if it refuses.
    pub(crate) fn request(
        &mut self,
        kind: u16,
        flags: u16,
        fill: impl FnOnce(&mut Writer),
        absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Result<(), Errno>, CommitError> {
        Ok(
            match self.link.ask(kind, flags, Some(Family::Ip), fill, absorb)? {
                Asked::Done | Asked::Interrupted => Ok(()),
                Asked::Refused(errno) => Err(errno),
            },
        )
    }

    fn carry_out(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let encoded = self
            .batch
            .encode(transaction, &self.table, self.flags, self.link.sequence);
        if let Err(unencodable) = encoded {
            let operation = unencodable.operation;
            let family = transaction
                .operations
                .get(operation)
                .map_or(Family::Ip, |(f, _)| *f);
            return Err(CommitError::Refused {
                errno: Errno::EOPNOTSUPP,
                culprit: Box::new(Culprit {
                    operation,
                    family,
                    element: None,
                }),
                message: Some("not sent: cannot be written".to_owned()),
            });
        }
        if self.batch.message_count() == 0 {
            return Ok(());
        }
        let bytes = self.batch.bytes().len() as u64;
        self.sent.transactions += 1;
        self.sent.messages += self.batch.message_count() as u64;
        self.sent.bytes += bytes;
        self.sent.last_bytes = bytes;
        let outcome = match self.spared.take_if(|_| bytes >= LARGE as u64) {
            None => self.exchange(),
            Some(monitor) => {
                let outcome = self.unheard_by(&monitor, Kernel::exchange);
                self.spared = Some(monitor);
                outcome
            }
        };
        match outcome? {
            Outcome::Acknowledged => Ok(()),
            Outcome::Refused { sequence, answer } => Err(self.blame(transaction, sequence, answer)),
        }
    }

    /// Has `monitor` leave the group while `exchange` runs.
    ///
    /// Errors: besides those of `exchange`, when the monitor cannot be had back: then it is deaf.
    fn unheard_by(
        &mut self,
        monitor: &Membership,
        exchange: impl FnOnce(&mut Self) -> Result<Outcome, CommitError>,
    ) -> Result<Outcome, CommitError> {
        // In this order: what others do before it has left, it is told.
        let before = self.link.generation()?;
        monitor.leave().map_err(failed("leave the group"))?;
        let outcome = exchange(self);
        let joined = monitor.join();
        let expected = match outcome {
            Ok(Outcome::Acknowledged) => before.next(),
            _ => before,
        };
        if joined.is_err() || self.link.generation()? != expected {
            monitor.missed().map_err(failed("tell the monitor"))?;
        }
        joined.map_err(failed("join the group"))?;
        outcome
    }

    /// Sends the batch and gathers its answers.
    fn exchange(&mut self) -> Result<Outcome, CommitError> {
        let batch = &self.batch;
        self.link.sequence = batch.last_sequence().wrapping_add(2);
        self.link
            .socket
            .send(batch.bytes())
            .map_err(failed("send"))?;
        let (mut answers, mut overrun) = (Answers::default(), false);
        while !answers.complete {
            match self.link.socket.try_receive() {
                Ok(Some(datagram)) => answers.absorb(datagram, batch).map_err(undecodable)?,
                Ok(None) if overrun => break,
                Ok(None) => self.link.wait()?,
                // Too many refusals to hold; those held come first.
                Err(Errno::ENOBUFS) => overrun = true,
                Err(errno) => return Err(failed("receive")(errno)),
            }
        }
        match (answers.first_refusal, answers.whole, answers.acknowledged) {
            (Some((position, answer)), _, _) => Ok(Outcome::Refused {
                sequence: batch.first_sequence().wrapping_add(position),
                answer,
            }),
            (None, Some(errno), _) => Err(failed("commit")(errno)),
            (None, None, true) => Ok(Outcome::Acknowledged),
            (None, None, false) => Err(failed("await acknowledgement")(Errno::ENOBUFS)),
        }
    }

    /// The step, and where the kernel points at one, the element that was refused.
    fn blame(&self, transaction: &Transaction, sequence: u32, answer: Answer) -> CommitError {
        let errno = Errno::from_raw(answer.errno);
        let found = self
            .batch
            .operation(sequence)
            .and_then(|index| Some((index, transaction.operations.get(index)?)));
        let Some((operation, (family, step))) = found else {
            return failed("commit")(errno);
        };
        let element = match step {
            Operation::AddElements { set, elements }
            | Operation::DeleteElements { set, elements } => {
                let index = answer
                    .offset
                    .and_then(|at| self.batch.element(sequence, at));
                let element: Option<&Element> = index.and_then(|index| elements.get(index));
                Some((set.clone(), element.cloned()))
            }
            _ => None,
        };
        let culprit = Culprit {
            operation,
            family: *family,
            element,
        };
        CommitError::Refused {
            errno,
            culprit: Box::new(culprit),
            message: answer.message,
        }
    }

    /// One attempt at reading a table; `None` when it was changed meanwhile.
    fn read(&mut self, family: Family) -> Result<Option<Option<TableContents>>, CommitError> {
        let before = self.link.generation()?;
        let mut reading = Reading::new(family, self.table.clone());
        let done = match self.ask_for_table(&mut reading)? {
            Asked::Refused(Errno::ENOENT) => true,
            asked => asked.settle()? && self.read_contents(&mut reading, family)?,
        };
        if !done || self.link.generation()? != before {
            return Ok(None);
        }
        let Ok(contents) = reading.finish() else {
            return Ok(None);
        };
        Ok(Some(contents))
    }

    /// All but the table itself; `false` when it was changed meanwhile.
    fn read_contents(
        &mut self,
        reading: &mut Reading,
        family: Family,
    ) -> Result<bool, CommitError> {
        let table = self.table.clone();
        let kinds = [message::GET_SET, message::GET_CHAIN, message::GET_RULE];
        for kind in kinds {
            let fill = |out: &mut Writer| out.put_str(abi::set::TABLE, &table);
            let asked = self
                .link
                .ask(kind, flag::DUMP, Some(family), fill, |m| reading.absorb(m))?;
            if !asked.settle()? {
                return Ok(false);
            }
        }
        for set in reading.readable_sets() {
            let fill = |out: &mut Writer| {
                out.put_str(abi::elements::TABLE, &table);
                out.put_str(abi::elements::SET, &set);
            };
            let kind = message::GET_ELEMENTS;
            let asked = self
                .link
                .ask(kind, flag::DUMP, Some(family), fill, |m| reading.absorb(m))?;
            if !asked.settle()? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One attempt at reading a learned map, and whether that is all: when the table was changed meanwhile, some may be
    /// missing.
    fn read_learned(
        &mut self,
        family: Family,
        map: &Name,
    ) -> Result<(Vec<Element>, bool), CommitError> {
        let mut reading = Reading::new(family, self.table.clone());
        let mut whole = true;
        for kind in [message::GET_SET, message::GET_ELEMENTS] {
            let table = self.table.clone();
            let fill = |out: &mut Writer| {
                out.put_str(abi::elements::TABLE, &table);
                out.put_str(abi::elements::SET, map);
            };
            let flags = match kind {
                message::GET_SET => flag::ACK,
                _ => flag::DUMP,
            };
            let asked = self
                .link
                .ask(kind, flags, Some(family), fill, |m| reading.absorb(m))?;
            match asked {
                Asked::Refused(Errno::ENOENT) => return Ok((Vec::new(), true)),
                asked => whole &= asked.settle()?,
            }
        }
        Ok((reading.into_elements(map), whole))
    }

    fn ask_for_table(&mut self, reading: &mut Reading) -> Result<Asked, CommitError> {
        let (table, family) = (self.table.clone(), reading.family());
        let fill = |out: &mut Writer| out.put_str(abi::table::NAME, &table);
        self.link
            .ask(message::GET_TABLE, flag::ACK, Some(family), fill, |m| {
                reading.absorb(m)
            })
    }
}

impl Backend for Kernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let result = self.carry_out(transaction);
        self.batch.give_back();
        result
    }

    fn generation(&mut self) -> Result<Generation, CommitError> {
        self.link.generation()
    }

    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError> {
        for attempt in 0..READ_ATTEMPTS {
            if let Some(contents) = self.read(family)? {
                return Ok(contents);
            }
            // The kernel grows hash tables in its own time.
            std::thread::sleep(Duration::from_millis(1) * attempt);
        }
        Err(failed("read the table unchanged")(Errno::EAGAIN))
    }

    fn learned(&mut self, family: Family, map: &Name) -> Result<Vec<Element>, CommitError> {
        let mut all = Vec::new();
        for attempt in 0..READ_ATTEMPTS {
            let (elements, whole) = self.read_learned(family, map)?;
            if whole {
                return Ok(elements);
            }
            // What one misses another finds.
            all.extend(elements);
            all.sort_unstable();
            all.dedup_by(|a, b| a.key == b.key);
            std::thread::sleep(Duration::from_millis(1) * attempt);
        }
        Ok(all)
    }

    fn adopt(&mut self, family: Family) -> Result<Adoption, CommitError> {
        let Some(state) = self.table_state(family)? else {
            return Ok(Adoption::NoTable);
        };
        let wanted = self.flags;
        match state.owner {
            _ if state.dormant || state.persist != wanted.persist => Ok(Adoption::Replace),
            Some(port) if port == self.port() => Ok(Adoption::Ours),
            Some(_) => Err(failed("adopt a table that another process owns")(
                Errno::EPERM,
            )),
            None if wanted.owner => {
                let mut adoption = Transaction::new();
                let comment = Name::default();
                let table = Table {
                    family,
                    name: self.table.clone(),
                    comment,
                };
                adoption.push(family, Operation::AddTable(table));
                self.commit(&adoption).map(|()| Adoption::Ours)
            }
            None => Ok(Adoption::Ours),
        }
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.socket.as_fd()
    }
}

/// What became of a batch.
enum Outcome {
    Acknowledged,
    Refused { sequence: u32, answer: Answer },
}

/// Answers to one batch.
#[derive(Default)]
struct Answers {
    /// Position in the batch (the beginning has 0) and answer of the first message refused. The kernel
    /// goes on after it to name all others, which may only follow from the first.
    first_refusal: Option<(u32, Answer)>,
    /// The batch was refused as a whole.
    whole: Option<Errno>,
    acknowledged: bool,
    /// The last operation, or the batch as a whole, was answered; that comes last.
    complete: bool,
}

impl Answers {
    fn absorb(&mut self, datagram: &[u8], batch: &Batch) -> Result<(), Malformed> {
        for message in messages(datagram) {
            let message = message?;
            let position = message.sequence.wrapping_sub(batch.first_sequence());
            // Answers to something earlier, that was given up.
            if message.kind != control::ERROR || position as usize > batch.message_count() {
                continue;
            }
            let answer = Answer::of(&message)?;
            let last = message.sequence == batch.last_sequence();
            match (answer.errno, position) {
                (0, _) => self.acknowledged |= last,
                (errno, 0) => {
                    self.whole = Some(Errno::from_raw(errno));
                    self.complete = true;
                }
                _ if self
                    .first_refusal
                    .as_ref()
                    .is_none_or(|(first, _)| position < *first) =>
                {
                    self.first_refusal = Some((position, answer));
                }
                _ => {}
            }
            self.complete |= last;
        }
        Ok(())
    }
}
