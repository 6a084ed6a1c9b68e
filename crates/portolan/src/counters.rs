//! Counts new connections to Services with the annotation `portolan/count-connections`, for Prometheus.
//!
//! The kernel counts. Counters are read when metrics are read, over a socket of their own, without the control loop.
//! The labels are names of annotated Services, for at most [`LIMIT`] frontends, of which a namespace has at most [`OF_NAMESPACE`], so
//! that no tenant takes all of them. [`crate::service_traffic`] has the same limits ([`within_limits`]).

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use nft::{Bytes, CommitError, Family, Kernel};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use service_dataplane::layout::{self, SetId};
use service_dataplane::{Claim, Update, render};
use service_model::{FrontendAddress, ObjectName};

use crate::observer::Observer;

/// Maximum number of series of a metric of Services, in the order of Service names.
pub const LIMIT: usize = 10_000;
/// Maximum number of series of a metric of Services in one namespace.
pub const OF_NAMESPACE: usize = 1_000;

/// Name and help of the metric.
pub(crate) const METRIC: (&str, &str) = (
    "portolan_service_connections",
    "New connections by frontend, of Services annotated portolan/count-connections",
);

/// Frontends whose new connections are counted.
type Counted = BTreeMap<ObjectName, Vec<Claim>>;

/// Reads the counters of annotated Services.
#[derive(Debug, Default)]
pub struct Counters {
    counted: ArcSwap<Counted>,
    /// Opened at the first reading.
    table: Mutex<Option<Kernel>>,
}

impl Observer for Arc<Counters> {
    fn planned(&mut self, updates: &[Update]) {
        let known = self.counted.load();
        let mut changed: Option<Counted> = None;
        for Update { service, intent } in updates {
            let frontends = intent.iter().flat_map(|intent| &intent.frontends);
            let claims: Vec<Claim> = frontends.filter(|f| f.counted).map(Claim::from).collect();
            if claims.as_slice() == known.get(service).map_or(&[][..], Vec::as_slice) {
                continue;
            }
            let counted = changed.get_or_insert_with(|| (**known).clone());
            match claims.is_empty() {
                true => counted.remove(service),
                false => counted.insert(service.clone(), claims),
            };
        }
        if let Some(counted) = changed {
            self.counted.store(Arc::new(counted));
        }
    }
}

impl Counters {
    /// All counters.
    fn read(&self) -> Result<HashMap<(Family, SetId, Bytes), u64>, CommitError> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let table = match &mut *table {
            Some(table) => table,
            none => none.insert(Kernel::open_to_read(layout::TABLE.into())?),
        };
        let mut all = HashMap::new();
        for family in Family::ALL {
            for set in [SetId::Counted, SetId::CountedNodePorts] {
                let counts = table.counters(family, &set.name())?.into_iter();
                all.extend(counts.map(|(key, packets)| ((family, set, key), packets)));
            }
        }
        Ok(all)
    }
}

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counted = self.counted.load();
        if counted.is_empty() {
            return Ok(());
        }
        let counts = match self.read() {
            Ok(counts) => counts,
            Err(error) => {
                tracing::warn!(%error, "cannot read connection counters");
                return Ok(());
            }
        };
        let (name, help) = METRIC;
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (service, claim) in within_limits(frontends(&counted)) {
            let (set, key) = render::counted(claim);
            if let Some(packets) = counts.get(&(claim.address.family(), set, key)) {
                let labels = labels(service, claim);
                let counter = ConstCounter::new(*packets);
                counter.encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Those that have series, of `all` in the order of Service names: so many of a namespace, and so many altogether.
pub(crate) fn within_limits<'a, T>(
    all: impl IntoIterator<Item = (&'a ObjectName, T)>,
) -> impl Iterator<Item = (&'a ObjectName, T)> {
    let mut namespace: Option<(&str, usize)> = None;
    let of_namespace = all.into_iter().filter(move |(service, _)| {
        let before = match namespace {
            Some((name, count)) if name == &*service.namespace => count,
            _ => 0,
        };
        namespace = Some((&service.namespace, before + 1));
        before < OF_NAMESPACE
    });
    of_namespace.take(LIMIT)
}

/// All counted frontends.
fn frontends(counted: &Counted) -> impl Iterator<Item = (&ObjectName, &Claim)> {
    counted
        .iter()
        .flat_map(|(service, claims)| claims.iter().map(move |claim| (service, claim)))
}

fn labels(service: &ObjectName, claim: &Claim) -> [(&'static str, String); 6] {
    let (place, address) = match claim.address {
        FrontendAddress::ClusterIp(address) => ("cluster_ip", Some(address)),
        FrontendAddress::External(address) => ("external", Some(address)),
        FrontendAddress::NodePort(_) => ("node_port", None),
    };
    let family = claim.address.family().api_name();
    let address = address.as_ref().map(IpAddr::to_string);
    [
        ("namespace", service.namespace.to_string()),
        ("service", service.name.to_string()),
        ("ip_family", family.into()),
        ("place", place.into()),
        ("address", address.unwrap_or_default()),
        ("port", format!("{}/{}", claim.port, claim.protocol)),
    ]
}

#[cfg(test)]
mod tests {
    use service_model::Protocol;

    use super::*;

    #[test]
    fn one_namespace_cannot_take_the_counters_of_others() {
        let claims = |ports: std::ops::Range<u16>| -> Vec<Claim> {
            let claim = |port| Claim {
                address: FrontendAddress::ClusterIp([10, 96, 0, 1].into()),
                protocol: Protocol::Tcp,
                port,
            };
            ports.map(claim).collect()
        };
        let counted = Counted::from([
            (ObjectName::new("aaa", "one"), claims(0..900)),
            (ObjectName::new("aaa", "two"), claims(0..9_000)),
            (ObjectName::new("prod", "web"), claims(0..2)),
        ]);
        let of = |namespace: &str| {
            let all = within_limits(frontends(&counted));
            all.filter(|(service, _)| &*service.namespace == namespace)
                .count()
        };
        assert_eq!((of("aaa"), of("prod")), (OF_NAMESPACE, 2));
    }
}
