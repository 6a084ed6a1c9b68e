//! Why a node is probed.

use netfilter::Attempt;

/// Endpoints that a report names.
const NAMED: usize = 3;

/// What leads to probes of a node.
#[derive(Debug)]
pub(super) enum Reason {
    /// Attempts to reach its endpoints that conntrack shows without a reply.
    Attempts(Vec<Attempt>),
    /// It answered nothing in a round of the overlay's probes.
    Round,
    /// It is a suspect, and may answer again.
    Again,
}

impl Reason {
    pub(super) fn attempts(&self) -> &[Attempt] {
        match self {
            Reason::Attempts(attempts) => attempts,
            Reason::Round | Reason::Again => &[],
        }
    }

    /// The evidence against the node in words, once no probe was answered and `is_unanswered` has looked again; none if a
    /// reply has come after all.
    pub(super) fn evidence(
        &self,
        probes: usize,
        is_unanswered: impl FnMut(&&Attempt) -> bool,
    ) -> Option<String> {
        match self {
            Reason::Again => None,
            Reason::Round => Some(format!(
                "a round of the overlay's probes and {probes} more without an answer"
            )),
            Reason::Attempts(attempts) => {
                let unanswered = attempts.iter().filter(is_unanswered);
                let mut named: Vec<_> = unanswered.map(|one| one.flow.answers_from).collect();
                let count = named.len();
                named.sort_unstable();
                named.dedup();
                let named: Vec<String> =
                    named.iter().take(NAMED).map(ToString::to_string).collect();
                (count > 0).then(|| {
                    format!(
                        "{count} connections through Services and {probes} probes without an answer, at {}",
                        named.join(" ")
                    )
                })
            }
        }
    }
}
