//! A node's VXLAN overlay in flannel's scheme: what the kernel should hold, and the steps to get there.
//!
//! * **Facts**: [`Config`] (decisions of the operator), [`Node`]s with [`annotations`] (peers and their VTEPs), [`Surroundings`]
//!   (the underlay).
//! * **Decision**: [`plan`] says what the kernel should hold, [`difference`] by which steps; both are functions of
//!   values. [`table`] has the nftables rules that belong to it.
//! * **Effects**: [`Kernel`] reads and writes over rtnetlink, [`Monitor`] reports foreign changes.
//!
//! The crate has no Kubernetes client: the daemon brings Nodes and writes annotations.

pub mod annotations;
mod carriers;
mod config;
mod difference;
mod mac;
mod marks;
mod peers;
mod plan;
mod rtnetlink;
mod rules;
mod underlay;

#[cfg(test)]
mod samples;

pub use annotations::{Annotations, Names, ParsedAnnotations, Vtep};
pub use carriers::{Carriers, Outer};
pub use config::{Config, ConfigError, DEFAULT_PORT, NEXTHOPS_ABOVE};
pub use difference::{
    Deletions, Mismatch, Observed, ObservedDevice, ObservedRoute, ObservedTunnel, ObservedVxlan,
    Operation, difference, in_the_way, stale,
};
pub use mac::Mac;
pub use marks::{BLACKHOLE_METRIC, PROTOCOL};
pub use peers::{Both, HOLD, MAX_ADDRESSES, Node, Peers};
pub use plan::{Device, Entries, Facts, Peer, Plan, Problem, Tunnel, Way, overhead, plan};
pub use regex::Regex;
pub use rtnetlink::{Concern, Kernel, KernelError, Monitor, Refused, Watched};
pub use rules::{Filter, RuleOptions, TABLE, arrivals, table};
pub use underlay::{External, Interface, InterfaceAddress, OnLink, Preferences, Surroundings};
