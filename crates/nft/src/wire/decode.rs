//! The messages of a dump, folded into the contents of one table.
//!
//! Owns what the kernel adds to what was written (flags, handles, upper ends) and takes it off again, so
//! that a table written and read back compares equal. What is not in our form is kept as an `Unknown`
//! variant, so that it compares unequal to everything that Portolan writes. Sending the requests and checking that all
//! replies belong to one generation is left to [`crate::Kernel`].

use std::collections::BTreeMap;

use netlink::{Attributes, Malformed, Message, be32, is_string, string};

use super::abi::{self, element, message};
use super::encode::{TYPE_BITS, data_len, data_type, field_type, predecessor, set_flags};
use super::header::{attributes, family};
use super::hook::read_hook;
use super::{expression, udata};
use crate::expr::raise;
use crate::model::{
    Bytes, Chain, DYNAMIC_SIZE, Data, DataField, Element, Family, Field, Name, Rule, Set, SetKind,
    Table,
};
use crate::transaction::TableContents;

/// Owner and flags of a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableState {
    /// Port id of the socket that owns the table; `None` without owner.
    pub owner: Option<u32>,
    /// The table outlives its owner (`flags persist`). Without owner it is an orphan that any socket can adopt.
    pub persist: bool,
    /// The table is disabled (`flags dormant`).
    pub dormant: bool,
}

/// An element was listed twice: the kernel grew the set's hash table during the dump, which goes by position in
/// it (`nft_rhash_walk`). As many others may be missing, without any sign in generation or flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated;

/// A table being read.
#[derive(Debug)]
pub struct Reading {
    family: Family,
    name: Name,
    table: Option<(Table, TableState)>,
    sets: BTreeMap<Name, Set>,
    chains: BTreeMap<Name, Chain>,
    rules: BTreeMap<Name, Vec<Rule>>,
    elements: BTreeMap<Name, Gathered>,
}

/// Elements of one set in the order of the dump.
#[derive(Debug, Default)]
struct Gathered {
    elements: Vec<Element>,
    /// Interval sets: first values after a range.
    ends: Vec<Bytes>,
}

impl Reading {
    /// An empty reading of the table of this name.
    pub fn new(family: Family, name: Name) -> Self {
        Reading {
            family,
            name,
            table: None,
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            rules: BTreeMap::new(),
            elements: BTreeMap::new(),
        }
    }

    /// Reads one message of a dump. Messages of other tables are ignored. Sets must come before
    /// elements.
    pub fn absorb(&mut self, message: &Message<'_>) -> Result<(), Malformed> {
        let fields = attributes(message)?;
        // Every nf_tables object names its table in attribute 1.
        let Some(table) = fields.clone().find(abi::table::NAME)? else {
            return Ok(());
        };
        if family(message) != Some(self.family) || !is_string(table, &self.name) {
            return Ok(());
        }
        match message.kind {
            message::NEW_TABLE => self.absorb_table(fields),
            message::NEW_SET => self.absorb_set(fields),
            message::NEW_CHAIN => self.absorb_chain(fields),
            message::NEW_RULE => self.absorb_rule(fields),
            message::NEW_ELEMENTS => self.absorb_elements(fields),
            _ => Ok(()),
        }
    }

    /// Family of the table.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Flags and owner of the table, once it was read.
    pub fn state(&self) -> Option<TableState> {
        self.table.as_ref().map(|(_, state)| *state)
    }

    /// Sets whose elements can be read.
    pub fn readable_sets(&self) -> Vec<Name> {
        // Elements of dynamic maps are no part of the contents.
        let readable = |set: &&Set| !matches!(set.kind, SetKind::Unknown | SetKind::Dynamic(_));
        self.sets
            .values()
            .filter(readable)
            .map(|set| set.name.clone())
            .collect()
    }

    /// All that was read; `None` when the table itself was not.
    pub fn finish(self) -> Result<Option<TableContents>, Repeated> {
        let Some((table, _)) = self.table else {
            return Ok(None);
        };
        let mut chains = self.chains;
        for (chain, rules) in self.rules {
            if let Some(chain) = chains.get_mut(&chain) {
                chain.rules = rules;
            }
        }
        let mut elements = BTreeMap::new();
        for (name, gathered) in self.elements {
            let interval = self
                .sets
                .get(&name)
                .is_some_and(|set| set.interval && set.key.len() == 1);
            let mut list = gathered.elements;
            list.sort_unstable();
            if list
                .iter()
                .zip(list.iter().skip(1))
                .any(|(a, b)| a.key == b.key)
            {
                return Err(Repeated);
            }
            if interval {
                close_ranges(&mut list, gathered.ends);
            }
            if !list.is_empty() {
                elements.insert(name, list);
            }
        }
        Ok(Some(TableContents {
            table,
            sets: self.sets,
            chains,
            elements,
        }))
    }

    /// The elements of one set, sorted; each once, though a table that grew during the dump may list some twice
    /// and omit others.
    pub fn into_elements(mut self, set: &str) -> Vec<Element> {
        let gathered = self.elements.remove(set).unwrap_or_default();
        let mut elements = gathered.elements;
        elements.sort_unstable();
        elements.dedup_by(|a, b| a.key == b.key);
        elements
    }

    fn absorb_table(&mut self, fields: Attributes<'_>) -> Result<(), Malformed> {
        let flags = number(fields.clone(), abi::table::FLAGS, "NFTA_TABLE_FLAGS")?.unwrap_or(0);
        let owner = number(fields.clone(), abi::table::OWNER, "NFTA_TABLE_OWNER")?;
        let state = TableState {
            owner: owner.filter(|_| flags & abi::table::OWNED != 0),
            persist: flags & abi::table::PERSIST != 0,
            dormant: flags & abi::table::DORMANT != 0,
        };
        let udata = fields.find(abi::table::USERDATA)?.unwrap_or_default();
        let comment = owned(udata::read_comment(udata).unwrap_or_default());
        self.table = Some((
            Table {
                family: self.family,
                name: self.name.clone(),
                comment,
            },
            state,
        ));
        Ok(())
    }

    fn absorb_set(&mut self, fields: Attributes<'_>) -> Result<(), Malformed> {
        let flags = number(fields.clone(), abi::set::FLAGS, "NFTA_SET_FLAGS")?.unwrap_or(0);
        // Anonymous sets belong to their rule, which is not in our form either.
        if flags & abi::set::ANONYMOUS != 0 {
            return Ok(());
        }
        let name = text(fields.clone(), abi::set::NAME, "NFTA_SET_NAME")?;
        let udata = fields.clone().find(abi::set::USERDATA)?.unwrap_or_default();
        let comment = owned(udata::read_set_comment(udata).unwrap_or_default());
        let interval = flags & abi::set::INTERVAL != 0;
        let shape = read_shape(fields, flags, self.family)?;
        let (key, kind) = shape.unwrap_or((Vec::new(), SetKind::Unknown));
        self.sets.insert(
            name.clone(),
            Set {
                name,
                key,
                kind,
                interval,
                comment,
            },
        );
        Ok(())
    }

    fn absorb_chain(&mut self, fields: Attributes<'_>) -> Result<(), Malformed> {
        let flags = number(fields.clone(), abi::chain::FLAGS, "NFTA_CHAIN_FLAGS")?.unwrap_or(0);
        // Anonymous chains belong to their rule.
        if flags & abi::chain::BINDING != 0 {
            return Ok(());
        }
        let name = text(fields.clone(), abi::chain::NAME, "NFTA_CHAIN_NAME")?;
        let udata = fields
            .clone()
            .find(abi::chain::USERDATA)?
            .unwrap_or_default();
        let comment = owned(udata::read_comment(udata).unwrap_or_default());
        let hook = read_hook(fields, flags)?;
        self.chains.insert(
            name.clone(),
            Chain {
                name,
                hook,
                comment,
                rules: Vec::new(),
            },
        );
        Ok(())
    }

    fn absorb_rule(&mut self, fields: Attributes<'_>) -> Result<(), Malformed> {
        let chain = text(fields.clone(), abi::rule::CHAIN, "NFTA_RULE_CHAIN")?;
        let list = fields.find(abi::rule::EXPRESSIONS)?.unwrap_or_default();
        let rule = raise(&expression::read(list, self.family)?, self.family);
        self.rules.entry(chain).or_default().push(rule);
        Ok(())
    }

    fn absorb_elements(&mut self, fields: Attributes<'_>) -> Result<(), Malformed> {
        let name = fields.clone().find(abi::elements::SET)?;
        let name = string(
            name.ok_or(Malformed::Missing("NFTA_SET_ELEM_LIST_SET"))?,
            "set name",
        )?;
        let Some(set) = self
            .sets
            .get(name)
            .filter(|set| set.kind != SetKind::Unknown)
        else {
            return Ok(());
        };
        let list = fields.find(abi::elements::LIST)?.unwrap_or_default();
        if !self.elements.contains_key(name) {
            self.elements.insert(set.name.clone(), Gathered::default());
        }
        let Some(gathered) = self.elements.get_mut(name) else {
            return Ok(());
        };
        for item in Attributes::new(list) {
            gathered.absorb(item?.payload, set, self.family)?;
        }
        Ok(())
    }
}

impl Gathered {
    fn absorb(&mut self, item: &[u8], set: &Set, family: Family) -> Result<(), Malformed> {
        let (mut key, mut last, mut data, mut flags) = (None, None, None, 0);
        for attribute in Attributes::new(item) {
            let attribute = attribute?;
            match attribute.kind {
                element::KEY => key = Some(attribute.payload),
                element::KEY_END => last = Some(attribute.payload),
                element::DATA => data = Some(attribute.payload),
                element::FLAGS => flags = be32(attribute.payload, "NFTA_SET_ELEM_FLAGS")?,
                _ => {}
            }
        }
        let key = match key {
            Some(key) => bytes(key, set.key_len(family), "NFTA_SET_ELEM_KEY")?,
            // `*`, which we never write, reads as an element with an empty key.
            None if flags & element::CATCH_ALL != 0 => Bytes::new(),
            None => return Err(Malformed::Missing("NFTA_SET_ELEM_KEY")),
        };
        if flags & element::INTERVAL_END != 0 {
            self.ends.push(key);
            return Ok(());
        }
        let missing = Malformed::Missing("NFTA_SET_ELEM_DATA");
        let data = match (&set.kind, data) {
            (SetKind::Map(fields) | SetKind::Dynamic(fields), Some(data)) => {
                let len = data_len(fields, family) as usize;
                Data::Value(bytes(data, len, "NFTA_SET_ELEM_DATA")?)
            }
            (SetKind::VerdictMap, Some(data)) => Data::Verdict(
                expression::read_verdict(data)?.ok_or(Malformed::Value("NFTA_DATA_VERDICT"))?,
            ),
            (SetKind::Map(_) | SetKind::Dynamic(_) | SetKind::VerdictMap, None) => {
                return Err(missing);
            }
            (SetKind::Set | SetKind::Counters | SetKind::Unknown, _) => Data::None,
        };
        let several = set.interval && set.key.len() > 1;
        let last = match last {
            Some(last) => Some(bytes(last, set.key_len(family), "NFTA_SET_ELEM_KEY_END")?),
            // A range of one value.
            None => several.then_some(key),
        };
        self.elements.push(Element {
            key,
            last: last.map(Box::new),
            data,
        });
        Ok(())
    }
}

/// Sets the last value of each range of an interval set: the one before the nearest end after its first,
/// or the last of all where there is none. Both lists come sorted.
fn close_ranges(elements: &mut [Element], mut ends: Vec<Bytes>) {
    ends.sort_unstable();
    let mut ends = ends.iter().peekable();
    for element in elements {
        if element.key.as_slice().is_empty() {
            continue;
        }
        while ends.next_if(|end| **end <= element.key).is_some() {}
        let last = match ends.peek().and_then(|end| predecessor(end)) {
            Some(last) => last,
            None => {
                let ones = [u8::MAX; Bytes::CAPACITY];
                let ones = ones.get(..element.key.as_slice().len());
                Bytes::from_slice(ones.unwrap_or_default()).unwrap_or_default()
            }
        };
        element.last = Some(Box::new(last));
    }
}

/// Key and kind of a set; `None` when it is not in our form.
fn read_shape(
    fields: Attributes<'_>,
    flags: u32,
    family: Family,
) -> Result<Option<(Vec<Field>, SetKind)>, Malformed> {
    use abi::set::{
        CONCATENATION, DATA_LEN, DATA_TYPE, DATA_VERDICT, DESC, DESC_SIZE, DYNAMIC, EXPRESSION,
        INTERVAL, KEY_LEN, KEY_TYPE, MAP, TIMEOUT,
    };
    let key_type = number(fields.clone(), KEY_TYPE, "NFTA_SET_KEY_TYPE")?.unwrap_or(0);
    let key_len = number(fields.clone(), KEY_LEN, "NFTA_SET_KEY_LEN")?.unwrap_or(0);
    let data_kind = number(fields.clone(), DATA_TYPE, "NFTA_SET_DATA_TYPE")?;
    let data_width = number(fields.clone(), DATA_LEN, "NFTA_SET_DATA_LEN")?;
    let counts = fields.clone().find(EXPRESSION)?.is_some();
    let desc = fields.find(DESC)?.unwrap_or_default();
    let size = number(Attributes::new(desc), DESC_SIZE, "NFTA_SET_DESC_SIZE")?;
    let learned = flags & (TIMEOUT | DYNAMIC) == TIMEOUT | DYNAMIC && flags & MAP != 0;
    let size_fits = size.unwrap_or(0) == if learned { DYNAMIC_SIZE } else { 0 };
    let known = match learned {
        true => MAP | TIMEOUT | DYNAMIC,
        false => INTERVAL | MAP | CONCATENATION,
    };
    if flags & !known != 0 || !size_fits || counts && flags != 0 {
        return Ok(None);
    }
    let all = [
        Field::Address,
        Field::Protocol,
        Field::Port,
        Field::Slot,
        Field::Group,
    ];
    let Some(key) = split_type(key_type, &all, |field| field_type(field, family)) else {
        return Ok(None);
    };
    let kind = match (flags & MAP != 0, data_kind) {
        (false, _) if counts => SetKind::Counters,
        (false, _) => SetKind::Set,
        (true, Some(DATA_VERDICT)) => SetKind::VerdictMap,
        (true, kind) => {
            let all = [DataField::Address, DataField::Port, DataField::Group];
            let one = |field| data_type(&[field], family);
            match split_type(kind.unwrap_or(0), &all, one) {
                Some(data) if data_width == Some(data_len(&data, family)) => match learned {
                    true => SetKind::Dynamic(data),
                    false => SetKind::Map(data),
                },
                _ => return Ok(None),
            }
        }
    };
    let probe = Set {
        name: "".into(),
        key,
        kind,
        interval: flags & INTERVAL != 0,
        comment: "".into(),
    };
    let fits = set_flags(&probe) == flags
        && probe.key_len(family) == key_len as usize
        && probe.key_len(family) <= Bytes::CAPACITY;
    Ok(fits.then_some((probe.key, probe.kind)))
}

/// The fields of a concatenation's type number, first in the highest bits.
fn split_type<T: Copy>(mut number: u32, all: &[T], of: impl Fn(T) -> u32) -> Option<Vec<T>> {
    let mut fields = Vec::new();
    while number != 0 {
        let part = number & ((1 << TYPE_BITS) - 1);
        fields.push(*all.iter().find(|field| of(**field) == part)?);
        number >>= TYPE_BITS;
    }
    fields.reverse();
    (!fields.is_empty()).then_some(fields)
}

fn number(fields: Attributes<'_>, kind: u16, what: &'static str) -> Result<Option<u32>, Malformed> {
    fields
        .find(kind)?
        .map(|payload| be32(payload, what))
        .transpose()
}

fn text(fields: Attributes<'_>, kind: u16, what: &'static str) -> Result<Name, Malformed> {
    Ok(owned(string(
        fields.find(kind)?.ok_or(Malformed::Missing(what))?,
        what,
    )?))
}

fn owned(text: &str) -> Name {
    Name::from(text.to_owned())
}

/// A key or value of exactly `len` bytes.
fn bytes(data: &[u8], len: usize, what: &'static str) -> Result<Bytes, Malformed> {
    let value = Attributes::new(data)
        .find(abi::data::VALUE)?
        .ok_or(Malformed::Missing(what))?;
    let fits = value.len() == len;
    fits.then(|| Bytes::from_slice(value))
        .flatten()
        .ok_or(Malformed::Value(what))
}
