//! Which tables, sets, chains and rules the kernel refuses, and with which error (nf_tables_api.c; checked on Linux
//! 6.18 where the source is unclear). Elements are left to [`super::elements`].
//!
//! Owns the checks and the steps on one table. A step either fails and leaves the table as it was, or
//! is applied and returns what it replaced.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use super::{HeldSet, HeldTable, Undo};
use crate::model::{
    Chain, Data, DataField, Family, Field, Hook, Name, Operand, Rule, Set, SetKind, Statement,
    Table, Verdict,
};
use crate::transaction::Operation;
use crate::wire::udata;

/// Longest name of a table, set or chain, in bytes (kernel: `NFT_NAME_MAXLEN` less the final zero).
const NAME_MAX: usize = 255;

/// Longest comment, in bytes. The kernel would take a longer one; nft refuses to load it (libnftables:
/// `NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_MAX: usize = 128;

/// Widest key or value, in bytes (kernel: `NFT_DATA_VALUE_MAXLEN`).
const VALUE_MAX: usize = 64;

/// How many chains may call each other (kernel: `NFT_JUMP_STACK_SIZE`).
const JUMP_DEPTH: usize = 16;

/// The error of [`crate::Kernel`] for steps that write what can only be observed.
const UNWRITABLE: Errno = Errno::EOPNOTSUPP;

/// Whether a table may be created.
pub(super) fn check_table(family: Family, table: &Table) -> Result<(), Errno> {
    check_text(&table.name, &table.comment)?;
    if table.family == family {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn check_text(name: &str, comment: &str) -> Result<(), Errno> {
    match name.len() > NAME_MAX || comment.len() > COMMENT_MAX {
        true => Err(Errno::ERANGE),
        false => Ok(()),
    }
}

impl HeldTable {
    fn family(&self) -> Family {
        self.table.family
    }

    /// Applies a step on sets, chains and rules; returns what it replaced, if anything.
    pub(super) fn declare(&mut self, operation: &Operation) -> Result<Option<Undo>, Errno> {
        match operation {
            Operation::AddSet(set) => self.add_set(set),
            Operation::DeleteSet(name) => {
                if self.set_is_used(name) {
                    return Err(Errno::EBUSY);
                }
                let held = self.sets.remove(name).ok_or(Errno::ENOENT)?;
                Ok(Some(Undo::Set(name.clone(), Some(held))))
            }
            Operation::AddChain(chain) => self.add_chain(chain),
            Operation::DeleteChain(name) => {
                if self.chain_is_used(name) {
                    return Err(Errno::EBUSY);
                }
                let chain = self.chains.remove(name).ok_or(Errno::ENOENT)?;
                Ok(Some(Undo::Chain(name.clone(), Some(chain))))
            }
            Operation::SetRules(chain) => {
                if !self.chains.contains_key(&chain.name) {
                    return Err(Errno::ENOENT);
                }
                chain
                    .rules
                    .iter()
                    .try_for_each(|rule| self.check_rule(rule))?;
                let held = self.chains.get_mut(&chain.name).ok_or(Errno::ENOENT)?;
                let before = held.clone();
                held.rules.clone_from(&chain.rules);
                Ok(Some(Undo::Chain(chain.name.clone(), Some(before))))
            }
            Operation::AddTable(_)
            | Operation::DeleteTable
            | Operation::AddElements { .. }
            | Operation::DeleteElements { .. } => Err(Errno::EINVAL),
        }
    }

    /// Declaring an existing set again, unchanged, succeeds and changes nothing, not even its comment.
    fn add_set(&mut self, set: &Set) -> Result<Option<Undo>, Errno> {
        check_set(self.family(), set)?;
        if let Some(held) = self.sets.get(&set.name) {
            let like = Set {
                comment: held.set.comment.clone(),
                ..set.clone()
            };
            return if like == held.set {
                Ok(None)
            } else {
                Err(Errno::EEXIST)
            };
        }
        let held = HeldSet {
            set: set.clone(),
            elements: Default::default(),
        };
        self.sets.insert(set.name.clone(), held);
        Ok(Some(Undo::Set(set.name.clone(), None)))
    }

    /// A chain that exists stays as it is, comment included; hooking it otherwise is an error.
    fn add_chain(&mut self, chain: &Chain) -> Result<Option<Undo>, Errno> {
        check_text(&chain.name, &chain.comment)?;
        if chain.hook == Some(Hook::Unknown) {
            return Err(UNWRITABLE);
        }
        match (
            self.chains.get(&chain.name).map(|held| held.hook),
            chain.hook,
        ) {
            (None, _) => {
                let empty = Chain {
                    rules: Vec::new(),
                    ..chain.clone()
                };
                self.chains.insert(chain.name.clone(), empty);
                Ok(Some(Undo::Chain(chain.name.clone(), None)))
            }
            (Some(_), None) => Ok(None),
            (Some(held), wanted) if held == wanted => Ok(None),
            (Some(_), Some(_)) => Err(Errno::EOPNOTSUPP),
        }
    }

    fn set_is_used(&self, name: &Name) -> bool {
        self.chains
            .values()
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.statements)
            .any(|statement| statement.set() == Some(name))
    }

    /// A chain's own rules do not keep it in use: they are deleted with it.
    fn chain_is_used(&self, name: &Name) -> bool {
        let calls = |verdict: &Verdict| verdict.target() == Some(name);
        let others = self.chains.values().filter(|chain| chain.name != *name);
        let by_rule = others
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.statements)
            .any(|statement| matches!(statement, Statement::Verdict(verdict) if calls(verdict)));
        let by_element = |held: &HeldSet| {
            held.set.kind == SetKind::VerdictMap
                && held.elements.values().any(
                    |element| matches!(&element.data, Data::Verdict(verdict) if calls(verdict)),
                )
        };
        by_rule || self.sets.values().any(by_element)
    }

    /// Checks what the kernel checks when a rule is added: every set and chain that the rule names exists and fits.
    fn check_rule(&self, rule: &Rule) -> Result<(), Errno> {
        rule.statements
            .iter()
            .try_for_each(|statement| match statement {
                Statement::InSet { key, set, .. } => self.check_lookup(key, set, |kind| {
                    matches!(kind, SetKind::Set | SetKind::Counters)
                }),
                Statement::VerdictMap { key, map } => {
                    self.check_lookup(key, map, |kind| *kind == SetKind::VerdictMap)
                }
                Statement::DnatMap { key, map } => self.check_lookup(key, map, |kind| match kind {
                    SetKind::Map(data) | SetKind::Dynamic(data) => {
                        data == &[DataField::Address, DataField::Port]
                    }
                    _ => false,
                }),
                Statement::SetPriority { key, map } => self.check_lookup(
                    key,
                    map,
                    |kind| matches!(kind, SetKind::Map(data) if data == &[DataField::Group]),
                ),
                Statement::UpdateMap { key, data, map, .. } => {
                    self.check_lookup(key, map, |kind| {
                        let len = |fields: &[DataField]| data_len(self.family(), fields);
                        matches!(kind, SetKind::Dynamic(fields)
                        if len(fields) == key_len(self.family(), data))
                    })
                }
                Statement::Verdict(verdict) => check_verdict(&self.chains, verdict),
                Statement::Equals { operand, value, .. } => {
                    let width = operand_len(self.family(), operand);
                    (value.as_slice().len() == width)
                        .then_some(())
                        .ok_or(Errno::EINVAL)
                }
                Statement::Unknown(_) => Err(UNWRITABLE),
                _ => Ok(()),
            })
    }

    /// The kernel reads as many bytes of the registers as the key is wide. A narrower key is EINVAL or, since
    /// it would read unset registers, ENODATA; a wider one would be cut. Here both are EINVAL.
    fn check_lookup(
        &self,
        key: &[Operand],
        set: &Name,
        kind: impl Fn(&SetKind) -> bool,
    ) -> Result<(), Errno> {
        let held = self.sets.get(set).ok_or(Errno::ENOENT)?;
        if key.contains(&Operand::SymHash { modulus: 0 }) {
            return Err(Errno::ERANGE);
        }
        let fits = key_len(self.family(), key) == held.set.key_len(self.family());
        if fits && kind(&held.set.kind) {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Checks what the kernel checks before it commits: no chain is reached from a hook where one of its statements is
    /// not allowed (EOPNOTSUPP), nor too deep. A loop counts as too deep: EMLINK, and ELOOP before Linux 6.x. Chains
    /// that no base chain reaches may loop.
    pub(super) fn check_hooks(&self) -> Result<(), Errno> {
        self.chains
            .values()
            .filter_map(|chain| chain.hook.map(|hook| (chain, hook)))
            .try_for_each(|(chain, hook)| self.walk(chain, hook, 0))
    }

    fn walk(&self, chain: &Chain, hook: Hook, depth: usize) -> Result<(), Errno> {
        if depth == JUMP_DEPTH {
            return Err(Errno::EMLINK);
        }
        for statement in chain.rules.iter().flat_map(|rule| &rule.statements) {
            if !works_at(statement, hook) {
                return Err(Errno::EOPNOTSUPP);
            }
            for target in self.targets(statement) {
                if let Some(chain) = self.chains.get(target) {
                    self.walk(chain, hook, depth + 1)?;
                }
            }
        }
        Ok(())
    }

    fn targets<'a>(&'a self, statement: &'a Statement) -> BTreeSet<&'a Name> {
        match statement {
            Statement::Verdict(verdict) => verdict.target().into_iter().collect(),
            Statement::VerdictMap { map, .. } => self
                .sets
                .get(map)
                .into_iter()
                .flat_map(|held| held.elements.values())
                .filter_map(|element| match &element.data {
                    Data::Verdict(verdict) => verdict.target(),
                    Data::None | Data::Value(_) => None,
                })
                .collect(),
            _ => BTreeSet::new(),
        }
    }
}

/// Base chains cannot be called.
pub(super) fn check_verdict(
    chains: &BTreeMap<Name, Chain>,
    verdict: &Verdict,
) -> Result<(), Errno> {
    let Some(name) = verdict.target() else {
        return Ok(());
    };
    match chains.get(name).ok_or(Errno::ENOENT)?.hook {
        Some(_) => Err(Errno::EOPNOTSUPP),
        None => Ok(()),
    }
}

/// The hooks where the kernel allows a statement (`nft_masq_validate`, `nft_nat_validate`,
/// `nft_reject_validate`, `nft_rt_validate`).
fn works_at(statement: &Statement, hook: Hook) -> bool {
    match statement {
        _ if hook == Hook::Unknown => true,
        Statement::Masquerade => is_postrouting(hook) && hook != Hook::FilterPostrouting,
        Statement::ClampMaxseg => is_after_routing(hook),
        Statement::DnatMap { .. } => matches!(hook, Hook::NatPrerouting | Hook::NatOutput),
        Statement::Reject | Statement::RejectTcpReset => !is_postrouting(hook),
        _ => true,
    }
}

/// Whether packets have a route where the chain is hooked.
fn is_after_routing(hook: Hook) -> bool {
    let sends = matches!(
        hook,
        Hook::FilterForward | Hook::FirstOutput | Hook::RawOutput | Hook::NatOutput
    );
    sends || is_postrouting(hook)
}

fn is_postrouting(hook: Hook) -> bool {
    matches!(
        hook,
        Hook::NatPostrouting | Hook::BeforeNatPostrouting | Hook::FilterPostrouting
    )
}

fn check_set(family: Family, set: &Set) -> Result<(), Errno> {
    check_text(&set.name, &set.comment)?;
    if set.kind == SetKind::Unknown {
        return Err(UNWRITABLE);
    }
    let has_data = match &set.kind {
        SetKind::Map(fields) | SetKind::Dynamic(fields) => {
            !fields.is_empty() && data_len(family, fields) <= VALUE_MAX
        }
        SetKind::Set | SetKind::Counters | SetKind::VerdictMap | SetKind::Unknown => true,
    };
    let has_key = !set.key.is_empty() && set.key_len(family) <= VALUE_MAX;
    if !has_data || !has_key || set.interval && set.kind != SetKind::Set {
        return Err(Errno::EINVAL);
    }
    // Declarations by typeof leave less room for the comment: user data are 256 bytes in all, and nft
    // would omit what does not fit, so the set would never read back as it was written.
    let user_data = udata::of_set(set, family);
    if udata::read_set_comment(&user_data).unwrap_or_default() != set.comment {
        return Err(Errno::ERANGE);
    }
    Ok(())
}

pub(super) fn data_len(family: Family, fields: &[DataField]) -> usize {
    match fields {
        [one] => one.as_key().len(family),
        many => many
            .iter()
            .map(|field| field.as_key().padded_len(family))
            .sum(),
    }
}

fn key_len(family: Family, key: &[Operand]) -> usize {
    match key {
        [one] => operand_len(family, one),
        many => many
            .iter()
            .map(|operand| operand_len(family, operand).next_multiple_of(4))
            .sum(),
    }
}

/// Bytes of an operand, without padding.
fn operand_len(family: Family, operand: &Operand) -> usize {
    let field = match operand {
        Operand::SourceAddress
        | Operand::DestinationAddress
        | Operand::OriginalDestinationAddress
        | Operand::ReplySourceAddress => Field::Address,
        Operand::Protocol => Field::Protocol,
        Operand::DestinationPort | Operand::OriginalDestinationPort | Operand::ReplySourcePort => {
            Field::Port
        }
        Operand::Group => Field::Group,
        Operand::SymHash { .. } => Field::Slot,
        Operand::Transport { len, .. } => return usize::from(*len),
    };
    field.len(family)
}
