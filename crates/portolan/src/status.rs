//! The status that the control loop publishes, and the health that probes read from it.
//!
//! A [`Status`] is a value, replaced whole behind an `ArcSwap`: readers never wait for the loop, nor the loop for
//! readers. Health is the age of the oldest change that is not committed (the rule of kube-proxy's `proxy_health.go`): an
//! idle daemon is healthy however old its last commit is, and a daemon that hangs in a commit becomes unhealthy.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use service_model::{ObjectKind, ObjectName, ServiceIntent};

/// Maximum age of a change that is not committed: twice kube-proxy's default sync period.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The published status, shared by the control loop (writer) and the listeners (readers).
pub type SharedStatus = ArcSwap<Status>;

/// State of the control loop at one moment.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The first sync is complete.
    pub synced: bool,
    /// Kinds that have not been listed yet. Nothing is committed until this is empty.
    pub waiting_for: Vec<ObjectKind>,
    /// When the oldest change arrived that is not committed.
    pub pending_since: Option<Instant>,
    /// Time of the last sync.
    pub synced_at: Option<SystemTime>,
    /// Another process owns the tables, whose rules serve. This one takes over when that process ends.
    pub standby: bool,
    /// What an operator should know though the proxy works, one line each: quarantined Services, a missing Node object.
    pub notes: Vec<String>,
    /// The quarantined Services, as of the last commit.
    pub quarantined: Arc<BTreeMap<ObjectName, Quarantined>>,
    /// Load balancers may send to this node: its Node object exists, is not being deleted and has no taint that
    /// excludes it (KEP-3836).
    pub node_eligible: bool,
    /// Tables of an earlier process that were there at the start. They serve until the first sync.
    pub adopted: Option<Adopted>,
    /// A kind that is needed is not being watched at present.
    pub is_disconnected: bool,
}

/// A quarantined Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The error of the kernel, or the budget that the Service is over.
    pub reason: String,
    /// What the Service has in the tables; `None` if it has nothing there.
    pub last_good: Option<Arc<ServiceIntent>>,
}

/// Tables of an earlier process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// When they were last known to be in sync with the cluster ([`crate::last_sync`]); `None`: unknown.
    pub synced_at: Option<SystemTime>,
}

impl Adopted {
    /// Time since the tables were last in sync.
    pub fn age(&self, now: SystemTime) -> Option<Duration> {
        let age = now.duration_since(self.synced_at?);
        Some(age.unwrap_or_default())
    }
}

/// Result of [`Status::health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Everything known is committed, or complete tables of an earlier process serve until the first sync.
    Healthy,
    /// The first sync is not complete yet, and there are no tables of an earlier process.
    Starting,
    /// A change has been waiting for longer than [`STUCK_AFTER`].
    Stuck,
}

impl Status {
    /// The health at a moment.
    pub fn health(&self, now: Instant) -> Health {
        match self.pending_since {
            Some(since) if now.saturating_duration_since(since) > STUCK_AFTER => Health::Stuck,
            _ if !self.synced && self.adopted.is_none() => Health::Starting,
            _ => Health::Healthy,
        }
    }

    /// Whether the tables hold what the cluster is known to hold at this moment.
    pub fn is_in_sync(&self) -> bool {
        self.synced && self.pending_since.is_none() && !self.is_disconnected
    }

    /// The tables of an earlier process, while they serve.
    pub fn serving_adopted(&self) -> Option<Adopted> {
        self.adopted.filter(|_| !self.synced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_uncommitted_for_over_a_minute_is_unhealthy() {
        let now = Instant::now();
        let mut status = Status {
            synced: true,
            pending_since: Some(now),
            ..Status::default()
        };
        assert_eq!(status.health(now + STUCK_AFTER), Health::Healthy);
        let late = now + STUCK_AFTER + Duration::from_millis(1);
        assert_eq!(status.health(late), Health::Stuck);
        status.pending_since = None;
        assert_eq!(status.health(late), Health::Healthy);
    }

    #[test]
    fn tables_of_an_earlier_process_are_healthy_unless_stuck() {
        let now = Instant::now();
        let adopted = Adopted { synced_at: None };
        let mut status = Status {
            adopted: Some(adopted),
            ..Status::default()
        };
        assert_eq!(status.health(now), Health::Healthy);
        assert_eq!(status.serving_adopted(), Some(adopted));
        status.pending_since = Some(now);
        let late = now + STUCK_AFTER + Duration::from_millis(1);
        assert_eq!(status.health(late), Health::Stuck);
        status.synced = true;
        assert_eq!(status.serving_adopted(), None, "its own tables serve");
    }

    #[test]
    fn a_start_that_waits_is_starting_and_one_that_hangs_is_stuck() {
        let now = Instant::now();
        let mut status = Status::default();
        assert_eq!(status.health(now), Health::Starting);
        status.pending_since = Some(now);
        assert_eq!(status.health(now + Duration::from_secs(61)), Health::Stuck);
    }
}
