//! The net changes of a batch, as steps in an order that the kernel accepts.
//!
//! Invariant: in the table as it was before the batch, no step is refused, and the last one gives the table after the batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nft::{Bytes, Chain, Element, Family, Operation, Transaction};

use crate::layout::{self, DynamicPart, SetId};
use crate::render::Rendered;

/// Net changes of a batch. Elements that one frontend owns have different keys, so their changes never cancel each other;
/// changes of shared elements are added up first.
#[derive(Default)]
pub(super) struct Changes {
    deleted: BTreeMap<(Family, SetId), Vec<Element>>,
    added: BTreeMap<(Family, SetId), Vec<Element>>,
    shared: BTreeMap<(Family, SetId, Bytes), i64>,
    parts: BTreeMap<(Family, DynamicPart), i64>,
}

impl Changes {
    /// Adds the change of one frontend.
    pub(super) fn frontend(&mut self, family: Family, old: Rendered, new: Rendered) {
        for (set, key) in old.shared {
            *self.shared.entry((family, set, key)).or_default() -= 1;
        }
        for (set, key) in new.shared {
            *self.shared.entry((family, set, key)).or_default() += 1;
        }
        for (parts, by) in [(old.parts, -1), (new.parts, 1)] {
            for part in parts {
                *self.parts.entry((family, part)).or_default() += by;
            }
        }
        let mut old = old.own.into_iter().peekable();
        let mut new = new.own.into_iter().peekable();
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(a), Some(b)) => a.cmp(b),
            };
            if order.is_le()
                && let Some((set, element)) = old.next()
                && order.is_lt()
            {
                self.deleted.entry((family, set)).or_default().push(element);
            }
            if order.is_ge()
                && let Some((set, element)) = new.next()
                && order.is_gt()
            {
                self.added.entry((family, set)).or_default().push(element);
            }
        }
    }

    /// Updates the ledger's counts and returns the steps in this order: delete elements; add sets and chains; write rules;
    /// add elements; delete chains and sets. So a chain exists while a verdict leads to it, and a map is empty when the
    /// kernel adds a rule that looks it up, since the kernel then walks the map.
    pub(super) fn settle(
        mut self,
        shared: &mut HashMap<(Family, SetId, Bytes), u32>,
        parts: &mut BTreeMap<(Family, DynamicPart), u32>,
    ) -> Transaction {
        for (key, by) in std::mem::take(&mut self.shared) {
            let (family, set, bytes) = key;
            let into = match count(shared.entry(key).or_default(), by) {
                Presence::Unchanged => continue,
                Presence::Appeared => &mut self.added,
                Presence::Vanished => {
                    shared.remove(&key);
                    &mut self.deleted
                }
            };
            into.entry((family, set))
                .or_default()
                .push(Element::member(bytes));
        }
        let (mut new, mut stale) = (Vec::new(), Vec::new());
        for (key, by) in std::mem::take(&mut self.parts) {
            match count(parts.entry(key).or_default(), by) {
                Presence::Unchanged => {}
                Presence::Appeared => new.push(key),
                Presence::Vanished => {
                    parts.remove(&key);
                    stale.push(key);
                }
            }
        }
        for (list, into) in [(&stale, &mut self.deleted), (&new, &mut self.added)] {
            for (family, part) in list {
                for (set, element) in part.elements() {
                    into.entry((*family, set)).or_default().push(element);
                }
            }
        }
        let mut transaction = Transaction::new();
        for ((family, set), elements) in self.deleted {
            let set = set.name();
            transaction.push(family, Operation::DeleteElements { set, elements });
        }
        for (family, part) in &new {
            for set in part.sets() {
                transaction.push(*family, Operation::AddSet(set));
            }
            if let Some(chain) = part.chain() {
                transaction.push(*family, Operation::AddChain(chain));
            }
        }
        for (family, part) in &new {
            if let Some(chain) = part.chain() {
                transaction.push(*family, Operation::SetRules(chain));
            }
        }
        for chain in dependent(parts, &new, &stale) {
            transaction.push(chain.0, Operation::SetRules(chain.1));
        }
        for ((family, set), elements) in self.added {
            let set = set.name();
            transaction.push(family, Operation::AddElements { set, elements });
        }
        // The chains of one part may use the set of another.
        for (family, part) in &stale {
            if let Some(chain) = part.chain() {
                transaction.push(*family, Operation::DeleteChain(chain.name));
            }
        }
        for (family, part) in &stale {
            for set in part.sets() {
                transaction.push(*family, Operation::DeleteSet(set.name));
            }
        }
        transaction
    }
}

/// The chains whose rules depend on dynamic parts and change with these ones.
fn dependent(
    parts: &BTreeMap<(Family, DynamicPart), u32>,
    new: &[(Family, DynamicPart)],
    stale: &[(Family, DynamicPart)],
) -> Vec<(Family, Chain)> {
    let mut changed = Vec::new();
    for family in Family::ALL {
        let of = |list: &[(Family, DynamicPart)]| -> BTreeSet<DynamicPart> {
            let of = list.iter().filter(|(of, _)| *of == family);
            of.map(|(_, part)| *part).collect()
        };
        let (new, stale) = (of(new), of(stale));
        if new.is_empty() && stale.is_empty() {
            continue;
        }
        let now = || parts.keys().filter(|(of, _)| *of == family);
        let now = || now().map(|(_, part)| part);
        let before = now().filter(|part| !new.contains(part)).chain(&stale);
        let before = layout::dependent_chains(before);
        let after = layout::dependent_chains(now()).into_iter();
        let differing = after.filter(|chain| !before.contains(chain));
        changed.extend(differing.map(|chain| (family, chain)));
    }
    changed
}

/// What a change of its counter means for an element or part.
enum Presence {
    Appeared,
    Vanished,
    Unchanged,
}

/// Adds `by` to a counter.
fn count(counter: &mut u32, by: i64) -> Presence {
    let before = *counter;
    *counter = u32::try_from((i64::from(before) + by).max(0)).unwrap_or(u32::MAX);
    match (before == 0, *counter == 0) {
        (true, false) => Presence::Appeared,
        (false, true) => Presence::Vanished,
        _ => Presence::Unchanged,
    }
}
