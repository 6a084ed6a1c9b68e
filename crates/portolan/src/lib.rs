//! The Portolan daemon: effects around the pure crates.
//!
//! * [`cli`] is the command line; [`app`] composes what `portolan run` needs and owns its life time.
//! * [`control`] is the loop between events and kernel, the one owner of the table.
//! * [`node_addresses`] follows the addresses of this node's interfaces, [`listeners`] who listens there.
//! * [`memory`] gives back what a first list took.
//! * [`features`] says what is done where the kernel lacks something.
//! * [`overlay`] keeps the tunnel to other nodes' pods and runs its probes ([`overlay_probe`]).
//! * [`status`], [`metrics`] and [`http`] tell others how it goes, [`health_checks`] load balancers, [`events`] the cluster.
//! * [`counters`] says how many connections there were to Services that want to know.
//! * [`conntrack`] ends stale flows after a commit; [`sysctl`] makes the settings of connection tracking.
//! * [`takeover`] removes what kube-proxy has left, [`cleanup`] that or our own.
//! * [`render`] prints the table of a folder of manifests.

pub mod app;
pub mod cleanup;
pub mod cli;
pub mod conntrack;
pub mod control;
pub mod counters;
pub mod events;
pub mod features;
mod guard;
pub mod health_checks;
pub mod http;
pub mod listeners;
pub mod localhost;
pub mod memory;
pub mod metrics;
pub mod node_addresses;
pub mod overlay;
pub mod render;
pub mod status;
pub mod sysctl;
pub mod takeover;
