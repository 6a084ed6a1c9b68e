//! Measures the overlay: what gets to other nodes and what does not, and why.

pub mod firewall;
pub mod offload;
