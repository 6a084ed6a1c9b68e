//! `portolan cleanup`: removes rules from this node, Portolan's or kube-proxy's.
//!
//! Continues after failures, reports each, and prints what was removed.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Result;
use netfilter::ForeignRuleset;
use nft::Family;
use nix::sys::signal::{SigSet, Signal};
use service_dataplane::layout;

use crate::cli::CleanupArgs;
use crate::guard;
use crate::overlay::encryption;
use crate::takeover::{self, Connections};

/// Removes the rules. Returns false when something could not be removed.
pub fn run(args: &CleanupArgs) -> Result<bool> {
    let is_removed = match args.kube_proxy {
        true => kube_proxy(Connections::End)?,
        false => portolan(args)?,
    };
    if args.wait && is_removed {
        let signals = block_stop_signals()?;
        writeln!(
            std::io::stdout(),
            "cleanup complete; waiting to be stopped (delete the DaemonSet once every pod is ready)"
        )?;
        signals.wait()?;
    }
    Ok(is_removed)
}

/// Removes Portolan's tables, or some of them.
fn portolan(args: &CleanupArgs) -> Result<bool> {
    let tables: &[&str] = match (args.services, args.overlay) {
        (true, false) => &[layout::TABLE],
        (false, true) => &[vxlan_overlay::TABLE],
        _ => &[layout::TABLE, vxlan_overlay::TABLE],
    };
    let (removed, failures) = ours(tables)?;
    print(&removed, &failures)
}

/// Removes what kube-proxy has left, in any mode. Returns false when something could not be removed.
pub fn kube_proxy(connections: Connections) -> Result<bool> {
    let report = takeover::remove(connections);
    let mut failures = report.failures.clone();
    if !report.iptables.kept.is_empty() {
        let chains = report.iptables.kept.join(", ");
        failures.push(format!("kept chains that other rules jump to: {chains}; remove those rules and run cleanup again"));
    }
    let unreadable = report.iptables.unreadable.iter();
    failures.extend(unreadable.map(|table| {
        format!("legacy table {table}: no iptables-legacy program is installed to look for kube-proxy's chains")
    }));
    print(&report.to_string(), &failures)
}

fn print(removed: &str, failures: &[String]) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "removed: {removed}")?;
    for failure in failures {
        writeln!(std::io::stderr(), "portolan: {failure}")?;
    }
    Ok(failures.is_empty())
}

/// Makes SIGTERM and SIGINT wait to be received. As process 1 of a container, a signal without a handler would be ignored.
fn block_stop_signals() -> Result<SigSet> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    Ok(signals)
}

/// Removes these tables of Portolan's, of both families. The overlay's tables must not stay without a
/// daemon: their filter against forged frames would drop frames from nodes that join later.
fn ours(tables: &[&'static str]) -> Result<(String, Vec<String>)> {
    let mut foreign = ForeignRuleset::open()?;
    let (mut removed, mut failures) = (0, Vec::new());
    for table in tables {
        for family in Family::ALL {
            match foreign.delete_table(family, table) {
                Ok(there) => removed += usize::from(there),
                // Only the owner may delete an owned table.
                Err(error) => failures.push(format!(
                    "table {family} {table}: {error} (stop a running portolan first: it owns its tables)"
                )),
            }
        }
    }
    let mut removed = format!("{removed} nftables tables");
    if tables.contains(&layout::TABLE) {
        let chains = guard::remove(&mut foreign);
        failures.extend(chains.failures);
        if chains.legacy_chains > 0 {
            let _ = write!(removed, ", {} legacy iptables chains", chains.legacy_chains);
        }
    }
    if tables.contains(&vxlan_overlay::TABLE) {
        match encryption::remove() {
            Ok(0) => {}
            Ok(steps) => drop(write!(
                removed,
                ", {steps} devices, routes and rules of WireGuard"
            )),
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    Ok((removed, failures))
}
