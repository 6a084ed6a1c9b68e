//! What this program was built from: version, commit, compiler and platform.
//!
//! Only whoever builds knows the commit (`PORTOLAN_COMMIT`, set by `cargo xtask image`). It comes from the program's main file, so
//! that another commit compiles that file again, and not this library. Other builds say `unknown`.

use std::sync::OnceLock;

/// What is not known.
const UNKNOWN: &str = "unknown";

static COMMIT: OnceLock<&'static str> = OnceLock::new();

/// What a program was built from; the names and values are those of `kubernetes_build_info`, where that has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildInfo {
    /// Version of the workspace.
    pub version: &'static str,
    /// Number of the commit.
    pub git_commit: &'static str,
    /// `clean`, or `dirty` if the checkout had changes.
    pub git_tree_state: &'static str,
    /// Version of the compiler.
    pub rustc_version: &'static str,
    /// `linux/` and Go's name of the architecture.
    pub platform: &'static str,
}

/// Sets the commit: its number, followed by `-dirty` if the checkout had changes. Counts once, before [`get`].
pub fn set_commit(commit: Option<&'static str>) {
    if let Some(commit) = commit.filter(|commit| !commit.is_empty()) {
        let _ = COMMIT.set(commit);
    }
}

/// What this program was built from.
pub fn get() -> BuildInfo {
    BuildInfo::of(COMMIT.get().copied())
}

impl BuildInfo {
    fn of(commit: Option<&'static str>) -> BuildInfo {
        let (git_commit, git_tree_state) = match commit {
            None => (UNKNOWN, UNKNOWN),
            Some(commit) => match commit.strip_suffix("-dirty") {
                Some(commit) => (commit, "dirty"),
                None => (commit, "clean"),
            },
        };
        BuildInfo {
            version: env!("CARGO_PKG_VERSION"),
            git_commit,
            git_tree_state,
            rustc_version: env!("PORTOLAN_RUSTC"),
            platform: match std::env::consts::ARCH {
                "x86_64" => "linux/amd64",
                "aarch64" => "linux/arm64",
                _ => "linux/unknown",
            },
        }
    }

    /// Labels of the metric.
    pub(crate) fn labels(&self) -> [(&'static str, &'static str); 5] {
        [
            ("version", self.version),
            ("git_commit", self.git_commit),
            ("git_tree_state", self.git_tree_state),
            ("rustc_version", self.rustc_version),
            ("platform", self.platform),
        ]
    }

    /// In two lines, for `portolan version`.
    pub fn text(&self) -> String {
        let BuildInfo {
            version,
            git_commit,
            git_tree_state,
            rustc_version,
            platform,
        } = self;
        let commit = match *git_tree_state {
            "dirty" => format!("commit {git_commit} with changes"),
            _ => format!("commit {git_commit}"),
        };
        format!("portolan {version}\n{commit}, rustc {rustc_version}, {platform}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_of_unknown_origin_says_so() {
        let info = BuildInfo::of(None);
        assert_eq!((info.git_commit, info.git_tree_state), (UNKNOWN, UNKNOWN));
        let number = info.rustc_version.split('.').next();
        assert!(number.is_some_and(|number| number.parse::<u32>().is_ok()));
    }

    #[test]
    fn changes_of_the_checkout_are_in_the_tree_state() {
        let clean = BuildInfo::of(Some("c0ffee"));
        assert_eq!(
            (clean.git_commit, clean.git_tree_state),
            ("c0ffee", "clean")
        );
        let dirty = BuildInfo::of(Some("c0ffee-dirty"));
        assert_eq!(
            (dirty.git_commit, dirty.git_tree_state),
            ("c0ffee", "dirty")
        );
        assert!(
            dirty
                .text()
                .contains("\ncommit c0ffee with changes, rustc ")
        );
    }
}
