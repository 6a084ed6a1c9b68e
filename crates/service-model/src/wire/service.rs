//! core/v1 Service.
//!
//! What only an administrator can have written wrong (a port out of range, an address that is none) refuses the
//! object, so that its last good version keeps serving. What contradicts itself within the object is
//! settled by order: the first wins and the later one is named, so every node decides alike.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;
use serde::Deserialize;
use smallvec::SmallVec;

use super::address::{cluster_ip_refusal, endpoint_refusal, parse_address, parse_cidr};
use super::validation::{Validation, quoted};
use super::{ConversionContext, Converted, Metadata, Object, null_is_default};
use crate::objects::{self, Family, Invalid, Protocol, ServiceType, TrafficPolicy};

/// core/v1 `DefaultClientIPServiceAffinitySeconds`
const AFFINITY_SECONDS: u32 = 10800;
/// core/v1 `MaxClientIPServiceAffinitySeconds`
const AFFINITY_SECONDS_MAX: i64 = 86400;

/// A Service as decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Service {
    /// `metadata`
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_default")]
    spec: Spec,
    #[serde(deserialize_with = "null_is_default")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Status {
    #[serde(deserialize_with = "null_is_default")]
    load_balancer: LoadBalancer,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    #[serde(deserialize_with = "null_is_default")]
    ingress: Vec<Ingress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    /// Absent where there is only a host name.
    ip: Option<String>,
    ip_mode: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AffinityConfig {
    #[serde(rename = "clientIP", deserialize_with = "null_is_default")]
    client_ip: ClientIp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIp {
    timeout_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    r#type: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    cluster_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<Port>,
    #[serde(rename = "externalIPs", deserialize_with = "null_is_default")]
    external_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    load_balancer_source_ranges: Vec<String>,
    external_traffic_policy: Option<String>,
    internal_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    session_affinity_config: AffinityConfig,
    health_check_node_port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
    node_port: Option<i64>,
}

impl Object for Service {
    type Model = objects::Service;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn into_model(
        self,
        context: &mut ConversionContext,
    ) -> Result<Converted<objects::Service>, Invalid> {
        let mut validation = self.metadata.validate(Self::KIND, context)?;
        let service_type = service_type(self.spec.r#type.as_deref(), &validation)?;
        let labels = &self.metadata.labels;
        let mut service = objects::Service {
            created: self.metadata.created(&mut validation),
            service_type,
            options: self.metadata.annotations.options(),
            excluded: labels.excluded(context),
            ..objects::Service::named(validation.object().clone())
        };
        let ours = !service.excluded && service_type != ServiceType::ExternalName;
        if ours && !self.spec.is_headless() {
            self.check_budget(&validation)?;
            service.cluster_ips = self.spec.cluster_ips(&mut validation)?;
            service.ports = self.spec.ports(&mut validation, context)?;
            service.external_ips = self.spec.external_ips(&mut validation);
            service.load_balancer_ips = self.status.load_balancer_ips(&mut validation);
            service.source_ranges = self.spec.source_ranges(&validation)?;
            let external = self.spec.external_traffic_policy.as_deref();
            let internal = self.spec.internal_traffic_policy.as_deref();
            service.external_policy = policy(external, "spec.externalTrafficPolicy", &validation)?;
            service.internal_policy = policy(internal, "spec.internalTrafficPolicy", &validation)?;
            service.affinity = self.spec.affinity(&mut validation)?;
            service.uid = match service.affinity {
                Some(_) => self.metadata.uid.as_deref().map(Box::from),
                None => None,
            };
            let checked = service_type == ServiceType::LoadBalancer
                && service.external_policy == TrafficPolicy::Local;
            let number = self.spec.health_check_node_port.filter(|_| checked);
            service.health_check_node_port = number.and_then(port_number);
        }
        Ok(validation.converted(service))
    }
}

impl Service {
    /// Refuses node ports outside the range that is given to them. Only for sources that have no API server to
    /// enforce that rule (its `--service-node-port-range`); to be called before conversion.
    pub fn check_node_ports(&self, range: &RangeInclusive<u16>) -> Result<(), Invalid> {
        let stray = |port: &Port| {
            let number = port.node_port.filter(|number| *number != 0)?;
            let inside = u16::try_from(number).is_ok_and(|number| range.contains(&number));
            (!inside).then_some(number)
        };
        for (i, port) in self.spec.ports.iter().enumerate() {
            if let Some(number) = stray(port) {
                let (first, last) = (range.start(), range.end());
                return Err(Validation::new(Self::KIND, self.object_name()).invalid(
                    format!("spec.ports[{i}].nodePort"),
                    format!("{number} is outside the node port range {first}-{last}"),
                ));
            }
        }
        Ok(())
    }
}

/// How many frontends one Service may ask for: its ports times its addresses. What a Service costs this node grows with
/// them, and whoever may create one Service chooses both factors.
const MAX_FRONTENDS: usize = 4096;

impl Service {
    /// Refuses a Service over [`MAX_FRONTENDS`], by what is written, before any of it is read.
    fn check_budget(&self, validation: &Validation) -> Result<(), Invalid> {
        let spec = &self.spec;
        let ports = spec.ports.len();
        let external = spec.external_ips.len() + self.status.load_balancer.ingress.len();
        // Each port may be on two cluster IPs and have a node port in two families.
        let frontends = ports.saturating_mul(external.saturating_add(4));
        let ranges = spec.load_balancer_source_ranges.len();
        let over = if frontends > MAX_FRONTENDS {
            let field = if ports > external {
                "spec.ports"
            } else {
                "spec.externalIPs"
            };
            Some((
                field,
                format!(
                    "{ports} ports at {external} external addresses are more than {MAX_FRONTENDS} frontends"
                ),
            ))
        } else if external > MAX_FRONTENDS {
            Some((
                "spec.externalIPs",
                format!("{external} addresses are more than {MAX_FRONTENDS}"),
            ))
        } else if ranges > MAX_FRONTENDS {
            Some((
                "spec.loadBalancerSourceRanges",
                format!("{ranges} ranges are more than {MAX_FRONTENDS}"),
            ))
        } else {
            None
        };
        match over {
            None => Ok(()),
            Some((field, reason)) => Err(validation.invalid(field, reason)),
        }
    }
}

impl Spec {
    /// The addresses, each with its field.
    fn written_cluster_ips(&self) -> impl Iterator<Item = (String, &str)> {
        let many = self.cluster_ips.iter().enumerate();
        let many = many.map(|(i, text)| (format!("spec.clusterIPs[{i}]"), text.as_str()));
        let one = self
            .cluster_ip
            .iter()
            .filter(|_| self.cluster_ips.is_empty());
        let one = one.map(|text| ("spec.clusterIP".to_owned(), text.as_str()));
        many.chain(one).filter(|(_, text)| !text.is_empty())
    }

    fn is_headless(&self) -> bool {
        self.written_cluster_ips().any(|(_, text)| text == "None")
    }

    fn cluster_ips(&self, validation: &mut Validation) -> Result<SmallVec<[IpAddr; 2]>, Invalid> {
        let mut addresses = SmallVec::<[IpAddr; 2]>::new();
        for (field, text) in self.written_cluster_ips() {
            let refused = |reason| validation.invalid(&field, format!("{} {reason}", quoted(text)));
            let address = parse_address(text).map_err(refused)?;
            if let Some(reason) = cluster_ip_refusal(address) {
                return Err(refused(reason));
            }
            let family = Family::of(address);
            if addresses.iter().any(|a| Family::of(*a) == family) {
                validation.warn(
                    field,
                    format!("{address} is a second address of one family"),
                );
            } else {
                addresses.push(address);
            }
        }
        if addresses.is_empty() {
            validation.warn(
                "spec.clusterIP",
                "is missing: the Service is not programmed",
            );
        }
        Ok(addresses)
    }

    fn ports(
        &self,
        validation: &mut Validation,
        context: &mut ConversionContext,
    ) -> Result<SmallVec<[objects::ServicePort; 1]>, Invalid> {
        let mut ports = SmallVec::<[objects::ServicePort; 1]>::new();
        // What a later port of the same protocol can collide with.
        let (mut numbers, mut names, mut node_ports) =
            (HashSet::new(), HashSet::new(), HashSet::new());
        for (i, written) in self.ports.iter().enumerate() {
            let field = |name: &str| format!("spec.ports[{i}].{name}");
            let protocol = match parse_protocol(written.protocol.as_deref()) {
                Ok(protocol) => protocol,
                Err(reason) => {
                    validation.warn(field("protocol"), reason);
                    continue;
                }
            };
            let port = match written.port {
                None => return Err(validation.invalid(field("port"), "is missing")),
                Some(number) => port_number(number)
                    .ok_or_else(|| validation.invalid(field("port"), out_of_range(number)))?,
            };
            let mut node_port =
                match written.node_port {
                    None | Some(0) => None,
                    Some(number) => Some(port_number(number).ok_or_else(|| {
                        validation.invalid(field("nodePort"), out_of_range(number))
                    })?),
                };
            let name = written.name.as_deref().unwrap_or_default();

            let collision = if numbers.contains(&(protocol, port)) {
                Some((field("port"), port.to_string()))
            } else if names.contains(&(protocol, name)) {
                Some((field("name"), quoted(name)))
            } else {
                None
            };
            if let Some((field, value)) = collision {
                validation.warn(
                    field,
                    format!("{value} is taken by an earlier {protocol} port"),
                );
                continue;
            }
            numbers.insert((protocol, port));
            names.insert((protocol, name));
            if let Some(number) = node_port
                && !node_ports.insert((protocol, number))
            {
                let reason = format!("{number} is taken by an earlier {protocol} port");
                validation.warn(field("nodePort"), reason);
                node_port = None;
            }
            let name = context.intern(name);
            ports.push(objects::ServicePort {
                name,
                protocol,
                port,
                node_port,
            });
        }
        ports.shrink_to_fit();
        Ok(ports)
    }
}

impl Spec {
    fn external_ips(&self, validation: &mut Validation) -> Vec<IpAddr> {
        let written = self.external_ips.iter().enumerate();
        let written = written.map(|(i, text)| (format!("spec.externalIPs[{i}]"), text.as_str()));
        external_addresses(written, validation)
    }

    /// A range that cannot be read refuses the object: leaving it out could open the Service to everyone.
    fn source_ranges(&self, validation: &Validation) -> Result<Vec<IpNet>, Invalid> {
        let written = self.load_balancer_source_ranges.iter().enumerate();
        let parsed = written.map(|(i, text)| {
            parse_cidr(text.trim()).map_err(|reason| {
                let field = format!("spec.loadBalancerSourceRanges[{i}]");
                validation.invalid(field, format!("{} {reason}", quoted(text)))
            })
        });
        parsed.collect()
    }

    fn affinity(&self, validation: &mut Validation) -> Result<Option<u32>, Invalid> {
        match self.session_affinity.as_deref() {
            None | Some("" | "None") => return Ok(None),
            Some("ClientIP") => {}
            Some(other) => {
                let reason = format!("{} is not ClientIP or None", quoted(other));
                return Err(validation.invalid("spec.sessionAffinity", reason));
            }
        }
        let seconds = match self.session_affinity_config.client_ip.timeout_seconds {
            None => AFFINITY_SECONDS,
            Some(seconds @ 1..=AFFINITY_SECONDS_MAX) => {
                u32::try_from(seconds).unwrap_or(AFFINITY_SECONDS)
            }
            Some(seconds) => {
                let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
                validation.warn(
                    field,
                    format!("{seconds} is outside 1-{AFFINITY_SECONDS_MAX}"),
                );
                AFFINITY_SECONDS
            }
        };
        Ok(Some(seconds))
    }
}

impl Status {
    /// Skips addresses that the load balancer itself answers for (`ipMode: Proxy`; KEP-1860).
    fn load_balancer_ips(&self, validation: &mut Validation) -> Vec<IpAddr> {
        let written = self.load_balancer.ingress.iter().enumerate();
        let written = written.filter(|(_, ingress)| ingress.ip_mode.as_deref() != Some("Proxy"));
        let written = written.filter_map(|(i, ingress)| {
            let text = ingress.ip.as_deref().filter(|text| !text.is_empty())?;
            Some((format!("status.loadBalancer.ingress[{i}].ip"), text))
        });
        external_addresses(written, validation)
    }
}

/// Usable external addresses, without duplicates.
fn external_addresses<'a>(
    written: impl Iterator<Item = (String, &'a str)>,
    validation: &mut Validation,
) -> Vec<IpAddr> {
    let (mut addresses, mut known) = (Vec::new(), HashSet::new());
    for (field, text) in written {
        let parsed = parse_address(text).and_then(|address| match endpoint_refusal(address) {
            Some(reason) => Err(reason),
            None => Ok(address),
        });
        match parsed {
            Ok(address) if !known.insert(address) => {}
            Ok(address) => addresses.push(address),
            Err(reason) => validation.warn(field, format!("{} {reason}", quoted(text))),
        }
    }
    addresses
}

fn policy(
    text: Option<&str>,
    field: &str,
    validation: &Validation,
) -> Result<TrafficPolicy, Invalid> {
    match text {
        None | Some("" | "Cluster") => Ok(TrafficPolicy::Cluster),
        Some("Local") => Ok(TrafficPolicy::Local),
        Some(other) => {
            let reason = format!("{} is not Cluster or Local", quoted(other));
            Err(validation.invalid(field, reason))
        }
    }
}

fn service_type(text: Option<&str>, validation: &Validation) -> Result<ServiceType, Invalid> {
    match text {
        None | Some("" | "ClusterIP") => Ok(ServiceType::ClusterIp),
        Some("NodePort") => Ok(ServiceType::NodePort),
        Some("LoadBalancer") => Ok(ServiceType::LoadBalancer),
        Some("ExternalName") => Ok(ServiceType::ExternalName),
        Some(other) => {
            let reason = format!("{} is not a Service type", quoted(other));
            Err(validation.invalid("spec.type", reason))
        }
    }
}

/// core/v1 `Protocol`; absent means TCP.
pub(super) fn parse_protocol(text: Option<&str>) -> Result<Protocol, String> {
    match text {
        None | Some("" | "TCP") => Ok(Protocol::Tcp),
        Some("UDP") => Ok(Protocol::Udp),
        Some("SCTP") => Ok(Protocol::Sctp),
        Some(other) => Err(format!("{} is not TCP, UDP or SCTP", quoted(other))),
    }
}

/// 1-65535
pub(super) fn port_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

pub(super) fn out_of_range(number: i64) -> String {
    format!("{number} is outside 1-65535")
}
