//! `sync_proxy_rules_no_local_endpoints_total`: Service ports whose policy is Local, with endpoints but none on this node.

use std::collections::{BTreeSet, HashMap};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use service_dataplane::Update;
use service_model::{
    Disposition, Family as IpFamily, Frontend, FrontendAddress, ObjectName, ServiceIntent,
};

use crate::observer::Observer;

/// The labels of kube-proxy's gauge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct PolicyLabel {
    ip_family: &'static str,
    traffic_policy: &'static str,
}

/// kube-proxy's gauge.
pub(super) type Gauges = Family<PolicyLabel, Gauge>;

/// Makes the gauges, each present from the start.
pub(super) fn gauges() -> Gauges {
    let gauges = Gauges::default();
    for (family, policy) in KINDS {
        gauges.get_or_create(&label(family, policy)).set(0);
    }
    gauges
}

const KINDS: [(IpFamily, &str); 4] = [
    (IpFamily::Ip, "internal"),
    (IpFamily::Ip, "external"),
    (IpFamily::Ip6, "internal"),
    (IpFamily::Ip6, "external"),
];

fn label(family: IpFamily, traffic_policy: &'static str) -> PolicyLabel {
    PolicyLabel {
        ip_family: family.api_name(),
        traffic_policy,
    }
}

/// Counts the Service ports without local endpoints.
#[derive(Debug)]
pub(crate) struct NoLocalEndpoints {
    gauges: Gauges,
    /// Of each Service that has any: how many of each kind.
    services: HashMap<ObjectName, [i64; 4]>,
}

impl NoLocalEndpoints {
    pub(super) fn new(gauges: Gauges) -> Self {
        NoLocalEndpoints {
            gauges,
            services: HashMap::new(),
        }
    }
}

impl Observer for NoLocalEndpoints {
    fn planned(&mut self, updates: &[Update]) {
        for Update { service, intent } in updates {
            let now = intent.as_deref().map(count).unwrap_or_default();
            let before = match now.iter().any(|count| *count > 0) {
                true => self.services.insert(service.clone(), now),
                false => self.services.remove(service),
            };
            let before = before.unwrap_or_default();
            for (((family, policy), before), now) in KINDS.into_iter().zip(before).zip(now) {
                if before != now {
                    let gauge = self.gauges.get_or_create(&label(family, policy));
                    gauge.inc_by(now - before);
                }
            }
        }
    }
}

/// Service ports of each kind. Each external Service port appears at its node port, at each external address, or at both.
fn count(intent: &ServiceIntent) -> [i64; 4] {
    KINDS.map(|(family, policy)| {
        let (mut node_ports, mut ports) = (0, BTreeSet::new());
        let of_family = intent
            .frontends
            .iter()
            .filter(|f| f.address.family() == family);
        for frontend in of_family.filter(|frontend| lacks_local(frontend)) {
            let is_internal = matches!(frontend.address, FrontendAddress::ClusterIp(_));
            match (is_internal, frontend.address) {
                (true, _) if policy == "external" => {}
                (false, _) if policy == "internal" => {}
                (false, FrontendAddress::NodePort(_)) => node_ports += 1,
                _ => {
                    ports.insert((frontend.protocol, frontend.port));
                }
            }
        }
        i64::try_from(ports.len().max(node_ports)).unwrap_or(i64::MAX)
    })
}

/// Connections are dropped since no endpoint is local, while there are endpoints: without any they are refused.
fn lacks_local(frontend: &Frontend) -> bool {
    let drops = |disposition: &Disposition| matches!(disposition, Disposition::Drop);
    drops(&frontend.disposition) || frontend.outside.as_ref().is_some_and(drops)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use service_model::{Family, Masquerade, Protocol};

    use super::*;

    fn frontend(address: FrontendAddress, port: u16, drops: bool, drops_outside: bool) -> Frontend {
        let disposition = match drops {
            true => Disposition::Drop,
            false => Disposition::Refuse,
        };
        Frontend {
            address,
            protocol: Protocol::Tcp,
            port,
            service_port: port,
            disposition,
            outside: drops_outside.then_some(Disposition::Drop),
            masquerade: Masquerade::OffCluster,
            allowed_sources: None,
            affinity: None,
            counted: false,
            serving: Arc::default(),
        }
    }

    #[test]
    fn service_ports_without_local_endpoints_are_counted_once() {
        let gauges = gauges();
        let mut counter = NoLocalEndpoints::new(gauges.clone());
        let of = |family, policy| gauges.get_or_create(&label(family, policy)).get();
        let cluster_ip = FrontendAddress::ClusterIp("10.0.0.1".parse().unwrap());
        let external = FrontendAddress::External("192.0.2.1".parse().unwrap());
        let frontends = vec![
            frontend(cluster_ip, 80, true, false),
            frontend(external, 80, false, true),
            frontend(FrontendAddress::NodePort(Family::Ip), 30080, false, true),
            frontend(FrontendAddress::NodePort(Family::Ip6), 30080, false, false),
        ];
        let intent = ServiceIntent {
            service: ObjectName::new("ns", "web"),
            created: None,
            frontends,
            load_balancer_ips: Vec::new(),
            relays: Default::default(),
            reset_removed: false,
            health_check: None,
        };
        let mut update = Update::from(intent);
        counter.planned(std::slice::from_ref(&update));
        counter.planned(std::slice::from_ref(&update));
        assert_eq!(
            KINDS.map(|(family, policy)| of(family, policy)),
            [1, 1, 0, 0]
        );
        update.intent = None;
        counter.planned(&[update]);
        assert_eq!(KINDS.map(|(family, policy)| of(family, policy)), [0; 4]);
    }
}
