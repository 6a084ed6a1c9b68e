//! `portolan cleanup`: takes away what a proxy has left on this node, ours or kube-proxy's.
//!
//! Goes on after a failure, reports each, and says what it did on standard output.

use std::io::Write;

use anyhow::Result;
use nft::{Family, Foreign};
use service_dataplane::layout;

use crate::cli::CleanupArgs;
use crate::takeover::{self, Connections};

/// Cleans up; `false` when something could not be done.
pub fn run(args: &CleanupArgs) -> Result<bool> {
    let (removed, failures) = match args.kube_proxy {
        true => {
            let report = takeover::remove(Connections::End);
            let mut failures = report.failures.clone();
            if !report.kept.is_empty() {
                let chains = report.kept.join(", ");
                failures.push(format!("somebody else's rules lead to {chains}: they stay"));
            }
            (report.to_string(), failures)
        }
        false => ours(&mut Foreign::open()?),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "removed: {removed}")?;
    for failure in &failures {
        writeln!(std::io::stderr(), "portolan: {failure}")?;
    }
    Ok(failures.is_empty())
}

fn ours(foreign: &mut Foreign) -> (String, Vec<String>) {
    let (mut removed, mut failures) = (0, Vec::new());
    for family in Family::ALL {
        match foreign.delete_table(family, layout::TABLE) {
            Ok(there) => removed += usize::from(there),
            // The kernel refuses it to all but the owner.
            Err(error) => failures.push(format!(
                "table {family} {}: {error} (a running portolan owns its tables: stop it first)",
                layout::TABLE
            )),
        }
    }
    (format!("{removed} nftables tables"), failures)
}
