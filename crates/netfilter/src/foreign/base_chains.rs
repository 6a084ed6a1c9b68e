//! Where chains of any program are hooked.
//!
//! Their names are of foreign origin: for people to read, never for a ruleset.

use netlink::{Error, Malformed, Message, failed, flag};
use nft::AnyFamily;
use nft::wire::abi::{self, data, message};
use nft::wire::header::{attributes, foreign_name, header};
use nft::wire::hook;
use nix::errno::Errno;

use super::{ATTEMPTS, ForeignRuleset, READ_CHAINS};

/// A base chain of any program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Family of the table.
    pub family: AnyFamily,
    /// Name of the table, of foreign origin.
    pub table: String,
    /// Name of the chain, of foreign origin.
    pub name: String,
    /// Hook number: of `enum nf_inet_hooks`, or the family's own.
    pub hook: u32,
    /// Chains of one hook are visited in the order of their priorities.
    pub priority: i32,
    /// Whether its policy is drop.
    pub drops: bool,
}

impl BaseChain {
    /// nft's keyword of the hook; `None` for hooks that nft has no keyword for.
    pub fn hook_keyword(&self) -> Option<&'static str> {
        let keywords: &[&str] = match self.family {
            AnyFamily::INET | AnyFamily::IP | AnyFamily::IP6 | AnyFamily::BRIDGE => &[
                "prerouting",
                "input",
                "forward",
                "output",
                "postrouting",
                "ingress",
            ],
            AnyFamily::NETDEV => &["ingress", "egress"],
            _ => &[],
        };
        keywords.get(usize::try_from(self.hook).ok()?).copied()
    }
}

impl ForeignRuleset {
    /// Every base chain of this network namespace, ours included.
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>, Error> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let reply = self.connection.ask(
                message::GET_CHAIN,
                flag::DUMP,
                &header(None),
                |_| {},
                |message| {
                    found.extend(read(message)?);
                    Ok(())
                },
            )?;
            if reply.settle(READ_CHAINS)? {
                return Ok(found);
            }
        }
        Err(failed(READ_CHAINS)(Errno::EAGAIN))
    }
}

fn read(message: &Message<'_>) -> Result<Option<BaseChain>, Malformed> {
    if message.kind != message::NEW_CHAIN {
        return Ok(None);
    }
    let fields = attributes(message)?;
    let Some((hook, priority)) = hook::numbers(fields.clone())? else {
        return Ok(None);
    };
    let policy = hook::policy(fields.clone())?;
    Ok(Some(BaseChain {
        family: AnyFamily::of(message),
        table: foreign_name(fields.clone(), abi::chain::TABLE)?,
        name: foreign_name(fields, abi::chain::NAME)?,
        hook,
        priority,
        drops: policy == Some(data::DROP as u32),
    }))
}
