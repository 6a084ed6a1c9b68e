//! Leftovers of kube-proxy's IPVS mode.
//!
//! The device `kube-ipvs0` is kube-proxy's own and holds the Services' addresses; without it there are no leftovers. With
//! `ipvsadm` installed, virtual servers at the device's addresses are removed; without the device, no packet reaches the
//! others.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result, bail};
use netfilter::ForeignRuleset;
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::SockaddrStorage;

use super::{Connections, Ipvs, TakeoverReport};

/// The device that kube-proxy binds cluster IPs to (pkg/proxy/ipvs).
pub const DEVICE: &str = "kube-ipvs0";

/// kube-proxy's IP sets, without `KUBE-` or `KUBE-6-` (pkg/proxy/ipvs/ipset.go).
const SETS: [&str; 18] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
    "LOCAL-IP",
];

/// Leftovers in the network namespace of the calling thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Whether the device exists.
    pub device: bool,
    /// Addresses of the device, except link-local ones.
    pub addresses: BTreeSet<IpAddr>,
    /// Number of virtual servers.
    pub virtual_servers: usize,
}

impl Leftovers {
    /// Finds the leftovers.
    pub fn find() -> Result<Leftovers> {
        let mut found = Leftovers::default();
        let interfaces = getifaddrs().context("list interface addresses")?;
        for interface in interfaces.filter(|interface| interface.interface_name == DEVICE) {
            found.device = true;
            let address = interface.address.as_ref().and_then(ip);
            found
                .addresses
                .extend(address.filter(|ip| !is_link_local(ip)));
        }
        // Without IPVS in the kernel the file does not exist.
        let servers = std::fs::read_to_string("/proc/thread-self/net/ip_vs").unwrap_or_default();
        found.virtual_servers = virtual_servers(&servers);
        Ok(found)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        *self == Leftovers::default()
    }
}

/// The IP address in an address of an interface.
pub(crate) fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
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

/// Removes the leftovers, or reports that they are kept.
pub(super) fn remove(
    foreign: &mut ForeignRuleset,
    connections: Connections,
    report: &mut TakeoverReport,
) {
    let found = match Leftovers::find() {
        Ok(found) if found.device => found,
        Ok(_) => return,
        Err(error) => return report.failures.push(format!("IPVS: {error:#}")),
    };
    if connections == Connections::Keep {
        report.ipvs = Ipvs::Stays(found);
        return;
    }
    if let Err(error) = remove_servers(&found) {
        report.failures.push(format!("IPVS servers: {error:#}"));
    }
    match remove_device() {
        Ok(()) => report.ipvs = Ipvs::Removed,
        Err(error) => report.failures.push(format!("device {DEVICE}: {error:#}")),
    }
    for set in SETS {
        for name in [format!("KUBE-{set}"), format!("KUBE-6-{set}")] {
            if let Err(error) = foreign.destroy_ip_set(&name) {
                report.failures.push(format!("IP set {name}: {error}"));
            }
        }
    }
}

fn remove_device() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        let index = nix::net::if_::if_nametoindex(DEVICE)?;
        handle.link().del(index).execute().await?;
        Ok(())
    })
}

/// Removes the virtual servers at the device's addresses.
fn remove_servers(found: &Leftovers) -> Result<()> {
    if found.virtual_servers == 0 {
        return Ok(());
    }
    let listed = Command::new("ipvsadm")
        .args(["--save", "--numeric"])
        .output();
    let listed = listed.context("starting ipvsadm")?;
    if !listed.status.success() {
        bail!("{}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    for line in String::from_utf8_lossy(&listed.stdout).lines() {
        // `-A -t 10.96.0.1:443 -s rr`, `-A -u [fd00::1]:53 -s rr`
        let mut words = line.split(' ');
        let (Some("-A"), Some(kind @ ("-t" | "-u" | "--sctp-service")), Some(server)) =
            (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let Some((address, _)) = server.rsplit_once(':') else {
            continue;
        };
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let address = address.parse::<IpAddr>();
        if address.is_ok_and(|address| found.addresses.contains(&address)) {
            let status = Command::new("ipvsadm")
                .args(["-D", kind, server])
                .status()?;
            if !status.success() {
                bail!("ipvsadm -D {kind} {server}: {status}");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_servers_are_counted_without_their_servers() {
        let text = "IP Virtual Server version 1.2.1 (size=4096)\n\
                    Prot LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight\n\
                    TCP  0A600001:01BB rr\n  -> C0A84D0A:192B      Masq    1      0          0\n\
                    UDP  0A60000A:0035 rr\n";
        assert_eq!(virtual_servers(text), 2);
        assert_eq!(virtual_servers(""), 0);
    }
}
