//! Whether this node can carry pod traffic at all: the Node's condition `NetworkUnavailable`.
//!
//! The node controller keeps pods away from a Node whose condition is True. It is therefore only set for a fault of this
//! node itself that has lasted, never because of a peer: a partition would disable the whole cluster. A condition that
//! another component maintains is left alone; Portolan changes its own, flannel's, and a missing one.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use vxlan_overlay::{Plan, Problem};

/// How long a cause must last before the condition is set.
pub(super) const LASTING: Duration = Duration::from_secs(30);
const TYPE: &str = "NetworkUnavailable";
/// Prefix of Portolan's reasons.
const OURS: &str = "Portolan";
const FLANNELS: &str = "FlannelIsUp";

/// What is missing to carry pod traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A pod CIDR in the Node.
    PodCidr,
    /// An interface to the other nodes.
    Interface,
    /// A usable tunnel device.
    Device,
}

impl Cause {
    /// The cause, if no family can be carried. `devices` is the number of usable tunnel devices.
    pub(super) fn of(plan: &Plan, devices: usize) -> Option<Cause> {
        if devices > 0 {
            None
        } else if plan.problems.contains(&Problem::NoPodCidr) {
            Some(Cause::PodCidr)
        } else if plan.tunnels.values().any(Option::is_some) {
            Some(Cause::Device)
        } else {
            plan.lacks_external().then_some(Cause::Interface)
        }
    }

    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Cause::PodCidr => (
                "PortolanNoPodCIDR",
                "The Node has no spec.podCIDRs: no pod can be carried",
            ),
            Cause::Interface => (
                "PortolanNoInterface",
                "No interface leads to the other nodes: no pod can be carried",
            ),
            Cause::Device => (
                "PortolanNoDevice",
                "The tunnel device cannot be made or used: no pod can be carried",
            ),
        }
    }
}

/// What the condition should state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NetworkState {
    /// Pod traffic can be carried.
    Available,
    /// Pod traffic could not be carried for [`LASTING`].
    Unavailable(Cause),
}

/// The network state over time.
#[derive(Debug, Default)]
pub(super) struct Availability {
    verdict: Option<NetworkState>,
    since: Option<Instant>,
}

impl Availability {
    /// Records the present cause. Returns `None` while the state is unknown.
    pub(super) fn judge(
        &mut self,
        complete: bool,
        cause: Option<Cause>,
        now: Instant,
    ) -> Option<NetworkState> {
        let Some(cause) = cause else {
            self.since = None;
            if complete {
                self.verdict = Some(NetworkState::Available);
            }
            return self.verdict;
        };
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LASTING {
            self.verdict = Some(NetworkState::Unavailable(cause));
        }
        self.verdict
    }

    /// When the state may change although nothing else does.
    pub(super) fn due(&self) -> Option<Instant> {
        let is_reported = matches!(self.verdict, Some(NetworkState::Unavailable(_)));
        self.since
            .filter(|_| !is_reported)
            .map(|since| since + LASTING)
    }
}

/// A condition of the Node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    r#type: String,
    status: String,
    reason: String,
}

/// What to do about the condition.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// It already has the wanted status.
    Leave,
    /// Another component maintains it, with this reason.
    Foreign(String),
    /// Write this condition.
    Set(Value),
}

/// Compares the conditions of a Node with the wanted state. `now` is a timestamp in Kubernetes' form.
pub(super) fn decide(conditions: &[Condition], verdict: NetworkState, now: &str) -> Decision {
    let (status, (reason, message)) = match verdict {
        NetworkState::Available => (
            "False",
            ("PortolanIsUp", "Portolan is running on this node"),
        ),
        NetworkState::Unavailable(cause) => ("True", cause.words()),
    };
    if let Some(old) = conditions.iter().find(|condition| condition.r#type == TYPE) {
        if old.reason != FLANNELS && !old.reason.starts_with(OURS) {
            return Decision::Foreign(old.reason.clone());
        }
        // flannel's reason for the same status may stay.
        if old.status == status && (status == "False" || old.reason == reason) {
            return Decision::Leave;
        }
    }
    Decision::Set(json!({
        "type": TYPE, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": now, "lastHeartbeatTime": now,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-01T00:00:00Z";

    fn condition(status: &str, reason: &str) -> Vec<Condition> {
        let of = |kind: &str, status: &str, reason: &str| Condition {
            r#type: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
        };
        vec![
            of("Ready", "True", "KubeletReady"),
            of(TYPE, status, reason),
        ]
    }

    fn status(decision: Decision) -> Option<String> {
        match decision {
            Decision::Set(condition) => Some(condition["status"].as_str()?.to_owned()),
            _ => None,
        }
    }

    #[test]
    fn only_own_flannels_and_missing_conditions_are_written() {
        let (up, down) = (
            NetworkState::Available,
            NetworkState::Unavailable(Cause::Device),
        );
        let set = |old: &[Condition], verdict| status(decide(old, verdict, NOW));
        assert_eq!(set(&[], up).as_deref(), Some("False"));
        assert_eq!(set(&[], down).as_deref(), Some("True"));
        for reason in ["FlannelIsUp", "PortolanIsUp"] {
            assert_eq!(
                decide(&condition("False", reason), up, NOW),
                Decision::Leave
            );
            assert_eq!(
                set(&condition("False", reason), down).as_deref(),
                Some("True")
            );
        }
        let downs = condition("True", "PortolanNoDevice");
        assert_eq!(decide(&downs, down, NOW), Decision::Leave);
        assert_eq!(set(&downs, up).as_deref(), Some("False"));
        // Another cause is another reason.
        let other = NetworkState::Unavailable(Cause::PodCidr);
        assert_eq!(set(&downs, other).as_deref(), Some("True"));
        for verdict in [up, down] {
            let foreign = condition("True", "NoRouteCreated");
            let expected = Decision::Foreign("NoRouteCreated".to_owned());
            assert_eq!(decide(&foreign, verdict, NOW), expected);
        }
    }

    #[test]
    fn a_cause_counts_once_it_has_lasted_and_its_end_at_once() {
        let (mut state, start) = (Availability::default(), Instant::now());
        let cause = Some(Cause::Device);
        assert_eq!(state.judge(false, None, start), None);
        assert_eq!(
            state.judge(true, None, start),
            Some(NetworkState::Available)
        );
        for (seconds, expected) in [
            (1, NetworkState::Available),
            (30, NetworkState::Available),
            (31, NetworkState::Unavailable(Cause::Device)),
            (90, NetworkState::Unavailable(Cause::Device)),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(
                state.judge(false, cause, now),
                Some(expected),
                "{seconds} s"
            );
        }
        let later = start + Duration::from_secs(91);
        assert_eq!(
            state.judge(true, None, later),
            Some(NetworkState::Available)
        );
        // The cause has to last again.
        assert_eq!(
            state.judge(false, cause, later),
            Some(NetworkState::Available)
        );
        assert_eq!(state.due(), Some(later + LASTING));
    }

    #[test]
    fn a_family_that_is_carried_is_enough() {
        let mut plan = Plan::default();
        assert_eq!(Cause::of(&plan, 0), None, "no Node yet is not a cause");
        plan.problems = vec![Problem::NoExternal(net_types::Family::Ip6)];
        assert_eq!(Cause::of(&plan, 1), None);
        assert_eq!(Cause::of(&plan, 0), Some(Cause::Interface));
        plan.problems = vec![Problem::NoPodCidr];
        assert_eq!(Cause::of(&plan, 0), Some(Cause::PodCidr));
    }
}
