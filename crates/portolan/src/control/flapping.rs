//! Holds back a Service that changes all the time, so that its changes do not become a transaction each.
//!
//! Each commit costs a Service [`COST`], which time pays back. A Service that owes more than [`CREDIT`] waits, so it has
//! at most 20 commits a second after its first ten. Other Services do not wait for it.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use service_model::ObjectName;

/// What one commit costs.
const COST: Duration = Duration::from_millis(50);
/// What a Service may owe: ten commits in a row.
const CREDIT: Duration = Duration::from_millis(500);
/// Larger batches are lists or changes of the node, not a flapping object.
const LARGE: usize = 64;

/// What Services owe.
#[derive(Debug, Default)]
pub(super) struct Flapping {
    /// When all is paid back.
    debts: HashMap<ObjectName, Instant>,
}

impl Flapping {
    /// When this Service may be committed; `None` means at once.
    pub(super) fn due(&self, service: &ObjectName, now: Instant) -> Option<Instant> {
        let due = self.debts.get(service)?.checked_sub(CREDIT)?;
        (due > now).then_some(due)
    }

    /// When the first of these may be committed; `None` means that one may at once, or that there are none.
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

    /// Notes a commit of these Services.
    pub(super) fn committed<'a>(
        &mut self,
        services: impl ExactSizeIterator<Item = &'a ObjectName>,
        now: Instant,
    ) {
        if services.len() > LARGE {
            return;
        }
        self.debts.retain(|_, paid| *paid > now);
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
        // It rests for a while, and its next change waits for nothing.
        let later = start + Duration::from_secs(20);
        assert_eq!(flapping.due(&web, later), None);
        flapping.committed([&other].into_iter(), later);
        assert_eq!(flapping.debts.len(), 1);
    }
}
