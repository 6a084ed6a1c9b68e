//! What Kubernetes Services mean on one node.
//!
//! Pure functions of values: no clock, no randomness, no I/O. "Row 12" in a comment is a row of
//! `docs/kube-proxy-parity.md`.
//!
//! * [`wire`] holds the few fields of the API objects that matter, as serde types; turning them into the
//!   compact types of [`objects`] validates them ([`Invalid`] names object and field).
//! * [`Index`] joins EndpointSlices to Services in any order and says which Services are dirty.
//! * [`select`] is the one endpoint-selection function; its comment is the specification.
//! * [`plan`] turns a Service, its endpoints and the facts about this node into a [`ServiceIntent`],
//!   in no firewall's terms, and names what this node ignores; [`plan::explain`] says why each endpoint is used or not.

pub mod facts;
pub mod hash;
mod identities;
mod index;
pub mod intent;
mod node_ranges;
pub mod objects;
pub mod plan;
mod printable;
#[cfg(test)]
mod samples;
pub mod select;
mod surroundings;
mod suspects;
pub mod wire;

pub use facts::{DetectLocal, LocalInterface, NodeConfig, NodeFacts, NodePortAddress};
pub use identities::{Identities, Identity};
pub use index::Index;
pub use intent::{
    Affinity, Backend, Disposition, Frontend, FrontendAddress, HealthCheck, Masquerade,
    ServiceIntent,
};
pub use objects::{
    Conditions, Endpoint, EndpointSlice, Family, Hints, Invalid, Node, ObjectEvent, ObjectKind,
    ObjectName, Protocol, Service, ServiceCidr, ServiceOptions, ServicePort, ServiceType,
    SlicePort, TrafficPolicy, TriggerTime, Watched,
};
pub use plan::{Choice, EndpointChoice, MAX_ELEMENTS, MAX_ENDPOINTS, Plan, PortChoices};
pub use printable::printable;
pub use surroundings::{Socket, Surroundings};
pub use suspects::Suspects;
