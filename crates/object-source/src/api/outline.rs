//! Which objects must be read whole after a change of their metadata.
//!
//! An overlay needs every Node of the cluster on every node. A kubelet writes its Node every few minutes, and nearly all of
//! that (conditions, images) matters to no other node. So Nodes are listed whole, then watched as `PartialObjectMetadata`,
//! and a Node is read whole when it may differ from what was delivered: it is new, its annotations changed, or it had no pod
//! CIDR yet (once set, pod CIDRs cannot change: core validation, `ValidateNodeUpdate`). What else may change of a peer, its
//! further addresses, is read again after [`super::ApiConfig::read_again`].

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use rand::Rng;
use service_model::{Node, ObjectName};
use tokio::time::Instant;

/// Digests of the metadata of delivered objects.
pub(super) struct Outlines<M> {
    /// Digest of what metadata contain of an object.
    digest: fn(&M, &RandomState) -> u64,
    /// Whether every later change of the object shows in its metadata.
    settled: Box<dyn Fn(&M) -> bool + Send + Sync>,
    name: fn(&M) -> &ObjectName,
    /// How long an outline is valid, at most.
    lifetime: Duration,
    hasher: RandomState,
    /// By the digest of the name: kept names would prevent the allocator from returning the memory of long lists, as they lie
    /// between what is freed. Two names with the same digest are read more often than necessary.
    known: HashMap<u64, Outline>,
}

struct Outline {
    digest: u64,
    until: Instant,
}

impl Outlines<Node> {
    /// For Nodes. The Node named `own` is read whole at each change.
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
    /// Records a list: these objects were delivered, no others.
    pub(super) fn reset<'a>(&mut self, objects: impl IntoIterator<Item = &'a M>)
    where
        M: 'a,
    {
        self.known.clear();
        for object in objects {
            self.delivered(object);
        }
    }

    /// Records an object that was delivered whole.
    pub(super) fn delivered(&mut self, object: &M) {
        let key = self.key((self.name)(object));
        if !(self.settled)(object) {
            self.known.remove(&key);
            return;
        }
        // Spread, so that not all objects are read again at once.
        let spread = rand::rng().random_range(0.5..=1.0);
        let outline = Outline {
            digest: (self.digest)(object, &self.hasher),
            until: Instant::now() + self.lifetime.mul_f64(spread),
        };
        self.known.insert(key, outline);
    }

    /// Removes an object that is gone or invalid.
    pub(super) fn forget(&mut self, name: &ObjectName) {
        self.known.remove(&self.key(name));
    }

    /// Whether the object needs no reading. `object` holds what its metadata contain.
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
