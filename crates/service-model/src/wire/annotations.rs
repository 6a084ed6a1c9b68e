//! `metadata.annotations`: the few that are used, without storing the others.

use std::collections::BTreeMap;
use std::fmt;

use super::{ANNOTATION_COUNT, ANNOTATION_FAILOVER, ANNOTATION_RESET};
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};

/// When the change happened that an EndpointSlice brings.
const TRIGGER_TIME: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// Ends of the names under which flannel publishes a node's tunnel. What comes before them is an operator's choice
/// (`--kube-annotation-prefix`), so the source keeps all that end so; `node-public-ip` is among them.
const OVERLAY: [&str; 10] = [
    "backend-data",
    "backend-type",
    "backend-v6-data",
    "kube-subnet-manager",
    "portolan-encryption",
    "portolan-probes",
    "public-ip",
    "public-ip-overwrite",
    "public-ipv6",
    "public-ipv6-overwrite",
];

/// The annotations that are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotations {
    /// `endpoints.kubernetes.io/last-change-trigger-time`, RFC 3339 with fractions of a second.
    pub last_change_trigger_time: Option<String>,
    /// Of a Service: `portolan/reset-removed-endpoints`.
    pub reset: Option<String>,
    /// Of a Service: `portolan/count-connections`.
    pub count: Option<String>,
    /// Of a Service: `portolan/failover-endpoints`.
    pub failover: Option<String>,
    /// Those of an overlay, by full name.
    pub overlay: BTreeMap<Box<str>, Box<str>>,
}

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Annotations;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
        let mut annotations = Annotations::default();
        while let Some(key) = map.next_key::<Key>()? {
            match key {
                Key::TriggerTime => annotations.last_change_trigger_time = map.next_value()?,
                Key::Reset => annotations.reset = map.next_value()?,
                Key::Count => annotations.count = map.next_value()?,
                Key::Failover => annotations.failover = map.next_value()?,
                Key::Overlay(name) => {
                    if let Some(value) = map.next_value::<Option<Box<str>>>()? {
                        annotations.overlay.insert(name, value);
                    }
                }
                Key::Other => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(annotations)
    }
}

/// A name, stored only where it is wanted.
enum Key {
    TriggerTime,
    Reset,
    Count,
    Failover,
    Overlay(Box<str>),
    Other,
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Key;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an annotation")
            }

            fn visit_str<E>(self, name: &str) -> Result<Key, E> {
                Ok(if name == TRIGGER_TIME {
                    Key::TriggerTime
                } else if name == ANNOTATION_RESET {
                    Key::Reset
                } else if name == ANNOTATION_COUNT {
                    Key::Count
                } else if name == ANNOTATION_FAILOVER {
                    Key::Failover
                } else if OVERLAY.iter().any(|end| name.ends_with(end)) {
                    Key::Overlay(name.into())
                } else {
                    Key::Other
                })
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_used_annotations_are_kept_with_any_prefix() {
        let text = r#"{
            "example.com/note": {"not": "text"},
            "endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z",
            "flannel.alpha.coreos.com/backend-data": "{\"VNI\":1}",
            "example.com/net-public-ip": "192.0.2.7",
            "flannel.alpha.coreos.com/public-ip-overwrite": null
        }"#;
        let annotations: Annotations = serde_json::from_str(text).unwrap();
        assert_eq!(
            annotations.last_change_trigger_time.as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        let names: Vec<&str> = annotations.overlay.keys().map(|name| &**name).collect();
        assert_eq!(
            names,
            [
                "example.com/net-public-ip",
                "flannel.alpha.coreos.com/backend-data"
            ]
        );
    }
}
