//! Leftovers of kube-proxy's IPVS mode.
//!
//! Everything hangs on the device `kube-ipvs0`, which is kube-proxy's alone and holds the Services' addresses: without
//! it there is nothing to do. Virtual servers are removed where `ipvsadm` is there to do it, those at the device's
//! addresses only; without the device no packet meets the others.

use std::process::Command;

use anyhow::{Context, Result, bail};
use nft::Foreign;

use super::{Connections, Ipvs, Report};

const DEVICE: &str = "kube-ipvs0";

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

/// Removes them, or says that they stay.
pub(super) fn remove(foreign: &mut Foreign, connections: Connections, report: &mut Report) {
    // An index only this network namespace's devices have.
    if nix::net::if_::if_nametoindex(DEVICE).is_err() {
        return;
    }
    if connections == Connections::Keep {
        report.ipvs = Ipvs::Stays;
        return;
    }
    if let Err(error) = remove_servers() {
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
fn remove_servers() -> Result<()> {
    if !std::path::Path::new("/proc/thread-self/net/ip_vs").exists() {
        return Ok(());
    }
    let listed = Command::new("ipvsadm")
        .args(["--save", "--numeric"])
        .output();
    let listed = listed.context("starting ipvsadm")?;
    if !listed.status.success() {
        bail!("{}", String::from_utf8_lossy(&listed.stderr).trim());
    }
    let addresses: Vec<_> = nix::ifaddrs::getifaddrs()?
        .filter(|interface| interface.interface_name == DEVICE)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| a.ip().to_string());
            v4.or_else(|| address.as_sockaddr_in6().map(|a| a.ip().to_string()))
        })
        .collect();
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
        if addresses.iter().any(|own| own == address) {
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
