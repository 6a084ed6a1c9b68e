//! Removes what another program has left in the ruleset, where its names are known.
//!
//! Works on names alone: of foreign tables only chains, and the jumps between them, are read; nothing else in them needs
//! to decode. iptables in its nft variant keeps its chains in such tables, so they go in one transaction, without the
//! program that made them. Whose names they are is the caller's business.
//!
//! Invariant: a chain goes together with the jumps to it from base chains, in one transaction; one that any other
//! foreign chain still leads to stays, with all it leads to itself.

pub(crate) mod chains;
#[cfg(test)]
mod tests;

pub use chains::{AnyFamily, BaseChain};

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use crate::link::{Asked, Link, failed};
use crate::model::Family;
use crate::transaction::{CommitError, Generation};
use crate::wire::abi::{self, LIST_ITEM, SUBSYSTEM, control, data, expr, flag, immediate, message};
use crate::wire::attribute::{Attributes, Writer, be32, string};
use crate::wire::frame::number;
use crate::wire::{Malformed, Message};

/// Each message of a batch that is refused is answered.
const RECEIVE_SPACE: usize = 4 << 20;
/// Other people's commits between reading and writing make it begin anew.
const ATTEMPTS: usize = 20;
/// `NFTA_RULE_HANDLE`
const RULE_HANDLE: u16 = 3;
/// `NFNL_BATCH_GENID`
const BATCH_GENERATION: u16 = 1;

/// What was taken out of a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Names of the chains that went.
    pub chains: BTreeSet<String>,
    /// Rules in base chains that led to them.
    pub jumps: usize,
    /// Chains that stay because somebody else's rules lead to them.
    pub kept: BTreeSet<String>,
}

/// Which chains can go: those that are `theirs`, but for base chains, chains that somebody else's rules lead to, and what
/// these lead to in turn. `chains` says which are base chains; `jumps` go from one chain to another.
pub fn leftovers(
    chains: &BTreeMap<String, bool>,
    jumps: &[(&str, &str)],
    theirs: impl Fn(&str) -> bool,
) -> Leftovers {
    let is_base = |chain: &str| chains.get(chain).copied().unwrap_or(false);
    let goes = |chain: &str| theirs(chain) && !is_base(chain);
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = kept.len();
        for (from, to) in jumps {
            let stays = !is_base(from) && (!goes(from) || kept.contains(from));
            if stays && goes(to) {
                kept.insert(to);
            }
        }
        if kept.len() == before {
            break;
        }
    }
    let going = chains
        .keys()
        .filter(|chain| goes(chain) && !kept.contains(chain.as_str()));
    let going: BTreeSet<String> = going.cloned().collect();
    let from_base = |(from, to): &&(&str, &str)| is_base(from) && going.contains(*to);
    Leftovers {
        jumps: jumps.iter().filter(from_base).count(),
        kept: kept.into_iter().map(str::to_owned).collect(),
        chains: going,
    }
}

/// The ruleset of one network namespace: that of the thread that opened it.
#[derive(Debug)]
pub struct Foreign {
    link: Link,
}

impl Foreign {
    /// Errors: EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open() -> Result<Self, CommitError> {
        let link = Link::open(RECEIVE_SPACE)?;
        Ok(Foreign { link })
    }

    /// Whether there is a table of this name.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, CommitError> {
        let fill = |out: &mut Writer| out.put_str(abi::table::NAME, table);
        self.is_there(message::GET_TABLE, family, fill)
    }

    /// Whether the table has a chain of this name.
    pub fn has_chain(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<bool, CommitError> {
        let fill = |out: &mut Writer| {
            out.put_str(abi::chain::TABLE, table);
            out.put_str(abi::chain::NAME, chain);
        };
        self.is_there(message::GET_CHAIN, family, fill)
    }

    /// Whether a base chain drops what none of its rules decides on; a chain that is not there does not.
    pub fn drops_by_default(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<bool, CommitError> {
        let mut policy = None;
        let fill = |out: &mut Writer| {
            out.put_str(abi::chain::TABLE, table);
            out.put_str(abi::chain::NAME, chain);
        };
        let absorb = |message: &Message<'_>| {
            for attribute in message.attributes()? {
                let attribute = attribute?;
                if attribute.kind == abi::chain::POLICY {
                    policy = Some(be32(attribute.payload, "NFTA_CHAIN_POLICY")?.cast_signed());
                }
            }
            Ok(())
        };
        let asked = self
            .link
            .ask(message::GET_CHAIN, flag::ACK, Some(family), fill, absorb)?;
        match asked {
            Asked::Refused(Errno::ENOENT) => Ok(false),
            Asked::Refused(errno) => Err(failed("look for a chain")(errno)),
            Asked::Done | Asked::Interrupted => Ok(policy == Some(data::DROP)),
        }
    }

    fn is_there(
        &mut self,
        kind: u16,
        family: Family,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<bool, CommitError> {
        match self
            .link
            .ask(kind, flag::ACK, Some(family), fill, |_| Ok(()))?
        {
            Asked::Refused(Errno::ENOENT) => Ok(false),
            Asked::Refused(errno) => Err(failed("look for a table")(errno)),
            Asked::Done | Asked::Interrupted => Ok(true),
        }
    }

    /// Deletes a table with all in it; `false` when there is none.
    ///
    /// Errors: EPERM when a living process owns it.
    pub fn delete_table(&mut self, family: Family, table: &str) -> Result<bool, CommitError> {
        let mut batch = Deletions::begin(&self.link, None);
        batch.push(message::DEL_TABLE, family, |out| {
            out.put_str(abi::table::NAME, table)
        });
        match batch.commit(&mut self.link)? {
            None => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(errno) => Err(failed("delete a table")(errno)),
        }
    }

    /// Removes the chains of a table whose names are `theirs`, and the jumps to them from base chains. A table that is
    /// not there has none.
    pub fn remove_chains(
        &mut self,
        family: Family,
        table: &str,
        theirs: impl Fn(&str) -> bool,
    ) -> Result<Leftovers, CommitError> {
        for _ in 0..ATTEMPTS {
            let generation = self.link.generation()?;
            let Some(found) = self.read(family, table)? else {
                continue;
            };
            let plan = found.plan(&theirs);
            if plan.chains.is_empty() {
                return Ok(plan);
            }
            let mut batch = Deletions::begin(&self.link, Some(generation));
            for chain in &plan.chains {
                // Without a handle: all rules of the chain.
                batch.push(message::DEL_RULE, family, |out| {
                    out.put_str(abi::rule::TABLE, table);
                    out.put_str(abi::rule::CHAIN, chain);
                });
            }
            for jump in found.jumps_from_base(&plan.chains) {
                batch.push(message::DEL_RULE, family, |out| {
                    out.put_str(abi::rule::TABLE, table);
                    out.put_str(abi::rule::CHAIN, &jump.from);
                    out.put(RULE_HANDLE, &jump.rule);
                });
            }
            for chain in &plan.chains {
                batch.push(message::DEL_CHAIN, family, |out| {
                    out.put_str(abi::chain::TABLE, table);
                    out.put_str(abi::chain::NAME, chain);
                });
            }
            match batch.commit(&mut self.link)? {
                None => return Ok(plan),
                // Somebody else has changed something since it was read.
                Some(Errno::ERESTART | Errno::ENOENT | Errno::EAGAIN) => {}
                Some(errno) => return Err(failed("remove chains")(errno)),
            }
        }
        Err(failed("remove chains of a table at rest")(Errno::EAGAIN))
    }

    /// Destroys an IP set (`IPSET_CMD_DESTROY`); `false` when there is none, or the kernel has no IP sets.
    ///
    /// Errors: one that rules still refer to stays.
    pub fn destroy_ip_set(&mut self, name: &str) -> Result<bool, CommitError> {
        const NFNL_SUBSYS_IPSET: u16 = 6;
        const CMD_DESTROY: u16 = 3;
        const ATTR_PROTOCOL: u16 = 1;
        const ATTR_SETNAME: u16 = 2;
        /// The oldest that kernels of today take (`IPSET_PROTOCOL_MIN`).
        const PROTOCOL: u8 = 6;
        /// `NLM_F_EXCL`: that there is none shall be said.
        const EXCLUSIVE: u16 = 0x200;
        let fill = |out: &mut Writer| {
            out.put(ATTR_PROTOCOL, &[PROTOCOL]);
            out.put_str(ATTR_SETNAME, name);
        };
        let kind = NFNL_SUBSYS_IPSET << 8 | CMD_DESTROY;
        let flags = flag::ACK | EXCLUSIVE;
        let asked = self
            .link
            .ask(kind, flags, Some(Family::Ip), fill, |_| Ok(()))?;
        match asked {
            Asked::Done | Asked::Interrupted => Ok(true),
            Asked::Refused(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
            Asked::Refused(errno) => Err(failed("destroy an IP set")(errno)),
        }
    }

    /// Chains and jumps of a table; `None` when it changed meanwhile.
    fn read(&mut self, family: Family, table: &str) -> Result<Option<Found>, CommitError> {
        let mut found = Found::default();
        let dump = flag::DUMP;
        let asked = self.link.ask(
            message::GET_CHAIN,
            dump,
            Some(family),
            |_| {},
            |message| found.chain(message, table),
        )?;
        if !asked.settle()? {
            return Ok(None);
        }
        if found.chains.is_empty() {
            return Ok(Some(found));
        }
        let asked = self.link.ask(
            message::GET_RULE,
            dump,
            Some(family),
            |out| out.put_str(abi::rule::TABLE, table),
            |message| found.rule(message, table),
        )?;
        Ok(asked.settle()?.then_some(found))
    }
}

/// Chains of one table, and the jumps between them.
#[derive(Debug, Default)]
struct Found {
    /// By name: whether it is a base chain.
    chains: BTreeMap<String, bool>,
    jumps: Vec<Jump>,
}

#[derive(Clone, Debug)]
struct Jump {
    from: String,
    /// `NFTA_RULE_HANDLE` as the kernel wrote it.
    rule: Vec<u8>,
    to: String,
}

impl Found {
    fn plan(&self, theirs: impl Fn(&str) -> bool) -> Leftovers {
        let jumps: Vec<(&str, &str)> = self
            .jumps
            .iter()
            .map(|jump| (jump.from.as_str(), jump.to.as_str()))
            .collect();
        leftovers(&self.chains, &jumps, theirs)
    }

    fn jumps_from_base<'a>(&'a self, to: &'a BTreeSet<String>) -> impl Iterator<Item = &'a Jump> {
        self.jumps
            .iter()
            .filter(|jump| self.chains.get(&jump.from) == Some(&true) && to.contains(&jump.to))
    }

    fn chain(&mut self, message: &Message<'_>, table: &str) -> Result<(), Malformed> {
        if message.kind != message::NEW_CHAIN {
            return Ok(());
        }
        let (mut of_table, mut name, mut base) = (false, None, false);
        for attribute in message.attributes()? {
            let attribute = attribute?;
            match attribute.kind {
                abi::chain::TABLE => of_table = string(attribute.payload, "a table")? == table,
                abi::chain::NAME => name = Some(string(attribute.payload, "a chain")?.to_owned()),
                abi::chain::HOOK => base = true,
                _ => {}
            }
        }
        if let (true, Some(name)) = (of_table, name) {
            self.chains.insert(name, base);
        }
        Ok(())
    }

    fn rule(&mut self, message: &Message<'_>, table: &str) -> Result<(), Malformed> {
        if message.kind != message::NEW_RULE {
            return Ok(());
        }
        let (mut of_table, mut from, mut handle, mut to) = (false, None, None, Vec::new());
        for attribute in message.attributes()? {
            let attribute = attribute?;
            let payload = attribute.payload;
            match attribute.kind {
                abi::rule::TABLE => of_table = string(payload, "a table")? == table,
                abi::rule::CHAIN => from = Some(string(payload, "a chain")?),
                RULE_HANDLE => handle = Some(payload),
                abi::rule::EXPRESSIONS => to = targets(payload)?,
                _ => {}
            }
        }
        if let (true, Some(from), Some(handle)) = (of_table, from, handle) {
            self.jumps.extend(to.into_iter().map(|to| Jump {
                from: from.to_owned(),
                rule: handle.to_vec(),
                to,
            }));
        }
        Ok(())
    }
}

/// The attribute of this type within an attribute that may be there.
fn inside(payload: Option<&[u8]>, kind: u16) -> Result<Option<&[u8]>, Malformed> {
    match payload {
        Some(payload) => Attributes::new(payload).find(kind),
        None => Ok(None),
    }
}

/// Chains that a rule's immediate verdicts lead to.
fn targets(expressions: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut targets = Vec::new();
    for item in Attributes::new(expressions) {
        let item = item?;
        let parts = Attributes::new(item.payload);
        let name = parts.clone().find(expr::NAME)?.unwrap_or_default();
        if item.kind != LIST_ITEM || string(name, "an expression")? != "immediate" {
            continue;
        }
        let value = inside(parts.find(expr::DATA)?, immediate::DATA)?;
        let verdict = inside(value, data::VERDICT)?;
        let code = inside(verdict, data::CODE)?;
        let Some(code) = code else { continue };
        let code = be32(code, "NFTA_VERDICT_CODE")?.cast_signed();
        if let (data::JUMP | data::GOTO, Some(chain)) = (code, inside(verdict, data::CHAIN)?) {
            targets.push(string(chain, "NFTA_VERDICT_CHAIN")?.to_owned());
        }
    }
    Ok(targets)
}

/// One batch of deletions under way.
struct Deletions {
    out: Writer,
    first: u32,
    /// Of the last message.
    last: u32,
    /// Where the last message's flags are.
    last_start: usize,
}

impl Deletions {
    /// With a generation, the kernel refuses it if anything has changed since.
    fn begin(link: &Link, generation: Option<Generation>) -> Self {
        let mut out = Writer::default();
        let first = link.sequence;
        let start = out.start(control::BATCH_BEGIN, flag::REQUEST, first, 0, SUBSYSTEM);
        if let Some(generation) = generation {
            out.put_u32(BATCH_GENERATION, generation.0);
        }
        out.finish(start);
        Deletions {
            out,
            first,
            last: first,
            last_start: start,
        }
    }

    fn push(&mut self, kind: u16, family: Family, fill: impl FnOnce(&mut Writer)) {
        self.last = self.last.wrapping_add(1);
        let start = self
            .out
            .start(kind, flag::REQUEST, self.last, number(family), 0);
        self.last_start = start;
        fill(&mut self.out);
        self.out.finish(start);
    }

    /// Answers the first refusal; then nothing was done.
    fn commit(mut self, link: &mut Link) -> Result<Option<Errno>, CommitError> {
        const FLAGS: usize = 6;
        let flags = self.last_start + FLAGS;
        if let Some(place) = self.out.bytes.get_mut(flags..flags + 2) {
            place.copy_from_slice(&(flag::REQUEST | flag::ACK).to_ne_bytes());
        }
        let end = self.last.wrapping_add(1);
        let start = self
            .out
            .start(control::BATCH_END, flag::REQUEST, end, 0, SUBSYSTEM);
        self.out.finish(start);
        let mut first_refusal = None;
        link.tell(&self.out.bytes, self.first, self.last, |position, errno| {
            first_refusal.get_or_insert(errno);
            position > 0
        })?;
        // The batch's end has a number too.
        link.sequence = end.wrapping_add(1);
        Ok(first_refusal)
    }
}
