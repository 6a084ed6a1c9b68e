//! What the bench of the overlay measures, a file for each part.

pub mod memory;
pub mod packets;
pub mod programming;

use std::path::Path;

use anyhow::Result;
use lab::{CLUSTER_CIDR_V4, CLUSTER_CIDR_V6, Daemon, Node};

/// Starts the program on a node, with an overlay and without listeners.
fn start(program: &Path, node: &Node, source: &[&str], more: &[&str]) -> Result<Daemon> {
    let clusters = format!("{CLUSTER_CIDR_V4},{CLUSTER_CIDR_V6}");
    let arguments = [
        "run",
        "--hostname-override",
        node.name(),
        "--overlay",
        "vxlan",
        "--cluster-cidr",
        &clusters,
        "--subnet-file",
        "",
        "--overlay-cache",
        "",
        "--healthz-bind-address",
        "",
        "--metrics-bind-address",
        "",
    ];
    node.spawn_daemon(program, arguments.iter().chain(source).chain(more))
}
