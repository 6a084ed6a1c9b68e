//! The kernel as a [`Backend`]: one netlink socket that lives as long as the daemon.
//!
//! Owns commits, the search for the step that the kernel refused, and the trial of table flags. `reading` has what is
//! read. Leaves the wire format to [`crate::wire`] and the matching of replies to [`netlink`].
//!
//! Invariant: every transaction is answered before [`Backend::commit`] returns. `Ok` means that the kernel acknowledged
//! the last step of the transaction and refused no step.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod reading;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink::{Answer, Connection, Malformed, Message, NetlinkFamily, Reply, Writer, failed, flag};
use nix::errno::Errno;

use crate::backend::{Adoption, Backend};
use crate::model::{Element, Family, Name, Table};
use crate::monitor::{Monitor, Mute};
use crate::transaction::{CommitError, Culprit, Generation, Operation, TableContents, Transaction};
use crate::wire::abi::{self, message};
use crate::wire::encode::{Batch, Encoder, TRIAL_TABLE, TableFlags};
use crate::wire::header::header;

pub use reading::read_generation;

/// Receive buffer of the socket, in bytes: each refused step of a batch is answered with a message of about 1 kB.
const RECEIVE_SPACE: usize = 4 << 20;

/// Attempts at a dump that commits of other processes interrupt. All pauses between them take 0.2 s.
const READ_ATTEMPTS: u32 = 20;

/// Transactions of this many bytes, some thousands of elements, are committed with the monitor muted.
const LARGE: usize = 128 << 10;

/// How to open the kernel.
#[derive(Clone, Debug)]
pub struct KernelConfig {
    /// Name of our table, the same in each family.
    pub table: Name,
    /// Own the table, so that no other `nft flush ruleset` touches it, where the kernel keeps owned tables
    /// across restarts (Linux 6.9).
    pub owner: bool,
}

/// Table flags that this kernel supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFeatures {
    /// `flags owner` (Linux 5.12).
    pub owner: bool,
    /// `flags persist` (Linux 6.9).
    pub persist: bool,
}

/// Totals of the transactions sent so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Transactions.
    pub transactions: u64,
    /// Netlink messages in the transactions, without the begin and end message of each.
    pub messages: u64,
    /// Bytes in total.
    pub bytes: u64,
}

/// Our tables in the kernel, in the network namespace of the thread that opened the socket.
#[derive(Debug)]
pub struct Kernel {
    connection: Connection,
    batch: Batch,
    table: Name,
    features: TableFeatures,
    flags: TableFlags,
    sent: Sent,
    /// Mutes the monitor during large commits.
    mute: Option<Mute>,
}

impl Kernel {
    /// Opens the socket and tries which table flags the kernel supports, without changing anything.
    ///
    /// Errors: [`CommitError::Netlink`]; EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open(config: KernelConfig) -> Result<Self, CommitError> {
        let mut kernel = Kernel::connect(config.table.clone())?;
        let flags = named(&[TableFlags::TIED, TableFlags::PERSISTENT]);
        let trials = kernel.attempt_each(&flags, |flags, out| {
            out.trial_table(flags.bits(), flag::EXCL, "");
            delete_table(out);
        })?;
        let features = match trials.as_slice() {
            [tied, persistent] => TableFeatures {
                owner: tied.is_ok() || persistent.is_ok(),
                persist: persistent.is_ok(),
            },
            _ => TableFeatures::default(),
        };
        kernel.set_features(&config, features);
        Ok(kernel)
    }

    /// Opens a socket only to read tables of this name.
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open_to_read(table: Name) -> Result<Self, CommitError> {
        Kernel::connect(table)
    }

    /// Notes what tables can do, and owns the table if the configuration wants that.
    pub(crate) fn set_features(&mut self, config: &KernelConfig, features: TableFeatures) {
        self.features = features;
        if config.owner && features.persist {
            self.flags = TableFlags::PERSISTENT;
        }
    }

    /// Opens a socket whose tables the kernel deletes when the socket closes, however the process ends (Linux 5.12;
    /// before, such tables are refused with EINVAL).
    ///
    /// Errors: as [`Kernel::open`].
    pub fn open_tied(table: Name) -> Result<Self, CommitError> {
        let mut kernel = Kernel::connect(table)?;
        kernel.flags = TableFlags::TIED;
        Ok(kernel)
    }

    pub(crate) fn connect(table: Name) -> Result<Self, CommitError> {
        let connection = Connection::open(NetlinkFamily::Netfilter)?;
        connection.socket().set_receive_space(RECEIVE_SPACE)?;
        Ok(Kernel {
            connection,
            batch: Batch::default(),
            table,
            features: TableFeatures::default(),
            flags: TableFlags::default(),
            sent: Sent::default(),
            mute: None,
        })
    }

    /// Mutes a monitor during large commits, whose notifications the monitor would only skip. The monitor reports a foreign
    /// change during this time as [`crate::Notice::Overrun`].
    pub fn mute_during_large_commits(&mut self, monitor: &Monitor) -> Result<(), CommitError> {
        self.mute = Some(monitor.mute()?);
        Ok(())
    }

    /// Table flags that this kernel supports.
    pub fn features(&self) -> TableFeatures {
        self.features
    }

    /// Flags that [`Operation::AddTable`] sets: owner and persist, or neither. With owner alone, the kernel would delete the
    /// table when this socket closes, at each restart.
    pub fn table_flags(&self) -> TableFlags {
        self.flags
    }

    /// Port ID of the socket, by which monitors distinguish its changes from foreign ones.
    pub fn port(&self) -> u32 {
        self.connection.socket().port()
    }

    /// Totals of the transactions sent so far.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Commits messages about the trial table. Returns the first refusal, if there is one: then nothing is committed.
    pub(crate) fn attempt(
        &mut self,
        fill: impl FnOnce(&mut Encoder<'_>),
    ) -> Result<Result<(), Answer>, CommitError> {
        let sequence = self.connection.next_sequence();
        self.batch.encode_trial(sequence, fill);
        Ok(match self.exchange()? {
            BatchOutcome::Acknowledged => Ok(()),
            BatchOutcome::Refused { answer, .. } => Err(answer),
        })
    }

    /// Sends messages about a trial table of each item and returns the kernel's first refusal for each. All items share one
    /// batch, which the kernel carries out if it refuses nothing. If it refuses something, it waits for a grace period of
    /// RCU (16 ms and more) and nothing is left of the batch.
    pub(crate) fn attempt_each<T: Copy>(
        &mut self,
        items: &[(T, String)],
        fill: impl FnMut(T, &mut Encoder<'_>),
    ) -> Result<Vec<Result<(), Answer>>, CommitError> {
        let sequence = self.connection.next_sequence();
        self.batch.encode_trials(sequence, items, fill);
        let batch = &self.batch;
        let mut found: Vec<Result<(), Answer>> = items.iter().map(|_| Ok(())).collect();
        let mut all = None;
        let refused = |position: u32, answer: Answer| {
            let item = batch.operation(sequence.wrapping_add(position));
            match item.and_then(|item| found.get_mut(item)) {
                Some(slot) if slot.is_ok() => *slot = Err(answer),
                Some(_) => {}
                // The beginning of the batch has position 0: an error there concerns the whole batch.
                None => all = Some(answer),
            }
            position != 0
        };
        let answered = self
            .connection
            .send_batch(batch.bytes(), batch.last_sequence(), refused)?;
        match all {
            Some(answer) => Err(failed("try features")(Errno::from_raw(answer.errno)).into()),
            None if answered => Ok(found),
            None => Err(failed("await the acknowledgement")(Errno::ENOBUFS).into()),
        }
    }

    /// Sends one request outside of batches.
    pub(crate) fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        family: Option<Family>,
        fill: impl FnOnce(&mut Writer),
        absorb: impl FnMut(&Message<'_>) -> Result<(), Malformed>,
    ) -> Result<Reply, netlink::Error> {
        self.connection
            .ask(kind, flags, &header(family), fill, absorb)
    }

    /// Encodes and sends a transaction, and finds the step that the kernel refused.
    fn carry_out(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let encoded = self.batch.encode(
            transaction,
            &self.table,
            self.flags,
            self.connection.next_sequence(),
        );
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
                message: Some("not sent: this step cannot be encoded".to_owned()),
            });
        }
        if self.batch.message_count() == 0 {
            return Ok(());
        }
        let bytes = self.batch.bytes().len() as u64;
        self.sent.transactions += 1;
        self.sent.messages += self.batch.message_count() as u64;
        self.sent.bytes += bytes;
        let outcome = match self.mute.take_if(|_| bytes >= LARGE as u64) {
            None => self.exchange(),
            Some(mute) => {
                let outcome = self.with_monitor_muted(&mute, Kernel::exchange);
                self.mute = Some(mute);
                outcome
            }
        };
        match outcome? {
            BatchOutcome::Acknowledged => Ok(()),
            BatchOutcome::Refused { sequence, answer } => {
                Err(self.blame(transaction, sequence, answer))
            }
        }
    }

    /// Runs `exchange` while the monitor receives nothing.
    ///
    /// Errors: besides those of `exchange`, when the monitor cannot join its group again: then it receives nothing
    /// any more.
    fn with_monitor_muted(
        &mut self,
        mute: &Mute,
        exchange: impl FnOnce(&mut Self) -> Result<BatchOutcome, CommitError>,
    ) -> Result<BatchOutcome, CommitError> {
        // Read the generation before the monitor leaves its group: until then, the monitor reports foreign changes.
        let before = self.generation()?;
        mute.leave()?;
        let outcome = exchange(self);
        let joined = mute.join();
        let expected = match outcome {
            Ok(BatchOutcome::Acknowledged) => before.next(),
            _ => before,
        };
        if joined.is_err() || self.generation()? != expected {
            mute.report_missed()?;
        }
        joined?;
        outcome
    }

    /// Sends the batch and collects its answers.
    fn exchange(&mut self) -> Result<BatchOutcome, CommitError> {
        let batch = &self.batch;
        // The kernel goes on after the first refusal, and may refuse others only because of the first.
        let mut first_refusal: Option<(u32, Answer)> = None;
        let refused = |position, answer| {
            let is_first = first_refusal
                .as_ref()
                .is_none_or(|(first, _)| position < *first);
            if is_first {
                first_refusal = Some((position, answer));
            }
            // The beginning of the batch has position 0: an error there concerns the whole batch.
            position != 0
        };
        let answered = self
            .connection
            .send_batch(batch.bytes(), batch.last_sequence(), refused)?;
        match first_refusal {
            None if answered => Ok(BatchOutcome::Acknowledged),
            None => Err(failed("await the acknowledgement")(Errno::ENOBUFS).into()),
            Some((0, answer)) => Err(failed("commit")(Errno::from_raw(answer.errno)).into()),
            Some((position, answer)) => Ok(BatchOutcome::Refused {
                sequence: batch.first_sequence().wrapping_add(position),
                answer,
            }),
        }
    }

    /// The error that names the refused step, and the refused element if the kernel's answer points at one.
    fn blame(&self, transaction: &Transaction, sequence: u32, answer: Answer) -> CommitError {
        let errno = Errno::from_raw(answer.errno);
        let found = self
            .batch
            .operation(sequence)
            .and_then(|index| Some((index, transaction.operations.get(index)?)));
        let Some((operation, (family, step))) = found else {
            return failed("commit")(errno).into();
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
}

impl Backend for Kernel {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let result = self.carry_out(transaction);
        self.batch.shrink();
        result
    }

    fn generation(&mut self) -> Result<Generation, CommitError> {
        Ok(read_generation(&mut self.connection)?)
    }

    fn list(&mut self, family: Family) -> Result<Option<TableContents>, CommitError> {
        for attempt in 0..READ_ATTEMPTS {
            if let Some(contents) = self.read(family)? {
                return Ok(contents);
            }
            // A hash table that the kernel is resizing interrupts dumps as well: wait a little longer each time.
            std::thread::sleep(Duration::from_millis(1) * attempt);
        }
        Err(failed("read the table between foreign changes")(Errno::EAGAIN).into())
    }

    fn dynamic_elements(
        &mut self,
        family: Family,
        map: &Name,
    ) -> Result<Vec<Element>, CommitError> {
        let mut all = Vec::new();
        for attempt in 0..READ_ATTEMPTS {
            let (elements, complete) = self.read_dynamic(family, map)?;
            if complete {
                return Ok(elements);
            }
            // An element that is missing from one attempt is in another.
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
            Some(_) => Err(CommitError::Owned(family)),
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

/// Each item with the name of a table of its own to try it on.
pub(crate) fn named<T: Copy>(items: &[T]) -> Vec<(T, String)> {
    let numbered = (0..).zip(items);
    let name = |(number, item): (u32, &T)| (*item, format!("{TRIAL_TABLE}_{number}"));
    numbered.map(name).collect()
}

/// Deletes the trial table.
pub(crate) fn delete_table(out: &mut Encoder<'_>) {
    let table = out.table;
    out.message(message::DEL_TABLE, 0, |out| {
        out.put_str(abi::table::NAME, table)
    });
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.connection.as_fd()
    }
}

/// The kernel's answer to a batch.
enum BatchOutcome {
    Acknowledged,
    Refused { sequence: u32, answer: Answer },
}
