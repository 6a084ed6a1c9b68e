//! The quarantined Services as readers see them: why, and what they have in the tables meanwhile.
//!
//! Joins both causes: the kernel refused the Service ([`Dataplane::quarantine`]), or the Service is over its budget
//! ([`ClusterView::over_budget`]). The list is made again only after a commit that concerns one of them, so all other commits
//! cost nothing here.

use std::collections::BTreeMap;
use std::sync::Arc;

use nft::Backend;
use service_dataplane::{Dataplane, SyncOutcome, Update};
use service_model::{Invalid, ObjectName};

use super::view::ClusterView;
use crate::status::Quarantined;

/// The quarantined Services as of the last commit.
#[derive(Debug, Default)]
pub(super) struct Quarantine {
    services: Arc<BTreeMap<ObjectName, Quarantined>>,
    /// A batch since the last commit may have changed them.
    is_stale: bool,
}

impl Quarantine {
    /// The quarantined Services.
    pub(super) fn services(&self) -> Arc<BTreeMap<ObjectName, Quarantined>> {
        self.services.clone()
    }

    /// Records what is about to be committed, and the Services that are over their budget from now on.
    pub(super) fn planned(&mut self, updates: &[Update], over_budget: &[Invalid]) {
        let mut updates = updates.iter();
        let has_known = updates.any(|update| self.services.contains_key(&update.service));
        self.is_stale |= has_known || !over_budget.is_empty();
    }

    /// Makes the list again after a commit, if it may have changed.
    pub(super) fn committed<B: Backend>(
        &mut self,
        dataplane: &Dataplane<B>,
        view: &ClusterView,
        outcome: &SyncOutcome,
    ) {
        if !std::mem::take(&mut self.is_stale) && outcome.quarantined.is_empty() {
            return;
        }
        let refused = dataplane.quarantine().iter();
        let refused = refused.map(|(service, error)| (service, error.to_string()));
        let over_budget = view.over_budget();
        let over_budget = over_budget.map(|invalid| (&invalid.object, invalid.reason.to_string()));
        let all = refused.chain(over_budget).map(|(service, reason)| {
            let last_good = dataplane.intent(service);
            (service.clone(), Quarantined { reason, last_good })
        });
        self.services = Arc::new(all.collect());
    }
}
