//! Which endpoints take new connections: one pure function, whose comment is the specification.
//!
//! [`crate::plan`] gathers the endpoints of a Service port before and turns the selection into frontends after.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use crate::facts::NodeFacts;
use crate::hash;
use crate::intent::Backend;
use crate::objects::{Conditions, Hints};

/// How many endpoints of one Service port a node uses at most. All of them are elements of one commit, which changes of other
/// Services wait for.
pub const MAX_USED: usize = 4096;

/// An endpoint of one Service port, as selection sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Address and port, and whether it is on this node.
    pub backend: Backend,
    /// Its conditions.
    pub conditions: Conditions,
    /// Where it should be used from.
    pub hints: Option<&'a Hints>,
    /// The node it runs on.
    pub node: Option<&'a Arc<str>>,
    /// It or its node is a suspect ([`crate::Suspects`]).
    pub suspect: bool,
}

/// The endpoints that take new connections to one Service port in one address family, on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// For traffic policy `Cluster`; empty if there is no endpoint anywhere.
    pub cluster: Vec<Backend>,
    /// For traffic policy `Local`; empty if there is none on this node.
    pub local: Vec<Backend>,
    /// Those that are ready or serve and are not left out as suspects: conntrack entries that lead to them are kept.
    pub serving: Vec<Backend>,
}

/// Selects (the rule of kube-proxy's `topology.go`). `candidates` are all endpoints of the port, each address and port
/// once; their order is kept.
///
/// For policy `Cluster`:
/// 1. The *ready* endpoints. If every one of them has hints for nodes and one at least names this node, those that
///    name this node (KEP-4444). Otherwise, if every one has hints for zones and one at least names this node's zone,
///    those that name this zone (KEP-2433). One ready endpoint without hints is enough for none to count.
/// 2. If there are none: those that are *serving and terminating*, hints or not (KEP-1669). While the last endpoints
///    shut down, a connection they can still take is better than a refused one.
/// 3. If there are none either: nothing. New connections are refused, whatever the policy.
/// 4. Suspects are left out of what the steps before have selected, if that holds at least one endpoint that is none. At
///    most half of it is left out (rounded down), the first ones in the order of `candidates`: measuring may be wrong, and
///    the rest has to bear the load. Endpoints of this node are never left out. One that is left out does not serve
///    either, so its flows are treated as those of a withdrawn endpoint.
/// 5. Of more than [`MAX_USED`], as many remain, chosen by a hash of the node's name and the endpoint: each node has a choice of its
///    own, so that all endpoints together are used, and one that comes or goes moves at most one other.
///
/// For policy `Local` (KEP-1138, KEP-2086): steps 1, 2 and 5 over the endpoints on this node, without hints. If there
/// are none, while there are some elsewhere, new connections are dropped: other nodes take them.
///
/// Serving alone does not count: an endpoint that is neither ready nor terminating is never chosen. Ready alone
/// does: it stays chosen when it terminates (`publishNotReadyAddresses`).
pub fn select(candidates: &[Candidate<'_>], facts: &NodeFacts) -> Selection {
    let all = select_all(candidates, facts);
    Selection {
        cluster: share(all.cluster, facts),
        local: share(all.local, facts),
        serving: all.serving,
    }
}

/// [`select`] without step 5.
pub(crate) fn select_all(candidates: &[Candidate<'_>], facts: &NodeFacts) -> Selection {
    let is_ready = |c: &Candidate<'_>| c.conditions.ready;
    let is_leaving = |c: &Candidate<'_>| c.conditions.serving && c.conditions.terminating;
    let is_local = |c: &Candidate<'_>| c.backend.local;
    let chosen = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<&Candidate<'_>> {
        candidates.iter().filter(|c| wanted(c)).collect()
    };
    let or_else = |first: Vec<_>, second: &dyn Fn(&Candidate<'_>) -> bool| match first.is_empty() {
        true => chosen(second),
        false => first,
    };
    let ready = || candidates.iter().filter(|c| is_ready(c));
    let names_node =
        |c: &Candidate<'_>| c.hints.is_some_and(|h| h.nodes.contains(&facts.node_name));
    let names_zone = |c: &Candidate<'_>| {
        let zone = facts.zone.as_ref();
        zone.is_some_and(|zone| c.hints.is_some_and(|h| h.zones.contains(zone)))
    };
    let by_node =
        ready().all(|c| c.hints.is_some_and(|h| !h.nodes.is_empty())) && ready().any(names_node);
    let by_zone =
        ready().all(|c| c.hints.is_some_and(|h| !h.zones.is_empty())) && ready().any(names_zone);
    let near = match (by_node, by_zone) {
        (true, _) => chosen(&|c| is_ready(c) && names_node(c)),
        (false, true) => chosen(&|c| is_ready(c) && names_zone(c)),
        (false, false) => chosen(&is_ready),
    };
    let local = chosen(&|c| is_local(c) && is_ready(c));
    let cluster = or_else(near, &is_leaving);
    let left_out = left_out(&cluster);
    let is_used = |b: &Backend| !left_out.contains(b);
    let serving = candidates
        .iter()
        .filter(|c| is_ready(c) || c.conditions.serving);
    let local = or_else(local, &|c| is_local(c) && is_leaving(c));
    Selection {
        cluster: cluster
            .into_iter()
            .map(|c| c.backend)
            .filter(is_used)
            .collect(),
        local: local.into_iter().map(|c| c.backend).collect(),
        serving: serving.map(|c| c.backend).filter(is_used).collect(),
    }
}

/// Step 4 of [`select`].
fn left_out(selected: &[&Candidate<'_>]) -> BTreeSet<Backend> {
    let is_suspect = |c: &Candidate<'_>| c.suspect && !c.backend.local;
    let suspects = selected.iter().filter(|c| is_suspect(c));
    let most = match suspects.clone().count() == selected.len() {
        true => 0,
        false => selected.len() / 2,
    };
    suspects.take(most).map(|c| c.backend).collect()
}

/// Step 5 of [`select`]. The order is kept.
fn share(mut selected: Vec<Backend>, facts: &NodeFacts) -> Vec<Backend> {
    if selected.len() <= MAX_USED {
        return selected;
    }
    let node = hash::fnv(facts.node_name.bytes().chain([0]));
    let ranks: Vec<u64> = selected.iter().map(|b| rank(node, b)).collect();
    let mut order = ranks.clone();
    let (_, last, _) = order.select_nth_unstable(MAX_USED - 1);
    let mut ranks = ranks.iter();
    selected.retain(|_| ranks.next().is_some_and(|rank| *rank <= *last));
    // Should two ranks be equal.
    selected.truncate(MAX_USED);
    selected
}

/// The place of an endpoint in the order of the node with this hash. Fixed for good: a node that changed its order would move
/// thousands of endpoints at once.
fn rank(node: u64, backend: &Backend) -> u64 {
    let port = backend.port.to_be_bytes().into_iter();
    hash::mixed(match backend.address {
        IpAddr::V4(address) => hash::fnv_after(node, address.octets().into_iter().chain(port)),
        IpAddr::V6(address) => hash::fnv_after(node, address.octets().into_iter().chain(port)),
    })
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn used_by(node: &str, endpoints: std::ops::Range<u32>) -> BTreeSet<Backend> {
        let facts = NodeFacts {
            node_name: node.into(),
            ..crate::samples::facts()
        };
        let candidates: Vec<Candidate<'_>> = endpoints
            .map(|n| Candidate {
                backend: Backend {
                    address: Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
                    port: 80,
                    local: n % 2 == 0,
                },
                conditions: Conditions {
                    ready: true,
                    serving: true,
                    terminating: false,
                },
                hints: None,
                node: None,
                suspect: false,
            })
            .collect();
        let selection = select(&candidates, &facts);
        assert_eq!(selection.serving.len(), candidates.len());
        let of_node: Vec<Backend> = selection.serving.into_iter().filter(|b| b.local).collect();
        assert_eq!(selection.local.len(), of_node.len().min(MAX_USED));
        assert!(selection.cluster.is_sorted() && selection.local.is_sorted());
        let used = BTreeSet::from_iter(selection.cluster);
        assert_eq!(used.len(), candidates.len().min(MAX_USED));
        used
    }

    #[test]
    fn nodes_share_the_endpoints_of_a_very_large_service() {
        const NODES: usize = 40;
        let mut nodes = vec![0; 10_000];
        for node in 0..NODES {
            for backend in used_by(&format!("node-{node}"), 0..10_000) {
                let IpAddr::V4(address) = backend.address else {
                    unreachable!()
                };
                nodes[(address.to_bits() & 0xff_ffff) as usize] += 1;
            }
        }
        // 16.4 on average, standard deviation 3.1.
        assert!(nodes.iter().all(|nodes| (1..=32).contains(nodes)));
        used_by("node-0", 0..4096);
    }

    #[test]
    fn a_nodes_choice_is_the_same_in_every_version() {
        let backend = |address: &str| Backend {
            address: address.parse().unwrap(),
            port: 8080,
            local: false,
        };
        let node = hash::fnv(b"node-1\0".iter().copied());
        let ranks = ["10.0.0.1", "fd00::1"].map(|address| rank(node, &backend(address)));
        assert_eq!(ranks, [0x56f0_128e_03eb_c511, 0x6327_a46b_e5bc_511c]);
    }

    #[test]
    fn an_endpoint_that_comes_moves_one_other_at_most() {
        let (before, after) = (used_by("me", 0..10_000), used_by("me", 1..10_001));
        assert!(before.difference(&after).count() <= 2);
        assert!(
            used_by("me", 0..9_000)
                .symmetric_difference(&before)
                .count()
                > 100
        );
    }

    /// Conditions as `r`, `s`, `t`, then `*` on this node, `?` on a suspect one, hints as `zone=a,b` and `node=a,b`; this node is `me` in
    /// zone `here`.
    fn parsed(candidates: &[&str], test: impl FnOnce(&[Candidate<'_>], &NodeFacts)) {
        let mut facts = crate::samples::facts();
        (facts.node_name, facts.zone) = ("me".into(), Some("here".into()));
        let names = |text: &str, key: &str| {
            let list = text.split(' ').find_map(|word| word.strip_prefix(key));
            let names = list.into_iter().flat_map(|list| list.split(','));
            names.map(Into::into).collect()
        };
        let hints: Vec<Hints> = candidates
            .iter()
            .map(|text| Hints {
                zones: names(text, "zone="),
                nodes: names(text, "node="),
            })
            .collect();
        let parsed: Vec<Candidate<'_>> = candidates
            .iter()
            .enumerate()
            .map(|(i, text)| {
                let letters = text.split(' ').next().unwrap();
                Candidate {
                    backend: Backend {
                        address: [10, 0, 0, u8::try_from(i).unwrap()].into(),
                        port: 80,
                        local: letters.contains('*'),
                    },
                    conditions: Conditions {
                        ready: letters.contains('r'),
                        serving: letters.contains('s'),
                        terminating: letters.contains('t'),
                    },
                    hints: (hints[i] != Hints::default()).then_some(&hints[i]),
                    node: None,
                    suspect: letters.contains('?'),
                }
            })
            .collect();
        test(&parsed, &facts);
    }

    fn indices(backends: &[Backend]) -> Vec<usize> {
        let last = |b: &Backend| match b.address {
            IpAddr::V4(v4) => usize::from(v4.octets()[3]),
            IpAddr::V6(_) => unreachable!(),
        };
        backends.iter().map(last).collect()
    }

    /// The answer for policy Cluster, as indices of the candidates.
    #[track_caller]
    fn selects(candidates: &[&str], expected: &[usize]) {
        parsed(candidates, |candidates, facts| {
            assert_eq!(indices(&select(candidates, facts).cluster), expected);
        });
    }

    /// The answer for policy Local.
    #[track_caller]
    fn selects_local(candidates: &[&str], expected: &[usize]) {
        parsed(candidates, |candidates, facts| {
            assert_eq!(indices(&select(candidates, facts).local), expected);
        });
    }

    #[test]
    fn flows_to_serving_endpoints_are_kept() {
        let candidates = ["rs zone=there", "r", "s", "st", "t", "", "rst*"];
        parsed(&candidates, |candidates, facts| {
            assert_eq!(indices(&select(candidates, facts).serving), [0, 1, 2, 3, 6]);
        });
    }

    #[test]
    fn ready_endpoints_are_chosen_and_others_are_not() {
        selects(&["rs"], &[0]);
        selects(&["rs", "", "rs", "s", "t"], &[0, 2]);
        selects(&["rs", "st"], &[0]);
    }

    #[test]
    fn serving_terminating_endpoints_are_chosen_if_none_is_ready() {
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
        selects(&[], &[]);
        selects_local(&[], &[]);
    }

    #[test]
    fn policy_local_chooses_terminating_endpoints_of_this_node() {
        selects_local(&["rs*", "rs", "rs*"], &[0, 2]);
        selects_local(&["rs", "st*"], &[1]);
        selects_local(&["rs*", "st*"], &[0]);
        selects_local(&["rs", "st", "s*", "t*"], &[]);
    }

    #[test]
    fn zone_hints_count_if_every_ready_endpoint_has_them() {
        selects(
            &["r zone=here", "r zone=there", "r zone=there,here"],
            &[0, 2],
        );
        selects(&["r zone=here", "r"], &[0, 1]);
        selects(&["r zone=there", "r zone=elsewhere"], &[0, 1]);
        // Those that are not ready have no say, and no hints bind them.
        selects(&["r zone=here", "s", "st zone=there"], &[0]);
        selects(&["st zone=here", "st zone=there"], &[0, 1]);
        selects_local(&["r* zone=there", "r zone=here"], &[0]);
    }

    #[test]
    fn hints_for_this_node_come_before_those_for_its_zone() {
        selects(&["r node=me zone=there", "r node=you zone=here"], &[0]);
        selects(&["r node=you zone=there", "r node=you zone=here"], &[1]);
        selects(
            &["r node=me zone=here", "r zone=here", "r zone=there"],
            &[0, 1],
        );
    }

    #[test]
    fn suspects_are_left_out_while_others_are_eligible() {
        selects(&["rs", "rs?", "rs"], &[0, 2]);
        selects(&["rs?", "rs"], &[1]);
        // Who is not selected is no alternative.
        selects(&["rs?"], &[0]);
        selects(&["rs?", "rs?"], &[0, 1]);
        selects(&["rs?", "", "s"], &[0]);
        selects(&["rs?", "st"], &[0]);
        selects(&["r? zone=here", "r zone=there"], &[0]);
        selects(&["st?", "st"], &[1]);
    }

    #[test]
    fn at_most_half_is_left_out_and_the_first_are() {
        selects(&["rs?", "rs", "rs?"], &[1, 2]);
        selects(&["rs?", "rs?", "rs", "rs?"], &[2, 3]);
        selects(&["rs?", "rs?", "rs", "rs?", "rs?"], &[2, 3, 4]);
        selects(&["rs?", "rs?", "rs", "rs"], &[2, 3]);
    }

    #[test]
    fn endpoints_of_this_node_are_never_left_out() {
        selects(&["rs*?", "rs"], &[0, 1]);
        selects_local(&["rs*?", "rs*", "rs"], &[0, 1]);
    }

    #[test]
    fn flows_to_endpoints_that_are_left_out_are_not_kept() {
        let serving = |candidates: &[&str], expected: &[usize]| {
            parsed(candidates, |candidates, facts| {
                assert_eq!(indices(&select(candidates, facts).serving), expected);
            });
        };
        serving(&["rs?", "rs", "s"], &[1, 2]);
        serving(&["rs?", "rs?", "rs"], &[1, 2]);
        // It takes no new connections as it is, and may come to its end.
        serving(&["st?", "rs"], &[0, 1]);
        serving(&["rs?"], &[0]);
    }

    #[test]
    fn a_node_without_zone_follows_no_zone() {
        parsed(&["r zone=here", "r zone="], |candidates, facts| {
            let facts = NodeFacts {
                zone: None,
                ..facts.clone()
            };
            assert_eq!(indices(&select(candidates, &facts).cluster), [0, 1]);
        });
    }
}
