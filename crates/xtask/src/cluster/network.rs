//! Connects nodes: a bridge in a network namespace of its own, with a veth pair to each node.
//!
//! The bridge has addresses and is the default gateway of every node, so `ip netns exec portolan-NAME-wire` runs a command as
//! a host outside the cluster. The bridge has no other link: no packet leaves the machine.

use std::process::Command;

use anyhow::Result;

use super::place::{Cluster, Node};
use crate::run::output;

const OUTSIDE: [&str; 2] = ["192.168.88.254", "fd88::fe"];

/// Makes the bridge and the network namespaces of these nodes.
pub(super) fn make(cluster: &Cluster, nodes: &[Node]) -> Result<()> {
    let wire = cluster.wire();
    ip(&["netns", "add", &wire])?;
    let [v4, v6] = OUTSIDE;
    ip(&["-n", &wire, "link", "set", "lo", "up"])?;
    ip(&["-n", &wire, "link", "add", "br0", "type", "bridge"])?;
    ip(&[
        "-n",
        &wire,
        "addr",
        "add",
        &format!("{v4}/24"),
        "dev",
        "br0",
    ])?;
    ip(&[
        "-n",
        &wire,
        "addr",
        "add",
        &format!("{v6}/64"),
        "dev",
        "br0",
        "nodad",
    ])?;
    ip(&["-n", &wire, "link", "set", "br0", "up"])?;
    nodes.iter().try_for_each(connect)
}

/// Replaces a node's network namespace by an empty one.
pub(super) fn renew(node: &Node) -> Result<()> {
    ip(&["netns", "del", &node.label()])?;
    connect(node)
}

/// Makes a node's network namespace and its veth pair.
fn connect(node: &Node) -> Result<()> {
    let (own, wire) = (node.label(), node.wire());
    let port = node.name();
    ip(&["netns", "add", &own])?;
    // A deleted namespace takes its end of the cable along some time later.
    let _ = ip(&["-n", &wire, "link", "del", &port]);
    ip(&[
        "-n", &wire, "link", "add", &port, "type", "veth", "peer", "name", "eth0",
    ])?;
    // A machine has the same after a reboot: neighbors remember it for seconds.
    let address = format!("02:00:00:00:88:{:02x}", node.host_number());
    ip(&["-n", &wire, "link", "set", "eth0", "address", &address])?;
    ip(&["-n", &wire, "link", "set", "eth0", "netns", &own])?;
    ip(&["-n", &wire, "link", "set", &port, "master", "br0", "up"])?;
    ip(&["-n", &own, "link", "set", "lo", "up"])?;
    ip(&["-n", &own, "link", "set", "eth0", "up"])?;
    let [v4, v6] = node.addresses();
    ip(&[
        "-n",
        &own,
        "addr",
        "add",
        &format!("{v4}/24"),
        "dev",
        "eth0",
    ])?;
    ip(&[
        "-n",
        &own,
        "addr",
        "add",
        &format!("{v6}/64"),
        "dev",
        "eth0",
        "nodad",
    ])?;
    for gateway in OUTSIDE {
        ip(&["-n", &own, "route", "add", "default", "via", gateway])?;
    }
    Ok(())
}

pub(super) fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args)).map(drop)
}
