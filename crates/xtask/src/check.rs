//! Formatting, lints, and the direction of dependencies between our crates.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, run};

/// What each crate of ours may depend on, of ours and of the few libraries that stand for an effect. The picture
/// is ARCHITECTURE.md's; a line here changes together with it.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("net-types", &[]),
    ("service-model", &["net-types"]),
    ("nft", &["net-types"]),
    ("service-dataplane", &["service-model", "nft", "net-types"]),
    ("vxlan-overlay", &["nft", "net-types"]),
    ("object-source", &["service-model", "kube", "tokio"]),
    (
        "portolan",
        &[
            "service-dataplane",
            "service-model",
            "nft",
            "net-types",
            "vxlan-overlay",
            "object-source",
            "kube",
            "rtnetlink",
            "tokio",
        ],
    ),
    ("lab", &["kube", "tokio"]),
    ("xtask", &["lab"]),
    (
        "portolan-tests",
        &[
            "lab",
            "portolan",
            "service-dataplane",
            "service-model",
            "nft",
            "net-types",
            "vxlan-overlay",
            "tokio",
        ],
    ),
    (
        "portolan-benches",
        &[
            "lab",
            "portolan",
            "service-dataplane",
            "service-model",
            "nft",
            "net-types",
            "vxlan-overlay",
            "tokio",
        ],
    ),
];

/// Libraries whose use is restricted by the table above.
const RESTRICTED: &[&str] = &["kube", "rtnetlink", "tokio"];

/// Runs all checks.
pub(crate) fn check() -> Result<()> {
    run(&mut cargo(&["fmt", "--all", "--check"])?)?;
    directions()?;
    run(
        cargo(&["clippy", "--workspace", "--all-targets", "--quiet"])?
            .args(["--", "-D", "warnings"]),
    )?;
    deny()
}

fn directions() -> Result<()> {
    let metadata = output(&mut cargo(&[
        "metadata",
        "--format-version",
        "1",
        "--no-deps",
    ])?)?;
    let metadata: Value = serde_json::from_slice(&metadata).context("cargo metadata is JSON")?;
    let wrong = wrong_directions(&metadata);
    if !wrong.is_empty() {
        bail!(
            "dependencies against the direction of ARCHITECTURE.md: {}",
            wrong.join(", ")
        );
    }
    eprintln!("direction of dependencies: as ARCHITECTURE.md says");
    Ok(())
}

/// Dependencies (build and development ones left out: tests may look at more) that the table does not allow.
fn wrong_directions(metadata: &Value) -> Vec<String> {
    let packages = metadata["packages"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ours: BTreeSet<&str> = packages
        .iter()
        .filter_map(|package| package["name"].as_str())
        .collect();
    let allowed: BTreeMap<&str, &[&str]> = MAY_DEPEND_ON.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name} has no line in the table"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().unwrap_or_default();
            let matters =
                dependency["kind"].is_null() && (ours.contains(on) || RESTRICTED.contains(&on));
            if matters && !allowed.contains(&on) {
                wrong.push(format!("{name} -> {on}"));
            }
        }
    }
    wrong
}

/// Licences, bans and sources, where cargo-deny is installed.
fn deny() -> Result<()> {
    let installed = cargo(&["deny", "--version"])?
        .output()
        .is_ok_and(|output| output.status.success());
    if !installed {
        eprintln!(
            "SKIPPED: licences and bans of dependencies (`cargo install cargo-deny` brings the tool)"
        );
        return Ok(());
    }
    run(&mut cargo(&[
        "deny", "check", "bans", "licenses", "sources",
    ])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pure_crate_that_depends_on_the_client_is_named() {
        let metadata = serde_json::json!({ "packages": [
            { "name": "service-model", "dependencies": [ { "name": "kube", "kind": null }, { "name": "serde", "kind": null } ] },
            { "name": "nft", "dependencies": [ { "name": "service-model", "kind": null }, { "name": "tokio", "kind": "dev" } ] },
            { "name": "stranger", "dependencies": [] },
        ]});
        let wrong = wrong_directions(&metadata);
        assert_eq!(
            wrong,
            [
                "service-model -> kube",
                "nft -> service-model",
                "stranger has no line in the table"
            ]
        );
    }
}
