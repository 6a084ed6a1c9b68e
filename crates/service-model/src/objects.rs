//! The compact form of the watched objects: memory follows endpoints, not objects.
//!
//! Everything here has been validated and canonicalised; see [`crate::wire`] for where it comes from.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use ipnet::IpNet;
use smallvec::SmallVec;

pub use net_types::{Family, Protocol};

use crate::identities::Identities;

/// `namespace/name`. Cluster-scoped objects have an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        ObjectName {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// core/v1 Service
    Service,
    /// discovery.k8s.io/v1 EndpointSlice
    EndpointSlice,
    /// core/v1 Node
    Node,
    /// networking.k8s.io/v1 ServiceCIDR
    ServiceCidr,
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectKind::Service => "Service",
            ObjectKind::EndpointSlice => "EndpointSlice",
            ObjectKind::Node => "Node",
            ObjectKind::ServiceCidr => "ServiceCIDR",
        })
    }
}

/// A watched object: one of the four kinds below.
pub trait Watched {
    /// Its kind.
    const KIND: ObjectKind;

    /// `metadata.namespace` and `metadata.name`
    fn name(&self) -> &ObjectName;
}

macro_rules! watched {
    ($($kind:ident: $object:ty),*) => {
        $(impl Watched for $object {
            const KIND: ObjectKind = ObjectKind::$kind;

            fn name(&self) -> &ObjectName {
                &self.name
            }
        })*
    };
}

watched!(Service: Service, EndpointSlice: EndpointSlice, Node: Node, ServiceCidr: ServiceCidr);

/// A value in an object that cannot be used. `Display` names object, field and reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {object}: {field}: {reason}")]
pub struct Invalid {
    /// Kind of the object.
    pub kind: ObjectKind,
    /// Its name.
    pub object: ObjectName,
    /// Path of the field as kubectl prints it: `spec.ports[0].port`.
    pub field: String,
    /// What is wrong, with the offending value (clamped to 64 characters, control characters escaped).
    pub reason: String,
}

/// An event about objects of one kind. They are shared, since a source may keep them too.
#[derive(Debug)]
pub enum ObjectEvent<T> {
    /// Added or changed.
    Apply(Arc<T>),
    /// Deleted.
    Delete(ObjectName),
    /// A complete list: an object that is neither in `objects` nor in `invalid` is deleted.
    Reset {
        /// The objects.
        objects: Vec<Arc<T>>,
        /// Objects that exist but are invalid now: their last good version keeps serving.
        invalid: Vec<ObjectName>,
    },
}

impl<T> ObjectEvent<T> {
    /// A complete list of usable objects.
    pub fn list(objects: impl IntoIterator<Item = T>) -> Self {
        ObjectEvent::Reset {
            objects: objects.into_iter().map(Arc::new).collect(),
            invalid: Vec::new(),
        }
    }
}

// A derived `Clone` would require `T: Clone`.
impl<T> Clone for ObjectEvent<T> {
    fn clone(&self) -> Self {
        match self {
            ObjectEvent::Apply(object) => ObjectEvent::Apply(object.clone()),
            ObjectEvent::Delete(name) => ObjectEvent::Delete(name.clone()),
            ObjectEvent::Reset { objects, invalid } => ObjectEvent::Reset {
                objects: objects.clone(),
                invalid: invalid.clone(),
            },
        }
    }
}

/// Service types (core/v1 `ServiceType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceType {
    /// ClusterIP
    ClusterIp,
    /// NodePort
    NodePort,
    /// LoadBalancer
    LoadBalancer,
    /// ExternalName: a DNS alias; not programmed.
    ExternalName,
}

/// Which endpoints traffic of one kind may reach (core/v1 `internalTrafficPolicy`, `externalTrafficPolicy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// All.
    #[default]
    Cluster,
    /// Those on the node where the traffic arrives.
    Local,
}

/// What Portolan's annotations on a Service request. Off unless the value is `true`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceOptions {
    /// [`crate::wire::ANNOTATION_RESET`]: TCP connections to a removed endpoint are reset.
    pub reset_removed: bool,
    /// [`crate::wire::ANNOTATION_COUNT`]: new connections to each frontend are counted.
    pub count: bool,
    /// [`crate::wire::ANNOTATION_FAILOVER`]: an endpoint that does not answer while its node does is skipped.
    pub failover: bool,
}

/// A Service as far as a node's dataplane needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Name.
    pub name: ObjectName,
    /// `metadata.creationTimestamp`, seconds since 1970; settles conflicts (the older wins).
    pub created: Option<i64>,
    /// `metadata.uid`, kept where the Service has session affinity; absent in most folders of manifests.
    pub uid: Option<Box<str>>,
    /// `spec.type`
    pub service_type: ServiceType,
    /// `spec.clusterIPs` (or `clusterIP`); empty for headless Services.
    pub cluster_ips: SmallVec<[IpAddr; 2]>,
    /// `spec.ports`
    pub ports: SmallVec<[ServicePort; 1]>,
    /// `spec.externalIPs`, both families.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip` where `ipMode` is not `Proxy` (KEP-1860), both families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges`, both families. A family without any is open to everyone.
    pub source_ranges: Vec<IpNet>,
    /// `spec.externalTrafficPolicy`
    pub external_policy: TrafficPolicy,
    /// `spec.internalTrafficPolicy`
    pub internal_policy: TrafficPolicy,
    /// `spec.sessionAffinity: ClientIP` with its time-out in seconds, 1 to 86400.
    pub affinity: Option<u32>,
    /// `spec.healthCheckNodePort`, where it is used: type LoadBalancer with external policy Local (row 18).
    pub health_check_node_port: Option<u16>,
    /// Portolan's annotations.
    pub options: ServiceOptions,
    /// Not programmed: it has the headless label of row 1, or belongs to another proxy.
    pub excluded: bool,
}

impl Service {
    /// A Service of type ClusterIP without addresses and ports and with default policies.
    pub fn named(name: ObjectName) -> Self {
        Service {
            name,
            created: None,
            uid: None,
            service_type: ServiceType::ClusterIp,
            cluster_ips: SmallVec::new(),
            ports: SmallVec::new(),
            external_ips: Vec::new(),
            load_balancer_ips: Vec::new(),
            source_ranges: Vec::new(),
            external_policy: TrafficPolicy::Cluster,
            internal_policy: TrafficPolicy::Cluster,
            affinity: None,
            health_check_node_port: None,
            options: ServiceOptions::default(),
            excluded: false,
        }
    }
}

/// One of a Service's ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty where the only port has none. Endpoint ports are found by this name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the cluster IP.
    pub port: u16,
    /// Node port, if one is allocated.
    pub node_port: Option<u16>,
}

/// When the change happened that an EndpointSlice brings (`endpoints.kubernetes.io/last-change-trigger-time`). All values
/// are equal: versions of a slice that differ in nothing else are the same.
#[derive(Clone, Copy, Debug, Default)]
pub struct TriggerTime(pub Option<SystemTime>);

impl PartialEq for TriggerTime {
    fn eq(&self, _: &TriggerTime) -> bool {
        true
    }
}

impl Eq for TriggerTime {}

/// An EndpointSlice of one address family that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Name.
    pub name: ObjectName,
    /// Label `kubernetes.io/service-name`, in the slice's namespace.
    pub service: ObjectName,
    /// `addressType`
    pub family: Family,
    /// Usable ports (row 29).
    pub ports: SmallVec<[SlicePort; 1]>,
    /// Usable endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Pod and zone of each of them.
    pub identities: Identities,
    /// Not programmed: it has one of the two labels of row 1, names no Service or holds FQDNs. Ports and endpoints are
    /// empty then, and the index treats the slice as deleted.
    pub excluded: bool,
    /// When the latest change happened.
    pub trigger: TriggerTime,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name, matched with the Service port's.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on the endpoint.
    pub port: u16,
}

/// The three conditions after the defaults of row 31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Takes new connections.
    pub ready: bool,
    /// Would take connections if it were not terminating.
    pub serving: bool,
    /// Being deleted.
    pub terminating: bool,
}

/// One endpoint: only the first address of the API object is used (row 30).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Address, of the slice's family.
    pub address: IpAddr,
    /// Node it runs on, interned.
    pub node: Option<Arc<str>>,
    /// Conditions.
    pub conditions: Conditions,
    /// Zones and nodes whose clients should use it (KEP-2433, KEP-4444). Boxed: most endpoints have none.
    pub hints: Option<Box<Hints>>,
}

/// `hints` of an endpoint; at least one list is not empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones`, names of zones.
    pub zones: SmallVec<[Arc<str>; 1]>,
    /// `forNodes`, names of nodes.
    pub nodes: SmallVec<[Arc<str>; 1]>,
}

/// This node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: ObjectName,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<Arc<str>>,
    /// `status.addresses` of type InternalIP, then ExternalIP, in order.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs` (or `podCIDR`).
    pub pod_cidrs: Vec<IpNet>,
    /// It is being deleted, or the cluster autoscaler's taint announces that. Load balancers should send no new traffic
    /// (KEP-3836); what arrives nevertheless is served.
    pub leaving: bool,
    /// When it was created, in seconds since 1970.
    pub created: Option<i64>,
    /// Since when its condition `Ready` has not been True, in seconds since 1970.
    pub not_ready_since: Option<i64>,
    /// The annotations of an overlay (flannel's), by full name: foreign text, never to be printed as it is.
    pub annotations: Arc<BTreeMap<Box<str>, Box<str>>>,
}

impl Node {
    /// The node of this name while there is no object.
    pub fn unknown(name: impl Into<Arc<str>>) -> Self {
        Node {
            name: ObjectName::new("", name),
            zone: None,
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            leaving: false,
            created: None,
            not_ready_since: None,
            annotations: Arc::default(),
        }
    }
}

/// Ranges of cluster IPs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Name.
    pub name: ObjectName,
    /// `spec.cidrs`
    pub cidrs: Vec<IpNet>,
}
