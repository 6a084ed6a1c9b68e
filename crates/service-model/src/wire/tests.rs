mod arbitrary;
mod endpoint_slices;
mod mutated;
mod services;

use std::time::Duration;

use serde_json::{Value, json};

use super::*;

/// Decodes and converts.
#[track_caller]
fn convert<T: Object>(value: Value) -> Result<Converted<T::Model>, Invalid> {
    let object: T = serde_json::from_value(value).unwrap();
    object.into_model(&mut ConversionContext::default())
}

/// The object, which must not have warnings.
#[track_caller]
fn clean<T: Object>(value: Value) -> T::Model {
    let converted = convert::<T>(value).unwrap();
    assert_eq!(converted.warnings, []);
    converted.object
}

/// The refused field and the reason.
#[track_caller]
fn refused<T: Object>(value: Value) -> (String, String) {
    let invalid = convert::<T>(value).unwrap_err();
    assert_eq!(invalid.kind, T::KIND);
    (invalid.field, invalid.reason)
}

/// The object, and the fields that were skipped.
#[track_caller]
fn skipping<T: Object>(value: Value) -> (T::Model, Vec<String>) {
    let converted = convert::<T>(value).unwrap();
    (
        converted.object,
        converted.warnings.into_iter().map(|w| w.field).collect(),
    )
}

#[test]
fn a_whole_node_is_converted() {
    let node = clean::<Node>(json!({
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "a", "other": "x"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::7/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "node-1"},
            {"type": "ExternalIP", "address": "203.0.113.1"},
            {"type": "InternalIP", "address": "192.0.2.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
        ]},
    }));
    assert_eq!(node.name, ObjectName::new("", "node-1"));
    assert_eq!(node.zone.as_deref(), Some("a"));
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["192.0.2.1", "2001:db8::1", "203.0.113.1"]);
    let ranges: Vec<String> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.1.0.0/24", "fd00:1::/64"]);
}

#[test]
fn a_node_without_the_list_of_pod_ranges_has_the_single_one() {
    let node =
        clean::<Node>(json!({"metadata": {"name": "n"}, "spec": {"podCIDR": "10.1.0.0/24"}}));
    assert_eq!(node.pod_cidrs, ["10.1.0.0/24".parse().unwrap()]);
    assert_eq!((node.zone, node.addresses), (None, vec![]));
    let empty_zone =
        json!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": ""}}});
    assert_eq!(clean::<Node>(empty_zone).zone, None);
}

#[test]
fn a_node_is_leaving_when_deleted_or_tainted_for_deletion() {
    let leaving = |metadata: Value, spec: Value| {
        let node = json!({"metadata": metadata, "spec": spec});
        clean::<Node>(node).leaving
    };
    let taint = |key: &str| json!({"taints": [{"key": key, "effect": "NoSchedule"}, {}]});
    let named = json!({"name": "a", "deletionTimestamp": null});
    assert!(!leaving(
        named.clone(),
        taint("node.kubernetes.io/unreachable")
    ));
    assert!(!leaving(named.clone(), json!({"taints": null})));
    assert!(leaving(named, taint("ToBeDeletedByClusterAutoscaler")));
    let deleted = json!({"name": "a", "deletionTimestamp": "2026-07-01T00:30:00Z"});
    assert!(leaving(deleted, json!({})));
}

#[test]
fn bad_values_in_nodes_and_service_cidrs_are_skipped() {
    let (node, skipped) = skipping::<Node>(json!({
        "metadata": {"name": "n"},
        "spec": {"podCIDRs": ["10.1.0.0", "10.1.0.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "fe80::1%eth0"},
                                 {"type": "InternalIP"},
                                 {"type": "InternalIP", "address": "192.0.2.1"}]},
    }));
    assert_eq!(node.addresses.len(), 1);
    assert_eq!(node.pod_cidrs.len(), 1);
    assert_eq!(
        skipped,
        [
            "status.addresses[0].address",
            "status.addresses[1].address",
            "spec.podCIDRs[0]"
        ]
    );
    let (cidr, skipped) = skipping::<ServiceCidr>(json!({
        "metadata": {"name": "kubernetes"}, "spec": {"cidrs": ["x", "10.96.0.0/16", "fd00::/108"]},
    }));
    assert_eq!(cidr.cidrs.len(), 2);
    assert_eq!(skipped, ["spec.cidrs[0]"]);
}

#[test]
fn yaml_manifests_decode_like_json() {
    let service: Service = serde_saphyr::from_str(
        "
apiVersion: v1
kind: Service
metadata:
  name: web
  creationTimestamp: null
  annotations: {a: b}
spec:
  clusterIPs: [10.96.0.1, 'fd00::1']
  selector:
  ports:
  - {name: http, port: 80, targetPort: web, nodePort: 30080}
",
    )
    .unwrap();
    let converted = service
        .into_model(&mut ConversionContext::default())
        .unwrap();
    let json = json!({
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"], "type": null,
                 "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]},
    });
    assert_eq!(converted.warnings, []);
    assert_eq!(converted.object, clean::<Service>(json));
}

#[test]
fn null_and_absent_fields_are_the_same() {
    let absent = json!({"metadata": {"name": "a"}, "addressType": "IPv4"});
    let null = json!({
        "metadata": {"name": "a", "namespace": null, "uid": null, "labels": null, "annotations": null,
                     "creationTimestamp": null, "deletionTimestamp": null, "resourceVersion": null},
        "addressType": "IPv4", "ports": null, "endpoints": null,
    });
    assert_eq!(clean::<EndpointSlice>(absent), clean::<EndpointSlice>(null));
    let bare: Service = serde_json::from_value(json!({"metadata": null, "spec": null})).unwrap();
    assert_eq!(
        bare.into_model(&mut ConversionContext::default())
            .unwrap_err()
            .field,
        "metadata.name"
    );
}

#[test]
fn the_key_needs_neither_namespace_nor_uid() {
    let object = |metadata: Value| {
        let object: Service = serde_json::from_value(json!({"metadata": metadata})).unwrap();
        object.object_name().to_string()
    };
    assert_eq!(object(json!({"name": "a", "namespace": "b"})), "b/a");
    assert_eq!(object(json!({"name": "a"})), "default/a");
    assert_eq!(object(json!({"name": "a", "namespace": ""})), "default/a");
    let node: Node =
        serde_json::from_value(json!({"metadata": {"name": "n", "namespace": "x"}})).unwrap();
    assert_eq!(node.object_name().to_string(), "n");
}

#[test]
fn names_that_kubernetes_forbids_are_refused_and_escaped() {
    let long = "a".repeat(254);
    for name in [
        "a b", "a\nb", "a;b", "a\"b", "{a", "a#", "a\\", "Ä", "A", "-a", "a-", ".", "a/b", &long,
    ] {
        for metadata in [
            json!({"name": name}),
            json!({"name": "a", "namespace": name}),
        ] {
            let object: Service = serde_json::from_value(json!({"metadata": metadata})).unwrap();
            let key = object.object_name();
            let invalid = object
                .into_model(&mut ConversionContext::default())
                .unwrap_err();
            assert_eq!(invalid.object, key);
            assert!(invalid.field.starts_with("metadata.name"), "{invalid}");
            assert!(!invalid.to_string().contains(char::is_control), "{invalid}");
            assert!(invalid.to_string().chars().count() < 400, "{invalid}");
        }
    }
    for name in ["a", "1", "a-b.c-1", &"a".repeat(253)] {
        let metadata = json!({"name": name, "namespace": "a".repeat(63)});
        let service =
            clean::<Service>(json!({"metadata": metadata, "spec": {"type": "ExternalName"}}));
        assert_eq!(&*service.name.name, name);
    }
}

#[test]
fn reasons_quote_at_most_64_printable_characters() {
    let hostile = format!("1\n\u{1b}[31m\u{202e}{}", "é".repeat(1000));
    let (field, reason) = refused::<Service>(json!({
        "metadata": {"name": "a"}, "spec": {"clusterIP": hostile},
    }));
    assert_eq!(field, "spec.clusterIP");
    assert!(reason.starts_with(r#""1\n\u{1b}[31m\u{202e}é"#), "{reason}");
    assert!(!reason.contains(char::is_control), "{reason}");
    let quoted = reason.split('"').nth(1).unwrap();
    assert_eq!(quoted.chars().count(), 65, "64 and an ellipsis");
}

#[test]
fn times_are_read_and_bad_ones_are_not_fatal() {
    let slice: EndpointSlice = serde_json::from_value(json!({"metadata": {"name": "a", "annotations": {
        "endpoints.kubernetes.io/last-change-trigger-time": "2026-07-01T00:30:00.5Z", "big": "x",
    }}}))
    .unwrap();
    let expected = SystemTime::UNIX_EPOCH + Duration::new(1_782_865_800, 500_000_000);
    assert_eq!(slice.metadata.last_change_trigger_time(), Some(expected));
    for bad in [
        json!("yesterday"),
        json!("1900-01-01T00:00:00Z"),
        json!(null),
    ] {
        let annotations = json!({"endpoints.kubernetes.io/last-change-trigger-time": bad});
        let metadata: Metadata =
            serde_json::from_value(json!({"annotations": annotations})).unwrap();
        assert_eq!(metadata.last_change_trigger_time(), None);
    }
    let service = |created: &str| json!({"metadata": {"name": "a", "creationTimestamp": created}, "spec": {"clusterIP": "None"}});
    assert_eq!(
        clean::<Service>(service("2026-07-01T00:30:00Z")).created,
        Some(1_782_865_800)
    );
    let (bad, skipped) = skipping::<Service>(service("soon"));
    assert_eq!(
        (bad.created, skipped),
        (None, vec!["metadata.creationTimestamp".to_owned()])
    );
}
