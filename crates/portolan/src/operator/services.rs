//! `/v1/services`: frontends, endpoints and connections of all Services, or of one with everything about it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use service_dataplane::Claim;
use service_model::{
    Choice, Disposition, FrontendAddress, Identity, ObjectName, PortChoices, Service, ServiceType,
    TrafficPolicy,
};

use super::catalog::Catalog;
use super::documents::{self, Endpoint, Services, Traffic};
use super::knowledge::{Knowledge, Parameters};
use super::status::clean;
use super::traffic::{Connections, add, counts_bytes};

pub(super) fn answer(known: &Knowledge, parameters: &Parameters) -> Result<Services> {
    let mut catalog = known.catalog.borrow_mut();
    let named = parameters
        .get("name")
        .map(|name| find(&catalog, name))
        .transpose()?;
    let losers = losers(&mut catalog);
    let facts = catalog.facts().context("the first sync is not complete")?;
    let measure = parameters.contains_key("measure");
    let census = known.census.borrow_mut().take(facts, measure);
    let uncounted = census.as_ref().err().map(|error| format!("{error:#}"));
    let question = Question {
        catalog: &catalog,
        losers,
        connections: census.unwrap_or_default(),
    };
    let services = match &named {
        Some(name) => {
            let service = catalog
                .service(name)
                .map(|service| question.describe(service, true));
            service.into_iter().collect()
        }
        None => {
            let all = catalog.services();
            all.map(|service| question.describe(service, false))
                .collect()
        }
    };
    Ok(Services {
        node: clean(&known.sources.node),
        uncounted,
        counts_bytes: counts_bytes(),
        services,
    })
}

/// A Service by `namespace/name`, or by its name where only one Service has that name.
pub(super) fn find(catalog: &Catalog, name: &str) -> Result<ObjectName> {
    let known = || catalog.services().map(|service| &service.name);
    if let Some((namespace, name)) = name.split_once('/') {
        let wanted = ObjectName::new(namespace, name);
        let found = known().find(|known| **known == wanted);
        return found
            .cloned()
            .with_context(|| format!("no Service is called {}", clean(&wanted.to_string())));
    }
    let mut found = known().filter(|known| &*known.name == name);
    let first = found.next();
    let first = first.with_context(|| format!("no Service is called {}", clean(name)))?;
    match found.next() {
        None => Ok(first.clone()),
        Some(second) => {
            anyhow::bail!(
                "several Services have this name: {first}, {second}; write NAMESPACE/NAME"
            )
        }
    }
}

/// Which Service has the frontends that others request.
fn losers(catalog: &mut Catalog) -> BTreeMap<(ObjectName, Claim), ObjectName> {
    let conflicts = catalog.conflicts().iter();
    conflicts
        .map(|lost| ((lost.loser.clone(), lost.claim), lost.winner.clone()))
        .collect()
}

/// The name of a Service's type in the API.
fn type_name(service: &Service) -> &'static str {
    match service.service_type {
        ServiceType::ClusterIp => "ClusterIP",
        ServiceType::NodePort => "NodePort",
        ServiceType::LoadBalancer => "LoadBalancer",
        ServiceType::ExternalName => "ExternalName",
    }
}

/// The name of a policy in the API.
pub(super) fn policy_name(policy: TrafficPolicy) -> &'static str {
    match policy {
        TrafficPolicy::Cluster => "Cluster",
        TrafficPolicy::Local => "Local",
    }
}

fn unprogrammed(service: &Service) -> Option<&'static str> {
    if service.service_type == ServiceType::ExternalName {
        Some("an alias in DNS (ExternalName)")
    } else if service.excluded {
        Some("excluded by a label: headless, or another proxy's")
    } else if service.cluster_ips.is_empty() {
        Some("headless")
    } else {
        None
    }
}

struct Question<'a> {
    catalog: &'a Catalog,
    losers: BTreeMap<(ObjectName, Claim), ObjectName>,
    connections: Connections,
}

impl Question<'_> {
    fn describe(&self, service: &Service, whole: bool) -> documents::Service {
        let plan = self.catalog.plan(&service.name);
        let quarantined = self.catalog.quarantined().get(&service.name);
        let intent = match quarantined {
            Some(quarantined) => quarantined.last_good.as_deref(),
            None => plan.as_ref().map(|plan| &plan.intent),
        };
        let frontends: Vec<documents::Frontend> = intent
            .iter()
            .flat_map(|intent| &intent.frontends)
            .map(|frontend| self.frontend(service, frontend))
            .collect();
        let mut traffic = Traffic::default();
        for frontend in frontends
            .iter()
            .filter(|frontend| frontend.held_by.is_none())
        {
            add(&mut traffic, &frontend.traffic);
        }
        let mut measured = Traffic::default();
        for frontend in intent.iter().flat_map(|intent| &intent.frontends) {
            let claim = Claim::from(frontend);
            if !self.losers.contains_key(&(service.name.clone(), claim)) {
                add(&mut measured, &self.connections.measured(&claim));
            }
        }
        let claims: Vec<Claim> = intent
            .iter()
            .flat_map(|intent| &intent.frontends)
            .map(Claim::from)
            .collect();
        let ports = self.catalog.explain(&service.name);
        let identities = match whole {
            true => self.catalog.identities(&service.name),
            false => BTreeMap::new(),
        };
        let mut endpoints: Vec<Endpoint> = Vec::new();
        for port in &ports {
            endpoints.extend(self.endpoints(&service.name, port, &claims, &identities));
        }
        let ignored = plan.iter().flat_map(|plan| &plan.ignored);
        documents::Service {
            name: clean(&service.name.to_string()),
            kind: type_name(service).to_owned(),
            internal_policy: policy_name(service.internal_policy).to_owned(),
            external_policy: policy_name(service.external_policy).to_owned(),
            affinity_seconds: service.affinity,
            unprogrammed: unprogrammed(service).map(str::to_owned),
            quarantined: quarantined.map(|quarantined| clean(&quarantined.reason)),
            frontends,
            endpoint_count: endpoints.len(),
            used_count: endpoints.iter().filter(|endpoint| endpoint.used).count(),
            endpoints: if whole { endpoints } else { Vec::new() },
            ignored: ignored.map(|invalid| clean(&invalid.to_string())).collect(),
            traffic,
            measured,
        }
    }

    fn frontend(
        &self,
        service: &Service,
        frontend: &service_model::Frontend,
    ) -> documents::Frontend {
        let claim = Claim::from(frontend);
        let (kind, address) = match frontend.address {
            FrontendAddress::ClusterIp(address) => ("cluster IP", Some(address)),
            FrontendAddress::External(address) if service.load_balancer_ips.contains(&address) => {
                ("load balancer IP", Some(address))
            }
            FrontendAddress::External(address) => ("external IP", Some(address)),
            FrontendAddress::NodePort(_) => ("node port", None),
        };
        let held_by = self.losers.get(&(service.name.clone(), claim));
        let allowed = frontend
            .allowed_sources
            .iter()
            .flat_map(|ranges| ranges.iter());
        documents::Frontend {
            kind: kind.to_owned(),
            address: address.map(|address| address.to_string()),
            family: frontend.address.family().api_name().to_owned(),
            protocol: frontend.protocol.to_string(),
            port: frontend.port,
            disposition: disposition(&frontend.disposition),
            outside: frontend.outside.as_ref().map(disposition),
            held_by: held_by.map(|holder| clean(&holder.to_string())),
            allowed_sources: allowed.map(ToString::to_string).collect(),
            traffic: match held_by {
                None => self.connections.to(&claim),
                Some(_) => Traffic::default(),
            },
        }
    }

    fn endpoints(
        &self,
        service: &ObjectName,
        of: &PortChoices,
        claims: &[Claim],
        identities: &BTreeMap<IpAddr, Identity>,
    ) -> Vec<Endpoint> {
        let (port, protocol) = (of.port.port, of.port.protocol);
        let is_of_port = |claim: &&Claim| {
            let number = match claim.address {
                FrontendAddress::NodePort(_) => of.port.node_port,
                _ => Some(port),
            };
            claim.protocol == protocol
                && number == Some(claim.port)
                && claim.address.family() == of.family
        };
        let claims: Vec<&Claim> = claims.iter().filter(is_of_port).collect();
        let described = of.endpoints.iter().map(|choice| {
            let address = SocketAddr::new(choice.backend.address, choice.backend.port);
            let (mut traffic, mut measured) = (Traffic::default(), Traffic::default());
            for claim in &claims {
                add(&mut traffic, &self.connections.through(claim, address));
                let through = self.connections.measured_through(claim, address);
                add(&mut measured, &through);
            }
            let identity = identities.get(&choice.backend.address);
            let conditions = choice.conditions;
            let conditions = [
                (conditions.ready, "ready"),
                (conditions.serving, "serving"),
                (conditions.terminating, "terminating"),
            ];
            let conditions = conditions.iter().filter(|(holds, _)| *holds);
            Endpoint {
                port_name: clean(&of.port.name),
                protocol: protocol.to_string(),
                address: address.to_string(),
                node: choice.node.as_deref().map(clean),
                pod: identity.and_then(|identity| pod_name(service, identity)),
                zone: identity.and_then(|identity| identity.zone.as_deref().map(clean)),
                local: choice.backend.local,
                conditions: conditions.map(|(_, name)| (*name).to_owned()).collect(),
                zone_hints: choice.hints.zones.iter().map(|zone| clean(zone)).collect(),
                node_hints: choice.hints.nodes.iter().map(|node| clean(node)).collect(),
                used: choice.cluster == Choice::Chosen,
                reason: (choice.cluster != Choice::Chosen).then(|| choice.cluster.to_string()),
                used_locally: choice.local == Choice::Chosen,
                traffic,
                measured,
            }
        });
        described.collect()
    }
}

/// `namespace/name` of an endpoint's pod, which is in the namespace of its Service.
pub(super) fn pod_name(service: &ObjectName, identity: &Identity) -> Option<String> {
    let pod = identity.pod.as_deref()?;
    Some(clean(&format!("{}/{pod}", service.namespace)))
}

fn disposition(disposition: &Disposition) -> String {
    match disposition {
        Disposition::Balance(backends) => format!("balanced over {}", backends.len()),
        Disposition::Refuse => "refused".to_owned(),
        Disposition::Drop => "dropped".to_owned(),
    }
}
