//! Whether this node can carry pods at all: the Node's condition `NetworkUnavailable`.
//!
//! The node controller keeps pods away from a Node whose condition is True, so it is only set for what is wrong with
//! this node itself, and only when that has lasted: never for a peer's sake, or a partition would take the whole
//! cluster away. A condition that somebody else maintains is theirs; ours is the one that says so, flannel's, or none.

use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use vxlan_overlay::{Plan, Problem};

/// How long a cause must last before the condition says so.
pub(super) const LASTING: Duration = Duration::from_secs(30);
const TYPE: &str = "NetworkUnavailable";
/// Reasons of ours begin so.
const OURS: &str = "Portolan";
const FLANNELS: &str = "FlannelIsUp";

/// Why pods cannot be carried: what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// A range for pods in the Node.
    PodRange,
    /// An interface that leads to other nodes.
    Interface,
    /// A tunnel device that can be used.
    Device,
}

impl Cause {
    /// The cause, if no family can be carried. `devices` is the number of tunnel devices that are as planned.
    pub(super) fn of(plan: &Plan, devices: usize) -> Option<Cause> {
        if devices > 0 {
            None
        } else if plan.problems.contains(&Problem::NoPodCidr) {
            Some(Cause::PodRange)
        } else if plan.tunnels.iter().any(Option::is_some) {
            Some(Cause::Device)
        } else {
            let no_way = |problem: &Problem| matches!(problem, Problem::NoExternal(_));
            plan.problems.iter().any(no_way).then_some(Cause::Interface)
        }
    }

    const fn words(self) -> (&'static str, &'static str) {
        match self {
            Cause::PodRange => (
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

/// What the condition should say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Pods can be carried.
    Available,
    /// They cannot, and have not been for [`LASTING`].
    Unavailable(Cause),
}

/// The verdict over time.
#[derive(Debug, Default)]
pub(super) struct Availability {
    verdict: Option<Verdict>,
    since: Option<Instant>,
}

impl Availability {
    /// Takes in how it is now; `None` while there is nothing to say yet.
    pub(super) fn judge(
        &mut self,
        complete: bool,
        cause: Option<Cause>,
        now: Instant,
    ) -> Option<Verdict> {
        let Some(cause) = cause else {
            self.since = None;
            if complete {
                self.verdict = Some(Verdict::Available);
            }
            return self.verdict;
        };
        let since = *self.since.get_or_insert(now);
        if now.saturating_duration_since(since) >= LASTING {
            self.verdict = Some(Verdict::Unavailable(cause));
        }
        self.verdict
    }

    /// When the verdict may change though nothing else does.
    pub(super) fn due(&self) -> Option<Instant> {
        let told = matches!(self.verdict, Some(Verdict::Unavailable(_)));
        self.since.filter(|_| !told).map(|since| since + LASTING)
    }
}

/// A condition as the Node has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Condition {
    r#type: String,
    status: String,
    reason: String,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Decision {
    /// It says so already.
    Leave,
    /// It is somebody else's, who gives this reason.
    Foreign(String),
    /// The new condition.
    Set(Value),
}

/// Compares what a Node has with what it should say. `now` is a time as Kubernetes writes it.
pub(super) fn decide(conditions: &[Condition], verdict: Verdict, now: &str) -> Decision {
    let (status, (reason, message)) = match verdict {
        Verdict::Available => (
            "False",
            ("PortolanIsUp", "Portolan is running on this node"),
        ),
        Verdict::Unavailable(cause) => ("True", cause.words()),
    };
    if let Some(old) = conditions.iter().find(|condition| condition.r#type == TYPE) {
        if old.reason != FLANNELS && !old.reason.starts_with(OURS) {
            return Decision::Foreign(old.reason.clone());
        }
        // flannel's word for the same is as good.
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
    fn only_an_absent_condition_flannels_and_ours_are_written_and_only_when_they_differ() {
        let (up, down) = (Verdict::Available, Verdict::Unavailable(Cause::Device));
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
        let other = Verdict::Unavailable(Cause::PodRange);
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
        assert_eq!(state.judge(true, None, start), Some(Verdict::Available));
        for (seconds, expected) in [
            (1, Verdict::Available),
            (30, Verdict::Available),
            (31, Verdict::Unavailable(Cause::Device)),
            (90, Verdict::Unavailable(Cause::Device)),
        ] {
            let now = start + Duration::from_secs(seconds);
            assert_eq!(
                state.judge(false, cause, now),
                Some(expected),
                "{seconds} s"
            );
        }
        let later = start + Duration::from_secs(91);
        assert_eq!(state.judge(true, None, later), Some(Verdict::Available));
        // It begins anew.
        assert_eq!(state.judge(false, cause, later), Some(Verdict::Available));
        assert_eq!(state.due(), Some(later + LASTING));
    }

    #[test]
    fn a_family_that_is_carried_is_enough() {
        let mut plan = Plan::default();
        assert_eq!(Cause::of(&plan, 0), None, "no Node yet is nobody's fault");
        plan.problems = vec![Problem::NoExternal(nft::Family::Ip6)];
        assert_eq!(Cause::of(&plan, 1), None);
        assert_eq!(Cause::of(&plan, 0), Some(Cause::Interface));
        plan.problems = vec![Problem::NoPodCidr];
        assert_eq!(Cause::of(&plan, 0), Some(Cause::PodRange));
    }
}
