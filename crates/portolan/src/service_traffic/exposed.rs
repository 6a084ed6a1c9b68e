//! The metrics: sums of the busiest Services, collected when metrics are read.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;

use super::ledger::{Ledger, Sum};

/// Services that have metrics, unless more are annotated.
const MOST: usize = 100;

/// Reads a ledger. While traffic is not counted, no Service is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exposed {
    ledger: Arc<Mutex<Ledger>>,
}

/// A metric of a Service: name, help, and what it is of a sum.
type Metric = (&'static str, &'static str, fn(&Sum) -> u64);

const METRICS: [Metric; 3] = [
    (
        "portolan_service_flows",
        "Connections and other flows of the busiest Services",
        |sum| sum.flows,
    ),
    (
        "portolan_service_packets",
        "Packets of the busiest Services, both directions",
        |sum| sum.packets,
    ),
    (
        "portolan_service_bytes",
        "Bytes of the busiest Services, both directions, with IP headers",
        |sum| sum.bytes,
    ),
];

impl Exposed {
    pub(super) fn ledger(&self) -> Arc<Mutex<Ledger>> {
        self.ledger.clone()
    }
}

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let busiest = ledger.busiest(MOST);
        for (name, help, number) in METRICS {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (service, sum) in &busiest {
                let labels = [
                    ("namespace", &*service.namespace),
                    ("service", &*service.name),
                ];
                let counter = ConstCounter::new(number(sum));
                counter.encode(metric.encode_family(&labels)?)?;
            }
        }
        let help = "Times that the kernel dropped notifications about ended flows, so that counts are too small";
        let losses = ConstCounter::new(ledger.losses());
        let name = "portolan_service_traffic_losses";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        losses.encode(metric)
    }
}
