//! Watches that bring metadata only, and which objects must be read whole because of what they bring.
//!
//! An overlay needs every Node of the cluster on every node. A kubelet writes its Node every few minutes, and nearly all of
//! it (conditions, images) is nothing to anybody else. So Nodes are listed whole, then watched as `PartialObjectMetadata`,
//! and one is read whole when that may differ from what was delivered: it is new, its annotations changed, it had no
//! range of pods yet (once set, those cannot change: core validation, `ValidateNodeUpdate`). What else may change of a peer,
//! further addresses, is read again after a while.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use rand::Rng;
use service_model::{Node, ObjectName};
use tokio::time::Instant;

/// What was delivered, as far as metadata tell of it.
pub(super) struct Outlines<M> {
    /// A digest of what metadata tell.
    digest: fn(&M, &RandomState) -> u64,
    /// Whether metadata tell of every change that is to come.
    settled: Box<dyn Fn(&M) -> bool + Send + Sync>,
    name: fn(&M) -> &ObjectName,
    /// Good for so long.
    lifetime: Duration,
    hasher: RandomState,
    /// By the digest of the name: names that were kept would keep the memory of long lists from being given back, as they lie
    /// between what is freed of them. Two names with one digest are read more often than need be.
    known: HashMap<u64, Outline>,
}

struct Outline {
    digest: u64,
    until: Instant,
}

impl Outlines<Node> {
    /// Of Nodes, for the one named `own`, which is read whole at each change.
    pub(super) fn of_nodes(own: String, lifetime: Duration) -> Self {
        Outlines {
            digest: |node, hasher| hasher.hash_one((&node.name, &node.annotations)),
            settled: Box::new(move |node| *node.name.name != *own && !node.pod_cidrs.is_empty()),
            name: |node| &node.name,
            lifetime,
            hasher: RandomState::new(),
            known: HashMap::new(),
        }
    }
}

impl<M> Outlines<M> {
    /// These and no others were delivered.
    pub(super) fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a M>)
    where
        M: 'a,
    {
        self.known.clear();
        for object in objects {
            self.delivered(object);
        }
    }

    /// A whole object was delivered.
    pub(super) fn delivered(&mut self, object: &M) {
        let key = self.key((self.name)(object));
        if !(self.settled)(object) {
            self.known.remove(&key);
            return;
        }
        // Not all at once.
        let spread = rand::rng().random_range(0.5..=1.0);
        let outline = Outline {
            digest: (self.digest)(object, &self.hasher),
            until: Instant::now() + self.lifetime.mul_f64(spread),
        };
        self.known.insert(key, outline);
    }

    /// An object is gone, or cannot be used.
    pub(super) fn forget(&mut self, name: &ObjectName) {
        self.known.remove(&self.key(name));
    }

    /// Whether there is nothing to be read, going by what metadata say now: `object` is what can be told from them.
    pub(super) fn suffices(&self, object: &M) -> bool {
        let known = self.known.get(&self.key((self.name)(object)));
        known.is_some_and(|known| {
            known.digest == (self.digest)(object, &self.hasher) && Instant::now() < known.until
        })
    }

    fn key(&self, name: &ObjectName) -> u64 {
        self.hasher.hash_one(name)
    }
}
