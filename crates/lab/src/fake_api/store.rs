//! The objects a fake API server holds: versions, a bounded history and snapshots for paging.
//!
//! Owns what etcd and the watch cache are in a real server. Knows nothing of HTTP or faults. One version
//! counter serves every resource, as in etcd; only [`Store::restore`] ever takes it back.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;

/// The resources the server serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// core/v1 Service
    Services,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlices,
    /// core/v1 Node
    Nodes,
    /// networking.k8s.io/v1 ServiceCIDR
    ServiceCidrs,
}

impl Resource {
    /// Every one.
    pub const ALL: [Resource; 4] = [
        Resource::Services,
        Resource::EndpointSlices,
        Resource::Nodes,
        Resource::ServiceCidrs,
    ];

    /// Kind of its objects.
    pub const fn kind(self) -> &'static str {
        match self {
            Resource::Services => "Service",
            Resource::EndpointSlices => "EndpointSlice",
            Resource::Nodes => "Node",
            Resource::ServiceCidrs => "ServiceCIDR",
        }
    }

    /// `apiVersion` of its objects.
    pub const fn api_version(self) -> &'static str {
        match self {
            Resource::Services | Resource::Nodes => "v1",
            Resource::EndpointSlices => "discovery.k8s.io/v1",
            Resource::ServiceCidrs => "networking.k8s.io/v1",
        }
    }

    /// Path of the collection over all namespaces.
    pub const fn path(self) -> &'static str {
        match self {
            Resource::Services => "/api/v1/services",
            Resource::EndpointSlices => "/apis/discovery.k8s.io/v1/endpointslices",
            Resource::Nodes => "/api/v1/nodes",
            Resource::ServiceCidrs => "/apis/networking.k8s.io/v1/servicecidrs",
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// Fields that a selector can name, and where they are in an object.
pub(super) const FIELDS: [(&str, &str); 3] = [
    ("metadata.name", "/metadata/name"),
    ("metadata.namespace", "/metadata/namespace"),
    ("spec.clusterIP", "/spec/clusterIP"),
];

/// Namespace (empty for cluster-scoped objects) and name.
pub(super) type Key = (String, String);

/// One version of one object, serialized once.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) key: Key,
    pub(super) version: u64,
    pub(super) labels: BTreeMap<String, String>,
    /// Those of [`FIELDS`] that it has.
    pub(super) fields: BTreeMap<String, String>,
    pub(super) json: Bytes,
}

impl Stored {
    /// The same object under another version.
    pub(super) fn at_version(&self, resource: Resource, version: u64) -> Bytes {
        let mut object: Value = serde_json::from_slice(&self.json).unwrap_or_default();
        stamp(&mut object, resource, version);
        object.to_string().into()
    }
}

/// A list, shared by the pages it is served in.
pub(super) type Objects = Arc<Vec<Arc<Stored>>>;

/// One entry of a resource's history.
#[derive(Clone, Debug)]
pub(super) struct Change {
    /// Number of the change since the server's start; unlike the version, it never decreases.
    pub(super) sequence: u64,
    pub(super) version: u64,
    /// The object after the change; for a deletion, its last version.
    pub(super) object: Arc<Stored>,
    pub(super) deleted: bool,
    /// The previous version, which a selector may match although it does not match the new one.
    pub(super) before: Option<Arc<Stored>>,
}

#[derive(Clone, Debug, Default)]
struct Collection {
    objects: BTreeMap<Key, Arc<Stored>>,
    history: VecDeque<Change>,
    /// A watch may start from this version or a later one.
    oldest: u64,
    /// Position of the newest change that is no longer in the history.
    dropped: u64,
}

/// Objects and version at one moment, to go back to.
#[derive(Clone, Debug)]
pub struct Backup {
    objects: [BTreeMap<Key, Arc<Stored>>; 4],
    version: u64,
}

/// The asked-for version is older than the history.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Gone;

/// What one list page continues with.
#[derive(Debug)]
struct Snapshot {
    id: u64,
    version: u64,
    objects: Objects,
}

/// Changes kept per resource.
const HISTORY: usize = 100_000;
/// Snapshots kept for paging; older ones answer 410 as expired tokens do.
const SNAPSHOTS: usize = 32;

/// The whole store.
#[derive(Debug)]
pub(super) struct Store {
    collections: [Collection; 4],
    version: u64,
    sequence: u64,
    snapshots: VecDeque<Snapshot>,
    next_snapshot: u64,
}

impl Default for Store {
    fn default() -> Self {
        Store {
            collections: Default::default(),
            // Real clusters never hand out small numbers, and a test may want to go below the start.
            version: 1000,
            sequence: 0,
            snapshots: VecDeque::new(),
            next_snapshot: 1,
        }
    }
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Position after the newest change.
    pub(super) fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Stores an object under a new version and returns that version.
    pub(super) fn apply(&mut self, resource: Resource, key: Key, mut object: Value) -> u64 {
        self.version += 1;
        let version = self.version;
        stamp(&mut object, resource, version);
        let stored = Arc::new(Stored {
            labels: labels(&object),
            fields: fields(&object),
            json: object.to_string().into(),
            key,
            version,
        });
        let before = self.collections[resource.index()]
            .objects
            .insert(stored.key.clone(), Arc::clone(&stored));
        self.record(resource, stored, before, false);
        version
    }

    /// Removes an object; `None` where there is none.
    pub(super) fn delete(&mut self, resource: Resource, key: &Key) -> Option<u64> {
        let before = self.collections[resource.index()].objects.remove(key)?;
        self.version += 1;
        let version = self.version;
        // The deletion event carries the last state under the version of the deletion.
        let gone = Arc::new(Stored {
            key: key.clone(),
            version,
            labels: before.labels.clone(),
            fields: before.fields.clone(),
            json: before.at_version(resource, version),
        });
        self.record(resource, gone, Some(before), true);
        Some(version)
    }

    fn record(
        &mut self,
        resource: Resource,
        object: Arc<Stored>,
        before: Option<Arc<Stored>>,
        deleted: bool,
    ) {
        self.sequence += 1;
        let change = Change {
            sequence: self.sequence,
            version: object.version,
            object,
            deleted,
            before,
        };
        let collection = &mut self.collections[resource.index()];
        collection.history.push_back(change);
        collection.trim(HISTORY);
    }

    /// Takes up `by` versions without a change of our resources, as other resources do all the time.
    pub(super) fn advance(&mut self, by: u64) {
        self.version += by;
    }

    /// Forgets all history and all snapshots: everything but the present answers 410.
    pub(super) fn compact(&mut self) {
        self.snapshots.clear();
        for collection in &mut self.collections {
            collection.trim(0);
            collection.oldest = self.version;
        }
    }

    pub(super) fn backup(&self) -> Backup {
        Backup {
            objects: self.collections.each_ref().map(|c| c.objects.clone()),
            version: self.version,
        }
    }

    /// Goes back to a backup, versions included, and forgets the history, as etcd does when it is restored.
    pub(super) fn restore(&mut self, backup: &Backup) {
        self.version = backup.version;
        self.snapshots.clear();
        for (collection, objects) in self.collections.iter_mut().zip(&backup.objects) {
            collection.objects = objects.clone();
            collection.trim(0);
            collection.oldest = backup.version;
        }
    }

    /// Every object of a resource, in order of its key.
    pub(super) fn list(&self, resource: Resource) -> Vec<Arc<Stored>> {
        self.collections[resource.index()]
            .objects
            .values()
            .cloned()
            .collect()
    }

    /// Keeps the rest of a list for its next pages; returns its id.
    pub(super) fn keep(&mut self, objects: Objects) -> u64 {
        let id = self.next_snapshot;
        self.next_snapshot += 1;
        if self.snapshots.len() == SNAPSHOTS {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(Snapshot {
            id,
            version: self.version,
            objects,
        });
        id
    }

    /// A kept list and its version.
    pub(super) fn kept(&self, id: u64) -> Result<(u64, Objects), Gone> {
        let snapshot = self.snapshots.iter().find(|s| s.id == id).ok_or(Gone)?;
        Ok((snapshot.version, Arc::clone(&snapshot.objects)))
    }

    /// Whether a watch may start from `version`.
    pub(super) fn check_watch(&self, resource: Resource, version: u64) -> Result<(), Gone> {
        if version < self.collections[resource.index()].oldest {
            Err(Gone)
        } else {
            Ok(())
        }
    }

    /// Up to `limit` changes of a resource after position `sequence` and version `version`. A version in the
    /// future is not an error: the server waits, and hides what has an older version (kubernetes issue 107457).
    pub(super) fn changes(
        &self,
        resource: Resource,
        sequence: u64,
        version: u64,
        limit: usize,
    ) -> Vec<Change> {
        let history = &self.collections[resource.index()].history;
        let start = history.partition_point(|change| change.sequence <= sequence);
        history
            .range(start..)
            .filter(|change| change.version > version)
            .take(limit)
            .cloned()
            .collect()
    }

    /// Position of the newest change that has been forgotten: where the history begins.
    pub(super) fn forgotten(&self, resource: Resource) -> u64 {
        self.collections[resource.index()].dropped
    }

    /// Whether a change after position `sequence` has been forgotten: that watcher was too slow.
    pub(super) fn lost(&self, resource: Resource, sequence: u64) -> bool {
        sequence < self.forgotten(resource)
    }
}

impl Collection {
    fn trim(&mut self, limit: usize) {
        while self.history.len() > limit {
            if let Some(change) = self.history.pop_front() {
                self.oldest = change.version;
                self.dropped = change.sequence;
            }
        }
    }
}

/// Namespace and name of an object.
pub(super) fn key_of(object: &Value) -> Option<Key> {
    Some((
        text_at(object, "/metadata/namespace").unwrap_or_default(),
        text_at(object, "/metadata/name")?,
    ))
}

fn text_at(object: &Value, pointer: &str) -> Option<String> {
    let text = object.pointer(pointer).and_then(Value::as_str);
    text.map(str::to_owned)
}

fn fields(object: &Value) -> BTreeMap<String, String> {
    let value = |(name, pointer): &(&str, &str)| {
        let default = (*name == "metadata.namespace").then(String::new);
        Some(((*name).to_owned(), text_at(object, pointer).or(default)?))
    };
    FIELDS.iter().filter_map(value).collect()
}

fn labels(object: &Value) -> BTreeMap<String, String> {
    let labels = object
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn stamp(object: &mut Value, resource: Resource, version: u64) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert("kind".into(), resource.kind().into());
        fields.insert("apiVersion".into(), resource.api_version().into());
        let metadata = fields
            .entry("metadata")
            .or_insert_with(|| Value::Object(Default::default()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert("resourceVersion".into(), version.to_string().into());
            metadata
                .entry("creationTimestamp")
                .or_insert_with(|| "2026-01-01T00:00:00Z".into());
        }
    }
}
