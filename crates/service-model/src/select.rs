//! Which endpoints take new connections: one pure function, whose comment is the specification.
//!
//! Which endpoints a Service port has at all is settled before ([`crate::plan`]); what the network does with the
//! answer comes after.

use crate::intent::Backend;
use crate::objects::Conditions;

/// An endpoint of one Service port, as selection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where connections would go, and whether that is on this node.
    pub backend: Backend,
    /// Its conditions.
    pub conditions: Conditions,
}

/// The endpoints that take the new connections to one Service port in one address family, on this node, for
/// traffic policy `Cluster` (the rule of kube-proxy's `topology.go`; KEP-1669 for terminating endpoints).
/// `candidates` are all endpoints of that port, each address and port once; their order is kept.
///
/// 1. The *ready* endpoints.
/// 2. If there are none: those that are *serving and terminating*. While the last endpoints shut down, a
///    connection they can still take is better than a refused one.
/// 3. If there are none either: nothing. New connections are refused.
///
/// Serving alone does not count: an endpoint that is neither ready nor terminating is never chosen. Ready alone
/// does: it stays chosen when it terminates (`publishNotReadyAddresses`).
///
/// The policies this leaves room for choose among the same candidates: `Local` takes steps 1 and 2 over the
/// candidates on this node (KEP-1138, KEP-2086), topology hints narrow step 1 alone (KEP-2433), and both must tell "none
/// here" (drop) from "none anywhere" (step 3).
pub fn select(candidates: &[Candidate]) -> Option<Vec<Backend>> {
    let chosen = |wanted: fn(&Conditions) -> bool| {
        let chosen = candidates.iter().filter(|c| wanted(&c.conditions));
        let chosen: Vec<Backend> = chosen.map(|c| c.backend).collect();
        (!chosen.is_empty()).then_some(chosen)
    };
    chosen(|c| c.ready).or_else(|| chosen(|c| c.serving && c.terminating))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Conditions as `r`, `s`, `t`; the answer as indices of the candidates.
    #[track_caller]
    fn selects(candidates: &[&str], expected: &[usize]) {
        let candidates: Vec<Candidate> = candidates
            .iter()
            .enumerate()
            .map(|(i, letters)| Candidate {
                backend: backend(i),
                conditions: Conditions {
                    ready: letters.contains('r'),
                    serving: letters.contains('s'),
                    terminating: letters.contains('t'),
                },
            })
            .collect();
        let expected: Vec<Backend> = expected.iter().map(|i| backend(*i)).collect();
        assert_eq!(select(&candidates).unwrap_or_default(), expected);
    }

    fn backend(i: usize) -> Backend {
        let address = [10, 0, 0, u8::try_from(i).unwrap()].into();
        Backend {
            address,
            port: 80,
            local: false,
        }
    }

    #[test]
    fn ready_endpoints_are_chosen_and_others_are_not() {
        selects(&["rs"], &[0]);
        selects(&["rs", "", "rs", "s", "t"], &[0, 2]);
        selects(&["rs", "st"], &[0]);
    }

    #[test]
    fn without_ready_endpoints_those_serving_while_terminating_are_chosen() {
        selects(&["st"], &[0]);
        selects(&["t", "st", "s", "", "st"], &[1, 4]);
    }

    #[test]
    fn serving_without_ready_or_terminating_is_not_enough() {
        selects(&["s"], &[]);
        selects(&["t"], &[]);
        selects(&[""], &[]);
    }

    #[test]
    fn a_ready_endpoint_stays_chosen_while_it_terminates() {
        selects(&["rst"], &[0]);
        selects(&["rst", "st"], &[0]);
        selects(&["r", "st"], &[0]);
    }

    #[test]
    fn without_endpoints_nothing_is_chosen() {
        assert_eq!(select(&[]), None);
    }
}
