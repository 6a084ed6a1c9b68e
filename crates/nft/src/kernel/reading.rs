//! What [`Kernel`] reads: tables in one generation, elements that rules add, counters.

use netlink::{Connection, Malformed, Reply, Writer, failed, flag};
use nix::errno::Errno;

use super::Kernel;
use crate::model::{Bytes, Element, Family, Name};
use crate::transaction::{CommitError, Generation, TableContents};
use crate::wire::abi::{self, element, elements, message};
use crate::wire::counters::read_counters;
use crate::wire::decode::{Reading, TableState};
use crate::wire::encode::write_bytes;
use crate::wire::header::{self, header};

const READ_TABLE: &str = "read the table";

/// Generation of the ruleset (`NFT_MSG_GETGEN`).
pub fn read_generation(connection: &mut Connection) -> Result<Generation, netlink::Error> {
    let mut found = None;
    let (kind, header) = (message::GET_GENERATION, header(None));
    let reply = connection.ask(
        kind,
        0,
        &header,
        |_| {},
        |message| {
            found = Some(header::generation(message)?);
            Ok(())
        },
    )?;
    match (reply, found) {
        (Reply::Done, Some(generation)) => Ok(generation),
        (Reply::Refused(errno), _) => Err(failed("read the generation")(errno)),
        _ => Err(Malformed::Missing("NFTA_GEN_ID").into()),
    }
}

impl Kernel {
    /// Whether a table exists, and which socket owns it. A table without the owner flag cannot be given it in
    /// place (EOPNOTSUPP): it takes [`crate::Operation::DeleteTable`] and [`crate::Operation::AddTable`] in one
    /// transaction. An orphaned table is adopted by [`crate::Operation::AddTable`] alone.
    pub fn table_state(&mut self, family: Family) -> Result<Option<TableState>, CommitError> {
        let mut reading = Reading::new(family, self.table.clone());
        match self.ask_for_table(&mut reading)? {
            Reply::Refused(Errno::ENOENT) => Ok(None),
            Reply::Refused(errno) => Err(failed(READ_TABLE)(errno).into()),
            Reply::Done | Reply::Interrupted => Ok(reading.state()),
        }
    }

    /// Packets that the elements of a set of [`crate::SetKind::Counters`] have counted, by key; empty when there is no
    /// such set. When the table changes meanwhile, elements may be missing or come twice.
    pub fn counters(
        &mut self,
        family: Family,
        set: &Name,
    ) -> Result<Vec<(Bytes, u64)>, CommitError> {
        let mut found = Vec::new();
        self.ask_for_counters(family, set, None, &mut found)?
            .settle("read counters")?;
        Ok(found)
    }

    /// Packets that the element `key` of a set of [`crate::SetKind::Counters`] has counted; `None` when there is no such set
    /// or element. Costs one small message, however many elements the set has.
    pub fn counter(
        &mut self,
        family: Family,
        set: &Name,
        key: &Bytes,
    ) -> Result<Option<u64>, CommitError> {
        let mut found = Vec::new();
        match self.ask_for_counters(family, set, Some(key), &mut found)? {
            Reply::Refused(Errno::ENOENT) => Ok(None),
            Reply::Refused(errno) => Err(failed("read a counter")(errno).into()),
            Reply::Done | Reply::Interrupted => Ok(found.first().map(|(_, packets)| *packets)),
        }
    }

    fn ask_for_counters(
        &mut self,
        family: Family,
        set: &Name,
        key: Option<&Bytes>,
        found: &mut Vec<(Bytes, u64)>,
    ) -> Result<Reply, netlink::Error> {
        let table = self.table.clone();
        let flags = if key.is_some() { 0 } else { flag::DUMP };
        let fill = |out: &mut Writer| {
            put_set(&table, set, out);
            if let Some(key) = key {
                out.nest(elements::LIST, |out| {
                    out.nest(abi::LIST_ITEM, |out| write_bytes(element::KEY, key, out));
                });
            }
        };
        self.ask(
            message::GET_ELEMENTS,
            flags,
            Some(family),
            fill,
            |message| {
                found.extend(read_counters(message)?);
                Ok(())
            },
        )
    }

    /// One attempt at reading a table: `None` when the table changed meanwhile, `Some(None)` when there is none.
    pub(super) fn read(
        &mut self,
        family: Family,
    ) -> Result<Option<Option<TableContents>>, CommitError> {
        let before = read_generation(&mut self.connection)?;
        let mut reading = Reading::new(family, self.table.clone());
        let done = match self.ask_for_table(&mut reading)? {
            Reply::Refused(Errno::ENOENT) => true,
            reply => reply.settle(READ_TABLE)? && self.read_contents(&mut reading, family)?,
        };
        if !done || read_generation(&mut self.connection)? != before {
            return Ok(None);
        }
        Ok(reading.finish().ok())
    }

    /// Reads sets, chains, rules and elements; `false` when the table changed meanwhile.
    fn read_contents(
        &mut self,
        reading: &mut Reading,
        family: Family,
    ) -> Result<bool, CommitError> {
        let table = self.table.clone();
        for kind in [message::GET_SET, message::GET_CHAIN, message::GET_RULE] {
            let fill = |out: &mut Writer| out.put_str(abi::set::TABLE, &table);
            let reply = self.ask(kind, flag::DUMP, Some(family), fill, |m| reading.absorb(m))?;
            if !reply.settle(READ_TABLE)? {
                return Ok(false);
            }
        }
        for set in reading.readable_sets() {
            let reply = self.ask(
                message::GET_ELEMENTS,
                flag::DUMP,
                Some(family),
                |out| put_set(&table, &set, out),
                |message| reading.absorb(message),
            )?;
            if !reply.settle(READ_TABLE)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// One attempt at reading a map that rules add to, and whether the elements are complete: when the table changed
    /// meanwhile, some may be missing.
    pub(super) fn read_dynamic(
        &mut self,
        family: Family,
        map: &Name,
    ) -> Result<(Vec<Element>, bool), CommitError> {
        let mut reading = Reading::new(family, self.table.clone());
        let (table, mut complete) = (self.table.clone(), true);
        for (kind, flags) in [(message::GET_SET, 0), (message::GET_ELEMENTS, flag::DUMP)] {
            let fill = |out: &mut Writer| put_set(&table, map, out);
            match self.ask(kind, flags, Some(family), fill, |m| reading.absorb(m))? {
                Reply::Refused(Errno::ENOENT) => return Ok((Vec::new(), true)),
                reply => complete &= reply.settle(READ_TABLE)?,
            }
        }
        Ok((reading.into_elements(map), complete))
    }

    fn ask_for_table(&mut self, reading: &mut Reading) -> Result<Reply, netlink::Error> {
        let (table, family) = (self.table.clone(), reading.family());
        let fill = |out: &mut Writer| out.put_str(abi::table::NAME, &table);
        self.ask(message::GET_TABLE, 0, Some(family), fill, |message| {
            reading.absorb(message)
        })
    }
}

fn put_set(table: &Name, set: &Name, out: &mut Writer) {
    out.put_str(elements::TABLE, table);
    out.put_str(elements::SET, set);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{in_namespace, kernel, load};

    #[test]
    fn one_counter_is_read_by_its_key_and_all_at_once() {
        in_namespace(|| {
            let (mut kernel, set) = (kernel(false), Name::from("arrived"));
            let key = |last: u8| Bytes::from_slice(&[192, 0, 2, last]).unwrap();
            assert_eq!(kernel.counter(Family::Ip, &set, &key(1)), Ok(None));
            load(
                "table ip portolan { set arrived { type ipv4_addr; counter
                   elements = { 192.0.2.1 counter packets 5 bytes 60, 192.0.2.2 }; }; }",
            );
            let one = [1, 2, 3].map(|last| kernel.counter(Family::Ip, &set, &key(last)));
            assert_eq!(one, [Ok(Some(5)), Ok(Some(0)), Ok(None)]);
            let mut all = kernel.counters(Family::Ip, &set).unwrap();
            all.sort_unstable();
            assert_eq!(all, [(key(1), 5), (key(2), 0)]);
        });
    }
}
