//! What kube-proxy's IPVS mode leaves on a node when it goes.
//!
//! Only found here, not removed: the link `kube-ipvs0` that holds every cluster IP, and virtual servers. Neither stands
//! in the way of Services that we serve (our translation comes first in every hook), but addresses of Services that
//! are gone stay local to the node, and their connections go to servers that are gone. `kube-proxy --cleanup` removes
//! them, and only kube-proxy knows all of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

/// The link that kube-proxy binds cluster IPs to (pkg/proxy/ipvs).
pub const LINK: &str = "kube-ipvs0";

/// What was found in the network namespace of the calling thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ipvs {
    /// Whether the link is there.
    pub link: bool,
    /// Addresses on it, but for those that the kernel makes by itself.
    pub addresses: BTreeSet<IpAddr>,
    /// Number of virtual servers.
    pub virtual_servers: usize,
}

impl Ipvs {
    /// Looks for them.
    pub fn find() -> Result<Ipvs> {
        let mut found = Ipvs::default();
        let interfaces = getifaddrs().context("list interface addresses")?;
        for interface in interfaces.filter(|interface| interface.interface_name == LINK) {
            found.link = true;
            let address = interface.address.as_ref().and_then(ip);
            found
                .addresses
                .extend(address.filter(|ip| !is_link_local(ip)));
        }
        // Where the kernel has no IPVS there is no such file.
        let servers = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
        found.virtual_servers = virtual_servers(&servers);
        Ok(found)
    }

    /// Whether there is anything.
    pub fn is_empty(&self) -> bool {
        *self == Ipvs::default()
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
    v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

/// Lines of `/proc/net/ip_vs` that begin a virtual server: by protocol, or by firewall mark.
fn virtual_servers(text: &str) -> usize {
    let kinds = ["TCP ", "UDP ", "SCTP ", "FWM "];
    text.lines()
        .filter(|line| kinds.iter().any(|kind| line.starts_with(kind)))
        .count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_counted_and_their_servers_are_not() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight\n\
                    TCP  0A600001:01BB rr\n  -> C0A84D0A:192B      Masq    1      0          0\n\
                    UDP  0A60000A:0035 rr\n";
        assert_eq!(virtual_servers(text), 2);
        assert_eq!(virtual_servers(""), 0);
    }
}
