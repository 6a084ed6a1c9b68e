//! The crates that are linked into the program, their licenses, and the text that must accompany a copy of the program.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, root};

/// Beginnings of the names of files with a license or a notice, in lower case.
const NAMES: [&str; 6] = [
    "licen",
    "copying",
    "copyright",
    "notice",
    "unlicense",
    "patents",
];
/// Files with these extensions are about something else.
const SOURCES: [&str; 7] = ["rs", "c", "h", "toml", "json", "html", "yml"];

/// What comes with the target and has no crate.
const OF_THE_TARGET: &str = "\
The Rust standard library: Apache-2.0 OR MIT, Copyright (c) The Rust Project Contributors
musl libc: MIT, Copyright (c) 2005-2020 Rich Felker, et al.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the \"Software\"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the Software
is furnished to do so, subject to the following conditions: The above copyright notice and this permission notice shall be
included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

/// A crate that is linked into the program.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression.
    pub(crate) license: String,
    /// cargo's own name of it.
    pub(crate) id: String,
    /// Whether it comes from the registry, and not from this workspace.
    pub(crate) is_foreign: bool,
    folder: PathBuf,
}

/// The crates of the program for any of these targets, sorted.
pub(crate) fn packages(targets: &[&str]) -> Result<Vec<Package>> {
    let mut linked = BTreeSet::new();
    for target in targets {
        let tree = [
            "tree",
            "--locked",
            "--package",
            "portolan",
            "--target",
            target,
        ];
        let mut tree = cargo(&tree)?;
        tree.args(["--edges", "normal,no-proc-macro", "--prefix", "none"]);
        tree.args(["--no-dedupe", "--format", "{p}"]);
        for line in String::from_utf8(output(&mut tree)?)?.lines() {
            // `name vVERSION`, and the folder of a crate of this workspace.
            if let Some((name, rest)) = line.split_once(" v") {
                let version = rest.split(' ').next().unwrap_or(rest);
                linked.insert((name.to_owned(), version.to_owned()));
            }
        }
    }
    let metadata = metadata()?;
    let all = metadata["packages"].as_array().context("no packages")?;
    let mut packages = all.iter().map(package).collect::<Result<Vec<_>>>()?;
    packages.retain(|package| linked.contains(&(package.name.clone(), package.version.clone())));
    packages.sort();
    Ok(packages)
}

/// What cargo says of the workspace and all crates it may use.
pub(crate) fn metadata() -> Result<Value> {
    let metadata = output(&mut cargo(&[
        "metadata",
        "--locked",
        "--format-version",
        "1",
    ])?)?;
    Ok(serde_json::from_slice(&metadata)?)
}

fn package(package: &Value) -> Result<Package> {
    let text = |field: &str| package[field].as_str().map(str::to_owned);
    let manifest = PathBuf::from(text("manifest_path").context("no manifest_path")?);
    Ok(Package {
        name: text("name").context("no name")?,
        version: text("version").context("no version")?,
        license: text("license").unwrap_or_default(),
        id: text("id").context("no id")?,
        is_foreign: !package["source"].is_null(),
        folder: manifest.parent().context("no folder")?.to_owned(),
    })
}

/// The licenses of all foreign crates: a list, then each text once with the crates it belongs to.
pub(crate) fn text(packages: &[Package]) -> Result<String> {
    let mut list = String::new();
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.iter().filter(|package| package.is_foreign) {
        let name = format!("{} {}", package.name, package.version);
        list += &format!("{name}: {}\n", package.license);
        for text in license_texts(package)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    let mut sorted: Vec<(Vec<String>, String)> = texts
        .into_iter()
        .map(|(text, names)| (names, text))
        .collect();
    sorted.sort();
    let rule = "-".repeat(80);
    let mut all =
        format!("Software in this program that others wrote.\n\n{list}\n{rule}\n{OF_THE_TARGET}");
    for (names, text) in sorted {
        all += &format!("{rule}\n{}\n\n{}\n", names.join(", "), text.trim_end());
    }
    Ok(all)
}

/// The texts that a crate brings; those without any have their license's text from this repository.
fn license_texts(package: &Package) -> Result<Vec<String>> {
    let mut files = Vec::new();
    find(&package.folder, &mut files)?;
    files.sort();
    let mut texts = Vec::new();
    for file in files {
        let bytes = fs::read(&file).with_context(|| format!("read {}", file.display()))?;
        texts.push(String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
    }
    if texts.is_empty() {
        if !package.license.contains("Apache-2.0") {
            bail!("{} {} has no license file", package.name, package.version);
        }
        texts.push(fs::read_to_string(root()?.join("LICENSE"))?);
    }
    Ok(texts)
}

/// Adds all files below `folder` that look like licenses: parts in C keep their license in a folder below.
fn find(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().to_lowercase();
        let extension = path.extension().unwrap_or_default().to_string_lossy();
        if entry.file_type()?.is_dir() {
            find(&path, found)?;
        } else if NAMES.iter().any(|start| name.starts_with(start))
            && !SOURCES.contains(&&*extension)
        {
            found.push(path);
        }
    }
    Ok(())
}
