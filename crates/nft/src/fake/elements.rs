//! What the kernel refuses of elements, and with which error (nf_tables_api.c, nft_set_rbtree.c; tried on
//! Linux 6.18 where doubtful).
//!
//! Elements of a step are taken one by one. Each change is recorded as it is made, so that the changes
//! before a refused element can be undone.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::rules::{check_verdict, data_len};
use super::{Fault, Held, HeldSet, HeldTable, Refusal};
use crate::model::{Bytes, Chain, Data, Element, Family, Name, SetKind};

/// Elements changed by a step, with what was there before.
type Changes = Vec<(Bytes, Option<Held>)>;

impl HeldTable {
    /// Adds elements until one is refused.
    pub(super) fn add_elements(
        &mut self,
        name: &Name,
        elements: &[Element],
        refusals: &[Refusal],
        changes: &mut Changes,
    ) -> Result<(), Fault> {
        let held = self.sets.get_mut(name).ok_or_else(|| no_set(name))?;
        for element in elements {
            let refused = refusals
                .iter()
                .find(|refusal| (refusal.concerns)(name, element));
            let added = match refused {
                Some(refusal) => Err(refusal.errno),
                None => held.add(self.table.family, &self.chains, element, changes),
            };
            added.map_err(|errno| at(name, element, errno))?;
        }
        Ok(())
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
            held.delete(self.table.family, element, changes)
                .map_err(|errno| at(name, element, errno))?;
        }
        Ok(())
    }
}

impl HeldSet {
    fn add(
        &mut self,
        family: Family,
        chains: &BTreeMap<Name, Chain>,
        element: &Element,
        changes: &mut Changes,
    ) -> Result<(), Errno> {
        self.check_key(family, element)?;
        self.check_data(family, chains, &element.data)?;
        if self.is_new(element)? {
            let value = Held {
                last: element.last.clone(),
                data: element.data.clone(),
            };
            changes.push((element.key, self.elements.insert(element.key, value)));
        }
        Ok(())
    }

    fn delete(
        &mut self,
        family: Family,
        element: &Element,
        changes: &mut Changes,
    ) -> Result<(), Errno> {
        self.check_key(family, element)?;
        let held = self.elements.get(&element.key);
        if held.is_none_or(|held| held.last != element.last) {
            return Err(Errno::ENOENT);
        }
        changes.push((element.key, self.elements.remove(&element.key)));
        Ok(())
    }

    /// The key is as wide as the set says, and a range if the set has ranges. (The kernel would take one
    /// without an end for half of a range; we never send that.)
    fn check_key(&self, family: Family, element: &Element) -> Result<(), Errno> {
        let width = self.set.key_len(family);
        let range_is_sound = match &element.last {
            Some(last) => {
                self.set.interval && last.as_slice().len() == width && element.key <= **last
            }
            None => !self.set.interval,
        };
        match element.key.as_slice().len() == width && range_is_sound {
            true => Ok(()),
            false => Err(Errno::EINVAL),
        }
    }

    /// The data are what the set says, and a verdict's chain can be called.
    fn check_data(
        &self,
        family: Family,
        chains: &BTreeMap<Name, Chain>,
        data: &Data,
    ) -> Result<(), Errno> {
        match (&self.set.kind, data) {
            (SetKind::Set | SetKind::Counters, Data::None) => Ok(()),
            (SetKind::Map(fields) | SetKind::Dynamic(fields), Data::Value(value))
                if value.as_slice().len() == data_len(family, fields) =>
            {
                Ok(())
            }
            (SetKind::VerdictMap, Data::Verdict(verdict)) => check_verdict(chains, verdict),
            _ => Err(Errno::EINVAL),
        }
    }

    /// Whether there is nothing like `element` yet. An equal one is no error; the same key with other data
    /// is, and so is a range that overlaps another. (Linux 6.18 misses the overlap where both end alike and
    /// the new one starts earlier; we never send that.)
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
        element: Some(Box::new((name.clone(), None))),
    }
}

fn at(name: &Name, element: &Element, errno: Errno) -> Fault {
    Fault {
        errno,
        element: Some(Box::new((name.clone(), Some(element.clone())))),
    }
}
