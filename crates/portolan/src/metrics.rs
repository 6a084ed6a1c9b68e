//! The daemon's metrics, under kube-proxy's names where kube-proxy has the same metric.
//!
//! Labels are closed sets (family, kind, code): no name of a Kubernetes object is a label, so the number of series is
//! bounded (but see [`crate::counters`]). Everything here is atomic; recording never blocks.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use object_source::api::RequestOutcome;
use object_source::{Problem, SourceEvent};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use service_model::{Family as IpFamily, ObjectEvent, ObjectKind};

use crate::build_info;
use crate::observer::{Commit, Observer};

mod exposition;
mod failover;
#[cfg(test)]
mod page;
mod policies;
mod probes;
mod process;
mod rest_client;
mod slis;

pub(crate) use exposition::Format;
pub use failover::FailoverMetrics;
pub(crate) use policies::NoLocalEndpoints;
pub use probes::ProbeMetrics;
use rest_client::RestClientMetrics;
use slis::Slis;

/// Declares a group of metrics: name, type, help, and how to make it where `Default` does not do.
macro_rules! metrics {
    ($(#[$doc:meta])* $group:ident { $($name:ident: $type:ty = $help:literal $(, $make:expr)?;)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        struct $group {
            $($name: $type,)*
        }

        impl $group {
            fn register(registry: &mut Registry) -> Self {
                $(
                    let $name: $type = metrics!(@make $($make)?);
                    registry.register(stringify!($name), $help, $name.clone());
                )*
                $group { $($name,)* }
            }
        }
    };
    (@make) => { Default::default() };
    (@make $make:expr) => { $make };
}

metrics! {
    KubeProxyMetrics {
        sync_proxy_rules_duration_seconds: Family<FamilyLabel, Histogram> =
            "Duration of a sync, from its first netlink message to the kernel's acknowledgement, in seconds",
            Family::new_with_constructor(sync_duration);
        sync_full_proxy_rules_duration_seconds: Family<FamilyLabel, Histogram> =
            "Duration of a sync that compared all rules with the kernel, in seconds",
            Family::new_with_constructor(sync_duration);
        sync_partial_proxy_rules_duration_seconds: Family<FamilyLabel, Histogram> =
            "Duration of a sync of changed Services alone, in seconds",
            Family::new_with_constructor(sync_duration);
        sync_proxy_rules_last_timestamp_seconds: Family<FamilyLabel, Gauge<f64, AtomicU64>> =
            "Time of the last sync, in seconds since 1970";
        sync_proxy_rules_last_queued_timestamp_seconds: Family<FamilyLabel, Gauge<f64, AtomicU64>> =
            "Time of the last change received, in seconds since 1970";
        sync_proxy_rules_no_local_endpoints_total: policies::Gauges =
            "Service ports with policy Local, with endpoints but none on this node",
            policies::gauges();
        sync_proxy_rules_nftables_sync_failures: Family<FamilyLabel, Counter> = "Commits that failed";
        sync_proxy_rules_service_changes: Counter = "Service changes received";
        sync_proxy_rules_endpoint_changes: Counter = "EndpointSlice changes received";
        sync_proxy_rules_service_changes_pending: Gauge = "Service changes received but not committed";
        sync_proxy_rules_endpoint_changes_pending: Gauge = "EndpointSlice changes received but not committed";
        network_programming_duration_seconds: Family<FamilyLabel, Histogram> =
            "Duration from the change of a pod or Service, as EndpointSlices state it, to its commit, in seconds",
            Family::new_with_constructor(programming_duration);
        conntrack_reconciler_sync_duration_seconds: Family<FamilyLabel, Histogram> =
            "Duration of a check for stale conntrack entries, in seconds",
            Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 15)));
        conntrack_reconciler_deleted_entries: Family<FamilyLabel, Counter> = "Stale conntrack entries deleted";
        proxy_healthz: Family<CodeLabel, Counter> = "Responses of /healthz by status code";
        proxy_livez: Family<CodeLabel, Counter> = "Responses of /livez by status code";
    }
}

metrics! {
    OwnMetrics {
        commits: Counter = "Transactions committed";
        elements_written: Counter = "Set elements added or deleted";
        repairs: Counter = "Foreign changes of the tables that were repaired";
        services_planned: Counter = "Services planned, counted at each planning";
        standby: Gauge = "1 while another process owns the tables, else 0";
        quarantined_services: Gauge = "Services quarantined because the kernel refused them or they are over their budget";
        invalid_objects: Family<KindLabel, Gauge> = "Invalid objects at present, by kind";
        object_problems: Family<KindLabel, Counter> = "Invalid objects and fields received, by kind";
        source_connected: Family<KindLabel, Gauge> = "1 while the source of this kind is connected, else 0";
        services: Gauge = "Services known";
        endpoints: Gauge = "Endpoints known";
        health_check_listeners: Gauge = "Health-check sockets listening for load balancers";
        health_check_listen_failures: Counter = "Health-check sockets whose first bind failed";
        conntrack_walks: Counter = "Walks of the kernel's conntrack table in search of stale entries";
        foreign_rules: Family<KindLabel, Gauge> = "Tables that may hold rules of kube-proxy that Portolan cannot remove, by kind";
        overlay_peers: Gauge = "Peers of the overlay";
        overlay_ready: Gauge = "1 while the overlay is in the kernel as planned, else 0";
        overlay_problems: Gauge = "Problems of the overlay at present";
        overlay_held_nodes: Gauge = "Peers kept although the latest Node list lacks them";
        overlay_encrypted_peers: Gauge = "Peers of the overlay whose packets are encrypted";
        overlay_unencrypted_peers: Gauge = "Peers of the overlay reached in clear text, or not at all, while encryption is on";
        overlay_reconciles: Counter = "Comparisons of the overlay with the kernel";
        overlay_repairs: Counter = "Steps that repaired foreign changes of the overlay";
        overlay_apply_seconds: Counter<f64, AtomicU64> = "Time spent changing the overlay in the kernel, in seconds";
    }
}

impl KubeProxyMetrics {
    /// Makes the series of both families: a rate of a series that begins with its first event misses that event.
    fn begin(&self) {
        for label in IpFamily::ALL.map(FamilyLabel::from) {
            for histogram in [
                &self.sync_proxy_rules_duration_seconds,
                &self.sync_full_proxy_rules_duration_seconds,
                &self.sync_partial_proxy_rules_duration_seconds,
                &self.network_programming_duration_seconds,
                &self.conntrack_reconciler_sync_duration_seconds,
            ] {
                drop(histogram.get_or_create(&label));
            }
            for counter in [
                &self.conntrack_reconciler_deleted_entries,
                &self.sync_proxy_rules_nftables_sync_failures,
            ] {
                drop(counter.get_or_create(&label));
            }
        }
    }
}

/// Every metric of the daemon.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    kube_proxy: KubeProxyMetrics,
    own: OwnMetrics,
    rest_client: RestClientMetrics,
    slis: Slis,
    /// Metrics of the overlay's probes.
    pub probes: ProbeMetrics,
    /// Metrics of failover.
    pub failover: FailoverMetrics,
}

/// `ip_family="IPv4"`, as kube-proxy writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FamilyLabel {
    ip_family: &'static str,
}

impl From<IpFamily> for FamilyLabel {
    fn from(family: IpFamily) -> Self {
        FamilyLabel {
            ip_family: family.api_name(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CodeLabel {
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

impl From<ObjectKind> for KindLabel {
    fn from(kind: ObjectKind) -> Self {
        KindLabel {
            kind: kind.to_string(),
        }
    }
}

/// kube-proxy's bounds (`pkg/proxy/metrics`) from 1 ms on, with smaller ones in front: a commit usually takes microseconds.
fn sync_duration() -> Histogram {
    let below_a_millisecond = exponential_buckets(0.000_016, 2.0, 6);
    Histogram::new(below_a_millisecond.chain(exponential_buckets(0.001, 2.0, 15)))
}

/// kube-proxy's bounds (`pkg/proxy/metrics`; the merge of its ranges begins with 0), with smaller ones in front.
fn programming_duration() -> Histogram {
    let below_a_second = [0.0, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5];
    let seconds = (1..60).chain((60..120).step_by(5));
    let seconds = seconds.chain((120..=300).step_by(30)).map(f64::from);
    Histogram::new(below_a_second.into_iter().chain(seconds))
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let kube_proxy = KubeProxyMetrics::register(registry.sub_registry_with_prefix("kubeproxy"));
        let r = registry.sub_registry_with_prefix("portolan");
        let build = Info::new(build_info::get().labels());
        r.register(
            "build",
            "Version, commit, compiler and platform of Portolan, as labels",
            build,
        );
        kube_proxy.begin();
        let own = OwnMetrics::register(r);
        let probes = ProbeMetrics::default();
        probes.register(r);
        let failover = FailoverMetrics::default();
        failover.register(r);
        let rest_client = RestClientMetrics::register(&mut registry);
        registry.register_collector(Box::new(process::ProcessCollector));
        Metrics {
            registry,
            kube_proxy,
            own,
            rest_client,
            slis: Slis::default(),
            probes,
            failover,
        }
    }

    /// Adds metrics that are collected when they are read.
    pub fn collect(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// All metrics, in a format.
    pub(crate) fn encode(&self, format: Format) -> String {
        format.encode(&self.registry)
    }

    /// The service level indicators, in a format.
    pub(crate) fn encode_slis(&self, format: Format) -> String {
        self.slis.encode(format)
    }

    /// Records a check of the metrics port.
    pub(crate) fn pinged(&self) {
        self.slis.passed();
    }

    /// Counts the Service ports without local endpoints.
    pub(crate) fn no_local_endpoints(&self) -> NoLocalEndpoints {
        let gauges = &self.kube_proxy.sync_proxy_rules_no_local_endpoints_total;
        NoLocalEndpoints::new(gauges.clone())
    }

    /// Records a request to an API server.
    pub fn requested(&self, outcome: &RequestOutcome<'_>) {
        self.rest_client.record(outcome);
    }

    /// Records a check for stale conntrack entries of a family.
    pub fn conntrack_checked(&self, family: IpFamily, deleted: usize, elapsed: Duration) {
        let metrics = &self.kube_proxy;
        let label = FamilyLabel::from(family);
        metrics
            .conntrack_reconciler_sync_duration_seconds
            .get_or_create(&label)
            .observe(elapsed.as_secs_f64());
        metrics
            .conntrack_reconciler_deleted_entries
            .get_or_create(&label)
            .inc_by(deleted as u64);
    }

    /// Records walks of the kernel's conntrack table.
    pub fn conntrack_walked(&self, walks: u64) {
        self.own.conntrack_walks.inc_by(walks);
    }

    /// Records a foreign change of the tables that was repaired.
    pub fn repaired(&self) {
        self.own.repairs.inc();
    }

    /// Sets the number of legacy iptables tables that may hold kube-proxy's rules.
    pub fn set_foreign_legacy(&self, tables: usize) {
        let kind = KindLabel {
            kind: "legacy-iptables".to_owned(),
        };
        self.own
            .foreign_rules
            .get_or_create(&kind)
            .set(gauge(tables));
    }

    /// Records that every change received is committed.
    pub fn nothing_pending(&self) {
        let metrics = &self.kube_proxy;
        metrics.sync_proxy_rules_service_changes_pending.set(0);
        metrics.sync_proxy_rules_endpoint_changes_pending.set(0);
    }

    /// Records the state of the overlay: its peers, its problems, the peers kept although the latest Node list lacks
    /// them, and whether all of it is in the kernel.
    pub fn set_overlay(&self, peers: usize, problems: usize, held: usize, ready: bool) {
        self.own.overlay_reconciles.inc();
        self.own.overlay_peers.set(gauge(peers));
        self.own.overlay_problems.set(gauge(problems));
        self.own.overlay_held_nodes.set(gauge(held));
        self.own.overlay_ready.set(i64::from(ready));
    }

    /// Sets the numbers of peers that are encrypted, and that are not although encryption is on.
    pub fn set_encryption(&self, encrypted: usize, unencrypted: usize) {
        self.own.overlay_encrypted_peers.set(gauge(encrypted));
        self.own.overlay_unencrypted_peers.set(gauge(unencrypted));
    }

    /// Records a change of the overlay, with the number of its steps that repaired foreign changes.
    pub fn overlay_changed(&self, repairs: usize, elapsed: Duration) {
        self.own.overlay_repairs.inc_by(repairs as u64);
        let seconds = elapsed.as_secs_f64();
        self.own.overlay_apply_seconds.inc_by(seconds);
    }

    /// Records whether another process owns the tables.
    pub fn set_standby(&self, standby: bool) {
        self.own.standby.set(i64::from(standby));
    }

    /// Sets the number of quarantined Services.
    pub fn set_quarantined(&self, services: usize) {
        self.own.quarantined_services.set(gauge(services));
    }

    /// Sets the number of invalid objects of a kind.
    pub fn set_invalid(&self, kind: ObjectKind, objects: usize) {
        let metric = &self.own.invalid_objects;
        metric.get_or_create(&kind.into()).set(gauge(objects));
    }

    /// Adds to the number of Services planned.
    pub fn add_planned(&self, services: usize) {
        self.own.services_planned.inc_by(services as u64);
    }

    /// Sets the number of Services and endpoints.
    pub fn set_totals(&self, services: usize, endpoints: usize) {
        self.own.services.set(gauge(services));
        self.own.endpoints.set(gauge(endpoints));
    }

    /// Adds to the number of health-check sockets that are listening.
    pub fn health_check_listeners(&self, change: i64) {
        self.own.health_check_listeners.inc_by(change);
    }

    /// Records a health-check socket whose first bind failed.
    pub fn health_check_failed(&self) {
        self.own.health_check_listen_failures.inc();
    }

    /// Records a response of `/healthz`.
    pub fn healthz_answered(&self, code: u16) {
        let metric = &self.kube_proxy.proxy_healthz;
        metric.get_or_create(&CodeLabel { code }).inc();
    }

    /// Records a response of `/livez`.
    pub fn livez_answered(&self, code: u16) {
        let metric = &self.kube_proxy.proxy_livez;
        metric.get_or_create(&CodeLabel { code }).inc();
    }

    /// Records a sync. One that changed nothing is one of both families.
    fn synced(&self, commit: &Commit<'_>) {
        let outcome = commit.outcome;
        if outcome.transactions > 0 {
            self.own.commits.inc();
            self.own.elements_written.inc_by(outcome.elements as u64);
        }
        let metrics = &self.kube_proxy;
        let of_extent = match commit.full {
            true => &metrics.sync_full_proxy_rules_duration_seconds,
            false => &metrics.sync_partial_proxy_rules_duration_seconds,
        };
        let changed_nothing = outcome.families.is_empty();
        let is_part = |family: &IpFamily| changed_nothing || outcome.families.contains(family);
        let now = now_seconds();
        for label in IpFamily::ALL
            .into_iter()
            .filter(is_part)
            .map(FamilyLabel::from)
        {
            for durations in [&metrics.sync_proxy_rules_duration_seconds, of_extent] {
                let durations = durations.get_or_create(&label);
                durations.observe(commit.elapsed.as_secs_f64());
            }
            let last = &metrics.sync_proxy_rules_last_timestamp_seconds;
            last.get_or_create(&label).set(now);
        }
    }
}

fn now_seconds() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

impl Observer for Arc<Metrics> {
    fn event(&mut self, event: &SourceEvent) {
        let metrics = &self.kube_proxy;
        let (changes, pending, objects) = match event {
            SourceEvent::Service(event) => (
                &metrics.sync_proxy_rules_service_changes,
                &metrics.sync_proxy_rules_service_changes_pending,
                objects(event),
            ),
            SourceEvent::EndpointSlice(event) => (
                &metrics.sync_proxy_rules_endpoint_changes,
                &metrics.sync_proxy_rules_endpoint_changes_pending,
                objects(event),
            ),
            SourceEvent::Connection { kind, state } => {
                let metric = &self.own.source_connected;
                let connected = i64::from(state.is_ok());
                metric.get_or_create(&(*kind).into()).set(connected);
                return;
            }
            _ => return,
        };
        changes.inc_by(objects as u64);
        pending.inc_by(gauge(objects));
        let (queued, now) = (
            &metrics.sync_proxy_rules_last_queued_timestamp_seconds,
            now_seconds(),
        );
        for family in IpFamily::ALL {
            queued.get_or_create(&family.into()).set(now);
        }
    }

    fn problem(&mut self, problem: &Problem) {
        if let Some(invalid) = problem.invalid() {
            let metric = &self.own.object_problems;
            metric.get_or_create(&invalid.kind.into()).inc();
        }
    }

    fn committed(&mut self, commit: &Commit<'_>) {
        if !commit.pending {
            self.nothing_pending();
        }
        let now = SystemTime::now();
        for (family, trigger) in commit.triggers {
            let elapsed = now.duration_since(*trigger).unwrap_or_default();
            self.kube_proxy
                .network_programming_duration_seconds
                .get_or_create(&(*family).into())
                .observe(elapsed.as_secs_f64());
        }
        self.synced(commit);
    }

    fn failed(&mut self) {
        for family in IpFamily::ALL {
            let metric = &self.kube_proxy.sync_proxy_rules_nftables_sync_failures;
            metric.get_or_create(&family.into()).inc();
        }
    }
}

fn objects<T>(event: &ObjectEvent<T>) -> usize {
    match event {
        ObjectEvent::Apply(_) | ObjectEvent::Delete(_) => 1,
        ObjectEvent::Reset { objects, .. } => objects.len(),
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use service_dataplane::SyncOutcome;
    use service_model::{Node, NodeConfig, NodeFacts};

    use super::*;

    fn lines(metrics: &Metrics, expected: &[&str]) {
        let text = metrics.encode(Format::OpenMetrics);
        for line in expected {
            assert!(text.lines().any(|l| l == *line), "{line} not in\n{text}");
        }
    }

    fn commit(
        metrics: &mut Arc<Metrics>,
        outcome: &SyncOutcome,
        triggers: &[(IpFamily, SystemTime)],
    ) {
        let (config, node) = (NodeConfig::named("n"), Node::unknown(Arc::from("n")));
        let facts = NodeFacts::resolve(&config, &node, &[], &[]);
        Observer::committed(
            metrics,
            &Commit {
                outcome,
                facts: &facts,
                pending: false,
                elapsed: Duration::from_micros(20),
                full: false,
                triggers,
            },
        );
    }

    #[test]
    fn counts_appear_under_kube_proxys_names() {
        let mut metrics = Arc::new(Metrics::new());
        let outcome = SyncOutcome {
            transactions: 1,
            elements: 7,
            families: BTreeSet::from(IpFamily::ALL),
            ..SyncOutcome::default()
        };
        commit(&mut metrics, &outcome, &[]);
        metrics.failed();
        metrics.event(&SourceEvent::Service(ObjectEvent::list([])));
        metrics.event(&SourceEvent::Connection {
            kind: ObjectKind::ServiceCidr,
            state: Ok(()),
        });
        metrics.healthz_answered(503);
        metrics.conntrack_checked(IpFamily::Ip, 2, Duration::from_millis(3));
        lines(
            &metrics,
            &[
                "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
                "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.000032\",ip_family=\"IPv6\"} 1",
                "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1",
                "kubeproxy_sync_proxy_rules_service_changes_total 0",
                "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
                "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 2",
                "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
                "portolan_elements_written_total 7",
                "portolan_source_connected{kind=\"ServiceCIDR\"} 1",
                "# EOF",
            ],
        );
    }

    #[test]
    fn programming_duration_runs_from_trigger_time_to_commit() {
        let mut metrics = Arc::new(Metrics::new());
        let trigger = SystemTime::now() - Duration::from_secs(70);
        let triggers = [(IpFamily::Ip6, trigger)];
        commit(&mut metrics, &SyncOutcome::default(), &triggers);
        let name = "kubeproxy_network_programming_duration_seconds";
        let bucket = |le, count| format!("{name}_bucket{{le=\"{le}\",ip_family=\"IPv6\"}} {count}");
        let count = format!("{name}_count{{ip_family=\"IPv6\"}} 1");
        let (below, above) = (bucket("70.0", 0), bucket("75.0", 1));
        lines(&metrics, &[&bucket("0.0", 0), &count, &below, &above]);
        // No trigger of IPv4, and a series all the same.
        lines(
            &metrics,
            &[&format!("{name}_count{{ip_family=\"IPv4\"}} 0")],
        );
    }
}
