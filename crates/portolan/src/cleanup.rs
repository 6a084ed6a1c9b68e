//! `portolan cleanup`: takes away what a proxy has left on this node, ours or kube-proxy's.
//!
//! Goes on after a failure, reports each, and says what it did on standard output.

use std::fmt::Write as _;
use std::io::Write;

use anyhow::Result;
use nft::{Family, Foreign};
use service_dataplane::layout;

use crate::cli::CleanupArgs;
use crate::guard;
use crate::takeover::{self, Connections};

/// Cleans up; `false` when something could not be done.
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
    Ok(failures.is_empty())
}

/// Removes the tables of both families; those of Services stay when it is for the overlay only. A filter against
/// forged frames that nobody keeps would drop what comes from nodes that join later, so the overlay's go as well.
fn ours(overlay_only: bool) -> Result<(String, Vec<String>)> {
    let mut foreign = Foreign::open()?;
    let (mut removed, mut failures) = (0, Vec::new());
    let services = (!overlay_only).then_some(layout::TABLE);
    for table in services.into_iter().chain([vxlan_overlay::TABLE]) {
        for family in Family::ALL {
            match foreign.delete_table(family, table) {
                Ok(there) => removed += usize::from(there),
                // The kernel refuses it to all but the owner.
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
