//! Which nodes announce other keys than before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use wireguard::PublicKey;

use super::roster::Roster;

/// The keys that each node announced last.
#[derive(Debug, Default)]
pub(super) struct KnownKeys(BTreeMap<Arc<str>, BTreeSet<PublicKey>>);

impl KnownKeys {
    /// Records what the nodes announce, and returns the new keys of those that announced others before. What a node announced
    /// last counts as long as its Node exists, whether or not it announces a key at present.
    pub(super) fn update(
        &mut self,
        roster: &Roster,
        exists: impl Fn(&str) -> bool,
    ) -> Vec<(Arc<str>, PublicKey)> {
        let mut news = Vec::new();
        self.0.retain(|name, _| exists(name));
        for (name, announced) in roster {
            let keys: BTreeSet<PublicKey> = announced.keys.iter().map(|(_, key, _)| *key).collect();
            let before = self.0.get(name);
            if before == Some(&keys) {
                continue;
            }
            if let Some(before) = before {
                news.extend(keys.difference(before).map(|key| (name.clone(), *key)));
            }
            self.0.insert(name.clone(), keys);
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::super::announced::{Announced, Plane};
    use super::*;

    fn roster(keys: &[u8]) -> Roster {
        let entry = |key: &u8| (Plane::First, PublicKey([*key; 32]), 51820);
        let announced = Announced {
            keys: keys.iter().map(entry).collect(),
            rotating: false,
        };
        let name: Arc<str> = "node-1".into();
        let one = (!keys.is_empty()).then_some((name, announced));
        one.into_iter().collect()
    }

    #[test]
    fn a_key_that_follows_a_withdrawn_one_is_new() {
        let mut known = KnownKeys::default();
        let mut new = |keys: &[u8]| {
            let mut news = known.update(&roster(keys), |_| true);
            news.pop().map(|(_, PublicKey([first, ..]))| first)
        };
        assert_eq!(new(&[1]), None, "the first key of a node");
        assert_eq!(new(&[1, 2]), Some(2));
        assert_eq!(new(&[1]), None);
        assert_eq!(new(&[]), None);
        assert_eq!(new(&[3]), Some(3));
        assert_eq!(new(&[]), None);
        assert_eq!(new(&[3]), None, "the same key again");
    }

    #[test]
    fn a_node_of_the_same_name_begins_anew() {
        let mut known = KnownKeys::default();
        known.update(&roster(&[1]), |_| true);
        known.update(&roster(&[]), |_| false);
        assert!(known.update(&roster(&[2]), |_| true).is_empty());
    }
}
