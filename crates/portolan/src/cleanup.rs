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
use crate::takeover::{self, Connections};

/// Removes the rules. Returns false when something could not be removed.
pub fn run(args: &CleanupArgs) -> Result<bool> {
    let (removed, failures) = match args.kube_proxy {
        true => {
            let report = takeover::remove(Connections::End);
            let mut failures = report.failures.clone();
            if !report.iptables.kept.is_empty() {
                let chains = report.iptables.kept.join(", ");
                failures.push(format!("kept chains that other rules jump to: {chains}; remove those rules and run cleanup again"));
            }
            (report.to_string(), failures)
        }
        false => ours(args.overlay)?,
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "removed: {removed}")?;
    for failure in &failures {
        writeln!(std::io::stderr(), "portolan: {failure}")?;
    }
    if args.wait && failures.is_empty() {
        writeln!(
            out,
            "cleanup complete; waiting to be stopped (delete the DaemonSet once every pod is ready)"
        )?;
        drop(out);
        wait_for_stop()?;
    }
    Ok(failures.is_empty())
}

/// Waits for SIGTERM or SIGINT. As process 1 of a container, a signal without a handler would be ignored.
fn wait_for_stop() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    signals.wait()?;
    Ok(())
}

/// Removes Portolan's tables of both families, or those of the overlay only. The overlay's tables must not stay without a
/// daemon: their filter against forged frames would drop frames from nodes that join later.
fn ours(overlay_only: bool) -> Result<(String, Vec<String>)> {
    let mut foreign = ForeignRuleset::open()?;
    let (mut removed, mut failures) = (0, Vec::new());
    let services = (!overlay_only).then_some(layout::TABLE);
    for table in services.into_iter().chain([vxlan_overlay::TABLE]) {
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
    if !overlay_only {
        let chains = guard::remove(&mut foreign);
        failures.extend(chains.failures);
        if chains.legacy_chains > 0 {
            let _ = write!(removed, ", {} legacy iptables chains", chains.legacy_chains);
        }
    }
    Ok((removed, failures))
}
