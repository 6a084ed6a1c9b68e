//! What the control loop publishes about itself, and the verdict that probes get from it.
//!
//! A [`Status`] is a value, replaced whole behind an `ArcSwap`; readers never wait for the loop, and the loop
//! never for readers. Health is the age of the oldest change that is not in the kernel (kube-proxy's
//! `proxy_health.go` has the same rule): a daemon that has nothing to do is healthy however old its last
//! commit is, and one that hangs in a commit becomes unhealthy without having to say so.

use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use service_model::{ObjectKind, ObjectName};

/// The oldest unapplied change may be this old: twice kube-proxy's default sync period.
pub const STUCK_AFTER: Duration = Duration::from_secs(60);

/// The published status, shared by the control loop (writer) and the listeners (readers).
pub type SharedStatus = ArcSwap<Status>;

/// State of the control loop at one moment.
#[derive(Clone, Debug, Default)]
pub struct Status {
    /// The table has been brought in line with a complete view at least once.
    pub synced: bool,
    /// Kinds that have not been listed yet; the table stays as it was found until this is empty.
    pub waiting_for: Vec<ObjectKind>,
    /// When the oldest change arrived that is not in the kernel.
    pub pending_since: Option<Instant>,
    /// When the tables were last known to be in step: written, or compared.
    pub in_step_at: Option<SystemTime>,
    /// Load balancers may send to this node: its Node object is there, is not being deleted and has no taint that says
    /// so (KEP-3836).
    pub node_eligible: bool,
    /// Objects that cannot be used at present, by name.
    pub invalid: Vec<(ObjectKind, ObjectName)>,
    /// Services that the kernel refused: their last good rules keep serving.
    pub quarantined: Vec<ObjectName>,
    /// Services in the view.
    pub services: usize,
    /// Endpoints in the view.
    pub endpoints: usize,
}

/// The verdict of [`Status::health`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// The kernel has everything that is known.
    Healthy,
    /// Not yet synced, and not for too long.
    Starting,
    /// A change has been waiting for longer than [`STUCK_AFTER`].
    Stuck,
}

impl Status {
    /// The verdict at a moment.
    pub fn health(&self, now: Instant) -> Health {
        match self.pending_since {
            Some(since) if now.saturating_duration_since(since) > STUCK_AFTER => Health::Stuck,
            _ if !self.synced => Health::Starting,
            _ => Health::Healthy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_unapplied_for_over_a_minute_is_unhealthy() {
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
    fn a_start_that_hangs_in_its_first_commit_is_stuck_and_one_that_waits_is_starting() {
        let now = Instant::now();
        let mut status = Status::default();
        assert_eq!(status.health(now), Health::Starting);
        status.pending_since = Some(now);
        assert_eq!(status.health(now + Duration::from_secs(61)), Health::Stuck);
    }
}
