//! What is done where the kernel lacks something.
//!
//! Owns the consequence of each missing feature: a fall-back, a refusal that names it, or nothing. How features are
//! tried is left to [`nft::Features`] and, for what belongs to links and routes, to [`links`].
//!
//! Invariant: each missing thing is one line for the reader, in the log at start and in `portolan version --features`.

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use nft::{Feature, Features};

pub mod links;

/// What becomes of the proxy without a feature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// It does not start: what an earlier process wrote keeps serving.
    Refused,
    /// Another way, or a smaller one, in words.
    Instead(&'static str),
}

/// What is done without a feature.
pub const fn without(feature: Feature) -> Without {
    match feature {
        Feature::NatByMap | Feature::Masquerade | Feature::SymHash | Feature::RejectInNat => {
            Without::Refused
        }
        Feature::TableOwner => Without::Instead(
            "others can flush the tables: they are repaired at once, and a guard chain in iptables' legacy variant keeps established connections, where its program is",
        ),
        Feature::TablePersist => Without::Instead(
            "others can flush the tables: they are repaired at once, and a guard table keeps established connections",
        ),
        Feature::IntervalConcatenation => {
            Without::Instead("Services with source ranges cannot be written and are named")
        }
        Feature::DynamicMaps => {
            Without::Instead("Services with session affinity cannot be written and are named")
        }
        Feature::Fib => Without::Instead("none needed: addresses of the node are kept in a set"),
        Feature::Comments => Without::Instead("the tables are listed without their explanations"),
        Feature::ConntrackFilter => {
            Without::Instead("connections are looked through and deleted one by one")
        }
    }
}

/// Says what is missing, a line each. Fails, naming all of it, where that is something the tables cannot be without.
pub fn check(features: &Features) -> Result<()> {
    let mut refused = Vec::new();
    for (feature, found) in features.iter() {
        let Err(missing) = found else { continue };
        match consequence(features, feature) {
            Without::Refused => refused.push(format!("{feature}: {missing}")),
            Without::Instead(instead) => {
                tracing::info!(%feature, %missing, instead, "the kernel lacks a feature");
            }
        }
    }
    if !refused.is_empty() {
        bail!(
            "the kernel lacks what Services need; rules of an earlier process keep serving: {}",
            refused.join("; ")
        );
    }
    Ok(())
}

/// What is done on a kernel with these features: without the owner, persistence is of no use either.
fn consequence(features: &Features, feature: Feature) -> Without {
    match feature {
        Feature::TablePersist if !features.has(Feature::TableOwner) => without(Feature::TableOwner),
        _ => without(feature),
    }
}

/// `portolan version --features`: a line for each feature: its name, and `yes`, `no (WHY); WHAT IS DONE` or
/// `not tried (WHY)`.
pub fn report() -> Result<String> {
    let features = Features::probe()
        .context("could not ask the kernel what it can do (CAP_NET_ADMIN is needed)")?;
    let mut out = String::new();
    for (feature, found) in features.iter() {
        match found {
            Ok(()) => line(&mut out, feature.name(), "yes"),
            Err(missing) => {
                let instead = match consequence(&features, feature) {
                    Without::Refused => "`portolan run` refuses to start",
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
