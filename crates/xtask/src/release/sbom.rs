//! The bill of materials of the program: CycloneDX 1.5, from what cargo says.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::image::{Commit, VERSION};
use crate::licenses::{self, Package};
use crate::run::{output, root};

/// The document, as JSON.
pub(super) fn document(packages: &[Package], commit: &Commit) -> Result<Vec<u8>> {
    let checksums = checksums(&std::fs::read_to_string(root()?.join("Cargo.lock"))?);
    let mut components: Vec<Value> = packages
        .iter()
        .filter(|package| package.name != "portolan")
        .map(|package| component(package, &checksums))
        .collect();
    let tool_chain = tool_chain()?;
    let mut dependencies = dependencies(packages, &licenses::metadata()?)?;
    let program = reference_of("portolan", VERSION, false);
    for library in &tool_chain {
        let node = dependencies.iter_mut().find(|node| node["ref"] == program);
        let uses = node.and_then(|node| node["dependsOn"].as_array_mut());
        uses.context("no node of the program")?
            .push(library["bom-ref"].clone());
    }
    components.extend(tool_chain);
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
        "dependencies": dependencies,
    });
    Ok(serde_json::to_vec_pretty(&document)?)
}

/// Libraries that come with the target of the tool chain and have no crate here, as `rustc` says.
fn tool_chain() -> Result<[Value; 2]> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut rustc = std::process::Command::new(rustc);
    let said = output(rustc.args(["--version", "--verbose"]).current_dir(root()?))?;
    let said = String::from_utf8(said)?;
    let field = |name: &str| {
        let value = said.lines().find_map(|line| line.strip_prefix(name));
        value.with_context(|| format!("rustc --version --verbose does not say {name}"))
    };
    let (version, commit) = (field("release: ")?, field("commit-hash: ")?);
    Ok([
        json!({
            "type": "library",
            "bom-ref": format!("rust-std@{version}"),
            "name": "rust-std",
            "version": version,
            "description": "The Rust standard library, with the crates that it contains",
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
            "properties": [{"name": "rustc:commit-hash", "value": commit}],
        }),
        json!({
            "type": "library",
            "bom-ref": format!("musl@rust-{version}"),
            "name": "musl",
            "description": "The C library of Rust's musl targets, as that release of Rust brings it",
            "licenses": [{"expression": "MIT"}],
        }),
    ])
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
