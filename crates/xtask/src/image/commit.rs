//! The commit that is built: its number and its time, for labels and for the times of files.

use std::process::Command;

use anyhow::{Context, Result};

use crate::run::root;

/// What is built.
pub(crate) struct Commit {
    /// The commit's number, with `-dirty` when the checkout has changes; absent outside of a git checkout, unless `PORTOLAN_COMMIT` says it.
    pub(crate) revision: Option<String>,
    /// SOURCE_DATE_EPOCH if that is set, else the time of the commit, else 0; in seconds.
    pub(crate) seconds: u64,
    /// The same in RFC 3339.
    pub(crate) time: String,
}

impl Commit {
    /// Asks git.
    pub(crate) fn read() -> Result<Commit> {
        let changes = git(&["status", "--porcelain"]).unwrap_or_default();
        let dirty = if changes.is_empty() { "" } else { "-dirty" };
        let revision = git(&["rev-parse", "HEAD"]).map(|number| format!("{number}{dirty}"));
        // Where there is no history, whoever has copied the checkout may know.
        let given = std::env::var("PORTOLAN_COMMIT").ok();
        let given = given.filter(|number| !matches!(number.as_str(), "" | "unknown"));
        let revision = revision.or(given);
        let seconds = std::env::var("SOURCE_DATE_EPOCH")
            .ok()
            .or_else(|| git(&["log", "-1", "--format=%ct"]))
            .unwrap_or_else(|| "0".to_owned());
        let seconds: u64 = seconds
            .trim()
            .parse()
            .with_context(|| format!("SOURCE_DATE_EPOCH={seconds:?} is not a number of seconds"))?;
        Ok(Commit {
            revision,
            seconds,
            time: jiff::Timestamp::from_second(seconds.try_into()?)?.to_string(),
        })
    }
}

/// What git prints, or nothing where there is no git or no history.
fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(args)
        .current_dir(root().ok()?)
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
