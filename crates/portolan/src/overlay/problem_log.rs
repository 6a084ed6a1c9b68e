//! Suppresses repeated warnings: logs a problem when it appears, and once more when it is resolved.

use std::collections::BTreeSet;

/// The problems logged last.
#[derive(Debug, Default)]
pub(super) struct ProblemLog {
    logged: BTreeSet<String>,
}

impl ProblemLog {
    /// Logs the difference between `problems`, which are all that exist now, and those of the last call.
    pub(super) fn update(&mut self, problems: BTreeSet<String>) {
        for problem in problems.difference(&self.logged) {
            tracing::warn!("overlay: {problem}");
        }
        for problem in self.logged.difference(&problems) {
            tracing::info!("overlay: resolved: {problem}");
        }
        self.logged = problems;
    }
}
