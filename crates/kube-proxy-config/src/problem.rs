//! What is wrong with flags and files, and what is worth a line in the log: never printed here, always returned.
//!
//! Invariant: every [`Problem`] names the flag, variable or field, and the value as it was given.

use std::fmt;

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line; the flag as it is written in the documentation, with its dashes.
    Flag(String),
    /// In an environment variable.
    Environment(&'static str),
    /// In the configuration file, at this line (from 1).
    File {
        /// Line of the value.
        line: usize,
    },
}

/// One thing that has to be changed before the configuration can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// Path of the field (`conntrack.min`), or the argument as it was given.
    pub setting: String,
    /// The value as it was given, where there is one.
    pub value: Option<String>,
    /// Where it was given; `None` for an argument that is no flag, and for the file as a whole.
    pub origin: Option<Origin>,
    /// What is wrong, and what is accepted.
    pub reason: String,
}

/// All that has to be changed; never empty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

/// A flag that won over the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// The flag or variable, with its value.
    pub flag: String,
    /// Path of the field.
    pub field: String,
    /// The field's value in the file, if the file sets it to something else than its default.
    pub file: Option<String>,
}

/// What is worth a line in the log of a start that succeeds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Unknown fields, repeated keys, deprecated flags, values that have no effect.
    pub warnings: Vec<String>,
    /// Flags and fields that kube-proxy or flanneld knows and Portolan has no use for, each once.
    pub unused: Vec<String>,
    /// Flags that won over the file. kube-proxy ignores most flags beside `--config`.
    pub overridden: Vec<Override>,
    /// Where node ports are served, and why: `node ports: primary (mode nftables in the configuration)`. Empty without
    /// a service proxy.
    pub node_ports: String,
}

impl Notes {
    /// The flags that won over the file, as one line for the log.
    pub fn overridden_line(&self) -> Option<String> {
        let all: Vec<String> = self.overridden.iter().map(Override::to_string).collect();
        (!all.is_empty())
            .then(|| format!("flags win over the configuration file: {}", all.join("; ")))
    }

    /// What is accepted without effect, as one line for the log.
    pub fn unused_line(&self) -> Option<String> {
        let all = self.unused.join(", ");
        (!all.is_empty()).then(|| format!("accepted, but without effect in Portolan: {all}"))
    }
}

impl Problem {
    /// A problem of an argument, or of the file as a whole.
    pub(crate) fn plain(setting: impl Into<String>, reason: impl Into<String>) -> Problem {
        Problem {
            setting: setting.into(),
            value: None,
            origin: None,
            reason: reason.into(),
        }
    }

    /// A problem of a field of the file.
    pub(crate) fn field(path: &str, value: Option<String>, line: usize, reason: String) -> Problem {
        Problem {
            setting: path.to_owned(),
            value,
            origin: Some(Origin::File { line }),
            reason,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = self.value.as_deref().map(shown);
        match &self.origin {
            None => f.write_str(&shown(&self.setting))?,
            Some(Origin::Flag(flag)) => f.write_str(flag)?,
            Some(Origin::Environment(name)) => f.write_str(name)?,
            Some(Origin::File { .. }) => f.write_str(&self.setting)?,
        }
        match (&self.origin, value) {
            (Some(Origin::File { line }), Some(value)) => write!(f, ": {value} (line {line})")?,
            (Some(Origin::File { line }), None) => write!(f, " (line {line})")?,
            (_, Some(value)) => write!(f, "={value}")?,
            (_, None) => {}
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let separator = if at == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Override {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(value) => write!(f, "{} overrides {}: {value}", self.flag, self.field),
            None => write!(f, "{} sets {}", self.flag, self.field),
        }
    }
}

/// A foreign text for a message: at most 100 characters, in quotes where its ends could not be seen otherwise.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 100;
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    let bare = |c: char| c.is_ascii_graphic() && c != '"';
    match !short.is_empty() && short.chars().all(bare) {
        true => short,
        false => format!("{short:?}"),
    }
}
