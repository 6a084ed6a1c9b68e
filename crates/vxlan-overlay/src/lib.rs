//! A node's VXLAN overlay: flannel's scheme, kept right.
//!
//! * **Facts**: [`Config`] (an operator's decisions), [`Node`]s with [`annotations`] (who is where), [`Surroundings`]
//!   (the network below).
//! * **Decision**: [`plan`] says what the kernel should hold, [`difference`] by which steps; both are functions of
//!   values. [`table`] has the nftables rules that belong to it.
//! * **Effects**: [`Kernel`] reads and writes over rtnetlink, [`Monitor`] hears of changes.
//!
//! The crate knows no Kubernetes client: where nodes come from and where annotations go is the daemon's business.

pub mod annotations;
mod config;
mod decode;
mod difference;
mod encode;
mod frame;
mod kernel;
mod mac;
mod monitor;
mod nexthop;
mod peers;
mod plan;
mod rules;
mod underlay;

#[cfg(test)]
mod samples;

pub use annotations::{Annotations, Names, Said, Vtep};
pub use config::{Config, ConfigError, DEFAULT_PORT, NEXTHOPS_ABOVE};
pub use difference::{
    BLACKHOLE_METRIC, Deletions, Mismatch, Observed, ObservedDevice, ObservedRoute, ObservedTunnel,
    ObservedVxlan, Operation, PROTOCOL, difference, stale,
};
pub use kernel::{Kernel, KernelError, Refused, Watched};
pub use mac::Mac;
pub use monitor::{Concern, Monitor};
pub use peers::{Both, HOLD, Node, Peers};
pub use plan::{Device, Entries, Facts, Peer, Plan, Problem, Tunnel, Way, overhead, plan};
pub use regex::Regex;
pub use rules::{ARRIVED, Filter, RuleOptions, TABLE, table};
pub use underlay::{External, Interface, InterfaceAddress, Preferences, Surroundings};
