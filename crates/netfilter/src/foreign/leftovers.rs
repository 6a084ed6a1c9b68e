//! Which chains of a table can be removed, and the reading of chains and jumps.

use std::collections::{BTreeMap, BTreeSet};

use netlink::{Attributes, Malformed, Message, be32, is_string};
use nft::wire::abi::{self, LIST_ITEM, data, expr, immediate, message};
use nft::wire::header::attributes;

/// What was removed from a table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Names of the chains that were removed.
    pub chains: BTreeSet<String>,
    /// Removed jumps to them from base chains.
    pub jumps: usize,
    /// Chains that stay because foreign rules jump to them.
    pub kept: BTreeSet<String>,
}

/// Which chains can be removed: the leftovers, except base chains, chains that other rules jump to, and the targets of
/// those in turn. `chains` says which are base chains; `jumps` go from one chain to another.
pub fn leftovers(
    chains: &BTreeMap<String, bool>,
    jumps: &[(&str, &str)],
    is_leftover: impl Fn(&str) -> bool,
) -> Leftovers {
    let is_base = |chain: &str| chains.get(chain).copied().unwrap_or(false);
    let is_removable = |chain: &str| is_leftover(chain) && !is_base(chain);
    let mut kept: BTreeSet<&str> = BTreeSet::new();
    loop {
        let before = kept.len();
        for (from, to) in jumps {
            let stays = !is_base(from) && (!is_removable(from) || kept.contains(from));
            if stays && is_removable(to) {
                kept.insert(to);
            }
        }
        if kept.len() == before {
            break;
        }
    }
    let removed = chains
        .keys()
        .filter(|chain| is_removable(chain) && !kept.contains(chain.as_str()));
    let removed: BTreeSet<String> = removed.cloned().collect();
    let from_base = |(from, to): &&(&str, &str)| is_base(from) && removed.contains(*to);
    Leftovers {
        jumps: jumps.iter().filter(from_base).count(),
        kept: kept.into_iter().map(str::to_owned).collect(),
        chains: removed,
    }
}

/// Chains of one table, and the jumps between them.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// By name: whether it is a base chain.
    pub(super) chains: BTreeMap<String, bool>,
    jumps: Vec<Jump>,
}

#[derive(Clone, Debug)]
pub(super) struct Jump {
    pub(super) from: String,
    /// `NFTA_RULE_HANDLE` as the kernel wrote it.
    pub(super) rule: Vec<u8>,
    to: String,
}

impl Found {
    pub(super) fn plan(&self, is_leftover: impl Fn(&str) -> bool) -> Leftovers {
        let jumps: Vec<(&str, &str)> = self
            .jumps
            .iter()
            .map(|jump| (jump.from.as_str(), jump.to.as_str()))
            .collect();
        leftovers(&self.chains, &jumps, is_leftover)
    }

    pub(super) fn jumps_from_base<'a>(
        &'a self,
        to: &'a BTreeSet<String>,
    ) -> impl Iterator<Item = &'a Jump> {
        self.jumps
            .iter()
            .filter(|jump| self.chains.get(&jump.from) == Some(&true) && to.contains(&jump.to))
    }

    pub(super) fn chain(&mut self, message: &Message<'_>, table: &str) -> Result<(), Malformed> {
        if message.kind != message::NEW_CHAIN {
            return Ok(());
        }
        let (mut of_table, mut name, mut base) = (false, None, false);
        for attribute in attributes(message)? {
            let attribute = attribute?;
            match attribute.kind {
                abi::chain::TABLE => of_table = is_string(attribute.payload, table),
                abi::chain::NAME => name = Some(lossy(attribute.payload)),
                abi::chain::HOOK => base = true,
                _ => {}
            }
        }
        if let (true, Some(name)) = (of_table, name) {
            self.chains.insert(name, base);
        }
        Ok(())
    }

    pub(super) fn rule(&mut self, message: &Message<'_>, table: &str) -> Result<(), Malformed> {
        if message.kind != message::NEW_RULE {
            return Ok(());
        }
        let (mut of_table, mut from, mut handle, mut to) = (false, None, None, Vec::new());
        for attribute in attributes(message)? {
            let attribute = attribute?;
            let payload = attribute.payload;
            match attribute.kind {
                abi::rule::TABLE => of_table = is_string(payload, table),
                abi::rule::CHAIN => from = Some(lossy(payload)),
                abi::rule::HANDLE => handle = Some(payload),
                abi::rule::EXPRESSIONS => to = targets(payload)?,
                _ => {}
            }
        }
        if let (true, Some(from), Some(handle)) = (of_table, from, handle) {
            self.jumps.extend(to.into_iter().map(|to| Jump {
                from: from.clone(),
                rule: handle.to_vec(),
                to,
            }));
        }
        Ok(())
    }
}

/// The name of a chain. One that is not UTF-8 is none of kube-proxy's or flannel's, so how it reads does not matter.
fn lossy(payload: &[u8]) -> String {
    let name = payload.split(|byte| *byte == 0).next();
    String::from_utf8_lossy(name.unwrap_or_default()).into_owned()
}

/// The attribute of this type within an attribute that may be absent.
pub(super) fn inside(payload: Option<&[u8]>, kind: u16) -> Result<Option<&[u8]>, Malformed> {
    match payload {
        Some(payload) => Attributes::new(payload).find(kind),
        None => Ok(None),
    }
}

/// Chains that a rule's immediate verdicts jump to.
fn targets(expressions: &[u8]) -> Result<Vec<String>, Malformed> {
    let mut targets = Vec::new();
    for item in Attributes::new(expressions) {
        let item = item?;
        let parts = Attributes::new(item.payload);
        let name = parts.clone().find(expr::NAME)?.unwrap_or_default();
        if item.kind != LIST_ITEM || !is_string(name, "immediate") {
            continue;
        }
        let value = inside(parts.find(expr::DATA)?, immediate::DATA)?;
        let verdict = inside(value, data::VERDICT)?;
        let code = inside(verdict, data::CODE)?;
        let Some(code) = code else { continue };
        let code = be32(code, "NFTA_VERDICT_CODE")?.cast_signed();
        if let (data::JUMP | data::GOTO, Some(chain)) = (code, inside(verdict, data::CHAIN)?) {
            targets.push(lossy(chain));
        }
    }
    Ok(targets)
}
