//! Counts new connections to Services with the annotation `portolan/count-connections`, for Prometheus.
//!
//! The kernel counts. Counters are read when metrics are read, over a socket of their own, without the control loop.
//! These are the only metrics with names of Kubernetes objects as labels: names of annotated Services, for at most
//! [`LIMIT`] frontends.

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

/// Maximum number of frontends with a metric, in the order of Service names.
pub const LIMIT: usize = 10_000;

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
        let mut metric = encoder.encode_descriptor(
            "portolan_service_connections",
            "New connections by frontend, of Services annotated portolan/count-connections",
            None,
            MetricType::Counter,
        )?;
        let frontends = counted
            .iter()
            .flat_map(|(service, claims)| claims.iter().map(move |claim| (service, claim)));
        for (service, claim) in frontends.take(LIMIT) {
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
