//! What the kernel refuses, and with which error (nf_tables_api.c; tried on Linux 6.18 where doubtful).
//!
//! Owns the checks and the steps on one table. A step either leaves the table as it was and says why, or
//! is carried out and returns what it replaced; element steps record each change as they go.

use std::collections::BTreeSet;

use nix::errno::Errno;

use super::{Fault, Held, HeldSet, HeldTable, Refusal, Undo};
use crate::model::{
    Bytes, Chain, Data, DataField, Element, Family, Field, Hook, Name, Operand, Rule, Set, SetKind,
    Statement, Table, Verdict,
};
use crate::transaction::Operation;

/// Longest name of a table, set or chain, in bytes (kernel: `NFT_NAME_MAXLEN` less the final zero).
const NAME_MAX: usize = 255;

/// Longest comment, in bytes. The kernel would take a longer one; nft refuses to load it (libnftables:
/// `NFTNL_UDATA_COMMENT_MAXLEN`).
const COMMENT_MAX: usize = 128;

/// Widest key or value, in bytes (kernel: `NFT_DATA_VALUE_MAXLEN`).
const VALUE_MAX: usize = 64;

/// How many chains may call each other (kernel: `NFT_JUMP_STACK_SIZE`).
const JUMP_DEPTH: usize = 16;

/// Elements changed by a step, with what was there before.
type Changes = Vec<(Bytes, Option<Held>)>;

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

    /// Carries out a step on sets, chains and rules; returns what it replaced, if anything.
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

    /// A set declared like one that exists is no error and changes nothing, not even its comment.
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
            return Err(Errno::EINVAL);
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
            (Some(None), Some(_)) => Err(Errno::EEXIST),
            (Some(Some(_)), Some(_)) => Err(Errno::EOPNOTSUPP),
        }
    }

    fn set_is_used(&self, name: &Name) -> bool {
        let uses = |statement: &Statement| match statement {
            Statement::InSet { set, .. } => set == name,
            Statement::VerdictMap { map, .. } | Statement::DnatMap { map, .. } => map == name,
            _ => false,
        };
        self.chains
            .values()
            .flat_map(|c| &c.rules)
            .flat_map(|r| &r.statements)
            .any(uses)
    }

    /// A chain's own rules do not hold it: they are deleted with it.
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

    /// What the kernel checks when a rule is added: everything it names exists and fits.
    fn check_rule(&self, rule: &Rule) -> Result<(), Errno> {
        rule.statements
            .iter()
            .try_for_each(|statement| match statement {
                Statement::InSet { key, set, .. } => {
                    self.check_lookup(key, set, |kind| *kind == SetKind::Set)
                }
                Statement::VerdictMap { key, map } => {
                    self.check_lookup(key, map, |kind| *kind == SetKind::VerdictMap)
                }
                Statement::DnatMap { key, map } => self.check_lookup(key, map, |kind| match kind {
                    SetKind::Map(data) => data == &[DataField::Address, DataField::Port],
                    _ => false,
                }),
                Statement::Verdict(verdict) => self.check_verdict(verdict),
                Statement::ProtocolIs(_)
                | Statement::ConnectionIsDnat
                | Statement::Masquerade
                | Statement::Reject => Ok(()),
                Statement::Unknown(_) => Err(Errno::EINVAL),
            })
    }

    /// The kernel reads as many bytes of the registers as the key is wide. A narrower key is EINVAL or, since
    /// it would read registers that hold nothing, ENODATA; a wider one would be cut: here all are EINVAL.
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

    /// Base chains cannot be called.
    fn check_verdict(&self, verdict: &Verdict) -> Result<(), Errno> {
        let Some(name) = verdict.target() else {
            return Ok(());
        };
        match self.chains.get(name).ok_or(Errno::ENOENT)?.hook {
            Some(_) => Err(Errno::EOPNOTSUPP),
            None => Ok(()),
        }
    }

    /// What the kernel checks before it commits: no chain is reached where one of its statements cannot be
    /// carried out (EOPNOTSUPP), nor too deep. A loop is a chain too deep: EMLINK, and ELOOP before Linux 6.x;
    /// chains that no base chain reaches may loop as they like.
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

    /// Adds elements until one is refused.
    pub(super) fn add_elements(
        &mut self,
        name: &Name,
        elements: &[Element],
        refusals: &[Refusal],
        changes: &mut Changes,
    ) -> Result<(), Fault> {
        let held = self.sets.get(name).ok_or_else(|| no_set(name))?;
        for element in elements {
            let fault = |errno| Fault {
                errno,
                element: Some((name.clone(), Some(element.clone()))),
            };
            if let Some(refusal) = refusals.iter().find(|r| (r.concerns)(name, element)) {
                return Err(fault(refusal.errno));
            }
            self.check_element(&held.set, element).map_err(fault)?;
        }
        let held = self.sets.get_mut(name).ok_or_else(|| no_set(name))?;
        for element in elements {
            let is_new = held.is_new(element).map_err(|errno| Fault {
                errno,
                element: Some((name.clone(), Some(element.clone()))),
            })?;
            if is_new {
                let value = Held {
                    last: element.last.clone(),
                    data: element.data.clone(),
                };
                changes.push((element.key, held.elements.insert(element.key, value)));
            }
        }
        Ok(())
    }

    /// Key and data are as the set says, and a verdict's chain can be called.
    fn check_element(&self, set: &Set, element: &Element) -> Result<(), Errno> {
        let width = set.key_len(self.family());
        let range_is_sound = match &element.last {
            Some(last) => set.interval && last.as_slice().len() == width && element.key <= **last,
            None => !set.interval,
        };
        if element.key.as_slice().len() != width || !range_is_sound {
            return Err(Errno::EINVAL);
        }
        match (&set.kind, &element.data) {
            (SetKind::Set, Data::None) => Ok(()),
            (SetKind::Map(fields), Data::Value(value))
                if value.as_slice().len() == data_len(self.family(), fields) =>
            {
                Ok(())
            }
            (SetKind::VerdictMap, Data::Verdict(verdict)) => self.check_verdict(verdict),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Deletes elements until one is missing.
    pub(super) fn delete_elements(
        &mut self,
        name: &Name,
        elements: &[Element],
        changes: &mut Changes,
    ) -> Result<(), Fault> {
        let held = self.sets.get_mut(name).ok_or_else(|| no_set(name))?;
        for element in elements {
            let there = held
                .elements
                .get(&element.key)
                .is_some_and(|h| h.last == element.last);
            let before = if there {
                held.elements.remove(&element.key)
            } else {
                None
            };
            if before.is_none() {
                let element = Some((name.clone(), Some(element.clone())));
                return Err(Fault {
                    errno: Errno::ENOENT,
                    element,
                });
            }
            changes.push((element.key, before));
        }
        Ok(())
    }
}

impl HeldSet {
    /// Whether there is nothing like `element` yet. An equal one is no error; the same key with other data
    /// is, and so is a range that overlaps another.
    fn is_new(&self, element: &Element) -> Result<bool, Errno> {
        let end = element.last.as_deref().unwrap_or(&element.key);
        let Some((key, nearest)) = self.elements.range(..=end).next_back() else {
            return Ok(true);
        };
        if *nearest.last.as_deref().unwrap_or(key) < element.key {
            return Ok(true);
        }
        let same = *key == element.key && nearest.last == element.last;
        if same && nearest.data == element.data {
            Ok(false)
        } else {
            Err(Errno::EEXIST)
        }
    }
}

fn no_set(name: &Name) -> Fault {
    Fault {
        errno: Errno::ENOENT,
        element: Some((name.clone(), None)),
    }
}

/// Where the kernel can carry out a statement (`nft_masq_validate`, `nft_nat_validate`,
/// `nft_reject_validate`).
fn works_at(statement: &Statement, hook: Hook) -> bool {
    match statement {
        _ if hook == Hook::Unknown => true,
        Statement::Masquerade => hook == Hook::NatPostrouting,
        Statement::DnatMap { .. } | Statement::Reject => hook != Hook::NatPostrouting,
        _ => true,
    }
}

fn check_set(family: Family, set: &Set) -> Result<(), Errno> {
    check_text(&set.name, &set.comment)?;
    let has_data = match &set.kind {
        SetKind::Map(fields) => !fields.is_empty() && data_len(family, fields) <= VALUE_MAX,
        SetKind::Set | SetKind::VerdictMap => true,
        SetKind::Unknown => false,
    };
    let has_key = !set.key.is_empty() && set.key_len(family) <= VALUE_MAX;
    if !has_data || !has_key || set.interval && set.key.len() > 1 {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

fn data_len(family: Family, fields: &[DataField]) -> usize {
    match fields {
        [one] => one.as_key().len(family),
        many => many
            .iter()
            .map(|field| field.as_key().padded_len(family))
            .sum(),
    }
}

fn key_len(family: Family, key: &[Operand]) -> usize {
    let field = |operand: &Operand| match operand {
        Operand::SourceAddress
        | Operand::DestinationAddress
        | Operand::OriginalDestinationAddress => Field::Address,
        Operand::Protocol => Field::Protocol,
        Operand::DestinationPort | Operand::OriginalDestinationPort => Field::Port,
        Operand::SymHash { .. } => Field::Slot,
    };
    match key {
        [one] => field(one).len(family),
        many => many
            .iter()
            .map(|operand| field(operand).padded_len(family))
            .sum(),
    }
}
