//! Single endpoints that do not answer while their node does, of Services that ask for it or of all.
//!
//! The same suspicions as of nodes ([`super::suspicions`]), about TCP alone: nothing that a datagram asks has to answer.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netfilter::Attempt;
use service_model::Protocol;

use super::directory::SharedDirectory;
use super::suspicions::Suspicions;

/// Suspects at a time; selection bounds how many of one Service are skipped.
const MOST: usize = 256;
/// Endpoints that are probed at a time because of attempts.
const AT_ONCE: usize = 32;
/// Endpoints to remember, so many times as there are suspects at most.
const REMEMBERED: usize = 8 * MOST;

/// See the module.
pub(super) struct Endpoints {
    for_all: bool,
    pub(super) suspicions: Suspicions<SocketAddr>,
    /// Those that are being probed.
    probing: BTreeSet<SocketAddr>,
}

impl Endpoints {
    pub(super) fn new(for_all: bool) -> Self {
        Endpoints {
            for_all,
            suspicions: Suspicions::default(),
            probing: BTreeSet::new(),
        }
    }

    /// Whether suspects count for all Services.
    pub(super) fn are_for_all(&self) -> bool {
        self.for_all
    }

    /// Whether any Service asks for it.
    pub(super) fn are_wanted(&self, directory: &SharedDirectory) -> bool {
        self.for_all || directory.has_asking()
    }

    /// The endpoints of these attempts that are worth a probe, with their attempts.
    pub(super) fn reasons(
        &mut self,
        attempts: Vec<Attempt>,
        directory: &SharedDirectory,
        now: Instant,
    ) -> BTreeMap<SocketAddr, Vec<Attempt>> {
        let mut reasons: BTreeMap<SocketAddr, Vec<Attempt>> = BTreeMap::new();
        for attempt in attempts {
            let (endpoint, protocol) = (attempt.flow.answers_from, attempt.flow.protocol);
            let is_new =
                !self.probing.contains(&endpoint) && !self.suspicions.is_suspect(&endpoint);
            if protocol == Protocol::Tcp && is_new && self.suspicions.may_probe(&endpoint, now) {
                reasons.entry(endpoint).or_default().push(attempt);
            }
        }
        if reasons.is_empty() {
            return reasons;
        }
        let asked = directory.asked_for(&reasons.keys().copied().collect(), self.for_all);
        let room = self.suspicions.room(AT_ONCE, &self.probing);
        let reasons = reasons
            .into_iter()
            .filter(|(endpoint, _)| asked.contains(endpoint));
        reasons.take(room).collect()
    }

    /// Notes that a probe has begun.
    pub(super) fn begin(&mut self, endpoint: SocketAddr) {
        self.probing.insert(endpoint);
    }

    /// Notes that an endpoint has answered. Returns as [`Suspicions::answered`].
    pub(super) fn answered(&mut self, endpoint: SocketAddr, now: Instant) -> Option<Duration> {
        let lasted = self.suspicions.answered(&endpoint, now);
        // Endpoints come and go; those that are left alone answer again when they are asked.
        if self.suspicions.remembered() > REMEMBERED {
            self.suspicions.forget_others();
        }
        lasted
    }

    /// Notes that a probe is over.
    pub(super) fn end(&mut self, endpoint: SocketAddr) {
        self.probing.remove(&endpoint);
    }

    /// Makes an endpoint a suspect, unless there are too many.
    pub(super) fn suspect(&mut self, endpoint: SocketAddr, now: Instant) -> bool {
        self.suspicions.suspect(endpoint, 2 * MOST, now)
    }

    /// Forgets endpoints that are gone, or whose Services do not ask any longer. Returns those of them that were suspects.
    pub(super) fn forget(&mut self, directory: &SharedDirectory) -> Vec<SocketAddr> {
        let suspects: BTreeSet<SocketAddr> = self.suspicions.all().copied().collect();
        let asked = directory.asked_for(&suspects, self.for_all);
        self.suspicions
            .retain(|endpoint| asked.contains(endpoint) || !suspects.contains(endpoint))
    }

    /// The suspects that are to be probed again and are not at the moment.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<SocketAddr> {
        let due = self.suspicions.take_due(now).into_iter();
        let due = due.filter(|endpoint| self.suspicions.is_suspect(endpoint));
        due.filter(|endpoint| !self.probing.contains(endpoint))
            .collect()
    }
}
