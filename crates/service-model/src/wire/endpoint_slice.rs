//! discovery.k8s.io/v1 EndpointSlice.
//!
//! Slices are written by controllers, and by tenants who may edit them (CVE-2021-25740): if a port or endpoint is
//! invalid, the others are used.

use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use smallvec::SmallVec;

use super::address::{endpoint_refusal, parse_address};
use super::service::{out_of_range, parse_protocol, port_number};
use super::validation::{Validation, quoted};
use super::{
    ConversionContext, Converted, LABEL_SERVICE_NAME, MAX_NAME, Metadata, Object, is_name,
    null_is_default,
};
use crate::identities::Identities;
use crate::objects::{self, Conditions, Family, Invalid, ObjectName, TriggerTime};

/// Longest value of a label.
const MAX_LABEL: usize = 63;

/// An EndpointSlice as decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EndpointSlice {
    /// `metadata`
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    address_type: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<Port>,
    #[serde(deserialize_with = "null_is_default")]
    endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Port {
    name: Option<String>,
    protocol: Option<String>,
    port: Option<i64>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Endpoint {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Vec<String>,
    node_name: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    conditions: WireConditions,
    hints: Option<Hints>,
    target_ref: Option<TargetRef>,
    zone: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: Option<String>,
    name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    #[serde(deserialize_with = "null_is_default")]
    for_zones: Vec<Hint>,
    #[serde(deserialize_with = "null_is_default")]
    for_nodes: Vec<Hint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Hint {
    name: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct WireConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

impl Object for EndpointSlice {
    type Model = objects::EndpointSlice;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// A slice that is not programmed (no Service named, FQDN addresses, one of the two labels) becomes empty and
    /// `excluded`. FQDN addresses lead to a warning, since the author of the slice expects them to serve.
    fn into_model(
        self,
        context: &mut ConversionContext,
    ) -> Result<Converted<objects::EndpointSlice>, Invalid> {
        let mut validation = self.metadata.validate(Self::KIND, context)?;
        let family = match self.address_type.as_deref() {
            Some("IPv4") => Some(Family::Ip),
            Some("IPv6") => Some(Family::Ip6),
            Some("FQDN") => None,
            None => return Err(validation.invalid("addressType", "is missing")),
            Some(other) => {
                let reason = format!("{} is not IPv4, IPv6 or FQDN", quoted(other));
                return Err(validation.invalid("addressType", reason));
            }
        };
        let labels = &self.metadata.labels;
        let service = labels.service_name.as_deref().unwrap_or_default();
        if !service.is_empty() && !is_name(service, MAX_NAME) {
            let field = format!("metadata.labels[{LABEL_SERVICE_NAME}]");
            return Err(validation.invalid(field, format!("{} is not a name", quoted(service))));
        }

        let mut slice = objects::EndpointSlice {
            name: validation.object().clone(),
            service: ObjectName {
                namespace: validation.object().namespace.clone(),
                name: context.intern(service),
            },
            family: family.unwrap_or(Family::Ip),
            ports: SmallVec::new(),
            endpoints: Vec::new(),
            identities: Identities::default(),
            excluded: service.is_empty() || labels.excluded(context),
            trigger: TriggerTime(self.metadata.last_change_trigger_time()),
        };
        if family.is_none() && !slice.excluded {
            validation.warn("addressType", "is FQDN: only IPv4 and IPv6 are served");
            slice.excluded = true;
        }
        if !slice.excluded {
            slice.ports = ports(&self.ports, &mut validation, context);
            (slice.endpoints, slice.identities) =
                endpoints(self.endpoints, slice.family, &mut validation, context);
        }
        Ok(validation.converted(slice))
    }
}

fn ports(
    written: &[Port],
    validation: &mut Validation,
    context: &mut ConversionContext,
) -> SmallVec<[objects::SlicePort; 1]> {
    let mut ports = SmallVec::<[objects::SlicePort; 1]>::new();
    for (i, port) in written.iter().enumerate() {
        let field = |name: &str| format!("ports[{i}].{name}");
        let number = match port.port {
            None => Err("is missing: all ports of an endpoint are not supported".to_owned()),
            Some(number) => port_number(number).ok_or_else(|| out_of_range(number)),
        };
        match (number, parse_protocol(port.protocol.as_deref())) {
            (Ok(number), Ok(protocol)) => ports.push(objects::SlicePort {
                name: context.intern(port.name.as_deref().unwrap_or_default()),
                protocol,
                port: number,
            }),
            (Err(reason), _) => validation.warn(field("port"), reason),
            (_, Err(reason)) => validation.warn(field("protocol"), reason),
        }
    }
    ports.shrink_to_fit();
    ports
}

fn endpoints(
    written: Vec<Endpoint>,
    family: Family,
    validation: &mut Validation,
    context: &mut ConversionContext,
) -> (Vec<objects::Endpoint>, Identities) {
    let mut endpoints = Vec::with_capacity(written.len());
    let mut usable = Vec::with_capacity(written.len());
    for (i, endpoint) in written.iter().enumerate() {
        match address(endpoint, family) {
            Ok(address) => {
                endpoints.push(objects::Endpoint {
                    address,
                    node: node(endpoint, context),
                    conditions: endpoint.conditions.with_defaults(),
                    hints: hints(endpoint, context),
                });
                usable.push(endpoint);
            }
            Err(reason) => validation.warn(format!("endpoints[{i}].addresses[0]"), reason),
        }
    }
    endpoints.shrink_to_fit();
    let identities = usable
        .iter()
        .map(|endpoint| (pod(endpoint), zone(endpoint)));
    (endpoints, Identities::new(identities))
}

/// The pod, by a name that pods can have; other kinds of targets have no name here.
fn pod(endpoint: &Endpoint) -> Option<&str> {
    let target = endpoint.target_ref.as_ref()?;
    let is_pod = target.kind.as_deref() == Some("Pod");
    let name = target.name.as_deref().filter(|_| is_pod)?;
    is_name(name, MAX_NAME).then_some(name)
}

/// The zone, if a label of a Node can have it as its value.
fn zone(endpoint: &Endpoint) -> Option<&str> {
    let is_allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let zone = endpoint.zone.as_deref();
    zone.filter(|zone| !zone.is_empty() && zone.len() <= MAX_LABEL && zone.bytes().all(is_allowed))
}

/// Only the first address counts (row 30); by the API, all of them lead to the same endpoint.
fn address(endpoint: &Endpoint, family: Family) -> Result<IpAddr, String> {
    let text = endpoint.addresses.first().ok_or("is missing")?;
    let refused = |reason| format!("{} {reason}", quoted(text));
    let address = parse_address(text).map_err(refused)?;
    if Family::of(address) != family {
        return Err(refused("is not of the slice's addressType"));
    }
    match endpoint_refusal(address) {
        Some(reason) => Err(refused(reason)),
        None => Ok(address),
    }
}

fn node(endpoint: &Endpoint, context: &mut ConversionContext) -> Option<Arc<str>> {
    let name = endpoint
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())?;
    Some(context.intern(name))
}

fn hints(endpoint: &Endpoint, context: &mut ConversionContext) -> Option<Box<objects::Hints>> {
    let written = endpoint.hints.as_ref()?;
    let mut names = |hints: &[Hint]| {
        let names = hints.iter().filter_map(|hint| hint.name.as_deref());
        names.map(|name| context.intern(name)).collect()
    };
    let hints = objects::Hints {
        zones: names(&written.for_zones),
        nodes: names(&written.for_nodes),
    };
    (hints != objects::Hints::default()).then(|| Box::new(hints))
}

impl WireConditions {
    /// Row 31; documented by the API since 1.33 (discovery/v1 `EndpointConditions`).
    fn with_defaults(self) -> Conditions {
        Conditions {
            ready: self.ready.unwrap_or(true),
            serving: self.serving.unwrap_or(true),
            terminating: self.terminating.unwrap_or(false),
        }
    }
}
