//! The Portolan daemon: effects around the pure crates.
//!
//! * [`cli`] is the command line; [`app`] composes what `portolan run` needs and owns its life time.
//! * [`source`] turns an API server or a folder of manifests into object events.
//! * [`node_addresses`] follows the addresses of this node's interfaces.
//! * [`status`], [`metrics`] and [`http`] tell others how it goes.

pub mod cli;
pub mod http;
pub mod metrics;
pub mod source;
pub mod status;
