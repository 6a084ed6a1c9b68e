//! Which conntrack entries are stale after a change: those that the new rules would not make, and that would not time
//! out soon.
//!
//! A change of a frontend, or of the addresses that serve node ports, makes [`FlowCheck`]s. A change that cannot leave
//! a stale entry behind only updates a pending check, which would otherwise delete flows to endpoints that were added since.
//! [`FlowChecks`] collects checks, says which entries to look for in the kernel and judges those that were found. The caller
//! looks for them after the commit, on another thread: the old rules would make an entry again that is deleted before.
//!
//! The rule, for an entry of a flow to a frontend:
//! * UDP and SCTP: delete it unless its endpoint still serves and its source may use the frontend (kube-proxy's
//!   reconciler, which skips SCTP). This includes flows that were never translated, since they began before the frontend
//!   existed. Every change of endpoints leads to a check, also one that only adds some: it heals whatever is wrong.
//! * TCP: delete it only while the connection is unanswered, so that the next retransmission of its SYN meets the new
//!   rules; established connections are kept until they end. If the Service requests it, those to an endpoint that no
//!   longer serves are deleted too: the next packet then reaches a host without such a connection, which resets it.
//! * A frontend that no longer exists: the same for translated flows; others are left alone.
//!
//! Invariant: a check states what is right, not what has changed. It can be repeated, a later check of the same frontend
//! replaces an earlier one (but a pending request for resets stays), and a superfluous check is safe.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use netfilter::{Flow, FlowFilter};
use nft::{Family, Protocol};
use service_model::{Backend, Frontend, FrontendAddress};

use crate::claim::Claim;

/// Up to this many frontends of a kind are looked for one by one, which returns few entries; more by one walk over all entries
/// of that kind. Unanswered TCP connections are always few: walks are what they cost.
const ONE_BY_ONE: usize = 4;

/// Which conntrack entries of flows to one frontend are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowCheck {
    /// The frontend.
    pub claim: Claim,
    /// The endpoints that serve, sorted by address and port; `None` when the frontend no longer exists.
    pub serving: Option<Arc<[Backend]>>,
    /// The clients that may use the frontend, sorted and disjoint; `None` is everyone.
    pub allowed_sources: Option<Arc<[IpNet]>>,
    /// Established TCP connections to others are reset.
    pub reset: bool,
    /// The change left no stale entry behind: the check is needed only to replace one that is pending.
    pub only_if_pending: bool,
}

impl FlowCheck {
    /// The check that a change of a frontend needs. `reset`: a Service that has or had the frontend requests resets.
    pub(crate) fn of_change(
        claim: Claim,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
        reset: bool,
    ) -> Option<FlowCheck> {
        let only_if_pending = match (old, new) {
            (None, None) => return None,
            (Some(old), Some(new)) if allow_the_same_flows(old, new) => return None,
            (Some(old), Some(new)) => keeps_flows(old, new),
            _ => false,
        };
        Some(FlowCheck {
            reset,
            only_if_pending,
            ..FlowCheck::of(claim, new)
        })
    }

    /// Whether the check is about unanswered TCP connections only, or only replaces a pending one. Clients send a SYN again
    /// after 1, 3, 7 and 15 s, so the check may wait, unless an endpoint was removed because its node is down: then many
    /// connections are unanswered.
    pub fn is_patient(&self) -> bool {
        self.only_if_pending || (self.claim.protocol == Protocol::Tcp && !self.reset)
    }

    /// The check of a frontend as it is now, without resets.
    pub(crate) fn of(claim: Claim, frontend: Option<&Frontend>) -> FlowCheck {
        FlowCheck {
            claim,
            serving: frontend.map(|frontend| frontend.serving.clone()),
            allowed_sources: frontend.and_then(|frontend| frontend.allowed_sources.clone()),
            reset: false,
            only_if_pending: false,
        }
    }

    fn deletes(&self, flow: &Flow) -> bool {
        let serves = match &self.serving {
            Some(serving) => serves(serving, flow.answers_from),
            None => !flow.is_translated(),
        };
        let fits = serves && self.allows(flow.source.ip());
        let ends = match flow.protocol {
            Protocol::Tcp => !flow.answered || (self.reset && !serves && flow.is_translated()),
            Protocol::Udp | Protocol::Sctp => true,
        };
        !fits && ends
    }

    fn allows(&self, source: IpAddr) -> bool {
        self.allowed_sources.as_ref().is_none_or(|ranges| {
            let after = ranges.partition_point(|range| range.network() <= source);
            let last = after.checked_sub(1).and_then(|at| ranges.get(at));
            last.is_some_and(|range| range.contains(&source))
        })
    }
}

/// Whether checks of the two frontends judge every flow alike.
fn allow_the_same_flows(old: &Frontend, new: &Frontend) -> bool {
    old.serving == new.serving && old.allowed_sources == new.allowed_sources
}

/// Whether no flow that the old frontend made can be stale under the new one.
fn keeps_flows(old: &Frontend, new: &Frontend) -> bool {
    let narrows = new.allowed_sources.is_some() && new.allowed_sources != old.allowed_sources;
    let keeps = match new.protocol {
        Protocol::Tcp => all_serve(&old.serving, &new.serving),
        // Their packets keep a wrong entry alive, and its client never begins anew.
        Protocol::Udp | Protocol::Sctp => old.serving == new.serving,
    };
    keeps && !narrows
}

/// One walk through both: they are sorted, and may have 65,536 endpoints.
fn all_serve(old: &Arc<[Backend]>, new: &Arc<[Backend]>) -> bool {
    let mut rest = new.iter();
    let is_same = |a: &Backend, b: &Backend| (a.address, a.port) == (b.address, b.port);
    Arc::ptr_eq(old, new) || old.iter().all(|old| rest.any(|new| is_same(old, new)))
}

fn serves(serving: &[Backend], endpoint: SocketAddr) -> bool {
    let wanted = (endpoint.ip(), endpoint.port());
    serving
        .binary_search_by_key(&wanted, |b| (b.address, b.port))
        .is_ok()
}

/// Pending checks.
#[derive(Clone, Debug, Default)]
pub struct FlowChecks {
    checks: BTreeMap<Claim, FlowCheck>,
    node_addresses: Arc<[IpAddr]>,
}

impl FlowChecks {
    /// Whether no check is pending.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty()
    }

    /// Number of frontends to check.
    pub fn len(&self) -> usize {
        self.checks.len()
    }

    /// Whether all checks may wait, see [`FlowCheck::is_patient`].
    pub fn is_patient(&self) -> bool {
        self.checks.values().all(FlowCheck::is_patient)
    }

    /// Adds the checks of one commit, together with the addresses that serve node ports since then (sorted). A check replaces
    /// the pending one of its frontend, whose connections are still reset if either check says so.
    pub fn add(&mut self, checks: Vec<FlowCheck>, node_addresses: Arc<[IpAddr]>) {
        self.node_addresses = node_addresses;
        for mut check in checks {
            if let Some(pending) = self.checks.get(&check.claim) {
                check.reset |= pending.reset;
                check.only_if_pending = false;
            }
            if !check.only_if_pending {
                self.checks.insert(check.claim, check);
            }
        }
    }

    /// Filters that together match every entry that a check is about. Few frontends are looked for by address and port,
    /// many by protocol; unanswered TCP connections are always few.
    pub fn filters(&self) -> Vec<FlowFilter> {
        let mut kinds: BTreeMap<(Family, u8, bool), Vec<FlowFilter>> = BTreeMap::new();
        for check in self.checks.values() {
            let address = check.claim.address;
            let filter = FlowFilter {
                family: address.family(),
                protocol: check.claim.protocol,
                destination: address.ip(),
                port: Some(check.claim.port),
                unanswered: check.is_patient(),
            };
            let kind = (filter.family, filter.protocol as u8, filter.unanswered);
            kinds.entry(kind).or_default().push(filter);
        }
        let few_or_all = |filters: Vec<FlowFilter>| match filters.as_slice() {
            [first, _, ..] if first.unanswered || filters.len() > ONE_BY_ONE => vec![FlowFilter {
                destination: None,
                port: None,
                ..*first
            }],
            _ => filters,
        };
        kinds.into_values().flat_map(few_or_all).collect()
    }

    /// Whether the entry of this flow is stale.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let ip = flow.destination.ip();
        let on_node = ip.is_loopback() || self.node_addresses.binary_search(&ip).is_ok();
        let addresses = [
            Some(FrontendAddress::ClusterIp(ip)),
            Some(FrontendAddress::External(ip)),
            on_node.then(|| FrontendAddress::NodePort(Family::of(ip))),
        ];
        let check = |address| {
            let port = flow.destination.port();
            let claim = Claim {
                address,
                protocol: flow.protocol,
                port,
            };
            self.checks.get(&claim)
        };
        // The same order as in the rules: the first address with a frontend gets the packets.
        addresses
            .into_iter()
            .flatten()
            .find_map(check)
            .is_some_and(|check| check.deletes(flow))
    }
}
