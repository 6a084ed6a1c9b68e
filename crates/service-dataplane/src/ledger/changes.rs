//! The net changes of a batch, in an order that the kernel takes.
//!
//! Invariant: carried out on the table before, the steps are never refused and make the table after.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use nft::{Bytes, Element, Family, Operation, Transaction};

use crate::layout::{self, Extra, SetId};
use crate::render::Rendered;

/// Net changes of a batch. Own elements of different frontends have different keys, so they need no netting;
/// shared ones are counted first.
#[derive(Default)]
pub(super) struct Changes {
    deleted: BTreeMap<(Family, SetId), Vec<Element>>,
    added: BTreeMap<(Family, SetId), Vec<Element>>,
    shared: BTreeMap<(Family, SetId, Bytes), i64>,
    extras: BTreeMap<(Family, Extra), i64>,
}

impl Changes {
    pub(super) fn frontend(&mut self, family: Family, old: Rendered, new: Rendered) {
        for (set, key) in old.shared {
            *self.shared.entry((family, set, key)).or_default() -= 1;
        }
        for (set, key) in new.shared {
            *self.shared.entry((family, set, key)).or_default() += 1;
        }
        for (extras, by) in [(old.extras, -1), (new.extras, 1)] {
            for extra in extras {
                *self.extras.entry((family, extra)).or_default() += by;
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

    /// Updates the ledger's counts and orders the steps so that the kernel takes them: deletions first, chains
    /// before the verdicts that lead to them, and after those that led to them; rules before the elements of maps they
    /// look up, since a rule that is added walks them.
    pub(super) fn settle(
        mut self,
        shared: &mut HashMap<(Family, SetId, Bytes), u32>,
        extras: &mut BTreeMap<(Family, Extra), u32>,
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
        for (key, by) in std::mem::take(&mut self.extras) {
            match count(extras.entry(key).or_default(), by) {
                Presence::Unchanged => {}
                Presence::Appeared => new.push(key),
                Presence::Vanished => {
                    extras.remove(&key);
                    stale.push(key);
                }
            }
        }
        let mut transaction = Transaction::new();
        for ((family, set), elements) in self.deleted {
            let set = set.name();
            transaction.push(family, Operation::DeleteElements { set, elements });
        }
        for (family, extra) in &new {
            for set in extra.sets() {
                transaction.push(*family, Operation::AddSet(set));
            }
            if let Some(chain) = extra.chain() {
                transaction.push(*family, Operation::AddChain(chain));
            }
        }
        let mut dependent = BTreeSet::new();
        for (family, extra) in new.iter().chain(&stale) {
            if !matches!(extra, Extra::Count(..)) {
                dependent.insert(*family);
            }
        }
        for (family, extra) in &new {
            if let Some(chain) = extra.chain() {
                transaction.push(*family, Operation::SetRules(chain));
            }
        }
        for family in dependent {
            let there = extras.keys().filter(|(of, _)| *of == family);
            for chain in layout::dependent_chains(there.map(|(_, extra)| extra)) {
                transaction.push(family, Operation::SetRules(chain));
            }
        }
        for ((family, set), elements) in self.added {
            let set = set.name();
            transaction.push(family, Operation::AddElements { set, elements });
        }
        for (family, extra) in stale {
            if let Some(chain) = extra.chain() {
                transaction.push(family, Operation::DeleteChain(chain.name));
            }
            for set in extra.sets() {
                transaction.push(family, Operation::DeleteSet(set.name));
            }
        }
        transaction
    }
}

enum Presence {
    Appeared,
    Vanished,
    Unchanged,
}

fn count(counter: &mut u32, by: i64) -> Presence {
    let before = *counter;
    *counter = u32::try_from((i64::from(before) + by).max(0)).unwrap_or(u32::MAX);
    match (before == 0, *counter == 0) {
        (true, false) => Presence::Appeared,
        (false, true) => Presence::Vanished,
        _ => Presence::Unchanged,
    }
}
