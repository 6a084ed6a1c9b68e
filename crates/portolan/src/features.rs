//! Fallbacks for missing kernel features.
//!
//! Owns the consequence of each missing feature: a fallback, or an error that names the feature. [`nft::Features`]
//! probes nftables features, and [`links`] those of links and routes.
//!
//! Invariant: each missing feature is one line, in the log at start and in `portolan version --features`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use nft::{Feature, Features};

pub mod links;

/// Consequence of a missing feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The proxy does not start; rules of an earlier process keep working.
    Refused,
    /// The fallback, in words.
    Instead(&'static str),
}

/// Consequence of a missing feature.
pub const fn without(feature: Feature) -> Without {
    match feature {
        Feature::NatByMap | Feature::Masquerade | Feature::SymHash | Feature::RejectInNat => {
            Without::Refused
        }
        Feature::TableOwner => Without::Instead(
            "tables can be flushed by others and are repaired at once; a guard chain in legacy iptables (if installed) keeps established connections",
        ),
        Feature::TablePersist => Without::Instead(
            "tables can be flushed by others and are repaired at once; a guard table keeps established connections",
        ),
        Feature::IntervalConcatenation => {
            Without::Instead("Services with source ranges are quarantined and logged")
        }
        Feature::DynamicMaps => {
            Without::Instead("Services with session affinity are quarantined and logged")
        }
        Feature::Fib => Without::Instead("none needed; node addresses are kept in a set"),
        Feature::Comments => Without::Instead("tables are listed without comments"),
        Feature::ConntrackFilter => {
            Without::Instead("conntrack entries are dumped and filtered in user space")
        }
    }
}

/// Logs each missing feature. Fails, naming all of them, if required features are missing.
pub fn check(features: &Features) -> Result<()> {
    let mut refused = Vec::new();
    for (feature, found) in features.iter() {
        let Err(missing) = found else { continue };
        match consequence(features, feature) {
            Without::Refused => refused.push(format!("{feature}: {missing}")),
            Without::Instead(instead) => {
                tracing::info!(%feature, reason = %missing, fallback = instead, "kernel feature missing");
            }
        }
    }
    if !refused.is_empty() {
        bail!(
            "the kernel lacks required features ({}); rules of an earlier process keep working. Use a kernel with these features",
            refused.join("; ")
        );
    }
    Ok(())
}

/// The missing features and their fallbacks, one line each.
pub fn fallbacks(features: &Features) -> Vec<String> {
    let missing = features.iter().filter(|(_, found)| found.is_err());
    let lines = missing.map(|(feature, _)| match consequence(features, feature) {
        Without::Refused => format!("{feature}: required"),
        Without::Instead(instead) => format!("{feature}: {instead}"),
    });
    lines.collect()
}

/// Consequence on this kernel: without the owner flag, the persist flag is of no use either.
fn consequence(features: &Features, feature: Feature) -> Without {
    match feature {
        Feature::TablePersist if !features.has(Feature::TableOwner) => without(Feature::TableOwner),
        _ => without(feature),
    }
}

/// `portolan version --features`: one line per feature: `NAME yes`, `NAME no (REASON); FALLBACK` or
/// `NAME not tried (REASON)`.
pub fn report() -> Result<String> {
    let features =
        Features::probe().context("cannot probe kernel features; run with CAP_NET_ADMIN")?;
    let mut out = String::new();
    for (feature, found) in features.iter() {
        match found {
            Ok(()) => line(&mut out, feature.name(), "yes"),
            Err(missing) => {
                let instead = match consequence(&features, feature) {
                    Without::Refused => "`portolan run` does not start",
                    Without::Instead(instead) => instead,
                };
                line(
                    &mut out,
                    feature.name(),
                    &format!("no ({missing}); {instead}"),
                );
            }
        }
    }
    for (feature, found) in links::probe() {
        match found {
            links::Found::Yes => line(&mut out, feature.name(), "yes"),
            links::Found::No(why) => {
                line(
                    &mut out,
                    feature.name(),
                    &format!("no ({why}); {}", feature.instead()),
                );
            }
            links::Found::Untried(why) => {
                line(&mut out, feature.name(), &format!("not tried ({why})"))
            }
        }
    }
    Ok(out)
}

fn line(out: &mut String, name: &str, words: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{name:<24}{words}");
}
