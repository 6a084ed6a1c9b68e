//! Pages lead where they say: relative links and their headings exist, the book's table of contents has every page of `docs/`, and
//! commands in code blocks are commands of this version.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use anyhow::Result;
use regex::Regex;

use super::source::{Source, Sources, Violation};

/// The table of contents of the book.
const CONTENTS: &str = "docs/SUMMARY.md";
/// Where the commands of the programs are declared.
const PROGRAMS: [(&str, &str); 2] = [
    ("portolan", "crates/portolan/src/cli.rs"),
    ("cargo xtask", "crates/xtask/src/main.rs"),
];

/// Every link, page and command that is not there.
pub(super) fn violations(root: &Path, sources: &Sources) -> Result<Vec<Violation>> {
    let link = Regex::new(r"\]\(([^) \t]+)\)")?;
    let mut found = Vec::new();
    let mut listed = BTreeSet::new();
    let is_page = |source: &&Source| source.path.ends_with(".md");
    for page in sources.files.iter().filter(is_page) {
        for (number, line) in prose(page) {
            for target in link.captures_iter(&line).filter_map(|found| found.get(1)) {
                let target = target.as_str();
                if target.contains("://") {
                    continue;
                }
                let (path, heading) = target.split_once('#').unwrap_or((target, ""));
                let path = resolved(&page.path, path);
                if page.path == CONTENTS {
                    listed.insert(path.clone());
                }
                let other = sources.files.iter().find(|other| other.path == path);
                let is_there = other.is_some() || root.join(&path).exists();
                let has_heading = heading.is_empty()
                    || other.is_some_and(|other| headings(other).contains(heading));
                if !is_there || !has_heading {
                    found.push(page.violation(number, format!("link to {target}: not there")));
                }
            }
        }
        commands(sources, page, &mut found)?;
    }
    let pages = sources.files.iter().filter(is_page);
    for page in pages.filter(|page| page.path.starts_with("docs/") && page.path != CONTENTS) {
        if !listed.contains(&page.path) {
            found.push(page.violation(1, format!("not in {CONTENTS}")));
        }
    }
    Ok(found)
}

/// Lines outside of code blocks.
fn prose(page: &Source) -> Vec<(usize, String)> {
    blocks(page, false)
}

/// Lines of a page that are in code blocks, or those that are not.
fn blocks(page: &Source, wanted: bool) -> Vec<(usize, String)> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for (number, line) in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if is_code == wanted {
            lines.push((number, line));
        }
    }
    lines
}

/// A path relative to a page, from the root.
fn resolved(page: &str, path: &str) -> String {
    if path.is_empty() {
        return page.to_owned();
    }
    let mut parts = PathBuf::new();
    let folder = Path::new(page).parent().unwrap_or(Path::new(""));
    for part in folder.join(path).components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            other => parts.push(other),
        }
    }
    parts.display().to_string()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn headings(page: &Source) -> BTreeSet<String> {
    let lines = prose(page).into_iter();
    let titles = lines.filter_map(|(_, line)| {
        let title = line.trim_start_matches('#');
        (title.len() < line.len()).then(|| title.trim().to_lowercase())
    });
    titles
        .map(|title| {
            let kept = title
                .chars()
                .filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Commands of code blocks that the program does not have.
fn commands(sources: &Sources, page: &Source, found: &mut Vec<Violation>) -> Result<()> {
    for (program, declared) in PROGRAMS {
        let call = Regex::new(&format!(r"(?:^|[$|/] ?|-- ){program} ([a-z][a-z0-9-]*)"))?;
        let known = subcommands(sources, declared);
        if known.is_empty() {
            continue;
        }
        for (number, line) in blocks(page, true) {
            for command in call.captures_iter(&line).filter_map(|found| found.get(1)) {
                let command = command.as_str();
                if !known.contains(command) {
                    found.push(page.violation(number, format!("no command {program} {command}")));
                }
            }
        }
    }
    Ok(())
}

/// The variants of a file's `enum Command`, as clap names them.
fn subcommands(sources: &Sources, path: &str) -> BTreeSet<String> {
    let file = sources.files.iter().find(|source| source.path == path);
    let items = file.and_then(|source| Some(&source.rust.as_ref()?.items));
    let variants = items.into_iter().flatten().filter_map(|item| match item {
        syn::Item::Enum(item) if item.ident == "Command" => Some(&item.variants),
        _ => None,
    });
    let names = variants.flatten().map(|variant| {
        let mut name = String::new();
        for c in variant.ident.to_string().chars() {
            if c.is_uppercase() && !name.is_empty() {
                name.push('-');
            }
            name.extend(c.to_lowercase());
        }
        name
    });
    let mut names: BTreeSet<String> = names.collect();
    if !names.is_empty() {
        names.insert("help".to_owned());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_pages_and_commands_that_are_not_there_are_found() {
        let files = [
            (
                CONTENTS,
                "[One](one.md)\n[Gone](gone.md)\n[Out](https://example.com/x)\n",
            ),
            (
                "docs/one.md",
                "# First: a `thing`\n[a](../README.md#the-end) [b](#first-a-thing) [c](#second)\n",
            ),
            ("docs/two.md", "```\n[x](nowhere.md)\n```\n"),
            (
                "README.md",
                "## The end\n```\n$ portolan api-server\nportolan dance\nkubectl exec x -- portolan status\n# portolan in words\n```\n",
            ),
            (
                "crates/portolan/src/cli.rs",
                "enum Command { Status, ApiServer }",
            ),
        ];
        let root = Path::new("/nonexistent");
        let found = violations(root, &Sources::of(&files)).unwrap();
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "docs/SUMMARY.md:2: link to gone.md: not there",
                "docs/one.md:2: link to #second: not there",
                "README.md:4: no command portolan dance",
                "docs/two.md:1: not in docs/SUMMARY.md",
            ]
        );
    }
}
