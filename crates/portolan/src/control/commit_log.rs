//! Logs commits: the first one at once, and the commits of the following second together in one line. A line for each
//! commit would take a tenth of the CPU time of sustained churn.

use std::time::{Duration, Instant};

use service_dataplane::Update;
use service_model::ObjectName;

/// Shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// Services of one commit that are named at debug.
const NAMED: usize = 100;

/// The number of Services, and the only one, if there is one. Names each at debug.
pub(super) fn names(updates: &[Update]) -> (usize, Option<ObjectName>) {
    for Update { service, intent } in updates.iter().take(NAMED) {
        let what = if intent.is_some() {
            "planned"
        } else {
            "removed"
        };
        tracing::debug!(%service, "{what}");
    }
    let only = match updates {
        [one] => Some(one.service.clone()),
        _ => None,
    };
    (updates.len(), only)
}

/// A commit, as the log shows it.
#[derive(Debug)]
pub(super) struct LoggedCommit {
    /// Services that were planned.
    pub(super) services: usize,
    /// The Service, if there is only one.
    pub(super) only: Option<ObjectName>,
    /// Elements added and deleted.
    pub(super) elements: usize,
    /// Duration of the commit.
    pub(super) elapsed: Duration,
}

/// Commits that are not logged yet.
#[derive(Debug, Default)]
pub(super) struct CommitLog {
    pending: Vec<LoggedCommit>,
    logged_at: Option<Instant>,
}

impl CommitLog {
    /// Adds a commit; [`CommitLog::write`] logs it.
    pub(super) fn add(&mut self, commit: LoggedCommit) {
        self.pending.push(commit);
    }

    /// When the next line is due; `None` when nothing is pending.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let at = self.logged_at.map_or(now, |at| at + INTERVAL);
        (!self.pending.is_empty()).then_some(at)
    }

    /// Logs the pending commits if a line is due, and returns their number.
    pub(super) fn write(&mut self, now: Instant) -> usize {
        if self.due(now).is_none_or(|at| at > now) {
            return 0;
        }
        self.logged_at = Some(now);
        let commits = std::mem::take(&mut self.pending);
        let services: usize = commits.iter().map(|commit| commit.services).sum();
        let elements: usize = commits.iter().map(|commit| commit.elements).sum();
        if let [commit] = commits.as_slice() {
            let service = commit.only.as_ref().map(tracing::field::display);
            let elapsed_seconds = commit.elapsed.as_secs_f64();
            tracing::info!(services, service, elements, elapsed_seconds, "committed");
            return 1;
        }
        let longest = commits.iter().map(|commit| commit.elapsed).max();
        let longest_seconds = longest.unwrap_or_default().as_secs_f64();
        let commits = commits.len();
        tracing::info!(commits, services, elements, longest_seconds, "committed");
        commits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(log: &mut CommitLog) {
        log.add(LoggedCommit {
            services: 1,
            only: None,
            elements: 2,
            elapsed: Duration::from_micros(50),
        });
    }

    #[test]
    fn a_lone_commit_is_logged_at_once_and_a_hundred_in_one_line() {
        let now = Instant::now();
        let mut log = CommitLog::default();
        assert_eq!((log.due(now), log.write(now)), (None, 0));
        commit(&mut log);
        assert_eq!(log.write(now), 1);
        for _ in 0..100 {
            commit(&mut log);
            assert_eq!(log.write(now + INTERVAL / 2), 0);
        }
        assert_eq!(log.due(now), Some(now + INTERVAL));
        assert_eq!(log.write(now + INTERVAL), 100);
        commit(&mut log);
        assert_eq!(log.write(now + INTERVAL * 3), 1);
    }
}
