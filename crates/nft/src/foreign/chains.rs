//! Where other people's chains are hooked.
//!
//! Their names are of foreign origin: for people to read, never for a ruleset.

use std::fmt;

use nix::errno::Errno;

use super::Foreign;
use crate::link::failed;
use crate::transaction::CommitError;
use crate::wire::abi::{self, data, flag, message};
use crate::wire::attribute::Attributes;
use crate::wire::{Malformed, Message, hook};

/// Other people's commits between question and answer make it begin anew.
const ATTEMPTS: usize = 20;

/// The family of anybody's table (`NFPROTO_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AnyFamily(pub u8);

impl AnyFamily {
    /// Both IPv4 and IPv6.
    pub const INET: AnyFamily = AnyFamily(1);
    /// IPv4.
    pub const IP: AnyFamily = AnyFamily(2);
    /// One device's packets, of any protocol.
    pub const NETDEV: AnyFamily = AnyFamily(5);
    /// Bridged packets.
    pub const BRIDGE: AnyFamily = AnyFamily(7);
    /// IPv6.
    pub const IP6: AnyFamily = AnyFamily(10);

    /// nft's keyword; a family that nft does not know has none.
    pub fn keyword(self) -> Option<&'static str> {
        match self {
            AnyFamily::INET => Some("inet"),
            AnyFamily::IP => Some("ip"),
            AnyFamily(3) => Some("arp"),
            AnyFamily::NETDEV => Some("netdev"),
            AnyFamily::BRIDGE => Some("bridge"),
            AnyFamily::IP6 => Some("ip6"),
            _ => None,
        }
    }
}

impl fmt::Display for AnyFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keyword() {
            Some(keyword) => f.write_str(keyword),
            None => write!(f, "family {}", self.0),
        }
    }
}

/// Anybody's base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseChain {
    /// Family of the table.
    pub family: AnyFamily,
    /// Name of the table, of foreign origin.
    pub table: String,
    /// Name of the chain, of foreign origin.
    pub name: String,
    /// `enum nf_inet_hooks`, or of the family's own.
    pub hook: u32,
    /// Chains of one hook are visited in the order of their priorities.
    pub priority: i32,
    /// Whether its policy is to drop what no rule of it decides on.
    pub drops: bool,
}

impl BaseChain {
    /// nft's keyword of the hook; a hook that is not one of [`AnyFamily`]'s named ones has none.
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

impl Foreign {
    /// Every base chain of this network namespace, ours too.
    pub fn base_chains(&mut self) -> Result<Vec<BaseChain>, CommitError> {
        for _ in 0..ATTEMPTS {
            let mut found = Vec::new();
            let asked = self.link.ask(
                message::GET_CHAIN,
                flag::DUMP,
                None,
                |_| {},
                |message| {
                    found.extend(read(message)?);
                    Ok(())
                },
            )?;
            if asked.settle()? {
                return Ok(found);
            }
        }
        Err(failed("read the chains of a ruleset at rest")(
            Errno::EAGAIN,
        ))
    }
}

fn read(message: &Message<'_>) -> Result<Option<BaseChain>, Malformed> {
    if message.kind != message::NEW_CHAIN {
        return Ok(None);
    }
    let fields = message.attributes()?;
    let Some((hook, priority)) = hook::numbers(fields.clone())? else {
        return Ok(None);
    };
    let policy = hook::policy(fields.clone())?;
    Ok(Some(BaseChain {
        family: family(message),
        table: name(fields.clone(), abi::chain::TABLE)?,
        name: name(fields, abi::chain::NAME)?,
        hook,
        priority,
        drops: policy == Some(data::DROP as u32),
    }))
}

/// Whose table a message is about.
pub(crate) fn family(message: &Message<'_>) -> AnyFamily {
    AnyFamily(message.payload.first().copied().unwrap_or(0))
}

/// A name of foreign origin: the kernel takes any bytes for one. Empty where there is none.
pub(crate) fn name(fields: Attributes<'_>, kind: u16) -> Result<String, Malformed> {
    let bytes = fields.find(kind)?.unwrap_or_default();
    let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}
