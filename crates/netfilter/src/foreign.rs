//! Reads and removes what other programs have in the ruleset.
//!
//! Works on names alone: of foreign tables only chains and the jumps between them are read; nothing else in them needs
//! to decode. iptables in its nft variant keeps its chains in such tables, so they can be removed in one transaction,
//! without the program that made them.
//!
//! Invariant: a chain is removed together with the jumps to it from base chains, in one transaction; a chain that any
//! other foreign chain jumps to stays, with all that it jumps to itself.

mod base_chains;
mod deletions;
mod endings;
mod leftovers;
#[cfg(test)]
mod tests;

pub use base_chains::BaseChain;
pub use endings::Ending;
pub use leftovers::{Leftovers, leftovers};

use netlink::{Connection, Error, Message, NetlinkFamily, Reply, Writer, be32, failed, flag};
use nft::wire::abi::{self, data, message};
use nft::wire::header::{attributes, header};
use nft::{Family, read_generation};
use nix::errno::Errno;

use deletions::Deletions;
use leftovers::Found;

/// Each refused message of a batch is answered.
const RECEIVE_SPACE: usize = 4 << 20;
/// Foreign commits between reading and writing cause another attempt.
const ATTEMPTS: usize = 20;
const READ_CHAINS: &str = "read the chains of the ruleset";

/// The ruleset of one network namespace: that of the thread that opened the socket.
#[derive(Debug)]
pub struct ForeignRuleset {
    connection: Connection,
}

impl ForeignRuleset {
    /// Errors: EPERM without CAP_NET_ADMIN in this network namespace.
    pub fn open() -> Result<Self, Error> {
        let connection = Connection::open(NetlinkFamily::Netfilter)?;
        connection.socket().set_receive_space(RECEIVE_SPACE)?;
        Ok(ForeignRuleset { connection })
    }

    /// Whether there is a table of this name.
    pub fn has_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        let fill = |out: &mut Writer| out.put_str(abi::table::NAME, table);
        self.is_there(message::GET_TABLE, family, fill)
    }

    /// Whether the table has a chain of this name.
    pub fn has_chain(&mut self, family: Family, table: &str, chain: &str) -> Result<bool, Error> {
        let fill = |out: &mut Writer| {
            out.put_str(abi::chain::TABLE, table);
            out.put_str(abi::chain::NAME, chain);
        };
        self.is_there(message::GET_CHAIN, family, fill)
    }

    /// Whether the policy of a base chain is drop; `false` for a chain that does not exist.
    pub fn drops_by_default(
        &mut self,
        family: Family,
        table: &str,
        chain: &str,
    ) -> Result<bool, Error> {
        let mut policy = None;
        let fill = |out: &mut Writer| {
            out.put_str(abi::chain::TABLE, table);
            out.put_str(abi::chain::NAME, chain);
        };
        let absorb = |message: &Message<'_>| {
            for attribute in attributes(message)? {
                let attribute = attribute?;
                if attribute.kind == abi::chain::POLICY {
                    policy = Some(be32(attribute.payload, "NFTA_CHAIN_POLICY")?.cast_signed());
                }
            }
            Ok(())
        };
        let (kind, header) = (message::GET_CHAIN, header(Some(family)));
        match self.connection.ask(kind, 0, &header, fill, absorb)? {
            Reply::Refused(Errno::ENOENT) => Ok(false),
            Reply::Refused(errno) => Err(failed("look for a chain")(errno)),
            Reply::Done | Reply::Interrupted => Ok(policy == Some(data::DROP)),
        }
    }

    fn is_there(
        &mut self,
        kind: u16,
        family: Family,
        fill: impl FnOnce(&mut Writer),
    ) -> Result<bool, Error> {
        let header = header(Some(family));
        match self.connection.ask(kind, 0, &header, fill, |_| Ok(()))? {
            Reply::Refused(Errno::ENOENT) => Ok(false),
            Reply::Refused(errno) => Err(failed("look for a table")(errno)),
            Reply::Done | Reply::Interrupted => Ok(true),
        }
    }

    /// Deletes a table with its contents; `false` when there is none.
    ///
    /// Errors: EPERM when a living process owns it.
    pub fn delete_table(&mut self, family: Family, table: &str) -> Result<bool, Error> {
        // The kernel ends a batch that it refuses by waiting for a grace period of RCU, with the lock of commits held.
        if !self.has_table(family, table)? {
            return Ok(false);
        }
        let mut batch = Deletions::begin(&mut self.connection, None);
        batch.push(message::DEL_TABLE, family, |out| {
            out.put_str(abi::table::NAME, table)
        });
        match batch.commit()? {
            None => Ok(true),
            Some(Errno::ENOENT) => Ok(false),
            Some(errno) => Err(failed("delete a table")(errno)),
        }
    }

    /// Removes the leftover chains of a table, and the jumps to them from base chains. Nothing is removed from a table
    /// that does not exist.
    pub fn remove_chains(
        &mut self,
        family: Family,
        table: &str,
        is_leftover: impl Fn(&str) -> bool,
    ) -> Result<Leftovers, Error> {
        for _ in 0..ATTEMPTS {
            let generation = read_generation(&mut self.connection)?;
            let Some(found) = self.read(family, table)? else {
                continue;
            };
            let plan = found.plan(&is_leftover);
            if plan.chains.is_empty() {
                return Ok(plan);
            }
            let mut batch = Deletions::begin(&mut self.connection, Some(generation));
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
                    out.put(abi::rule::HANDLE, &jump.rule);
                });
            }
            for chain in &plan.chains {
                batch.push(message::DEL_CHAIN, family, |out| {
                    out.put_str(abi::chain::TABLE, table);
                    out.put_str(abi::chain::NAME, chain);
                });
            }
            match batch.commit()? {
                None => return Ok(plan),
                // Another process has changed something since the table was read.
                Some(Errno::ERESTART | Errno::ENOENT | Errno::EAGAIN) => {}
                Some(errno) => return Err(failed("remove chains")(errno)),
            }
        }
        Err(failed("remove chains between foreign changes")(
            Errno::EAGAIN,
        ))
    }

    /// Destroys an IP set (`IPSET_CMD_DESTROY`); `false` when there is none, or the kernel has no IP sets.
    ///
    /// Errors: a set that rules refer to cannot be destroyed.
    pub fn destroy_ip_set(&mut self, name: &str) -> Result<bool, Error> {
        const NFNL_SUBSYS_IPSET: u16 = 6;
        const CMD_DESTROY: u16 = 3;
        const ATTR_PROTOCOL: u16 = 1;
        const ATTR_SETNAME: u16 = 2;
        /// The oldest that current kernels accept (`IPSET_PROTOCOL_MIN`).
        const PROTOCOL: u8 = 6;
        let fill = |out: &mut Writer| {
            out.put(ATTR_PROTOCOL, &[PROTOCOL]);
            out.put_str(ATTR_SETNAME, name);
        };
        let kind = NFNL_SUBSYS_IPSET << 8 | CMD_DESTROY;
        // EXCL: a missing set is an error.
        let header = header(Some(Family::Ip));
        let reply = self
            .connection
            .ask(kind, flag::EXCL, &header, fill, |_| Ok(()))?;
        match reply {
            Reply::Done | Reply::Interrupted => Ok(true),
            Reply::Refused(Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(false),
            Reply::Refused(errno) => Err(failed("destroy an IP set")(errno)),
        }
    }

    /// Reads chains and jumps of a table; `None` when it changed meanwhile.
    fn read(&mut self, family: Family, table: &str) -> Result<Option<Found>, Error> {
        let mut found = Found::default();
        let header = header(Some(family));
        let reply = self.connection.ask(
            message::GET_CHAIN,
            flag::DUMP,
            &header,
            |_| {},
            |message| found.chain(message, table),
        )?;
        if !reply.settle(READ_CHAINS)? {
            return Ok(None);
        }
        if found.chains.is_empty() {
            return Ok(Some(found));
        }
        let reply = self.connection.ask(
            message::GET_RULE,
            flag::DUMP,
            &header,
            |out| out.put_str(abi::rule::TABLE, table),
            |message| found.rule(message, table),
        )?;
        Ok(reply.settle(READ_CHAINS)?.then_some(found))
    }
}
