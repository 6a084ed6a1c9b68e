//! The change of one Service's intent: what differs, in one pass over both lists of frontends.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use service_model::{Frontend, FrontendAddress, ServiceIntent};

use super::seniority;
use crate::claim::side_by_side;

/// See the module.
pub(super) struct IntentChange<'a> {
    old: &'a [Frontend],
    new: &'a [Frontend],
    /// The Service ranks among the claimants of its frontends as before.
    pub(super) is_same_claimant: bool,
}

impl<'a> IntentChange<'a> {
    pub(super) fn new(
        old: Option<&'a Arc<ServiceIntent>>,
        new: Option<&'a Arc<ServiceIntent>>,
    ) -> Self {
        let frontends = |intent: Option<&'a Arc<ServiceIntent>>| {
            intent.map_or(&[][..], |intent| &*intent.frontends)
        };
        let rank = |intent: &'a Arc<ServiceIntent>| (seniority(intent), &intent.load_balancer_ips);
        IntentChange {
            old: frontends(old),
            new: frontends(new),
            is_same_claimant: old.map(rank) == new.map(rank),
        }
    }

    /// The frontends before and after, those of one claim together.
    pub(super) fn frontends(
        &self,
    ) -> impl Iterator<Item = (Option<&'a Frontend>, Option<&'a Frontend>)> {
        side_by_side(self.old, self.new)
    }

    /// Whether the ledger has the same entries for a frontend before and after: claim, address and affinity group.
    pub(super) fn has_same_registration(
        &self,
        old: Option<&Frontend>,
        new: Option<&Frontend>,
    ) -> bool {
        let (Some(old), Some(new)) = (old, new) else {
            return false;
        };
        let group = |frontend: &Frontend| frontend.affinity.map(|affinity| affinity.group);
        self.is_same_claimant && group(old) == group(new)
    }

    /// The cluster IPs that the Service gains or loses, or all of them if it ranks otherwise than before.
    pub(super) fn cluster_ips(&self) -> BTreeSet<IpAddr> {
        let of = |frontends: &[Frontend]| -> BTreeSet<IpAddr> {
            let addresses = frontends.iter().map(|frontend| frontend.address);
            let cluster_ip = |address| match address {
                FrontendAddress::ClusterIp(at) => Some(at),
                FrontendAddress::External(_) | FrontendAddress::NodePort(_) => None,
            };
            addresses.filter_map(cluster_ip).collect()
        };
        let (old, new) = (of(self.old), of(self.new));
        match self.is_same_claimant {
            true => old.symmetric_difference(&new).copied().collect(),
            false => old.union(&new).copied().collect(),
        }
    }
}
