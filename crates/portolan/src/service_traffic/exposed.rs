//! The metrics: sums of the busiest Services, collected when metrics are read.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use service_model::ObjectName;

use super::frontends::Port;
use super::ledger::{Ledger, Sum, Sums};
use crate::counters::within_limits;

/// Services that have metrics, unless more are annotated.
const MOST: usize = 100;

/// Reads a ledger. While traffic is not counted, no Service is in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exposed {
    ledger: Arc<Mutex<Ledger>>,
}

/// Names and helps of the metrics of a port and of an endpoint, and what they are of a sum.
struct Metric {
    of_port: (&'static str, &'static str),
    of_endpoint: (&'static str, &'static str),
    number: fn(&Sum) -> u64,
}

const METRICS: [Metric; 3] = [
    Metric {
        of_port: (
            "portolan_service_flows",
            "Connections and other flows of the busiest Services, by port",
        ),
        of_endpoint: (
            "portolan_service_endpoint_flows",
            "Connections and other flows to each endpoint of Services annotated portolan/count-connections",
        ),
        number: |sum| sum.flows,
    },
    Metric {
        of_port: (
            "portolan_service_packets",
            "Packets of the busiest Services, by port, both directions",
        ),
        of_endpoint: (
            "portolan_service_endpoint_packets",
            "Packets of each endpoint of Services annotated portolan/count-connections, both directions",
        ),
        number: |sum| sum.packets,
    },
    Metric {
        of_port: (
            "portolan_service_bytes",
            "Bytes of the busiest Services, by port, both directions, with IP headers",
        ),
        of_endpoint: (
            "portolan_service_endpoint_bytes",
            "Bytes of each endpoint of Services annotated portolan/count-connections, both directions, with IP headers",
        ),
        number: |sum| sum.bytes,
    },
];

/// A series: the port of a Service, and the endpoint, of which one of a port has none.
type Series<'a> = (&'a ObjectName, (Port, Option<SocketAddr>, &'a Sum));

/// The sums of ports.
fn of_ports<'a>(busiest: &[(&'a ObjectName, &'a Sums)]) -> Vec<Series<'a>> {
    let all = busiest.iter().flat_map(|(service, sums)| {
        let ports = sums.ports.iter();
        ports.map(|(port, sum)| (*service, (*port, None, sum)))
    });
    within_limits(all).collect()
}

/// The sums of endpoints.
fn of_endpoints<'a>(busiest: &[(&'a ObjectName, &'a Sums)]) -> Vec<Series<'a>> {
    let all = busiest.iter().flat_map(|(service, sums)| {
        let endpoints = sums.endpoints.iter();
        endpoints.map(|((port, endpoint), (sum, _))| (*service, (*port, Some(*endpoint), sum)))
    });
    within_limits(all).collect()
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help): (&str, &str),
    series: &[Series<'_>],
    number: fn(&Sum) -> u64,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (service, (port, endpoint, sum)) in series {
        let labels = [
            ("namespace", service.namespace.to_string()),
            ("service", service.name.to_string()),
            ("port", port.to_string()),
        ];
        let endpoint = endpoint.map(|endpoint| ("endpoint", endpoint.to_string()));
        let labels: Vec<(&str, String)> = labels.into_iter().chain(endpoint).collect();
        let counter = ConstCounter::new(number(sum));
        counter.encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

impl Exposed {
    pub(super) fn ledger(&self) -> Arc<Mutex<Ledger>> {
        self.ledger.clone()
    }
}

impl Collector for Exposed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let busiest = ledger.busiest(MOST);
        let (ports, endpoints) = (of_ports(&busiest), of_endpoints(&busiest));
        for metric in METRICS {
            encode(&mut encoder, metric.of_port, &ports, metric.number)?;
            encode(&mut encoder, metric.of_endpoint, &endpoints, metric.number)?;
        }
        let help = "Times that the kernel dropped notifications about ended flows, so that counts are too small";
        let losses = ConstCounter::new(ledger.losses());
        let name = "portolan_service_traffic_losses";
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        losses.encode(metric)
    }
}
