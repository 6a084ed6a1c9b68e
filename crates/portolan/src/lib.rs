//! The Portolan daemon: effects around the pure crates.
//!
//! * [`cli`] is the command line; [`app`] composes what `portolan run` needs and owns its life time.
//! * [`source`] turns an API server or a folder of manifests into object events.
//! * [`control`] is the loop between events and kernel, the one owner of the table.
//! * [`node_addresses`] follows the addresses of this node's interfaces.
//! * [`overlay`] keeps the tunnel to other nodes' pods.
//! * [`status`], [`metrics`] and [`http`] tell others how it goes.
//! * [`render`] prints the table of a folder of manifests.

pub mod app;
pub mod cli;
pub mod control;
pub mod http;
pub mod metrics;
pub mod node_addresses;
pub mod overlay;
pub mod render;
pub mod source;
pub mod status;
