//! A transaction as one batch of netlink messages.
//!
//! Owns the order of messages in a batch, the splitting of long element lists, and finding the step and element of a
//! message that the kernel refused. The batch begins with
//! `NFNL_MSG_BATCH_BEGIN` and ends with `NFNL_MSG_BATCH_END` (without which the kernel reports success and
//! does nothing); its last operation requests an acknowledgement, so that every batch is answered.

use netlink::{ATTRIBUTE_HEADER, Attributes, HEADER, Writer, be32, flag};

use super::abi::{self, GENERIC, batch, element, message};
use super::expression::{write, write_verdict};
use super::header::{BATCH_HEADER, header};
use super::hook::{chain_type, hook_numbers};
use super::udata;
use crate::expr::lower;
use crate::model::{
    Bytes, Chain, DYNAMIC_SIZE, Data, DataField, Element, Family, Field, Set, SetKind, Statement,
    Table,
};
use crate::transaction::{Operation, Transaction};

/// A nested attribute's length is 16 bits wide. Our widest element, both ends of an IPv6 range,
/// takes less than 200 bytes.
const ELEMENT_LIST_MAX: usize = u16::MAX as usize - 512;

/// Name of the table on which features are tried, and beginning of the names of others. A table of such a name that exists
/// already is left alone: the trial is refused or ignored.
pub(crate) const TRIAL_TABLE: &str = "portolan_trial";

/// Owner and persistence of a new table (`NFTA_TABLE_FLAGS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableFlags {
    /// The table belongs to the socket that makes it; others can neither change nor flush it
    /// (Linux 5.12).
    pub owner: bool,
    /// An owned table outlives its socket as an orphan that a later socket can adopt (Linux 6.9).
    pub persist: bool,
}

impl TableFlags {
    /// Owner and persistence.
    pub const PERSISTENT: TableFlags = TableFlags {
        owner: true,
        persist: true,
    };
    /// Owner alone: the table goes when its socket does.
    pub const TIED: TableFlags = TableFlags {
        owner: true,
        persist: false,
    };

    pub(crate) fn bits(self) -> u32 {
        let owner = if self.owner { abi::table::OWNED } else { 0 };
        let persist = if self.persist { abi::table::PERSIST } else { 0 };
        owner | persist
    }
}

/// A step that cannot be written: it has a value that is only observed, or is too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unencodable {
    /// Index of the step.
    pub operation: usize,
}

/// Where one message of a batch came from.
#[derive(Clone, Copy, Debug)]
struct Origin {
    operation: usize,
    /// Element messages: index of the first element in the step.
    first_element: usize,
    /// Offset of the message in the batch.
    start: usize,
}

/// An encoded transaction. Kept and refilled, so that its memory is reused.
#[derive(Debug, Default)]
pub struct Batch {
    writer: Writer,
    origins: Vec<Origin>,
    sequence: u32,
}

impl Batch {
    /// Encodes a transaction on the table of this name, numbering the messages from `sequence` on.
    pub fn encode(
        &mut self,
        transaction: &Transaction,
        table: &str,
        flags: TableFlags,
        sequence: u32,
    ) -> Result<(), Unencodable> {
        self.begin(sequence);
        for (operation, (family, step)) in transaction.operations.iter().enumerate() {
            let mut encoder = Encoder {
                batch: self,
                table,
                family: *family,
                operation,
                flags,
            };
            let done = encoder.step(step);
            if done.is_none() || self.writer.overflow {
                return Err(Unencodable { operation });
            }
        }
        self.ask_for_answer();
        self.frame(batch::END);
        Ok(())
    }

    /// Encodes messages written by hand, on [`TRIAL_TABLE`].
    pub(crate) fn encode_trial(&mut self, sequence: u32, fill: impl FnOnce(&mut Encoder<'_>)) {
        self.begin(sequence);
        fill(&mut self.trial(TRIAL_TABLE, 0));
        self.ask_for_answer();
        self.frame(batch::END);
    }

    /// Encodes messages written by hand for each item, each on a table of the given name. The position of an item is its
    /// operation.
    pub(crate) fn encode_trials<T: Copy>(
        &mut self,
        sequence: u32,
        items: &[(T, String)],
        mut fill: impl FnMut(T, &mut Encoder<'_>),
    ) {
        self.begin(sequence);
        for (operation, (item, table)) in items.iter().enumerate() {
            fill(*item, &mut self.trial(table, operation));
        }
        self.ask_for_answer();
        self.frame(batch::END);
    }

    fn trial<'a>(&'a mut self, table: &'a str, operation: usize) -> Encoder<'a> {
        Encoder {
            batch: self,
            table,
            family: Family::Ip,
            operation,
            flags: TableFlags::default(),
        }
    }

    /// The bytes to send in one piece.
    pub fn bytes(&self) -> &[u8] {
        &self.writer.bytes
    }

    /// Messages of operations, without the batch's own two.
    pub fn message_count(&self) -> usize {
        self.origins.len()
    }

    /// Sequence number of the batch's beginning; the kernel answers under it when the whole batch fails.
    pub(crate) fn first_sequence(&self) -> u32 {
        self.sequence
    }

    /// Sequence number of the last operation, the one that is acknowledged.
    pub(crate) fn last_sequence(&self) -> u32 {
        self.sequence.wrapping_add(self.origins.len() as u32)
    }

    /// The step that the message of this sequence number came from.
    pub(crate) fn operation(&self, sequence: u32) -> Option<usize> {
        self.origin(sequence).map(|origin| origin.operation)
    }

    /// Index, in its step, of the element whose attribute begins `offset` bytes into the refused message
    /// (`NLMSGERR_ATTR_OFFS`). Linux before 5.19 counts from the batch's first operation instead.
    pub(crate) fn element(&self, sequence: u32, offset: u32) -> Option<usize> {
        let origin = self.origin(sequence)?;
        let offset = offset as usize;
        let in_batch = || (HEADER + GENERIC + offset).checked_sub(origin.start);
        self.element_at(origin, offset)
            .or_else(|| self.element_at(origin, in_batch()?))
    }

    fn origin(&self, sequence: u32) -> Option<Origin> {
        let index = sequence.wrapping_sub(self.sequence).checked_sub(1)?;
        self.origins.get(index as usize).copied()
    }

    /// Walks the message's element list; both ends of a range belong to one element.
    fn element_at(&self, origin: Origin, offset: usize) -> Option<usize> {
        let body = self.writer.bytes.get(origin.start + HEADER + GENERIC..)?;
        let list = Attributes::new(body)
            .take_while(Result::is_ok)
            .flatten()
            .take(3)
            .find(|attribute| attribute.kind == abi::elements::LIST)?;
        let start = HEADER + GENERIC + list.offset + ATTRIBUTE_HEADER;
        let mut count = 0usize;
        for item in Attributes::new(list.payload).flatten() {
            count += usize::from(!is_interval_end(item.payload));
            if start + item.offset == offset {
                return Some(origin.first_element + count.checked_sub(1)?);
            }
        }
        None
    }

    /// Frees memory after a commit: the first takes megabytes, a change a few kilobytes.
    pub(crate) fn shrink(&mut self) {
        const KEPT: usize = 64 << 10;
        self.writer.bytes.clear();
        self.writer.bytes.shrink_to(KEPT);
        self.origins.clear();
        self.origins.shrink_to(KEPT / size_of::<Origin>());
    }

    fn begin(&mut self, sequence: u32) {
        self.writer.bytes.clear();
        self.writer.overflow = false;
        self.origins.clear();
        self.sequence = sequence;
        self.frame(batch::BEGIN);
    }

    fn frame(&mut self, kind: u16) {
        let sequence = match kind {
            batch::BEGIN => self.sequence,
            _ => self.last_sequence().wrapping_add(1),
        };
        let start = self.writer.start(kind, 0, sequence, &BATCH_HEADER);
        self.writer.finish(start);
    }

    fn ask_for_answer(&mut self) {
        if let Some(last) = self.origins.last() {
            self.writer.acknowledge(last.start);
        }
    }
}

fn is_interval_end(item: &[u8]) -> bool {
    let flags = Attributes::new(item).find(element::FLAGS);
    let flags = flags
        .ok()
        .flatten()
        .and_then(|flags| be32(flags, "NFTA_SET_ELEM_FLAGS").ok());
    flags.is_some_and(|flags| flags & element::INTERVAL_END != 0)
}

/// Appends the messages of one step. Its functions return `None` for values that are only observed.
pub(crate) struct Encoder<'a> {
    batch: &'a mut Batch,
    pub(crate) table: &'a str,
    family: Family,
    operation: usize,
    flags: TableFlags,
}

impl Encoder<'_> {
    /// Creates the table by hand, with any flags. With `flag::EXCL`, a table of that name that exists already leads to a
    /// refusal.
    pub(crate) fn trial_table(&mut self, flags: u32, request: u16, comment: &str) {
        let table = self.table;
        self.message(message::NEW_TABLE, flag::CREATE | request, |out| {
            out.put_str(abi::table::NAME, table);
            out.put_u32(abi::table::FLAGS, flags);
            if !comment.is_empty() {
                out.put(abi::table::USERDATA, &udata::comment(comment));
            }
        });
    }

    fn step(&mut self, step: &Operation) -> Option<()> {
        let table = self.table;
        match step {
            Operation::AddTable(value) => self.add_table(value),
            Operation::DeleteTable => {
                self.message(message::DEL_TABLE, 0, |out| {
                    out.put_str(abi::table::NAME, table)
                });
            }
            Operation::AddSet(set) => self.add_set(set)?,
            Operation::DeleteSet(name) => self.message(message::DEL_SET, 0, |out| {
                out.put_str(abi::set::TABLE, table);
                out.put_str(abi::set::NAME, name);
            }),
            Operation::AddChain(chain) => self.add_chain(chain)?,
            Operation::DeleteChain(name) => self.message(message::DEL_CHAIN, 0, |out| {
                out.put_str(abi::chain::TABLE, table);
                out.put_str(abi::chain::NAME, name);
            }),
            Operation::SetRules(chain) => self.set_rules(chain)?,
            Operation::AddElements { set, elements } => {
                self.elements(message::NEW_ELEMENTS, flag::CREATE, set, elements);
            }
            Operation::DeleteElements { set, elements } => {
                self.elements(message::DEL_ELEMENTS, 0, set, elements);
            }
        }
        Some(())
    }

    /// One message of this step.
    pub(crate) fn message(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Writer)) {
        let start = self.start(kind, flags, 0);
        fill(&mut self.batch.writer);
        self.batch.writer.finish(start);
    }

    fn start(&mut self, kind: u16, flags: u16, first_element: usize) -> usize {
        let start = self.batch.writer.bytes.len();
        self.batch.origins.push(Origin {
            operation: self.operation,
            first_element,
            start,
        });
        let sequence = self.batch.last_sequence();
        let header = header(Some(self.family));
        self.batch.writer.start(kind, flags, sequence, &header)
    }

    fn add_table(&mut self, value: &Table) {
        let (table, flags) = (self.table, self.flags.bits());
        self.message(message::NEW_TABLE, flag::CREATE, |out| {
            out.put_str(abi::table::NAME, table);
            out.put_u32(abi::table::FLAGS, flags);
            put_udata(abi::table::USERDATA, &udata::comment(&value.comment), out);
        });
    }

    fn add_set(&mut self, set: &Set) -> Option<()> {
        let (table, family) = (self.table, self.family);
        let data = match &set.kind {
            SetKind::Set | SetKind::Counters => None,
            SetKind::Map(fields) | SetKind::Dynamic(fields) => {
                Some((data_type(fields, family), data_len(fields, family)))
            }
            // The kernel knows how long a verdict is.
            SetKind::VerdictMap => Some((abi::set::DATA_VERDICT, 0)),
            SetKind::Unknown => return None,
        };
        let flags = set_flags(set);
        let learned = matches!(set.kind, SetKind::Dynamic(_));
        let ranges = is_concatenated_range(set);
        // Any number that is unique in the batch; everything refers to sets by name.
        let id = self.batch.origins.len() as u32 + 1;
        self.message(message::NEW_SET, flag::CREATE, |out| {
            out.put_str(abi::set::TABLE, table);
            out.put_str(abi::set::NAME, &set.name);
            out.put_u32(abi::set::FLAGS, flags);
            out.put_u32(abi::set::KEY_TYPE, key_type(&set.key, family));
            out.put_u32(abi::set::KEY_LEN, set.key_len(family) as u32);
            if let Some((kind, len)) = data {
                out.put_u32(abi::set::DATA_TYPE, kind);
                out.put_u32(abi::set::DATA_LEN, len);
            }
            out.put_u32(abi::set::ID, id);
            if learned || ranges {
                out.nest(abi::set::DESC, |out| {
                    if learned {
                        out.put_u32(abi::set::DESC_SIZE, DYNAMIC_SIZE);
                    }
                    if ranges {
                        put_field_widths(&set.key, family, out);
                    }
                });
            }
            put_udata(abi::set::USERDATA, &udata::of_set(set, family), out);
            if set.kind == SetKind::Counters {
                out.nest(abi::set::EXPRESSION, |out| {
                    out.put_str(abi::expr::NAME, "counter");
                    out.nest(abi::expr::DATA, |_| {});
                });
            }
        });
        Some(())
    }

    fn add_chain(&mut self, chain: &Chain) -> Option<()> {
        let table = self.table;
        let hook = match chain.hook {
            None => None,
            Some(hook) => Some((chain_type(hook), hook_numbers(hook)?)),
        };
        self.message(message::NEW_CHAIN, flag::CREATE, |out| {
            out.put_str(abi::chain::TABLE, table);
            out.put_str(abi::chain::NAME, &chain.name);
            if let Some((kind, (number, priority))) = hook {
                out.put_str(abi::chain::TYPE, kind);
                out.put_u32(abi::chain::POLICY, abi::data::ACCEPT as u32);
                out.nest(abi::chain::HOOK, |out| {
                    out.put_u32(abi::chain::HOOK_NUMBER, number);
                    out.put_u32(abi::chain::HOOK_PRIORITY, priority as u32);
                });
            }
            put_udata(abi::chain::USERDATA, &udata::comment(&chain.comment), out);
        });
        Some(())
    }

    fn set_rules(&mut self, chain: &Chain) -> Option<()> {
        let (table, family) = (self.table, self.family);
        self.message(message::DEL_RULE, 0, |out| {
            out.put_str(abi::rule::TABLE, table);
            out.put_str(abi::rule::CHAIN, &chain.name);
        });
        for rule in &chain.rules {
            if rule
                .statements
                .iter()
                .any(|part| matches!(part, Statement::Unknown(_)))
            {
                return None;
            }
            self.message(message::NEW_RULE, flag::CREATE | flag::APPEND, |out| {
                out.put_str(abi::rule::TABLE, table);
                out.put_str(abi::rule::CHAIN, &chain.name);
                out.nest(abi::rule::EXPRESSIONS, |out| {
                    write(&lower(rule, family), family, out)
                });
            });
        }
        Some(())
    }

    /// One message, or several where the elements do not fit one.
    fn elements(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        let mut rest = elements.iter().enumerate().peekable();
        while let Some((first, _)) = rest.peek() {
            let start = self.start(kind, flags, *first);
            let out = &mut self.batch.writer;
            out.put_str(abi::elements::TABLE, self.table);
            out.put_str(abi::elements::SET, set);
            let list = out.open(abi::elements::LIST);
            while out.bytes.len() - list < ELEMENT_LIST_MAX {
                let Some((_, element)) = rest.next() else {
                    break;
                };
                write_element(element, self.family, out);
            }
            out.close(list);
            out.finish(start);
        }
    }
}

fn put_udata(kind: u16, udata: &[u8], out: &mut Writer) {
    if !udata.is_empty() {
        out.put(kind, udata);
    }
}

/// nft's number of a field's type (`enum datatypes` in nft's `datatype.h`), which the kernel ignores.
pub(crate) fn field_type(field: Field, family: Family) -> u32 {
    match (field, family) {
        (Field::Slot, _) => 4,
        (Field::Address, Family::Ip) => 7,
        (Field::Address, Family::Ip6) => 8,
        (Field::Protocol, _) => 12,
        (Field::Port, _) => 13,
        // TYPE_CLASSID
        (Field::Group, _) => 23,
    }
}

/// `enum nft_set_flags`
pub(crate) fn set_flags(set: &Set) -> u32 {
    use abi::set::{CONCATENATION, DYNAMIC, INTERVAL, MAP, TIMEOUT};
    let kind = match set.kind {
        SetKind::Set | SetKind::Counters | SetKind::Unknown => 0,
        SetKind::Map(_) | SetKind::VerdictMap => MAP,
        SetKind::Dynamic(_) => MAP | TIMEOUT | DYNAMIC,
    };
    let interval = if set.interval { INTERVAL } else { 0 };
    let concat = if is_concatenated_range(set) {
        CONCATENATION
    } else {
        0
    };
    kind | interval | concat
}

/// Whether the kernel's set of ranges of several fields is meant (nft_set_pipapo.c).
fn is_concatenated_range(set: &Set) -> bool {
    set.interval && set.key.len() > 1
}

fn put_field_widths(key: &[Field], family: Family, out: &mut Writer) {
    out.nest(abi::set::DESC_CONCATENATION, |out| {
        for field in key {
            out.nest(abi::LIST_ITEM, |out| {
                out.put_u32(abi::set::FIELD_LEN, field.len(family) as u32);
            });
        }
    });
}

/// Bits of one type in the number of a concatenation's (`TYPE_BITS`).
pub(crate) const TYPE_BITS: u32 = 6;

fn key_type(key: &[Field], family: Family) -> u32 {
    key.iter().fold(0, |all, field| {
        all << TYPE_BITS | field_type(*field, family)
    })
}

/// The data field as the key field of the same type.
pub(crate) fn as_field(field: DataField) -> Field {
    match field {
        DataField::Address => Field::Address,
        DataField::Port => Field::Port,
        DataField::Group => Field::Group,
    }
}

pub(crate) fn data_type(data: &[DataField], family: Family) -> u32 {
    data.iter().fold(0, |all, field| {
        all << TYPE_BITS | field_type(as_field(*field), family)
    })
}

/// Width of a map's value: like a key's, unpadded when alone.
pub(crate) fn data_len(data: &[DataField], family: Family) -> u32 {
    let len: usize = match data {
        [one] => as_field(*one).len(family),
        many => many
            .iter()
            .map(|field| as_field(*field).padded_len(family))
            .sum(),
    };
    len as u32
}

/// One element; of a range two items, as the kernel's interval sets require: where it begins, and the
/// first value after it. A range of several fields is one item with both ends.
fn write_element(value: &Element, family: Family, out: &mut Writer) {
    let several = value.key.as_slice().len() > family.address_len();
    let last = value.last.as_deref();
    let end = last.filter(|_| !several).map(successor);
    let item = out.open(abi::LIST_ITEM);
    if value.key.as_slice().is_empty() {
        out.put_u32(element::FLAGS, element::CATCH_ALL);
    } else {
        write_bytes(element::KEY, &value.key, out);
    }
    match &value.data {
        Data::None => {}
        Data::Value(data) => write_bytes(element::DATA, data, out),
        Data::Verdict(verdict) => out.nest(element::DATA, |out| write_verdict(verdict, out)),
    }
    // The range up to the last value has no end; nft then stores a flag for its own use.
    if end == Some(None) {
        out.put(element::USERDATA, &udata::open_interval());
    }
    if let Some(last) = last.filter(|_| several) {
        write_bytes(element::KEY_END, last, out);
    }
    out.close(item);
    if let Some(Some(end)) = end {
        let item = out.open(abi::LIST_ITEM);
        out.put_u32(element::FLAGS, element::INTERVAL_END);
        write_bytes(element::KEY, &end, out);
        out.close(item);
    }
}

pub(crate) fn write_bytes(kind: u16, bytes: &Bytes, out: &mut Writer) {
    let start = out.open(kind);
    out.put(abi::data::VALUE, bytes.as_slice());
    out.close(start);
}

/// The next value in network order; `None` after the last.
fn successor(bytes: &Bytes) -> Option<Bytes> {
    step(bytes, u8::MAX, |byte| byte.wrapping_add(1))
}

/// The value before in network order; `None` before zero.
pub(crate) fn predecessor(bytes: &Bytes) -> Option<Bytes> {
    step(bytes, 0, |byte| byte.wrapping_sub(1))
}

/// Changes the last byte, and carries over bytes that are at their limit.
fn step(bytes: &Bytes, limit: u8, change: impl Fn(u8) -> u8) -> Option<Bytes> {
    let mut buffer = [0; Bytes::CAPACITY];
    let value = buffer.get_mut(..bytes.as_slice().len())?;
    value.copy_from_slice(bytes.as_slice());
    for byte in value.iter_mut().rev() {
        let carries = *byte == limit;
        *byte = change(*byte);
        if !carries {
            return Bytes::from_slice(value);
        }
    }
    None
}
