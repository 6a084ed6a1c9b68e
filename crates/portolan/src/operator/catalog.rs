//! The objects and commits that commands ask about, built from notices of the control loop ([`super::notices`]). Objects are
//! shared with the control loop. Each request plans again, by the same pure functions as the control loop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use object_source::{SourceEvent, Subject};
use service_dataplane::Conflict;
use service_dataplane::predict::Frontends;
use service_model::{
    Identity, Index, NodeFacts, ObjectEvent, ObjectKind, ObjectName, Plan, PortChoices, Service,
    ServiceIntent, Watched,
};

use super::documents::Latency;
use super::notices::{Committed, Notice};
use crate::status::Quarantined;

/// Durations that are kept.
const DURATIONS: usize = 1_000;
/// Problems of one object that are kept.
const OF_OBJECT: usize = 8;

/// The catalog.
#[derive(Debug, Default)]
pub(super) struct Catalog {
    index: Index,
    facts: Option<Arc<NodeFacts>>,
    /// Objects and files with a problem that the source reported.
    problems: BTreeMap<Subject, Vec<String>>,
    /// Fields that planning ignores, by Service. Updated only when a request asks for them.
    ignored: BTreeMap<ObjectName, Vec<String>>,
    ignored_by: Option<Arc<NodeFacts>>,
    /// Services that have changed since `ignored` was brought up to date.
    unplanned: BTreeSet<ObjectName>,
    outages: BTreeMap<ObjectKind, String>,
    quarantined: Arc<BTreeMap<ObjectName, Quarantined>>,
    /// Counts changes of what plans depend on.
    version: u64,
    conflicts: Option<(u64, Vec<Conflict>)>,
    last_event: Option<SystemTime>,
    commits: Commits,
}

/// Commits so far.
#[derive(Debug, Default)]
pub(super) struct Commits {
    pub(super) count: u64,
    pub(super) failed: u64,
    pub(super) last: Option<SystemTime>,
    pub(super) repairs: u64,
    pub(super) last_repair: Option<SystemTime>,
    durations: VecDeque<Duration>,
    programming: VecDeque<Duration>,
}

impl Catalog {
    /// Applies one notice.
    pub(super) fn apply(&mut self, notice: Notice) {
        if matches!(
            notice,
            Notice::Event(..) | Notice::Suspects(_) | Notice::Listeners(_) | Notice::Facts(_)
        ) {
            self.version += 1;
        }
        match notice {
            Notice::Event(event, at) => {
                self.last_event = Some(at);
                self.event(event);
                self.unplanned.extend(self.index.take_dirty());
                // The control loop's own index is for metrics.
                self.index.take_triggers();
            }
            Notice::Suspects(suspects) => {
                self.index.set_suspects(suspects);
                self.unplanned.extend(self.index.take_dirty());
            }
            Notice::Listeners(listeners) => {
                self.index.set_listeners(listeners);
                self.unplanned.extend(self.index.take_dirty());
            }
            Notice::Facts(facts) => self.facts = Some(facts),
            Notice::Committed(commit) => self.commits.add(&commit),
            Notice::Failed => self.commits.failed += 1,
        }
    }

    /// Replaces the quarantined Services.
    pub(super) fn set_quarantined(&mut self, services: Arc<BTreeMap<ObjectName, Quarantined>>) {
        if !Arc::ptr_eq(&self.quarantined, &services) {
            self.quarantined = services;
            self.version += 1;
        }
    }

    fn event(&mut self, event: SourceEvent) {
        match event {
            SourceEvent::Service(event) => {
                self.renew(&event);
                self.index.service_event(event);
            }
            SourceEvent::EndpointSlice(event) => {
                self.renew(&event);
                self.index.slice_event(event);
            }
            SourceEvent::Node(event) => {
                self.renew(&event);
                self.index.node_event(&event);
            }
            SourceEvent::ServiceCidr(event) => self.renew(&event),
            SourceEvent::Problem(problem) => {
                let known = self.problems.entry(problem.subject()).or_default();
                if problem.is_whole() {
                    known.clear();
                }
                let text = problem.to_string();
                if known.len() < OF_OBJECT && !known.contains(&text) {
                    known.push(text);
                }
            }
            SourceEvent::Solved(subject) => {
                self.problems.remove(&subject);
            }
            SourceEvent::Connection { kind, state } => match state {
                Ok(()) => {
                    self.outages.remove(&kind);
                }
                Err(outage) => {
                    self.outages.insert(kind, outage.to_string());
                }
            },
        }
    }

    /// Drops the problems of objects that were received again or deleted.
    fn renew<T: Watched>(&mut self, event: &ObjectEvent<T>) {
        let kind = T::KIND;
        match event {
            ObjectEvent::Apply(object) => {
                let subject = Subject::Object(kind, object.name().clone());
                self.problems.remove(&subject);
            }
            ObjectEvent::Delete(name) => {
                self.problems.remove(&Subject::Object(kind, name.clone()));
            }
            ObjectEvent::Reset { invalid, .. } => {
                let invalid: BTreeSet<&ObjectName> = invalid.iter().collect();
                self.problems.retain(|subject, _| match subject {
                    Subject::Object(of, name) => *of != kind || invalid.contains(name),
                    Subject::File(_) => true,
                });
            }
        }
    }

    /// The facts in force; `None` before the first commit.
    pub(super) fn facts(&self) -> Option<&Arc<NodeFacts>> {
        self.facts.as_ref()
    }

    /// Statistics of commits since the start.
    pub(super) fn commits(&self) -> &Commits {
        &self.commits
    }

    /// When the last object was received.
    pub(super) fn last_event(&self) -> Option<SystemTime> {
        self.last_event
    }

    /// Kinds that are not being watched, and why.
    pub(super) fn outages(&self) -> &BTreeMap<ObjectKind, String> {
        &self.outages
    }

    /// Services that the kernel refused at their last change, or that are over their budget.
    pub(super) fn quarantined(&self) -> &BTreeMap<ObjectName, Quarantined> {
        &self.quarantined
    }

    /// Number of Services and of endpoints.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.index.service_count(), self.index.endpoint_count())
    }

    /// All Services, in the order of their names.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let names = self.index.service_names();
        names.filter_map(|name| self.index.service(name))
    }

    /// A Service.
    pub(super) fn service(&self, name: &ObjectName) -> Option<&Arc<Service>> {
        self.index.service(name)
    }

    /// The plan of a Service; `None` if nothing is programmed for it, or before the first commit.
    pub(super) fn plan(&self, name: &ObjectName) -> Option<Plan> {
        self.index.plan(name, self.facts.as_deref()?)
    }

    /// Why each endpoint of a Service is used or not.
    pub(super) fn explain(&self, name: &ObjectName) -> Vec<PortChoices> {
        let facts = self.facts.as_deref();
        let explained = facts.and_then(|facts| self.index.explain(name, facts));
        explained.unwrap_or_default()
    }

    /// Pods and zones of a Service's endpoints, by address.
    pub(super) fn identities(&self, name: &ObjectName) -> BTreeMap<IpAddr, Identity> {
        self.index.identities(name)
    }

    /// The pods of these addresses.
    pub(super) fn pods(&self, addresses: &BTreeSet<IpAddr>) -> BTreeMap<IpAddr, ObjectName> {
        self.index.pods(addresses)
    }

    /// Addresses of a pod that is an endpoint of a Service.
    pub(super) fn addresses_of_pod(&self, pod: &ObjectName) -> BTreeSet<IpAddr> {
        self.index.addresses_of_pod(pod)
    }

    /// What the tables should have: the plans of the Services that `concerns` selects, and the last good rules of all
    /// quarantined ones.
    pub(super) fn intents(
        &self,
        concerns: impl Fn(&Service) -> bool,
    ) -> impl Iterator<Item = Arc<ServiceIntent>> {
        let services = self.services().filter(move |service| {
            concerns(service) && !self.quarantined.contains_key(&service.name)
        });
        let plans = services.filter_map(|service| self.plan(&service.name));
        let last_good = self.quarantined.values();
        let last_good = last_good.filter_map(|quarantined| quarantined.last_good.clone());
        plans.map(|plan| Arc::new(plan.intent)).chain(last_good)
    }

    /// Resolves conflicts between the Services that `concerns` selects.
    pub(super) fn frontends(&self, concerns: impl Fn(&Service) -> bool) -> Frontends {
        Frontends::of(self.intents(concerns))
    }

    /// Frontends that two Services request.
    pub(super) fn conflicts(&mut self) -> &[Conflict] {
        if self
            .conflicts
            .as_ref()
            .is_none_or(|(of, _)| *of != self.version)
        {
            let conflicts = self.frontends(|_| true).conflicts();
            self.conflicts = Some((self.version, conflicts));
        }
        self.conflicts
            .as_ref()
            .map_or(&[], |(_, conflicts)| conflicts)
    }

    /// Everything that is ignored: what the source reported, and what planning ignores.
    pub(super) fn ignored(&mut self) -> Vec<String> {
        self.update_ignored();
        let reported = self.problems.values().flatten();
        reported
            .chain(self.ignored.values().flatten())
            .cloned()
            .collect()
    }

    fn update_ignored(&mut self) {
        let Some(facts) = self.facts.clone() else {
            return;
        };
        let mut names = std::mem::take(&mut self.unplanned);
        if self.ignored_by.as_ref() != Some(&facts) {
            self.ignored.clear();
            names = self.index.service_names().cloned().collect();
        }
        for name in names {
            let plan = self.index.plan(&name, &facts);
            let texts: Vec<String> = plan
                .iter()
                .flat_map(|plan| &plan.ignored)
                .map(ToString::to_string)
                .collect();
            match texts.is_empty() {
                true => self.ignored.remove(&name),
                false => self.ignored.insert(name, texts),
            };
        }
        self.ignored_by = Some(facts);
    }
}

impl Commits {
    fn add(&mut self, commit: &Committed) {
        self.count += 1;
        self.last = Some(commit.at);
        keep(&mut self.durations, commit.elapsed);
        for trigger in &commit.triggers {
            let since = commit.at.duration_since(*trigger).unwrap_or_default();
            keep(&mut self.programming, since);
        }
        if commit.repaired {
            self.repairs += 1;
            self.last_repair = Some(commit.at);
        }
    }

    /// Durations of commits.
    pub(super) fn latency(&self) -> Option<Latency> {
        quantiles(&self.durations)
    }

    /// Times from a change to its commit.
    pub(super) fn programming(&self) -> Option<Latency> {
        quantiles(&self.programming)
    }
}

fn keep(durations: &mut VecDeque<Duration>, duration: Duration) {
    if durations.len() == DURATIONS {
        durations.pop_front();
    }
    durations.push_back(duration);
}

fn quantiles(durations: &VecDeque<Duration>) -> Option<Latency> {
    let mut sorted: Vec<Duration> = durations.iter().copied().collect();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    let at = |index: usize| sorted.get(index).copied().unwrap_or_default().as_secs_f64();
    Some(Latency {
        median_seconds: at(last / 2),
        p99_seconds: at(last * 99 / 100),
        longest_seconds: at(last),
    })
}

#[cfg(test)]
mod tests {
    use object_source::Problem;
    use service_model::{FrontendAddress, Invalid, Node, NodeConfig, Protocol, ServicePort};

    use super::*;

    fn event(event: SourceEvent) -> Notice {
        Notice::Event(event, SystemTime::now())
    }

    #[test]
    fn a_problem_is_listed_until_its_object_comes_anew() {
        let name = ObjectName::new("shop", "web");
        let problem = Problem::Object {
            at: None,
            invalid: Invalid {
                kind: ObjectKind::Service,
                object: name.clone(),
                field: "spec".into(),
                reason: "bad".into(),
            },
        };
        let mut catalog = Catalog::default();
        catalog.apply(event(SourceEvent::Problem(problem.clone())));
        catalog.apply(event(SourceEvent::Problem(problem)));
        assert_eq!(catalog.ignored(), ["Service shop/web: spec: bad"]);
        let listed = |invalid: Vec<ObjectName>| {
            let objects = Vec::new();
            event(SourceEvent::Service(ObjectEvent::Reset {
                objects,
                invalid,
            }))
        };
        catalog.apply(listed(vec![name.clone()]));
        assert_eq!(catalog.ignored().len(), 1, "it is still invalid");
        let service = Arc::new(Service::named(name));
        catalog.apply(event(SourceEvent::Service(ObjectEvent::Apply(service))));
        assert_eq!(catalog.ignored(), [""; 0]);
    }

    #[test]
    fn a_quarantined_service_has_its_last_good_rules() {
        let service = |last: u8| {
            let mut service = Service::named(ObjectName::new("shop", "web"));
            service.cluster_ips = vec![IpAddr::from([10, 96, 0, last])].into();
            service.ports = vec![ServicePort {
                name: "".into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }]
            .into();
            Arc::new(service)
        };
        let apply = |catalog: &mut Catalog, last: u8| {
            let applied = ObjectEvent::Apply(service(last));
            catalog.apply(event(SourceEvent::Service(applied)));
        };
        let places = |catalog: &Catalog| -> Vec<FrontendAddress> {
            let intents = catalog.intents(|_| true);
            let frontends = intents.flat_map(|intent| intent.frontends.clone());
            frontends.map(|frontend| frontend.address).collect()
        };
        let place = |last: u8| FrontendAddress::ClusterIp([10, 96, 0, last].into());
        let (config, node) = (NodeConfig::named("n"), Node::unknown("n"));
        let facts = Arc::new(NodeFacts::resolve(&config, &node, &[], &[]));
        let mut catalog = Catalog::default();
        catalog.apply(Notice::Facts(facts));
        apply(&mut catalog, 1);
        let last_good = catalog.intents(|_| true).next();
        assert!(last_good.is_some());
        apply(&mut catalog, 2);
        assert_eq!(places(&catalog), [place(2)]);
        let reason = "EINVAL".to_owned();
        let quarantined = Quarantined { reason, last_good };
        let name = service(2).name.clone();
        catalog.set_quarantined(Arc::new([(name, quarantined)].into()));
        assert_eq!(places(&catalog), [place(1)]);
        catalog.set_quarantined(Arc::default());
        assert_eq!(places(&catalog), [place(2)]);
    }

    #[test]
    fn quantiles_are_those_of_the_last_thousand() {
        let mut commits = Commits::default();
        for millis in 0..2_000 {
            commits.add(&Committed {
                at: SystemTime::now(),
                elapsed: Duration::from_millis(millis),
                triggers: Vec::new(),
                repaired: false,
            });
        }
        let latency = commits.latency().unwrap();
        let Latency {
            median_seconds,
            p99_seconds,
            longest_seconds,
        } = latency;
        let millis = [median_seconds, p99_seconds, longest_seconds].map(|s| (s * 1e3).round());
        assert_eq!(millis, [1_499.0, 1_989.0, 1_999.0]);
        assert_eq!((commits.count, commits.programming()), (2_000, None));
    }
}
