//! Settings of this node that keep packets of pods from being forwarded, which no probe between nodes passes.
//!
//! Only files below `/proc/sys` and the kinds of interfaces are read. What cannot be read is not judged.

use std::fs::read_to_string;
use std::net::IpAddr;

use ipnet::IpNet;
use net_types::Family;
use nix::ifaddrs::getifaddrs;
use vxlan_overlay::Plan;

use crate::bridge::bridge;

/// What is wrong with forwarding on this node, and what is only to be known.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Forwarding {
    /// Packets between pods of different nodes are dropped.
    pub faults: Vec<String>,
    /// Something else does not work.
    pub notes: Vec<String>,
}

/// Reads the settings that matter to the tunnels of a plan.
pub(super) fn examine(plan: &Plan) -> Forwarding {
    let mut found = Forwarding::default();
    for (family, tunnel) in &plan.tunnels {
        let Some(tunnel) = tunnel else { continue };
        let pods = interfaces_within(tunnel.pod_cidr);
        let inner = pods.iter().chain([&tunnel.device.name]);
        let version = match family {
            Family::Ip => "ipv4",
            Family::Ip6 => "ipv6",
        };
        let is_off = |interface: &str| {
            let path = format!("/proc/sys/net/{version}/conf/{interface}/forwarding");
            read_to_string(path).is_ok_and(|value| value.trim() == "0")
        };
        // For IPv4 each interface decides for itself; for IPv6 the switch for all does.
        let off: Vec<&str> = match family {
            Family::Ip => inner.map(String::as_str).filter(|i| is_off(i)).collect(),
            Family::Ip6 => ["all"].into_iter().filter(|i| is_off(i)).collect(),
        };
        for interface in off {
            found.faults.push(format!(
                "forwarding is off ({} pods reach no other nodes): set net.{version}.conf.{interface}.forwarding to 1",
                family.api_name()
            ));
        }
        found
            .notes
            .extend(pods.iter().filter_map(|pods| bridged(pods, family)));
    }
    found
}

/// Interfaces with an address in the pod CIDR of this node: the gateways of its pods.
pub(super) fn interfaces_within(range: IpNet) -> Vec<String> {
    let Ok(addresses) = getifaddrs() else {
        return Vec::new();
    };
    let mut names: Vec<String> = addresses
        .filter_map(|entry| {
            let storage = entry.address?;
            let v4 = storage.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            let v6 = storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip()));
            let within = range.contains(&v4.or(v6)?);
            within.then_some(entry.interface_name)
        })
        .collect();
    names.sort();
    names.dedup();
    names
}

/// Replies of a Service from a pod of the same bridge reach no rules of the node.
fn bridged(interface: &str, family: Family) -> Option<String> {
    bridge(interface)?;
    let name = match family {
        Family::Ip => "bridge-nf-call-iptables",
        Family::Ip6 => "bridge-nf-call-ip6tables",
    };
    let value = read_to_string(format!("/proc/sys/net/bridge/{name}"));
    let what = match value.as_deref().map(str::trim) {
        Err(_) => "the module br_netfilter is not loaded",
        Ok("0") => "it is 0",
        Ok(_) => return None,
    };
    Some(format!(
        "net.bridge.{name}: {what}, so pods on {interface} do not reach Services through {} endpoints on this node",
        family.api_name()
    ))
}
