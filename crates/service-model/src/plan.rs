//! From a Service and its EndpointSlices to what this node has to do for it.
//!
//! A pure function of one Service, its slices, the node facts and the surroundings. The index decides whether a Service is programmed at
//! all; the ledger of the dataplane, which sees all Services, settles conflicts between them.
//!
//! Invariant: equal inputs give equal plans, whatever order slices and endpoints arrived in.

mod affinity;
mod endpoints;
mod explain;
mod external;

#[cfg(test)]
mod tests;

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::facts::{NodeFacts, sorted};
use crate::intent::{
    Affinity, Backend, Disposition, Frontend, FrontendAddress, Masquerade, ServiceIntent,
};
use crate::objects::{
    EndpointSlice, Family, Invalid, ObjectKind, Protocol, Service, ServicePort, TrafficPolicy,
};
use crate::select::{Selection, select};
use crate::surroundings::Surroundings;
use endpoints::Joined;
pub use explain::{Choice, EndpointChoice, PortChoices, explain};
use external::ExternalAddresses;

/// Maximum cost of one Service on this node: elements of sets and maps. Frontends, endpoints and source ranges multiply,
/// so limits for each of them alone do not bound a Service.
pub const MAX_ELEMENTS: usize = 262_144;

/// Maximum number of endpoints of one Service, of both families together, each address once: whatever they are used for, each
/// plan reads them all, which others wait for, and all are kept in memory.
pub const MAX_ENDPOINTS: usize = 65_536;

/// What [`plan`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// What the Service needs on this node. Without frontends if it is over its budget.
    pub intent: ServiceIntent,
    /// The Service has more than [`MAX_ENDPOINTS`] or needs more than [`MAX_ELEMENTS`]: its last good rules should stay.
    pub over_budget: Option<Invalid>,
    /// What this node ignores of objects that are valid by themselves: endpoints at the Service's own cluster IPs,
    /// external IPs that this node does not allow, and external addresses where the API server or a process of this
    /// node answers.
    pub ignored: Vec<Invalid>,
}

/// Plans a Service. `slices` are the Service's, sorted by name.
///
/// Every port has a frontend on each cluster IP (one of each family; row 11), on each external and load balancer
/// address of the same families (rows 13 and 14) and, where a node port is allocated, whatever the Service's type
/// (row 12), one on the node's addresses of the same families. All but cluster IPs are external traffic: it
/// masquerades everyone (row 48), or with policy Local only this node itself (row 49).
pub fn plan(
    service: &Service,
    slices: &[impl Borrow<EndpointSlice>],
    facts: &NodeFacts,
    surroundings: &Surroundings,
) -> Plan {
    let mut ignored = endpoints::circular(service, slices);
    let found = Frontends::of(service, slices, facts, surroundings, &mut ignored);
    let over_budget = found.as_ref().err().map(|over| over.of(service));
    let Frontends {
        frontends, relays, ..
    } = found.unwrap_or_default();
    let intent = ServiceIntent {
        service: service.name.clone(),
        created: service.created,
        frontends,
        load_balancer_ips: sorted(service.load_balancer_ips.clone()),
        relays,
        reset_removed: service.options.reset_removed,
        health_check: match over_budget {
            None => endpoints::health_check(service, slices, facts),
            Some(_) => None,
        },
    };
    Plan {
        intent,
        over_budget,
        ignored,
    }
}

/// The frontends of a Service, and what they cost so far.
#[derive(Default)]
struct Frontends {
    frontends: Vec<Frontend>,
    relays: BTreeMap<(Family, Protocol, u16), SocketAddr>,
    elements: usize,
}

/// Which budget the Service exceeds.
#[derive(Clone, Copy)]
enum OverBudget {
    Elements,
    Endpoints,
}

impl OverBudget {
    fn of(self, service: &Service) -> Invalid {
        Invalid {
            kind: ObjectKind::Service,
            object: service.name.clone(),
            field: "spec".into(),
            reason: match self {
                OverBudget::Elements => format!(
                    "its frontends, endpoints and source ranges need more than {MAX_ELEMENTS} elements of sets and maps"
                ),
                OverBudget::Endpoints => {
                    format!("its EndpointSlices have more than {MAX_ENDPOINTS} endpoints")
                }
            },
        }
    }
}

impl Frontends {
    /// Stops as soon as the budget is exceeded, so that finding this out costs no more than a Service within it.
    fn of(
        service: &Service,
        slices: &[impl Borrow<EndpointSlice>],
        facts: &NodeFacts,
        surroundings: &Surroundings,
        ignored: &mut Vec<Invalid>,
    ) -> Result<Frontends, OverBudget> {
        let mut found = Frontends::default();
        if endpoints::are_more_than(MAX_ENDPOINTS, slices) {
            return Err(OverBudget::Endpoints);
        }
        for family in Family::ALL {
            let of_family = |a: &&IpAddr| Family::of(**a) == family;
            let Some(cluster_ip) = service.cluster_ips.iter().find(of_family) else {
                continue;
            };
            let addresses = ExternalAddresses::new(service, family, facts, surroundings, ignored);
            let joined = Joined::new(slices, family);
            if joined.has_more_candidates_than(MAX_ELEMENTS.saturating_sub(found.elements), service)
            {
                return Err(OverBudget::Elements);
            }
            for port in &service.ports {
                let suspects = &surroundings.suspects;
                let candidates = endpoints::candidates(service, port, &joined, facts, suspects);
                found.spend(candidates.len())?;
                let backends = PortBackends::from(select(&candidates, facts));
                let internal = internal_frontend(service, port, *cluster_ip, &backends);
                let external = addresses.of_port(service, port, facts, surroundings, ignored);
                for (address, allowed_sources) in external {
                    let at = FrontendAddress::External(address);
                    found.add(Frontend {
                        allowed_sources,
                        ..external_frontend(service, port, at, &backends, &internal)
                    })?;
                }
                if let Some(node_port) = port.node_port {
                    let at = FrontendAddress::NodePort(family);
                    if service.internal_policy == TrafficPolicy::Cluster {
                        let target = SocketAddr::new(*cluster_ip, port.port);
                        let key = (family, port.protocol, node_port);
                        found.relays.insert(key, target);
                    }
                    found.add(Frontend {
                        port: node_port,
                        ..external_frontend(service, port, at, &backends, &internal)
                    })?;
                }
                found.add(internal)?;
            }
        }
        // The first of two frontends at one address and port wins; sorting is stable.
        found.frontends.sort_by_key(key);
        found.frontends.dedup_by_key(|frontend| key(frontend));
        Ok(found)
    }

    fn add(&mut self, frontend: Frontend) -> Result<(), OverBudget> {
        self.spend(frontend.elements())?;
        self.frontends.push(frontend);
        Ok(())
    }

    fn spend(&mut self, elements: usize) -> Result<(), OverBudget> {
        self.elements = self.elements.saturating_add(elements);
        match self.elements > MAX_ELEMENTS {
            true => Err(OverBudget::Elements),
            false => Ok(()),
        }
    }
}

fn key(frontend: &Frontend) -> impl Ord + use<> {
    (frontend.address, frontend.protocol, frontend.port)
}

/// The frontend on the cluster IP.
fn internal_frontend(
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    backends: &PortBackends,
) -> Frontend {
    Frontend {
        address: FrontendAddress::ClusterIp(cluster_ip),
        protocol: port.protocol,
        port: port.port,
        service_port: port.port,
        disposition: match service.internal_policy {
            TrafficPolicy::Cluster => backends.cluster(),
            TrafficPolicy::Local => backends.local().unwrap_or(Disposition::Refuse),
        },
        outside: None,
        masquerade: Masquerade::OffCluster,
        allowed_sources: None,
        affinity: service.affinity.map(|seconds| Affinity {
            seconds,
            group: affinity::group(service, port, false),
            map: affinity::map(service),
        }),
        counted: service.options.count,
        serving: backends.serving.clone(),
    }
}

/// A frontend for external traffic: like the internal one but for the policies.
fn external_frontend(
    service: &Service,
    port: &ServicePort,
    address: FrontendAddress,
    backends: &PortBackends,
    internal: &Frontend,
) -> Frontend {
    let (outside, masquerade) = match service.external_policy {
        TrafficPolicy::Cluster => (None, Masquerade::Always),
        TrafficPolicy::Local => (backends.local(), Masquerade::OwnNode),
    };
    Frontend {
        address,
        affinity: internal.affinity.map(|affinity| Affinity {
            group: affinity::group(service, port, true),
            ..affinity
        }),
        disposition: backends.cluster(),
        outside,
        masquerade,
        ..internal.clone()
    }
}

/// The backends of a Service port, shared between its frontends.
struct PortBackends {
    cluster: Arc<[Backend]>,
    local: Arc<[Backend]>,
    serving: Arc<[Backend]>,
}

impl From<Selection> for PortBackends {
    fn from(selection: Selection) -> Self {
        let cluster: Arc<[Backend]> = selection.cluster.into();
        let or_shared = |backends: Vec<Backend>| match *backends == *cluster {
            true => cluster.clone(),
            false => backends.into(),
        };
        PortBackends {
            local: or_shared(selection.local),
            serving: or_shared(selection.serving),
            cluster: cluster.clone(),
        }
    }
}

impl PortBackends {
    fn cluster(&self) -> Disposition {
        match self.cluster.is_empty() {
            true => Disposition::Refuse,
            false => Disposition::Balance(self.cluster.clone()),
        }
    }

    /// `None` when there is no endpoint anywhere: the policy does not matter then.
    fn local(&self) -> Option<Disposition> {
        match (self.cluster.is_empty(), self.local.is_empty()) {
            (true, _) => None,
            (false, true) => Some(Disposition::Drop),
            (false, false) => Some(Disposition::Balance(self.local.clone())),
        }
    }
}
