//! The direction of dependencies between the crates of the workspace.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output};

/// What scenarios and benchmarks may depend on.
const OF_TESTS: &[&str] = &[
    "lab",
    "object-source",
    "portolan",
    "service-dataplane",
    "service-model",
    "netfilter",
    "netlink",
    "nft",
    "net-types",
    "vxlan-overlay",
    "tokio",
];

/// What each crate may depend on: other crates of the workspace, and restricted libraries. ARCHITECTURE.md has the same
/// picture; change both in one commit.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("net-types", &[]),
    ("service-model", &["net-types"]),
    ("netlink", &[]),
    ("nft", &["net-types", "netlink"]),
    ("netfilter", &["net-types", "netlink", "nft"]),
    ("kube-proxy-config", &["net-types"]),
    (
        "service-dataplane",
        &["service-model", "nft", "netfilter", "net-types"],
    ),
    ("vxlan-overlay", &["netlink", "nft", "net-types"]),
    ("wireguard", &["netlink", "net-types"]),
    (
        "overlay-probe",
        &[
            "vxlan-overlay",
            "netfilter",
            "netlink",
            "nft",
            "net-types",
            "tokio",
        ],
    ),
    ("object-source", &["service-model", "kube", "tokio"]),
    (
        "portolan",
        &[
            "service-dataplane",
            "service-model",
            "netfilter",
            "netlink",
            "nft",
            "net-types",
            "kube-proxy-config",
            "overlay-probe",
            "vxlan-overlay",
            "wireguard",
            "object-source",
            "rtnetlink",
            "tokio",
        ],
    ),
    ("scenario", &[]),
    ("fuzz", &[]),
    ("lab", &["scenario", "kube", "tokio"]),
    ("xtask", &[]),
    ("portolan-tests", OF_TESTS),
    ("portolan-benches", OF_TESTS),
];

/// Libraries whose use is restricted by the table above.
const RESTRICTED: &[&str] = &["kube", "rtnetlink", "tokio"];

pub(super) fn check() -> Result<()> {
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
