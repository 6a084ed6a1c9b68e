//! core/v1 Node: the few fields that Services and the overlay need.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::Deserialize;

use super::address::{parse_address, parse_cidr};
use super::report::{Report, quoted};
use super::{Converted, Interner, Metadata, Object, null_is_default};
use crate::objects::{self, Invalid, ObjectKind};

/// A Node as decoded.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Node {
    /// `metadata`
    #[serde(deserialize_with = "null_is_default")]
    pub metadata: Metadata,
    #[serde(deserialize_with = "null_is_default")]
    spec: Spec,
    #[serde(deserialize_with = "null_is_default")]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_default")]
    pod_cidrs: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Taint {
    key: Option<String>,
}

/// What the cluster autoscaler puts on a node that it is about to take away (its `ToBeDeletedTaint`).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Vec<NodeAddress>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    r#type: Option<String>,
    address: Option<String>,
}

impl Object for Node {
    type Model = objects::Node;

    const KIND: ObjectKind = ObjectKind::Node;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn into_model(self, interner: &mut Interner) -> Result<Converted<objects::Node>, Invalid> {
        let mut report = self.metadata.report(Self::KIND, interner)?;
        let zone = self.metadata.labels.zone.as_deref();
        let node = objects::Node {
            name: report.object().clone(),
            zone: zone
                .filter(|zone| !zone.is_empty())
                .map(|zone| interner.intern(zone)),
            addresses: self.status.addresses(&mut report),
            pod_cidrs: self.spec.pod_cidrs(&mut report),
            leaving: self.metadata.deletion_timestamp.is_some() || self.spec.is_to_be_deleted(),
            annotations: Arc::new(self.metadata.annotations.overlay),
        };
        Ok(report.converted(node))
    }
}

impl Status {
    fn addresses(&self, report: &mut Report) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (i, written) in self.addresses.iter().enumerate() {
                if written.r#type.as_deref() != Some(wanted) {
                    continue;
                }
                let text = written.address.as_deref().unwrap_or_default();
                match parse_address(text) {
                    Ok(address) => addresses.push(address),
                    Err(reason) => report.warn(
                        format!("status.addresses[{i}].address"),
                        format!("{} {reason}", quoted(text)),
                    ),
                }
            }
        }
        addresses
    }
}

impl Spec {
    fn is_to_be_deleted(&self) -> bool {
        let mut keys = self.taints.iter().filter_map(|taint| taint.key.as_deref());
        keys.any(|key| key == TO_BE_DELETED)
    }

    fn pod_cidrs(&self, report: &mut Report) -> Vec<IpNet> {
        if self.pod_cidrs.is_empty() {
            let one = self.pod_cidr.iter().filter(|text| !text.is_empty());
            return ranges(one.map(|text| ("spec.podCIDR".to_owned(), text)), report);
        }
        let many = self.pod_cidrs.iter().enumerate();
        ranges(
            many.map(|(i, text)| (format!("spec.podCIDRs[{i}]"), text)),
            report,
        )
    }
}

/// The ranges that are ranges.
pub(super) fn ranges<'a>(
    written: impl Iterator<Item = (String, &'a String)>,
    report: &mut Report,
) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (field, text) in written {
        match parse_cidr(text) {
            Ok(range) => ranges.push(range),
            Err(reason) => report.warn(field, format!("{} {reason}", quoted(text))),
        }
    }
    ranges
}
