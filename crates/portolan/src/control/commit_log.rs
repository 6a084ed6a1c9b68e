//! Logs commits: a commit that comes alone at once, and those that follow within a second in one line. Under sustained
//! churn a line for each commit would cost a tenth of its work.

use std::time::{Duration, Instant};

use service_model::ObjectName;

/// Shortest time between two lines.
const INTERVAL: Duration = Duration::from_secs(1);

/// A commit, as the log shows it.
#[derive(Debug)]
pub(super) struct Logged {
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
    pending: Vec<Logged>,
    logged_at: Option<Instant>,
}

impl CommitLog {
    /// Notes a commit.
    pub(super) fn add(&mut self, commit: Logged) {
        self.pending.push(commit);
    }

    /// When the next line is due; `None` when nothing is pending.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let at = self.logged_at.map_or(now, |at| at + INTERVAL);
        (!self.pending.is_empty()).then_some(at)
    }

    /// Logs what is pending, if it is due. Returns how many commits that were.
    pub(super) fn write(&mut self, now: Instant) -> usize {
        if self.due(now).is_none_or(|at| at > now) {
            return 0;
        }
        self.logged_at = Some(now);
        let commits = std::mem::take(&mut self.pending);
        if let [
            Logged {
                services,
                only,
                elements,
                elapsed,
            },
        ] = commits.as_slice()
        {
            let service = only.as_ref().map(tracing::field::display);
            let elapsed_seconds = elapsed.as_secs_f64();
            tracing::info!(services, service, elements, elapsed_seconds, "committed");
            return 1;
        }
        let services: usize = commits.iter().map(|commit| commit.services).sum();
        let elements: usize = commits.iter().map(|commit| commit.elements).sum();
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
        log.add(Logged {
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
