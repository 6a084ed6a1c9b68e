//! Where a watch resumes from, and why a step of a list or watch does not succeed.

use tokio::time::Instant;

use super::decode::is_behind;
use super::request::RequestError;

/// The version up to which everything is delivered.
pub(super) struct Position {
    pub(super) version: String,
    /// When the server was last seen to have our version or a later one; `None` after a failure.
    pub(super) verified: Option<Instant>,
}

impl Position {
    /// After a complete list.
    pub(super) fn listed(version: String) -> Self {
        Position {
            version,
            verified: Some(Instant::now()),
        }
    }

    /// Advances to the version of an event. Within a kind versions only grow; a smaller one means that the server has another
    /// history than the one received so far.
    pub(super) fn advance(&mut self, version: String) -> Result<(), Stop> {
        if version.is_empty() {
            return Err(Stop::Lost("an event has no version"));
        }
        let are_numbers = version.parse::<u64>().is_ok() && self.version.parse::<u64>().is_ok();
        if are_numbers && is_behind(&version, &self.version) {
            return Err(Stop::Lost("an event's version is behind ours"));
        }
        self.version = version;
        Ok(())
    }
}

/// Why a step did not succeed.
#[derive(Debug)]
pub(super) enum Stop {
    /// The receiver of events is gone.
    Closed,
    /// The server ended the watch, as every server does after some time.
    Ended,
    /// The watch is silent: its connection may be dead, or there are no changes.
    Quiet,
    /// The version cannot be resumed from (410), or the server is behind it.
    Lost(&'static str),
    /// The request failed.
    Failed(RequestError),
}

impl From<RequestError> for Stop {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Status { code: 410, .. } => {
                Stop::Lost("the server has forgotten our version")
            }
            error => Stop::Failed(error),
        }
    }
}
