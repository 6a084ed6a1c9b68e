//! The reasons of [`crate::select`]: why each endpoint of a Service takes new connections on this node, or does not.
//!
//! Invariant: an endpoint is [`Choice::Chosen`] exactly if the selection has it, since the selection is asked.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::endpoints;
use crate::facts::NodeFacts;
use crate::intent::Backend;
use crate::objects::{Conditions, EndpointSlice, Family, Hints, Service, ServicePort};
use crate::select::{Candidate, MAX_USED, select, select_all};
use crate::suspects::Suspects;

/// The endpoints of one Service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortChoices {
    /// The port.
    pub port: ServicePort,
    /// The family.
    pub family: Family,
    /// All endpoints, sorted by address and port.
    pub endpoints: Vec<EndpointChoice>,
}

/// One endpoint and its part in new connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointChoice {
    /// Address and port, and whether it is on this node.
    pub backend: Backend,
    /// The node it runs on, if its slice names one.
    pub node: Option<Arc<str>>,
    /// Its conditions.
    pub conditions: Conditions,
    /// Zones and nodes whose clients should use it.
    pub hints: Hints,
    /// Under traffic policy `Cluster`.
    pub cluster: Choice,
    /// Under traffic policy `Local`.
    pub local: Choice,
}

/// Whether an endpoint takes new connections. `Display` is the reason in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It does.
    Chosen,
    /// It is not ready, and does not serve while it terminates.
    NotReady,
    /// It serves while it terminates, which counts only where no endpoint is ready.
    OthersAreReady,
    /// Its hints name other zones or nodes, and all endpoints have hints.
    HintedElsewhere,
    /// Its node is a suspect, and others are eligible.
    Suspect,
    /// The node uses [`MAX_USED`] others.
    OthersAreUsed,
    /// It is on another node, under policy `Local`.
    OnOtherNode,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Chosen => "used",
            Choice::NotReady => "not ready",
            Choice::OthersAreReady => "terminating, and other endpoints are ready",
            Choice::HintedElsewhere => "its hints name other zones or nodes",
            Choice::Suspect => "it or its node does not answer, and other endpoints are eligible",
            Choice::OthersAreUsed => {
                return write!(
                    f,
                    "this node uses {MAX_USED} others, and other nodes may use it"
                );
            }
            Choice::OnOtherNode => "on another node, and the policy is Local",
        })
    }
}

/// Explains all ports of a Service, in the families that it has a cluster IP of. `slices` are the Service's, sorted by
/// name.
pub fn explain(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
    suspects: &Suspects,
) -> Vec<PortChoices> {
    let families = Family::ALL.into_iter().filter(|family| {
        let mut cluster_ips = service.cluster_ips.iter();
        cluster_ips.any(|address| Family::of(*address) == *family)
    });
    let explained = families.flat_map(|family| {
        let joined = endpoints::Joined::new(slices, family);
        let ports = service.ports.iter().map(move |port| {
            let candidates = endpoints::candidates(service, port, &joined, facts, suspects);
            PortChoices {
                port: port.clone(),
                family,
                endpoints: choices(&candidates, facts),
            }
        });
        ports.collect::<Vec<_>>()
    });
    explained.collect()
}

fn choices(candidates: &[Candidate<'_>], facts: &NodeFacts) -> Vec<EndpointChoice> {
    let selection = select(candidates, facts);
    let eligible = select_all(candidates, facts);
    let mut unsuspected = candidates.to_vec();
    for candidate in &mut unsuspected {
        candidate.suspect = false;
    }
    let without_suspects = select_all(&unsuspected, facts).cluster;
    let choice = |candidate: &Candidate<'_>, chosen: &[Backend], eligible: &[Backend]| {
        let Conditions {
            ready,
            serving,
            terminating,
        } = candidate.conditions;
        match (ready, serving && terminating) {
            _ if chosen.binary_search(&candidate.backend).is_ok() => Choice::Chosen,
            _ if eligible.binary_search(&candidate.backend).is_ok() => Choice::OthersAreUsed,
            (true, _) => Choice::HintedElsewhere,
            (false, true) => Choice::OthersAreReady,
            (false, false) => Choice::NotReady,
        }
    };
    let explained = candidates.iter().map(|candidate| EndpointChoice {
        backend: candidate.backend,
        node: candidate.node.cloned(),
        conditions: candidate.conditions,
        hints: candidate.hints.cloned().unwrap_or_default(),
        cluster: match choice(candidate, &selection.cluster, &eligible.cluster) {
            used @ (Choice::Chosen | Choice::OthersAreUsed) => used,
            _ if without_suspects.binary_search(&candidate.backend).is_ok() => Choice::Suspect,
            other => other,
        },
        local: match candidate.backend.local {
            true => choice(candidate, &selection.local, &eligible.local),
            false => Choice::OnOtherNode,
        },
    });
    explained.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choices_of(candidates: &[(&str, Option<&Hints>)]) -> Vec<(Choice, Choice)> {
        let mut facts = crate::samples::facts();
        facts.node_name = "me".into();
        let candidates: Vec<Candidate<'_>> = (1..)
            .zip(candidates)
            .map(|(last, (letters, hints))| Candidate {
                backend: Backend {
                    address: [10, 0, 0, last].into(),
                    port: 80,
                    local: letters.contains('*'),
                },
                conditions: Conditions {
                    ready: letters.contains('r'),
                    serving: letters.contains('s'),
                    terminating: letters.contains('t'),
                },
                hints: *hints,
                node: None,
                suspect: letters.contains('?'),
            })
            .collect();
        let choices = choices(&candidates, &facts);
        choices.iter().map(|c| (c.cluster, c.local)).collect()
    }

    #[test]
    fn suspects_are_named_only_where_others_are_eligible() {
        let choices = choices_of(&[("rs?", None), ("rs", None), ("s?", None)]);
        let expected = [Choice::Suspect, Choice::Chosen, Choice::NotReady];
        assert_eq!(choices.iter().map(|c| c.0).collect::<Vec<_>>(), expected);
        let alone = choices_of(&[("rs?", None)]);
        assert_eq!(alone[0].0, Choice::Chosen);
    }

    #[test]
    fn each_endpoint_that_is_not_used_has_its_reason() {
        use Choice::{Chosen, HintedElsewhere, NotReady, OnOtherNode, OthersAreReady};
        let found = choices_of(&[("rs*", None), ("s*", None), ("st*", None), ("rs", None)]);
        assert_eq!(
            found,
            [
                (Chosen, Chosen),
                (NotReady, NotReady),
                (OthersAreReady, OthersAreReady),
                (Chosen, OnOtherNode),
            ]
        );
        let hints = |node: &str| Hints {
            nodes: [node.into()].into_iter().collect(),
            ..Hints::default()
        };
        let (me, you) = (hints("me"), hints("you"));
        let found = choices_of(&[("rs*", Some(&you)), ("rs", Some(&me))]);
        assert_eq!(found, [(HintedElsewhere, Chosen), (Chosen, OnOtherNode)]);
        assert_eq!(choices_of(&[("st", None)]), [(Chosen, OnOtherNode)]);
    }

    #[test]
    fn endpoints_that_other_nodes_use_are_named_as_such() {
        let facts = crate::samples::facts();
        let candidate = |n: u32| Candidate {
            backend: Backend {
                address: std::net::Ipv4Addr::from_bits(0x0a00_0000 + n).into(),
                port: 80,
                local: false,
            },
            conditions: Conditions {
                ready: n > 0,
                serving: true,
                terminating: false,
            },
            hints: None,
            node: None,
            suspect: false,
        };
        let candidates: Vec<Candidate<'_>> = (0..5_000).map(candidate).collect();
        let choices = choices(&candidates, &facts);
        let count = |choice| choices.iter().filter(|c| c.cluster == choice).count();
        assert_eq!(count(Choice::Chosen), MAX_USED);
        assert_eq!(count(Choice::NotReady), 1);
        assert_eq!(count(Choice::OthersAreUsed), 4_999 - MAX_USED);
    }
}
