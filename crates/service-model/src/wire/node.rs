//! core/v1 Node: the few fields that Services and the overlay need.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::Deserialize;

use super::address::{parse_address, parse_cidr};
use super::validation::{Validation, quoted};
use super::{ConversionContext, Converted, Metadata, Object, null_is_default};
use crate::objects::{self, Invalid};

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
    #[serde(deserialize_with = "null_is_default")]
    conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Condition {
    r#type: Option<String>,
    status: Option<String>,
    last_transition_time: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    r#type: Option<String>,
    address: Option<String>,
}

impl Object for Node {
    type Model = objects::Node;

    fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    fn into_model(
        self,
        context: &mut ConversionContext,
    ) -> Result<Converted<objects::Node>, Invalid> {
        let mut validation = self.metadata.validate(Self::KIND, context)?;
        let zone = self.metadata.labels.zone.as_deref();
        let node = objects::Node {
            name: validation.object().clone(),
            zone: zone
                .filter(|zone| !zone.is_empty())
                .map(|zone| context.intern(zone)),
            not_ready_since: self.status.not_ready_since(),
            addresses: self.status.addresses(&mut validation),
            pod_cidrs: self.spec.pod_cidrs(&mut validation),
            leaving: self.metadata.deletion_timestamp.is_some() || self.spec.is_to_be_deleted(),
            created: self.metadata.created(&mut validation),
            annotations: Arc::new(self.metadata.annotations.overlay),
        };
        Ok(validation.converted(node))
    }
}

impl Status {
    /// A condition without a readable time counts as one that has just changed, which is no reason to refuse the Node.
    fn not_ready_since(&self) -> Option<i64> {
        let mut conditions = self.conditions.iter();
        let ready = conditions.find(|c| c.r#type.as_deref() == Some("Ready"))?;
        let is_ready = ready.status.as_deref() == Some("True");
        let since: Timestamp = ready.last_transition_time.as_deref()?.parse().ok()?;
        (!is_ready).then(|| since.as_second())
    }

    fn addresses(&self, validation: &mut Validation) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for wanted in ["InternalIP", "ExternalIP"] {
            for (i, written) in self.addresses.iter().enumerate() {
                if written.r#type.as_deref() != Some(wanted) {
                    continue;
                }
                let text = written.address.as_deref().unwrap_or_default();
                match parse_address(text) {
                    Ok(address) => addresses.push(address),
                    Err(reason) => validation.warn(
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

    fn pod_cidrs(&self, validation: &mut Validation) -> Vec<IpNet> {
        if self.pod_cidrs.is_empty() {
            let one = self.pod_cidr.iter().filter(|text| !text.is_empty());
            return ranges(
                one.map(|text| ("spec.podCIDR".to_owned(), text)),
                validation,
            );
        }
        let many = self.pod_cidrs.iter().enumerate();
        ranges(
            many.map(|(i, text)| (format!("spec.podCIDRs[{i}]"), text)),
            validation,
        )
    }
}

/// The ranges that are ranges.
pub(super) fn ranges<'a>(
    written: impl Iterator<Item = (String, &'a String)>,
    validation: &mut Validation,
) -> Vec<IpNet> {
    let mut ranges = Vec::new();
    for (field, text) in written {
        match parse_cidr(text) {
            Ok(range) => ranges.push(range),
            Err(reason) => validation.warn(field, format!("{} {reason}", quoted(text))),
        }
    }
    ranges
}
