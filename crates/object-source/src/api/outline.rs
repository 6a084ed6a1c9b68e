//! Which objects must be read whole after a change of their metadata.
//!
//! An overlay needs every Node of the cluster on every node. A kubelet writes its Node every few minutes, and nearly all of
//! that (conditions, images) matters to no other node. So Nodes are listed whole, then watched as `PartialObjectMetadata`,
//! and a Node is read whole when it may differ from what was delivered: it is new, its annotations changed, or it had no pod
//! CIDR yet (once set, pod CIDRs cannot change: core validation, `ValidateNodeUpdate`). What else may change of a peer, its
//! further addresses, is read again after [`super::ApiConfig::read_again`].
//!
//! A Node whose annotations keep changing costs every other node a read each time. So the reads of one are limited to
//! [`READS_AT_ONCE`], and one more each [`super::ApiConfig::read_every`]; what is postponed is read then, as it is by then.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use service_model::{Node, ObjectName};
use tokio::sync::watch;
use tokio::time::Instant;

use super::ApiConfig;

/// Reads of one object that are not postponed: more than a node needs to join.
pub(super) const READS_AT_ONCE: u32 = 10;
/// A contended object is read again after so many times [`super::ApiConfig::read_every`]: time alone may change what it means.
const CONTENDED: u32 = 6;
/// So many allowances are kept whether or not they are whole again.
const ALLOWANCES: usize = 64;

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
    /// Whether the reads of the object are limited.
    limited: Box<dyn Fn(&M) -> bool + Send + Sync>,
    read_every: Duration,
    /// Names of objects that are read whole at each change, and now and then without one.
    contended: Option<watch::Receiver<BTreeSet<Arc<str>>>>,
    /// Of the objects that were read of late, by the digest of the name.
    allowances: HashMap<u64, Allowance>,
    postponed: Postponed,
}

/// When objects are to be read. The next one is asked for after each event of a watch, whatever the number.
#[derive(Debug, Default)]
struct Postponed {
    by_name: BTreeMap<ObjectName, Instant>,
    by_time: BTreeSet<(Instant, ObjectName)>,
}

impl Postponed {
    /// Sets when an object is due, instead of an earlier time of it.
    fn set(&mut self, name: &ObjectName, due: Instant) {
        self.remove(name);
        self.by_name.insert(name.clone(), due);
        self.by_time.insert((due, name.clone()));
    }

    fn contains(&self, name: &ObjectName) -> bool {
        self.by_name.contains_key(name)
    }

    fn remove(&mut self, name: &ObjectName) {
        if let Some(due) = self.by_name.remove(name) {
            self.by_time.remove(&(due, name.clone()));
        }
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn first(&self) -> Option<(Instant, &ObjectName)> {
        let (due, name) = self.by_time.first()?;
        Some((*due, name))
    }
}

/// How many reads of an object are left.
struct Allowance {
    left: u32,
    /// Since when one more is due.
    since: Instant,
}

impl Allowance {
    fn grow(&mut self, every: Duration, now: Instant) {
        while self.left < READS_AT_ONCE && now.saturating_duration_since(self.since) >= every {
            self.left += 1;
            self.since += every;
        }
        if self.left == READS_AT_ONCE {
            self.since = now;
        }
    }
}

struct Outline {
    digest: u64,
    until: Instant,
}

impl Outlines<Node> {
    /// For Nodes. The Node named `own` is read whole at each change.
    pub(super) fn of_nodes(own: String, config: &ApiConfig) -> Self {
        let this = own.clone();
        Outlines {
            digest: |node, hasher| hasher.hash_one((&node.name, &node.annotations)),
            settled: Box::new(move |node| *node.name.name != *own && !node.pod_cidrs.is_empty()),
            name: |node| &node.name,
            lifetime: config.read_again,
            hasher: RandomState::new(),
            known: HashMap::new(),
            limited: Box::new(move |node| *node.name.name != *this),
            read_every: config.read_every,
            contended: config.contended.clone(),
            allowances: HashMap::new(),
            postponed: Postponed::default(),
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
        self.postponed.clear();
        for object in objects {
            self.delivered(object);
        }
    }

    /// Records an object that was delivered whole.
    pub(super) fn delivered(&mut self, object: &M) {
        let name = (self.name)(object);
        match self.is_contended(name) {
            true => {
                let due = Instant::now() + self.read_every * CONTENDED;
                self.postponed.set(name, due);
            }
            false => self.postponed.remove(name),
        }
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
        self.postponed.remove(name);
    }

    /// Whether the object needs no reading. `object` holds what its metadata contain.
    pub(super) fn suffices(&self, object: &M) -> bool {
        if self.is_contended((self.name)(object)) {
            return false;
        }
        let known = self.known.get(&self.key((self.name)(object)));
        known.is_some_and(|known| {
            known.digest == (self.digest)(object, &self.hasher) && Instant::now() < known.until
        })
    }

    fn is_contended(&self, name: &ObjectName) -> bool {
        let contended = self.contended.as_ref();
        contended.is_some_and(|contended| contended.borrow().contains(&name.name))
    }

    /// Waits until other objects are contended, and lets them be read.
    pub(super) async fn contended_changed(&mut self) {
        if let Some(contended) = &mut self.contended
            && contended.changed().await.is_ok()
        {
            let names = contended.borrow_and_update();
            for name in names.iter() {
                let name = ObjectName::new("", name.clone());
                self.postponed.set(&name, Instant::now());
            }
            return;
        }
        self.contended = None;
        std::future::pending().await
    }

    /// Whether the object may be read now; if not, it is postponed.
    pub(super) fn may_read(&mut self, object: &M, now: Instant) -> bool {
        if !(self.limited)(object) {
            return true;
        }
        let (name, every) = ((self.name)(object).clone(), self.read_every);
        let key = self.key(&name);
        if self.allowances.len() >= ALLOWANCES && !self.allowances.contains_key(&key) {
            self.allowances.retain(|_, allowance| {
                allowance.grow(every, now);
                allowance.left < READS_AT_ONCE
            });
        }
        let allowance = self.allowances.entry(key).or_insert(Allowance {
            left: READS_AT_ONCE,
            since: now,
        });
        allowance.grow(every, now);
        if allowance.left == 0 {
            let due = allowance.since + every;
            if !self.postponed.contains(&name) {
                self.postponed.set(&name, due);
            }
            return false;
        }
        allowance.left -= 1;
        true
    }

    /// When the next object that was postponed is due, and its name.
    pub(super) fn next_postponed(&self) -> Option<(Instant, &ObjectName)> {
        self.postponed.first()
    }

    /// Charges a read of what was postponed.
    pub(super) fn charge(&mut self, name: &ObjectName, now: Instant) {
        let (key, every) = (self.key(name), self.read_every);
        if let Some(allowance) = self.allowances.get_mut(&key) {
            allowance.grow(every, now);
            allowance.left = allowance.left.saturating_sub(1);
        }
    }

    fn key(&self, name: &ObjectName) -> u64 {
        self.hasher.hash_one(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn postponed_objects_come_by_time_and_each_once() {
        let (mut postponed, start) = (Postponed::default(), Instant::now());
        let name = |name: &str| ObjectName::new("", name);
        let after = |seconds| start + Duration::from_secs(seconds);
        for (object, due) in [("a", 3), ("b", 1), ("c", 2), ("b", 4)] {
            postponed.set(&name(object), after(due));
        }
        let mut order = Vec::new();
        while let Some((due, next)) = postponed.first() {
            let next = next.clone();
            order.push((due, next.name.to_string()));
            postponed.remove(&next);
        }
        let expected = [(2, "c"), (3, "a"), (4, "b")];
        assert_eq!(
            order,
            expected.map(|(due, name)| (after(due), name.to_owned()))
        );
        assert!(!postponed.contains(&name("b")) && postponed.by_time.is_empty());
    }
}
