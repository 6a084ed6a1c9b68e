//! Manifests written by hand, as a [`Cluster`].
//!
//! A second reader of manifests beside the product's, small and strict: whatever it does not know in a
//! case folder is an error of the case.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::Value;

use super::write::{days_of_month, days_of_year};
use super::{
    Cluster, Endpoint, Ingress, Kind, Node, Service, ServicePort, Slice, SlicePort, Transport,
    label,
};

impl Cluster {
    /// Reads a stream of YAML documents. Settings are left at their defaults; a node's interfaces carry its
    /// addresses, the gateway of its pods, and loopback.
    pub fn from_manifests(yaml: &str) -> Result<Cluster> {
        let mut cluster = Cluster::default();
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).context("manifests")?;
        for document in documents.iter().filter(|d| !d.is_null()) {
            let name = text(document, "/metadata/name")?;
            cluster
                .add(document)
                .with_context(|| format!("object {name}"))?;
        }
        Ok(cluster)
    }

    fn add(&mut self, document: &Value) -> Result<()> {
        match text(document, "/kind")?.as_str() {
            "Node" => self.nodes.push(node(document)?),
            "Service" => self.services.push(service(document)?),
            "EndpointSlice" => self.slices.push(slice(document)?),
            "ServiceCIDR" => {
                let ranges = parsed(document, "/spec/cidrs")?.context("no cidrs")?;
                let name = text(document, "/metadata/name")?;
                self.service_cidrs.push((name, ranges));
            }
            other => bail!("unknown kind {other}"),
        }
        Ok(())
    }
}

fn text(value: &Value, path: &str) -> Result<String> {
    optional_text(value, path).with_context(|| format!("no {path}"))
}

fn optional_text(value: &Value, path: &str) -> Option<String> {
    value.pointer(path)?.as_str().map(str::to_owned)
}

fn list<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    value
        .pointer(path)
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn parsed<T: for<'de> Deserialize<'de>>(value: &Value, path: &str) -> Result<Option<T>> {
    match value.pointer(path) {
        Some(value) => Ok(Some(
            serde_json::from_value(value.clone()).context(path.to_owned())?,
        )),
        None => Ok(None),
    }
}

fn namespace(document: &Value) -> String {
    optional_text(document, "/metadata/namespace").unwrap_or_else(|| "default".into())
}

fn labels(document: &Value) -> Vec<(String, String)> {
    let labels = document
        .pointer("/metadata/labels")
        .and_then(Value::as_object);
    let pairs = labels.into_iter().flatten();
    pairs
        .map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned()))
        .collect()
}

fn transport(value: &Value) -> Result<Option<Transport>> {
    match optional_text(value, "/protocol") {
        None => Ok(None),
        Some(name) => {
            let known = Transport::ALL.into_iter().find(|t| t.name() == name);
            known.map(Some).with_context(|| format!("protocol {name}"))
        }
    }
}

fn node(document: &Value) -> Result<Node> {
    let mut addresses: Vec<(&'static str, IpAddr)> = Vec::new();
    for entry in list(document, "/status/addresses") {
        let kind = match text(entry, "/type")?.as_str() {
            "InternalIP" => "InternalIP",
            "ExternalIP" => "ExternalIP",
            _ => continue,
        };
        addresses.push((kind, text(entry, "/address")?.parse()?));
    }
    let loopback: [IpAddr; 2] = ["127.0.0.1".parse()?, "::1".parse()?];
    let pod_cidrs: Vec<IpNet> = parsed(document, "/spec/podCIDRs")?.unwrap_or_default();
    let gateways = pod_cidrs
        .iter()
        .filter_map(|range| range.hosts().nth(usize::from(range.addr().is_ipv6())));
    let own = addresses.iter().map(|(_, address)| *address);
    Ok(Node {
        name: text(document, "/metadata/name")?,
        interfaces: own.chain(gateways).chain(loopback).collect(),
        addresses,
        pod_cidrs,
        zone: label(&labels(document), "topology.kubernetes.io/zone").map(str::to_owned),
    })
}

fn service(document: &Value) -> Result<Service> {
    let cluster_ips: Vec<String> = parsed(document, "/spec/clusterIPs")?.unwrap_or_default();
    let headless = optional_text(document, "/spec/clusterIP").as_deref() == Some("None");
    let mut ports = Vec::new();
    for port in list(document, "/spec/ports") {
        ports.push(ServicePort {
            name: optional_text(port, "/name").unwrap_or_default(),
            transport: transport(port)?.unwrap_or(Transport::Tcp),
            port: parsed(port, "/port")?.context("no port")?,
            node_port: parsed(port, "/nodePort")?.unwrap_or(0),
        });
    }
    Ok(Service {
        namespace: namespace(document),
        name: text(document, "/metadata/name")?,
        created: created(document)?,
        labels: labels(document),
        kind: match optional_text(document, "/spec/type").as_deref() {
            None | Some("ClusterIP") => Kind::ClusterIp,
            Some("NodePort") => Kind::NodePort,
            Some("LoadBalancer") => Kind::LoadBalancer,
            Some("ExternalName") => Kind::ExternalName,
            Some(other) => bail!("type {other}"),
        },
        cluster_ips: match headless {
            true => Vec::new(),
            false => cluster_ips
                .iter()
                .map(|a| a.parse())
                .collect::<Result<_, _>>()?,
        },
        headless,
        ports,
        external_ips: parsed(document, "/spec/externalIPs")?.unwrap_or_default(),
        ingress: ingress(document),
        source_ranges: parsed(document, "/spec/loadBalancerSourceRanges")?.unwrap_or_default(),
        external_local: is_local(document, "/spec/externalTrafficPolicy")?,
        internal_local: is_local(document, "/spec/internalTrafficPolicy")?,
        affinity: affinity(document)?,
    })
}

fn ingress(document: &Value) -> Vec<Ingress> {
    let entries = list(document, "/status/loadBalancer/ingress").iter();
    let ingress = entries.map(|entry| Ingress {
        ip: optional_text(entry, "/ip"),
        hostname: optional_text(entry, "/hostname"),
        ip_mode: optional_text(entry, "/ipMode"),
    });
    ingress.collect()
}

fn is_local(document: &Value, policy: &str) -> Result<bool> {
    match optional_text(document, policy).as_deref() {
        None | Some("Cluster") => Ok(false),
        Some("Local") => Ok(true),
        Some(other) => bail!("{policy} {other}"),
    }
}

/// The time-out of affinity, if there is any; by default three hours, as the API server writes.
fn affinity(document: &Value) -> Result<Option<u32>> {
    const TIMEOUT: &str = "/spec/sessionAffinityConfig/clientIP/timeoutSeconds";
    match optional_text(document, "/spec/sessionAffinity").as_deref() {
        None | Some("None") => Ok(None),
        Some("ClientIP") => Ok(Some(parsed(document, TIMEOUT)?.unwrap_or(10_800))),
        Some(other) => bail!("sessionAffinity {other}"),
    }
}

fn hints(endpoint: &Value, field: &str) -> Result<Vec<String>> {
    let hints = list(endpoint, field).iter();
    hints.map(|hint| text(hint, "/name")).collect()
}

/// Seconds since 1970 of a creation timestamp, which is in UTC and whole seconds.
fn created(document: &Value) -> Result<i64> {
    let Some(stamp) = optional_text(document, "/metadata/creationTimestamp") else {
        return Ok(0);
    };
    let numbers: Vec<i64> = stamp
        .trim_end_matches('Z')
        .split(['-', 'T', ':'])
        .map(|number| {
            number
                .parse()
                .with_context(|| format!("creationTimestamp {stamp}"))
        })
        .collect::<Result<_>>()?;
    let [year, month, day, hour, minute, second] = numbers[..] else {
        bail!("creationTimestamp {stamp}")
    };
    let days: i64 = (1970..year).map(days_of_year).sum::<i64>()
        + (1..month)
            .map(|month| days_of_month(year, month))
            .sum::<i64>();
    Ok(((days + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

fn slice(document: &Value) -> Result<Slice> {
    const OWNER: &str = "kubernetes.io/service-name";
    let (owner, labels): (Vec<_>, Vec<_>) = labels(document)
        .into_iter()
        .partition(|(key, _)| key == OWNER);
    let mut ports = Vec::new();
    for port in list(document, "/ports") {
        ports.push(SlicePort {
            name: optional_text(port, "/name"),
            transport: transport(port)?,
            port: parsed(port, "/port")?,
        });
    }
    let mut endpoints = Vec::new();
    for endpoint in list(document, "/endpoints") {
        endpoints.push(Endpoint {
            addresses: parsed(endpoint, "/addresses")?.unwrap_or_default(),
            node: optional_text(endpoint, "/nodeName"),
            ready: parsed(endpoint, "/conditions/ready")?,
            serving: parsed(endpoint, "/conditions/serving")?,
            terminating: parsed(endpoint, "/conditions/terminating")?,
            zone_hints: hints(endpoint, "/hints/forZones")?,
            node_hints: hints(endpoint, "/hints/forNodes")?,
        });
    }
    Ok(Slice {
        namespace: namespace(document),
        name: text(document, "/metadata/name")?,
        labels,
        service: owner.into_iter().next().map(|(_, value)| value),
        address_type: match text(document, "/addressType")?.as_str() {
            "IPv4" => "IPv4",
            "IPv6" => "IPv6",
            "FQDN" => "FQDN",
            other => bail!("addressType {other}"),
        },
        ports,
        endpoints,
    })
}
