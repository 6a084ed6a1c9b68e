//! Which tracked flows end with a change: those that the rules would no longer make, and that would not end by
//! themselves in time.
//!
//! A change of a frontend leads to a [`FlowCheck`] (or to none: most changes cannot have left a stale flow behind), and
//! checks gather in [`FlowChecks`], which says what to look for in the kernel and judges what was found. To look is
//! left to the caller, off the way of commits and after them: an entry deleted before the rules are in would be made
//! again by the old ones.
//!
//! The rule, for a flow sent to a frontend:
//! * UDP and SCTP: it goes unless its endpoint still serves (kube-proxy's reconciler, which leaves SCTP alone), also
//!   when it was never translated: it began before the frontend was there.
//! * TCP: it goes only if nobody has answered yet, so that the next retransmission of its SYN finds the rules as they
//!   are; established connections live on to end by themselves. On request they go too when their endpoint does not
//!   serve any more: the next packet then meets a host without such a connection, which resets it.
//! * A frontend that is no more: the same for flows that were translated; others are none of our business.
//!
//! Invariant: a check says what is right, not what has changed. It can be repeated, a later one for the same frontend
//! replaces an earlier one, and one too many only costs time.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use nft::{Family, Flow, FlowFilter, Protocol};
use service_model::{Backend, Frontend, Place};

use crate::ledger::Claim;

/// So many frontends are looked for one by one; more of a kind by one walk over all flows of that kind.
const ONE_BY_ONE: usize = 4;

/// Which flows to one frontend go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowCheck {
    /// The frontend.
    pub claim: Claim,
    /// The endpoints that serve, sorted by address and port; `None` when there is no such frontend any more.
    pub serving: Option<Arc<[Backend]>>,
    /// Established TCP connections to others are reset.
    pub reset: bool,
}

impl FlowCheck {
    /// The check that a change calls for. `reset` is the wish of a Service that has or had the frontend.
    pub(crate) fn of_change(
        claim: Claim,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
        reset: bool,
    ) -> Option<FlowCheck> {
        if let (Some(old), Some(new)) = (old, new)
            && all_serve(&old.serving, &new.serving)
        {
            return None;
        }
        (old.is_some() || new.is_some()).then(|| FlowCheck {
            claim,
            serving: new.map(|new| new.serving.clone()),
            reset,
        })
    }

    fn condemns(&self, flow: &Flow) -> bool {
        let serves = match &self.serving {
            Some(serving) => serves(serving, flow.answers_from),
            None => !flow.is_translated(),
        };
        let ends = match flow.protocol {
            Protocol::Tcp => !flow.answered || (self.reset && flow.is_translated()),
            Protocol::Udp | Protocol::Sctp => true,
        };
        !serves && ends
    }
}

fn all_serve(old: &Arc<[Backend]>, new: &Arc<[Backend]>) -> bool {
    let serves = |b: &Backend| serves(new, SocketAddr::new(b.address, b.port));
    Arc::ptr_eq(old, new) || old.iter().all(serves)
}

fn serves(serving: &[Backend], endpoint: SocketAddr) -> bool {
    let wanted = (endpoint.ip(), endpoint.port());
    serving
        .binary_search_by_key(&wanted, |b| (b.address, b.port))
        .is_ok()
}

/// Checks that wait to be made.
#[derive(Clone, Debug, Default)]
pub struct FlowChecks {
    checks: BTreeMap<Claim, FlowCheck>,
    node_addresses: Arc<[IpAddr]>,
}

impl FlowChecks {
    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Number of frontends to look for.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Adds the checks of one commit, together with the addresses that serve node ports since then (sorted).
    pub fn add(&mut self, checks: Vec<FlowCheck>, node_addresses: Arc<[IpAddr]>) {
        self.node_addresses = node_addresses;
        let keyed = checks.into_iter().map(|check| (check.claim, check));
        self.checks.extend(keyed);
    }

    /// Filters that together let through every flow that any of the checks is about. Few frontends are found by
    /// address and port; the flows of many by protocol, and TCP's unanswered ones are few however many there are.
    pub fn filters(&self) -> Vec<FlowFilter> {
        let mut kinds: BTreeMap<(Family, u8, bool), Vec<FlowFilter>> = BTreeMap::new();
        for check in self.checks.values() {
            let place = check.claim.place;
            let filter = FlowFilter {
                family: place.family(),
                protocol: check.claim.protocol,
                destination: place.address(),
                port: Some(check.claim.port),
                unanswered: check.claim.protocol == Protocol::Tcp && !check.reset,
            };
            let kind = (filter.family, filter.protocol as u8, filter.unanswered);
            kinds.entry(kind).or_default().push(filter);
        }
        let few_or_all = |filters: Vec<FlowFilter>| match filters.as_slice() {
            [first, ..] if filters.len() > ONE_BY_ONE => vec![FlowFilter {
                destination: None,
                port: None,
                ..*first
            }],
            _ => filters,
        };
        kinds.into_values().flat_map(few_or_all).collect()
    }

    /// Whether the flow has to go.
    pub fn condemn(&self, flow: &Flow) -> bool {
        let address = flow.destination.ip();
        let on_node = address.is_loopback() || self.node_addresses.binary_search(&address).is_ok();
        let places = [
            Some(Place::ClusterIp(address)),
            Some(Place::External(address)),
            on_node.then(|| Place::NodePort(Family::of(address))),
        ];
        let check = |place| {
            let port = flow.destination.port();
            let claim = Claim {
                place,
                protocol: flow.protocol,
                port,
            };
            self.checks.get(&claim)
        };
        // The first that is there has the packets as well.
        places
            .into_iter()
            .flatten()
            .find_map(check)
            .is_some_and(|check| check.condemns(flow))
    }
}
