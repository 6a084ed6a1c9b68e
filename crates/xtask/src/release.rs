//! `cargo xtask release`: everything that a release publishes, in `target/release-artifacts/VERSION`.
//!
//! Owns the names of these files and the checks that all files have the same version. Publishing is left to the workflow
//! `.github/workflows/release.yml`. Invariant: `SHA256SUMS` lists every other file of the folder.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::image::{self, Commit, VERSION, hexadecimal};
use crate::licenses;
use crate::run::root;

mod sbom;

#[cfg(test)]
mod tests;

/// Builds all files and prints their folder.
pub(crate) fn release(options: &image::Options) -> Result<()> {
    let root = root()?;
    let commit = Commit::read()?;
    let notes = notes(&fs::read_to_string(root.join("CHANGELOG.md"))?, VERSION)?;
    let image = image::build(options)?;
    let folder = root.join("target/release-artifacts").join(VERSION);
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let write = |name: &str, content: &[u8]| {
        fs::write(folder.join(name), content).with_context(|| format!("write {name}"))
    };
    let prefix = format!("portolan-{VERSION}");
    fs::copy(&image.archive, folder.join(format!("{prefix}-image.tar")))?;
    let mut targets = Vec::new();
    for (arch, program) in &image.programs {
        let name = format!("{prefix}-linux-{}", arch.name());
        fs::copy(program, folder.join(name))?;
        targets.push(arch.target());
    }
    let packages = licenses::packages(&targets)?;
    write(
        "THIRD-PARTY-LICENSES",
        licenses::text(&packages)?.as_bytes(),
    )?;
    write("LICENSE", &fs::read(root.join("LICENSE"))?)?;
    write(
        &format!("{prefix}.cdx.json"),
        &sbom::document(&packages, &commit)?,
    )?;
    write("RELEASE-NOTES.md", notes.as_bytes())?;
    let deploy = image::pack_folder(&root.join("deploy"), "deploy", commit.seconds)?;
    write(&format!("{prefix}-deploy.tar.gz"), &deploy)?;
    let chart = root.join("deploy/helm/portolan");
    if chart.is_dir() {
        says_version(&chart)?;
        // The name that `helm package` gives.
        let packed = image::pack_folder(&chart, "portolan", commit.seconds)?;
        write(&format!("{prefix}.tgz"), &packed)?;
    } else {
        eprintln!("NO CHART: {} does not exist", chart.display());
    }
    write("SHA256SUMS", checksums(&folder)?.as_bytes())?;
    println!("{}", folder.display());
    Ok(())
}

/// The section of a version in the change log.
fn notes(changelog: &str, version: &str) -> Result<String> {
    let mut sections = changelog.split("\n## ").skip(1);
    let section = sections
        .find(|section| section.split_whitespace().next() == Some(version))
        .with_context(|| format!("CHANGELOG.md has no section {version}"))?;
    let (_, text) = section.split_once('\n').context("an empty section")?;
    Ok(format!("{}\n", text.trim()))
}

/// A chart has the version of the program, as chart and as application.
fn says_version(chart: &Path) -> Result<()> {
    let text = fs::read_to_string(chart.join("Chart.yaml")).context("read Chart.yaml")?;
    for field in ["version", "appVersion"] {
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{field}:")))
            .map(|value| value.trim().trim_matches(['"', '\'']));
        ensure!(
            value == Some(VERSION),
            "Chart.yaml has {field} {value:?}, the workspace has {VERSION}"
        );
    }
    Ok(())
}

/// A line for each file, as `sha256sum --check` reads it.
fn checksums(folder: &Path) -> Result<String> {
    let mut lines = Vec::new();
    for file in fs::read_dir(folder)? {
        let file = file?;
        let name = file.file_name().to_string_lossy().into_owned();
        lines.push((name, hexadecimal(&fs::read(file.path())?)));
    }
    lines.sort();
    Ok(lines
        .into_iter()
        .map(|(name, digest)| format!("{digest}  {name}\n"))
        .collect())
}
