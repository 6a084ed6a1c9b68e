//! What is counted and measured, under kube-proxy's names where it has the same thing.
//!
//! Labels are closed sets of ours (family, kind, code): no name of a foreign object ever becomes a label, so the
//! number of series is bounded (but see [`crate::counters`]). Everything here is atomic; recording never blocks.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use service_model::{Family as IpFamily, ObjectKind};

mod probes;

pub use probes::ProbeMetrics;

/// What `Content-Type` the text of [`Metrics::encode`] has.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every metric of the daemon. Cheap to share, methods are the events that the control loop reports.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    sync_duration: Family<FamilyLabel, Histogram>,
    last_sync: Family<FamilyLabel, Gauge<f64, AtomicU64>>,
    sync_failures: Family<FamilyLabel, Counter>,
    flow_checks: Family<FamilyLabel, Histogram>,
    flows_deleted: Family<FamilyLabel, Counter>,
    service_changes: Counter,
    endpoint_changes: Counter,
    service_changes_pending: Gauge,
    endpoint_changes_pending: Gauge,
    programming_latency: Histogram,
    healthz: Family<CodeLabel, Counter>,
    livez: Family<CodeLabel, Counter>,
    commits: Counter,
    elements_written: Counter,
    repairs: Counter,
    services_planned: Counter,
    quarantined: Gauge,
    invalid: Family<KindLabel, Gauge>,
    problems: Family<KindLabel, Counter>,
    connected: Family<KindLabel, Gauge>,
    services: Gauge,
    endpoints: Gauge,
    health_checks: Gauge,
    health_check_failures: Counter,
    overlay: OverlayMetrics,
    /// What the probes of the overlay count.
    pub probes: ProbeMetrics,
}

/// What the overlay reports.
#[derive(Debug, Default)]
struct OverlayMetrics {
    peers: Gauge,
    ready: Gauge,
    problems: Gauge,
    held: Gauge,
    repairs: Counter,
    apply: Counter<f64, AtomicU64>,
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

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Self {
        let mut metrics = Metrics {
            registry: Registry::default(),
            // kube-proxy starts at 1 ms; a commit of ours usually takes microseconds.
            sync_duration: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_016, 2.0, 21))
            }),
            last_sync: Family::default(),
            sync_failures: Family::default(),
            flow_checks: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            flows_deleted: Family::default(),
            service_changes: Counter::default(),
            endpoint_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            endpoint_changes_pending: Gauge::default(),
            programming_latency: Histogram::new(exponential_buckets(0.001, 2.0, 18)),
            healthz: Family::default(),
            livez: Family::default(),
            commits: Counter::default(),
            elements_written: Counter::default(),
            repairs: Counter::default(),
            services_planned: Counter::default(),
            quarantined: Gauge::default(),
            invalid: Family::default(),
            problems: Family::default(),
            connected: Family::default(),
            services: Gauge::default(),
            endpoints: Gauge::default(),
            health_checks: Gauge::default(),
            health_check_failures: Counter::default(),
            overlay: OverlayMetrics::default(),
            probes: ProbeMetrics::default(),
        };
        metrics.register_kube_proxys();
        metrics.register_ours();
        metrics
    }

    fn register_kube_proxys(&mut self) {
        let r = self.registry.sub_registry_with_prefix("kubeproxy");
        r.register(
            "sync_proxy_rules_duration_seconds",
            "Duration of a commit, from its first netlink message to the kernel's acknowledgement, in seconds",
            self.sync_duration.clone(),
        );
        r.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "Time of the last commit, in seconds since 1970",
            self.last_sync.clone(),
        );
        r.register(
            "sync_proxy_rules_nftables_sync_failures",
            "Commits that failed",
            self.sync_failures.clone(),
        );
        r.register(
            "sync_proxy_rules_service_changes",
            "Service changes received",
            self.service_changes.clone(),
        );
        r.register(
            "sync_proxy_rules_endpoint_changes",
            "EndpointSlice changes received",
            self.endpoint_changes.clone(),
        );
        r.register(
            "sync_proxy_rules_service_changes_pending",
            "Service changes received but not committed",
            self.service_changes_pending.clone(),
        );
        r.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "EndpointSlice changes received but not committed",
            self.endpoint_changes_pending.clone(),
        );
        r.register(
            "network_programming_duration_seconds",
            "Duration from the receipt of a change to its commit, in seconds",
            self.programming_latency.clone(),
        );
        r.register(
            "conntrack_reconciler_sync_duration_seconds",
            "Duration of a check for stale conntrack entries, in seconds",
            self.flow_checks.clone(),
        );
        r.register(
            "conntrack_reconciler_deleted_entries",
            "Stale conntrack entries deleted",
            self.flows_deleted.clone(),
        );
        r.register(
            "proxy_healthz",
            "Responses of /healthz by status code",
            self.healthz.clone(),
        );
        r.register(
            "proxy_livez",
            "Responses of /livez by status code",
            self.livez.clone(),
        );
    }

    fn register_ours(&mut self) {
        let r = self.registry.sub_registry_with_prefix("portolan");
        r.register(
            "build",
            "Version of Portolan",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        r.register("commits", "Transactions committed", self.commits.clone());
        r.register(
            "elements_written",
            "Set elements added or deleted",
            self.elements_written.clone(),
        );
        r.register(
            "repairs",
            "Foreign changes of the tables that were repaired",
            self.repairs.clone(),
        );
        r.register(
            "overlay_peers",
            "Peers of the overlay",
            self.overlay.peers.clone(),
        );
        r.register(
            "overlay_ready",
            "1 while the overlay is in the kernel as planned, else 0",
            self.overlay.ready.clone(),
        );
        r.register(
            "overlay_problems",
            "Problems of the overlay at present",
            self.overlay.problems.clone(),
        );
        r.register(
            "overlay_held_nodes",
            "Peers kept although the latest Node list lacks them",
            self.overlay.held.clone(),
        );
        r.register(
            "overlay_repairs",
            "Steps that repaired foreign changes of the overlay",
            self.overlay.repairs.clone(),
        );
        r.register(
            "overlay_apply_seconds",
            "Time spent changing the overlay in the kernel, in seconds",
            self.overlay.apply.clone(),
        );
        r.register(
            "services_planned",
            "Services planned, counted at each planning",
            self.services_planned.clone(),
        );
        r.register(
            "quarantined_services",
            "Services quarantined because the kernel refused them",
            self.quarantined.clone(),
        );
        r.register(
            "invalid_objects",
            "Invalid objects at present, by kind",
            self.invalid.clone(),
        );
        r.register(
            "object_problems",
            "Invalid objects and fields received, by kind",
            self.problems.clone(),
        );
        r.register(
            "source_connected",
            "1 while the source of this kind is connected, else 0",
            self.connected.clone(),
        );
        self.probes.register(r);
        r.register("services", "Services known", self.services.clone());
        r.register("endpoints", "Endpoints known", self.endpoints.clone());
        r.register(
            "health_check_listeners",
            "Health-check sockets listening for load balancers",
            self.health_checks.clone(),
        );
        r.register(
            "health_check_listen_failures",
            "Health-check sockets whose first bind failed",
            self.health_check_failures.clone(),
        );
    }

    /// Adds metrics that are gathered when they are asked for.
    pub fn collect(&mut self, collector: Box<dyn Collector>) {
        self.registry.register_collector(collector);
    }

    /// OpenMetrics text; see [`CONTENT_TYPE`].
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = prometheus_client::encoding::text::encode(&mut text, &self.registry);
        text
    }

    /// The kernel took a transaction that touched these families.
    pub fn committed(&self, families: &[IpFamily], elements: usize, elapsed: Duration) {
        self.commits.inc();
        self.elements_written.inc_by(elements as u64);
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs_f64();
        for family in families {
            self.sync_duration
                .get_or_create(&(*family).into())
                .observe(elapsed.as_secs_f64());
            self.last_sync.get_or_create(&(*family).into()).set(now);
        }
    }

    /// The kernel refused a transaction that touched these families.
    pub fn commit_failed(&self, families: &[IpFamily]) {
        for family in families {
            self.sync_failures.get_or_create(&(*family).into()).inc();
        }
    }

    /// Stale flows of a family were looked for, and so many deleted.
    pub fn flows_checked(&self, family: IpFamily, deleted: usize, elapsed: Duration) {
        let label = FamilyLabel::from(family);
        self.flow_checks
            .get_or_create(&label)
            .observe(elapsed.as_secs_f64());
        self.flows_deleted
            .get_or_create(&label)
            .inc_by(deleted as u64);
    }

    /// A foreign change of the table was undone.
    pub fn repaired(&self) {
        self.repairs.inc();
    }

    /// An event about Services arrived, `objects` of them.
    pub fn service_event(&self, objects: usize) {
        self.service_changes.inc_by(objects as u64);
        self.service_changes_pending.inc_by(gauge(objects));
    }

    /// An event about EndpointSlices arrived, `objects` of them.
    pub fn endpoint_event(&self, objects: usize) {
        self.endpoint_changes.inc_by(objects as u64);
        self.endpoint_changes_pending.inc_by(gauge(objects));
    }

    /// No event is left that is not in the kernel.
    pub fn nothing_pending(&self) {
        self.service_changes_pending.set(0);
        self.endpoint_changes_pending.set(0);
    }

    /// A change reached the kernel this long after its event.
    pub fn programmed(&self, latency: Duration) {
        self.programming_latency.observe(latency.as_secs_f64());
    }

    /// State of the overlay after a turn: peers that are reached, problems, nodes served on though a list left them
    /// out, and whether all of it is in the kernel.
    pub fn set_overlay(&self, peers: usize, problems: usize, held: usize, ready: bool) {
        self.overlay.peers.set(gauge(peers));
        self.overlay.problems.set(gauge(problems));
        self.overlay.held.set(gauge(held));
        self.overlay.ready.set(i64::from(ready));
    }

    /// The overlay carried steps out, so many of them to undo what others did.
    pub fn overlay_changed(&self, repairs: usize, elapsed: Duration) {
        self.overlay.repairs.inc_by(repairs as u64);
        self.overlay.apply.inc_by(elapsed.as_secs_f64());
    }

    /// Services were planned.
    pub fn planned(&self, services: usize) {
        self.services_planned.inc_by(services as u64);
    }

    /// The number of Services the kernel refuses at present.
    pub fn set_quarantined(&self, services: usize) {
        self.quarantined.set(gauge(services));
    }

    /// An object, or part of it, could not be used.
    pub fn problem(&self, kind: ObjectKind) {
        self.problems.get_or_create(&kind.into()).inc();
    }

    /// The number of objects of a kind that cannot be used at present.
    pub fn set_invalid(&self, kind: ObjectKind, objects: usize) {
        self.invalid.get_or_create(&kind.into()).set(gauge(objects));
    }

    /// The source of a kind is connected, or is not.
    pub fn set_connected(&self, kind: ObjectKind, connected: bool) {
        self.connected
            .get_or_create(&kind.into())
            .set(i64::from(connected));
    }

    /// The size of the view.
    pub fn set_totals(&self, services: usize, endpoints: usize) {
        self.services.set(gauge(services));
        self.endpoints.set(gauge(endpoints));
    }

    /// So many ports for load balancers are listened on.
    pub fn set_health_checks(&self, listeners: usize) {
        self.health_checks.set(gauge(listeners));
    }

    /// A port for load balancers cannot be listened on.
    pub fn health_check_failed(&self) {
        self.health_check_failures.inc();
    }

    /// `/healthz` was answered.
    pub fn healthz_answered(&self, code: u16) {
        self.healthz.get_or_create(&CodeLabel { code }).inc();
    }

    /// `/livez` was answered.
    pub fn livez_answered(&self, code: u16) {
        self.livez.get_or_create(&CodeLabel { code }).inc();
    }
}

fn gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_under_kube_proxys_names() {
        let metrics = Metrics::new();
        metrics.committed(&IpFamily::ALL, 7, Duration::from_micros(20));
        metrics.commit_failed(&[IpFamily::Ip6]);
        metrics.service_event(3);
        metrics.set_connected(ObjectKind::ServiceCidr, true);
        metrics.healthz_answered(503);
        metrics.flows_checked(IpFamily::Ip, 2, Duration::from_millis(3));
        let text = metrics.encode();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.000032\",ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv6\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 3",
            "kubeproxy_proxy_healthz_total{code=\"503\"} 1",
            "kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family=\"IPv4\"} 2",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "portolan_elements_written_total 7",
            "portolan_source_connected{kind=\"ServiceCIDR\"} 1",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
    }
}
