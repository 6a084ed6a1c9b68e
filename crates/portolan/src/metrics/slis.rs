//! `/metrics/slis`: results of health checks, as every Kubernetes component has them (KEP-3466).

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::Format;

/// The one check of kube-proxy's metrics port.
const CHECK: Check = Check {
    name: "ping",
    r#type: "healthz",
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Check {
    name: &'static str,
    r#type: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    name: &'static str,
    status: &'static str,
    r#type: &'static str,
}

/// Counts the checks of the metrics port.
#[derive(Debug)]
pub(super) struct Slis {
    registry: Registry,
    last: Family<Check, Gauge>,
    all: Family<Result, Counter>,
}

impl Default for Slis {
    fn default() -> Self {
        let (last, all) = (Family::default(), Family::default());
        let mut registry = Registry::default();
        let kubernetes = registry.sub_registry_with_prefix("kubernetes");
        kubernetes.register(
            "healthcheck",
            "1 if the last check passed",
            Family::clone(&last),
        );
        kubernetes.register("healthchecks", "Checks by result", Family::clone(&all));
        Slis {
            registry,
            last,
            all,
        }
    }
}

impl Slis {
    /// Records a check that passed.
    pub(super) fn passed(&self) {
        self.last.get_or_create(&CHECK).set(1);
        let Check { name, r#type } = CHECK;
        let status = "success";
        let result = Result {
            name,
            status,
            r#type,
        };
        self.all.get_or_create(&result).inc();
    }

    pub(super) fn encode(&self, format: Format) -> String {
        format.encode(&self.registry)
    }
}
