//! The bill of materials of the program: CycloneDX 1.5, from what cargo says.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::image::{Commit, VERSION};
use crate::licenses::{self, Package};
use crate::run::root;

/// The document, as JSON.
pub(super) fn document(packages: &[Package], commit: &Commit) -> Result<Vec<u8>> {
    let checksums = checksums(&std::fs::read_to_string(root()?.join("Cargo.lock"))?);
    let components: Vec<Value> = packages
        .iter()
        .filter(|package| package.name != "portolan")
        .map(|package| component(package, &checksums))
        .collect();
    let document = json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": commit.time,
            "component": {
                "type": "application",
                "bom-ref": reference_of("portolan", VERSION, false),
                "name": "portolan",
                "version": VERSION,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components,
        "dependencies": dependencies(packages, &licenses::metadata()?)?,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

fn component(package: &Package, checksums: &BTreeMap<(String, String), String>) -> Value {
    let reference = reference(package);
    let mut component = json!({
        "type": "library",
        "bom-ref": reference,
        "name": package.name,
        "version": package.version,
        // The slash is the old form of OR.
        "licenses": [{"expression": package.license.replace('/', " OR ")}],
    });
    if package.is_foreign {
        component["purl"] = reference.into();
    }
    let key = (package.name.clone(), package.version.clone());
    if let Some(checksum) = checksums.get(&key) {
        component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
    }
    component
}

fn reference(package: &Package) -> String {
    reference_of(&package.name, &package.version, package.is_foreign)
}

/// What a crate is called in the document: its package URL, if it is from the registry.
fn reference_of(name: &str, version: &str, is_foreign: bool) -> String {
    match is_foreign {
        true => format!("pkg:cargo/{name}@{version}"),
        false => format!("{name}@{version}"),
    }
}

/// Which crate uses which.
fn dependencies(packages: &[Package], metadata: &Value) -> Result<Vec<Value>> {
    let known: BTreeMap<&str, String> = packages
        .iter()
        .map(|package| (package.id.as_str(), reference(package)))
        .collect();
    let nodes = metadata["resolve"]["nodes"].as_array();
    let mut dependencies = Vec::new();
    for node in nodes.context("no resolved graph")? {
        let Some(reference) = node["id"].as_str().and_then(|id| known.get(id)) else {
            continue;
        };
        let uses = node["dependencies"].as_array().into_iter().flatten();
        let mut uses: Vec<&String> = uses.filter_map(|id| known.get(id.as_str()?)).collect();
        uses.sort();
        dependencies.push(json!({"ref": reference, "dependsOn": uses}));
    }
    dependencies.sort_by_key(|node| node["ref"].to_string());
    Ok(dependencies)
}

/// The checksum of each crate by name and version, from the text of Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |package: &str, name: &str| {
        let start = format!("{name} = \"");
        let line = package.lines().find_map(|line| line.strip_prefix(&start))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|package| {
            let key = (field(package, "name")?, field(package, "version")?);
            Some((key, field(package, "checksum")?))
        })
        .collect()
}
