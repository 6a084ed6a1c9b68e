//! Limits the commits of a Service that changes constantly, so that each of its changes is not a transaction of its own.
//!
//! A token bucket for each Service, kept as a debt of time: a commit adds [`COST`] to the debt, the debt falls as time
//! passes, and a Service whose debt is above [`CREDIT`] waits. So a Service has at most 20 commits a second after its
//! first ten. Other Services do not wait for that Service.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use service_model::ObjectName;

/// Debt that one commit adds.
const COST: Duration = Duration::from_millis(50);
/// Debt that makes no Service wait: ten commits in a row.
const CREDIT: Duration = Duration::from_millis(500);
/// Larger batches are lists or changes of the node, not a flapping object.
const LARGE: usize = 64;

/// The debts of Services.
#[derive(Debug, Default)]
pub(super) struct Flapping {
    /// When the debt of each Service is zero again.
    debts: HashMap<ObjectName, Instant>,
}

impl Flapping {
    /// When this Service may be committed; `None` means at once.
    pub(super) fn due(&self, service: &ObjectName, now: Instant) -> Option<Instant> {
        let due = self.debts.get(service)?.checked_sub(CREDIT)?;
        (due > now).then_some(due)
    }

    /// When the first of these Services may be committed; `None` means at once, or that there are none.
    pub(super) fn first_due(
        &self,
        services: &BTreeSet<ObjectName>,
        now: Instant,
    ) -> Option<Instant> {
        if services.len() > self.debts.len() {
            return None;
        }
        let due = services.iter().map(|service| self.due(service, now));
        due.collect::<Option<Vec<Instant>>>()?.into_iter().min()
    }

    /// Adds the debt of a commit of these Services.
    pub(super) fn committed<'a>(
        &mut self,
        services: impl ExactSizeIterator<Item = &'a ObjectName>,
        now: Instant,
    ) {
        self.debts.retain(|_, paid| *paid > now);
        if services.len() <= LARGE {
            self.charge(services, now);
        }
    }

    /// Adds the debt of these Services, however many they are.
    pub(super) fn charge<'a>(
        &mut self,
        services: impl Iterator<Item = &'a ObjectName>,
        now: Instant,
    ) {
        for service in services {
            let paid = self.debts.entry(service.clone()).or_insert(now);
            *paid += COST;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flapping_service_has_20_commits_a_second() {
        let (mut flapping, start) = (Flapping::default(), Instant::now());
        let (web, other) = (
            ObjectName::new("default", "web"),
            ObjectName::new("default", "other"),
        );
        let only = |name: &ObjectName| BTreeSet::from([name.clone()]);
        let mut commits = 0;
        for n in 0..1_000 {
            // 100 changes a second for ten seconds.
            let now = start + Duration::from_millis(10) * n;
            let is_due = flapping.due(&web, now).is_none();
            assert_eq!(flapping.first_due(&only(&web), now).is_none(), is_due);
            assert_eq!(flapping.due(&other, now), None);
            let both = BTreeSet::from([web.clone(), other.clone()]);
            assert_eq!(flapping.first_due(&both, now), None);
            if is_due {
                flapping.committed([&web].into_iter(), now);
                commits += 1;
            }
        }
        assert!((200..=211).contains(&commits), "{commits}");
        // After a pause, the next change of the Service does not wait.
        let later = start + Duration::from_secs(20);
        assert_eq!(flapping.due(&web, later), None);
        flapping.committed([&other].into_iter(), later);
        assert_eq!(flapping.debts.len(), 1);
    }
}
