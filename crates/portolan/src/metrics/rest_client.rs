//! `rest_client_*`: requests to the API servers, with client-go's names, labels and bounds.

use object_source::api::RequestOutcome;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Answers by status code, and their durations.
#[derive(Clone, Debug)]
pub(super) struct RestClientMetrics {
    requests: Family<RequestLabels, Counter>,
    durations: Family<DurationLabels, Histogram>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    code: String,
    host: String,
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    host: String,
    verb: String,
}

impl RestClientMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = RestClientMetrics {
            requests: Family::default(),
            durations: Family::new_with_constructor(|| Histogram::new(BOUNDS)),
        };
        let registry = registry.sub_registry_with_prefix("rest_client");
        registry.register(
            "requests",
            "Requests to API servers by status code, method and host",
            metrics.requests.clone(),
        );
        registry.register(
            "request_duration_seconds",
            "Duration from a request to the head of its answer, in seconds",
            metrics.durations.clone(),
        );
        metrics
    }

    /// Records a request.
    pub(super) fn record(&self, outcome: &RequestOutcome<'_>) {
        let (host, verb) = (outcome.host.to_owned(), outcome.method.to_string());
        let labels = RequestLabels {
            code: match outcome.code {
                Some(code) => code.to_string(),
                None => "<error>".to_owned(),
            },
            host: host.clone(),
            method: verb.clone(),
        };
        self.requests.get_or_create(&labels).inc();
        let labels = DurationLabels { host, verb };
        let durations = self.durations.get_or_create(&labels);
        durations.observe(outcome.elapsed.as_secs_f64());
    }
}

/// Those of component-base (`metrics/prometheus/restclient`).
const BOUNDS: [f64; 12] = [
    0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0,
];
