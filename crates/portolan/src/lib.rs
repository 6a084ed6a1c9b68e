//! The Portolan daemon: effects around the pure crates.
//!
//! * [`program`] determines the name by which the binary was called: `portolan` ([`cli`]), `kube-proxy`, `flanneld` or a copying
//!   program ([`mod@copy`]).
//! * [`daemon`] does what the command line of `run` says; [`config`] is the door between flags, file and the parts, and
//!   [`configz`] shows the configuration. [`app`] composes what the daemon needs, out of [`parts`].
//! * [`log`] sets up the log.
//! * [`control`] is the loop between events and kernel, the one owner of the tables. What follows its commits is an
//!   [`observer`]: [`metrics`], [`health_checks`], [`conntrack`], [`counters`] and [`localhost`] are,
//!   and what counts the traffic of Services (`service_traffic`).
//! * [`node_addresses`] follows the addresses of this node's interfaces, [`listeners`] the sockets of its processes.
//! * [`failover`] finds nodes that are down before EndpointSlices say so.
//! * [`features`] owns the fallbacks for missing kernel features, [`sysctl`] the conntrack sysctls.
//! * [`overlay`] maintains the tunnel to other nodes' pods, and runs its probes ([`overlay_probe`]).
//! * [`published`] is what parts publish for readers; [`http`] serves it to probes, and a page about the node. [`events`] creates Kubernetes Events.
//! * [`capabilities`] makes permitted capabilities effective, for the image's file capabilities.
//! * [`memory`] returns memory to the kernel after the first list.
//! * [`takeover`] removes what kube-proxy left behind; [`cleanup`] does so on demand, or removes Portolan's rules.
//! * [`operator`] answers what the daemon does and why, for `portolan status`, `services`, `trace`, `verify` and `doctor`, whose
//!   checks of this node are in `node_checks`.
//!   [`kubectl`] asks the daemons of all nodes.
//! * [`selftest`] tests a cluster with pods and Services of its own.
//! * [`render`] prints the tables for a directory of manifests.

// Nobody reads generated documentation of a program.
#![allow(missing_docs)]

pub mod api_server;
pub mod app;
mod bind;
pub mod build_info;
pub mod capabilities;
pub mod cleanup;
pub mod cli;
pub mod config;
pub mod configz;
pub mod conntrack;
pub mod control;
pub mod copy;
pub mod counters;
pub mod daemon;
pub mod events;
pub mod failover;
pub mod features;
mod guard;
pub mod health_checks;
pub mod http;
pub mod kubectl;
mod last_sync;
pub mod listeners;
pub mod localhost;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod node_addresses;
mod node_checks;
pub mod observer;
pub mod operator;
pub mod overlay;
pub mod parts;
pub mod program;
pub mod published;
pub mod render;
pub mod selftest;
mod service_traffic;
mod silent;
pub mod status;
pub mod sysctl;
mod tables;
pub mod takeover;
