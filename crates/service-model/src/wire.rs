//! The few fields of the API objects that matter, as serde types, and their conversion into the compact
//! types of [`crate::objects`].
//!
//! Owns every rule about foreign input: what is canonicalized, which objects are refused as a whole ([`Invalid`]), and
//! which fields are skipped while the rest of the object is used ([`Converted::warnings`]). Where the bytes come from
//! is left to the sources, and the last good version of an object to the index.
//!
//! The same types decode JSON from the API server and YAML manifests. Fields that are not named here are
//! skipped without being stored, and every optional field may be absent or null. Whatever is decoded,
//! conversion returns; it never panics, and no text it returns holds control characters.

#![cfg_attr(not(test), deny(clippy::indexing_slicing))]

mod address;
mod annotations;
mod context;
mod endpoint_slice;
mod interner;
mod node;
mod service;
mod service_cidr;
mod validation;

#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::sync::Arc;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

pub use address::{parse_address, parse_cidr};
pub use annotations::Annotations;
pub use context::ConversionContext;
pub use endpoint_slice::EndpointSlice;
pub use node::Node;
pub use service::Service;
pub use service_cidr::ServiceCidr;

use crate::objects::{Invalid, ObjectKind, ObjectName, ServiceOptions, Watched};
use validation::Validation;

/// Services with this label are another proxy's (row 1; KEP-2447).
pub const LABEL_SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
/// Services with this label are treated as headless (row 1).
pub const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
/// The Service an EndpointSlice belongs to.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Annotation on Services: TCP connections to a removed endpoint are reset, so that clients notice at once. Off unless the value is `true`.
pub const ANNOTATION_RESET: &str = "portolan/reset-removed-endpoints";
/// Annotation on Services: new connections to each frontend are counted. Off unless the value is `true`.
pub const ANNOTATION_COUNT: &str = "portolan/count-connections";
/// `"true"`: an endpoint that does not answer while its node does gets no new connections while others are eligible.
pub const ANNOTATION_FAILOVER: &str = "portolan/failover-endpoints";

/// The label selector to list Services and EndpointSlices with: kube-proxy's (rows 1 and 2), or, for a proxy that
/// has a name (`--service-proxy-name`), that of the Services labeled with it. Conversion marks objects that the selector
/// hides as `excluded`, so that a source without selectors behaves alike.
pub fn label_selector(proxy_name: Option<&str>) -> String {
    match proxy_name {
        None => format!("!{LABEL_SERVICE_PROXY_NAME},!{LABEL_HEADLESS}"),
        Some(name) => format!("{LABEL_SERVICE_PROXY_NAME}={name},!{LABEL_HEADLESS}"),
    }
}

/// An API object as decoded.
pub trait Object: Clone + Debug + DeserializeOwned + Send + 'static {
    /// What it becomes.
    type Model: Watched + Clone + Debug + Send + Sync + 'static;

    /// Its kind.
    const KIND: ObjectKind = Self::Model::KIND;

    /// `metadata`
    fn metadata(&self) -> &Metadata;

    /// Validates, canonicalises and shrinks. An error means that nothing of the object can be used: its last
    /// good version should keep serving.
    fn into_model(self, context: &mut ConversionContext)
    -> Result<Converted<Self::Model>, Invalid>;

    /// The key of the object. Total and safe to print: a name that Kubernetes would not allow (and that
    /// [`Object::into_model`] refuses) comes out escaped and clamped.
    fn object_name(&self) -> ObjectName {
        self.metadata().object_name(Self::KIND)
    }
}

/// A usable object, and which of its fields were skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Converted<T> {
    /// The object.
    pub object: T,
    /// Fields that were skipped. A handful at most: the last one counts those that follow.
    pub warnings: Vec<Invalid>,
}

/// `metadata` of any object: the fields that are used.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name.
    #[serde(deserialize_with = "null_is_default")]
    pub name: String,
    /// Namespace. A namespaced object without one is in `default`, as with kubectl.
    pub namespace: Option<String>,
    /// Distinguishes an object from a later one of the same name.
    pub uid: Option<String>,
    /// The version to continue a watch from.
    pub resource_version: Option<String>,
    /// RFC 3339, whole seconds.
    pub creation_timestamp: Option<String>,
    /// Set when the object is being deleted but held by a finalizer; it is still used.
    pub deletion_timestamp: Option<String>,
    /// The labels that are used.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: Labels,
    /// The annotations that are used.
    #[serde(deserialize_with = "null_is_default")]
    pub annotations: Annotations,
}

/// The labels that are used; the others are not stored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Labels {
    /// [`LABEL_SERVICE_NAME`]
    #[serde(rename = "kubernetes.io/service-name")]
    pub service_name: Option<String>,
    /// [`LABEL_SERVICE_PROXY_NAME`]; without a value, an empty one.
    #[serde(
        rename = "service.kubernetes.io/service-proxy-name",
        deserialize_with = "present_text"
    )]
    pub service_proxy_name: Option<String>,
    /// [`LABEL_HEADLESS`] is present, with any value.
    #[serde(
        rename = "service.kubernetes.io/headless",
        deserialize_with = "present"
    )]
    pub headless: bool,
    /// `topology.kubernetes.io/zone`
    #[serde(rename = "topology.kubernetes.io/zone")]
    pub zone: Option<String>,
}

impl Labels {
    /// Hidden by [`label_selector`].
    pub(crate) fn excluded(&self, context: &ConversionContext) -> bool {
        self.headless || !context.serves(self.service_proxy_name.as_deref())
    }
}

impl Annotations {
    fn options(&self) -> ServiceOptions {
        let is_true = |text: &Option<String>| text.as_deref() == Some("true");
        ServiceOptions {
            reset_removed: is_true(&self.reset),
            count: is_true(&self.count),
            failover: is_true(&self.failover),
        }
    }
}

impl Metadata {
    /// See [`Object::object_name`].
    pub fn object_name(&self, kind: ObjectKind) -> ObjectName {
        ObjectName::new(
            validation::printable(self.namespace_of(kind)),
            validation::printable(&self.name),
        )
    }

    /// When the change happened that an EndpointSlice brings, to measure programming latency from.
    pub fn last_change_trigger_time(&self) -> Option<SystemTime> {
        let text = self.annotations.last_change_trigger_time.as_deref()?;
        let time: Timestamp = text.parse().ok()?;
        (time >= Timestamp::UNIX_EPOCH).then(|| time.into())
    }

    fn namespace_of(&self, kind: ObjectKind) -> &str {
        match kind {
            ObjectKind::Node | ObjectKind::ServiceCidr => "",
            ObjectKind::Service | ObjectKind::EndpointSlice => match self.namespace.as_deref() {
                None | Some("") => "default",
                Some(namespace) => namespace,
            },
        }
    }

    /// Starts a conversion: fails if Kubernetes would not allow the object's name.
    fn validate(
        &self,
        kind: ObjectKind,
        context: &mut ConversionContext,
    ) -> Result<Validation, Invalid> {
        let namespace = self.namespace_of(kind);
        let refused = |field: &str, value: &str| {
            let reason = match value {
                "" => "is missing".to_owned(),
                _ => format!("{} is not a name", validation::quoted(value)),
            };
            Validation::new(kind, self.object_name(kind)).invalid(field, reason)
        };
        if !is_name(&self.name, MAX_NAME) {
            return Err(refused("metadata.name", &self.name));
        }
        if !namespace.is_empty() && !is_name(namespace, MAX_LABEL) {
            return Err(refused("metadata.namespace", namespace));
        }
        let namespace = context.intern(namespace);
        let name = match kind {
            // Slices repeat the name of their Service.
            ObjectKind::Service => context.intern(&self.name),
            // Nothing else repeats it, so interning would only keep it longer.
            _ => Arc::from(&*self.name),
        };
        Ok(Validation::new(kind, ObjectName { namespace, name }))
    }

    /// `metadata.creationTimestamp` in seconds since 1970.
    fn created(&self, validation: &mut Validation) -> Option<i64> {
        let text = self.creation_timestamp.as_deref()?;
        let parsed = text.parse().ok().map(Timestamp::as_second);
        if parsed.is_none() {
            let reason = format!("{} is not an RFC 3339 time", validation::quoted(text));
            validation.warn("metadata.creationTimestamp", reason);
        }
        parsed
    }
}

/// Longest DNS-1123 subdomain, in bytes (apimachinery `DNS1123SubdomainMaxLength`).
const MAX_NAME: usize = 253;
/// Longest DNS-1123 label and longest label value, in bytes.
const MAX_LABEL: usize = 63;

/// Lower-case letters, digits, `-` and `.`, with a letter or digit at both ends: every name Kubernetes gives
/// to the kinds that are watched. Anything else cannot have passed an API server and is kept out of logs.
fn is_name(text: &str, max: usize) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.');
    let end = |b: Option<&u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    bytes.len() <= max && bytes.iter().all(inner) && end(bytes.first()) && end(bytes.last())
}

/// Absent and null are the same to Kubernetes.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Whether the key is present; its value does not matter.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

/// The value of a key if it is text, else an empty one.
fn present_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Some(
        Option::<String>::deserialize(deserializer)?.unwrap_or_default(),
    ))
}
