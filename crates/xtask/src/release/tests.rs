use std::process::Command;

use super::*;
use crate::run::output;

fn file(path: &str) -> String {
    fs::read_to_string(root().unwrap().join(path)).unwrap()
}

#[test]
fn the_change_log_has_a_section_of_this_version() {
    assert!(
        notes(&file("CHANGELOG.md"), VERSION)
            .unwrap()
            .contains("- ")
    );
}

#[test]
fn notes_end_where_the_next_section_begins() {
    let log = "# Changes\n\n## 0.2.0 (soon)\n\n- new\n\n## 0.1.0\n\n- first\n";
    assert_eq!(notes(log, "0.2.0").unwrap(), "- new\n");
    assert_eq!(notes(log, "0.1.0").unwrap(), "- first\n");
    assert!(notes(log, "0.2").is_err());
}

#[test]
fn a_chart_of_another_version_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: String| fs::write(folder.path().join("Chart.yaml"), text).unwrap();
    write(format!("version: {VERSION}\nappVersion: \"{VERSION}\"\n"));
    says_version(folder.path()).unwrap();
    write(format!("version: {VERSION}\nappVersion: \"0.0.1\"\n"));
    assert!(says_version(folder.path()).is_err());
}

#[test]
fn the_chart_has_the_version_of_the_workspace() {
    let chart = root().unwrap().join("deploy/helm/portolan");
    if chart.is_dir() {
        says_version(&chart).unwrap();
    }
}

#[test]
fn the_dockerfile_has_the_version_of_the_workspace() {
    let arguments = format!("ARG VERSION={VERSION}");
    assert!(file("Dockerfile").lines().any(|line| line == arguments));
}

#[test]
fn checksums_are_what_sha256sum_accepts() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("b"), "two").unwrap();
    fs::write(folder.path().join("a"), "one").unwrap();
    let sums = checksums(folder.path()).unwrap();
    fs::write(folder.path().join("SHA256SUMS"), &sums).unwrap();
    let mut check = Command::new("sha256sum");
    let arguments = ["--check", "--strict", "SHA256SUMS"];
    let printed = output(check.args(arguments).current_dir(folder.path())).unwrap();
    assert_eq!(String::from_utf8(printed).unwrap(), "a: OK\nb: OK\n");
}

#[test]
fn the_sbom_names_every_foreign_crate_with_its_checksum() {
    let packages = licenses::packages(&["x86_64-unknown-linux-musl"]).unwrap();
    let commit = Commit::read().unwrap();
    let document = sbom::document(&packages, &commit).unwrap();
    let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
    let components = document["components"].as_array().unwrap();
    let (crates, tool_chain) = components.split_at(packages.len() - 1);
    let names: Vec<_> = tool_chain.iter().map(|library| &library["name"]).collect();
    assert_eq!(names, ["rust-std", "musl"]);
    for component in crates {
        let is_foreign = component["purl"].is_string();
        let hash = component["hashes"][0]["content"].as_str();
        assert_eq!(
            is_foreign,
            hash.is_some_and(|hash| hash.len() == 64),
            "{component}"
        );
        assert!(
            component["licenses"][0]["expression"]
                .as_str()
                .is_some_and(|l| !l.is_empty())
        );
    }
    let kube = document["dependencies"].as_array().unwrap().iter();
    let uses_kube = |node: &&serde_json::Value| node["ref"] == format!("object-source@{VERSION}");
    let source = kube.clone().find(uses_kube).unwrap();
    assert!(source["dependsOn"].to_string().contains("pkg:cargo/kube@"));
}
