//! What the bench of the overlay measures, a file for each part.

pub mod encrypted;
pub mod memory;
pub mod packets;
pub mod programming;

use std::path::Path;

use anyhow::Result;
use lab::{Daemon, Node};

/// Starts the program on a node, without metrics. Pods are in `ranges`.
fn start(program: &Path, node: &Node, ranges: &str, more: &[&str]) -> Result<Daemon> {
    let arguments = [
        "run",
        "--hostname-override",
        node.name(),
        "--cluster-cidr",
        ranges,
        "--metrics-bind-address",
        "",
    ];
    node.spawn_daemon(program, arguments.iter().chain(more))
}

/// For an overlay that leaves no files.
pub(crate) const OVERLAY: [&str; 6] = [
    "--overlay",
    "vxlan",
    "--subnet-file",
    "",
    "--overlay-cache",
    "",
];
