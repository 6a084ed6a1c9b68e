//! Whatever is decoded, conversion returns, and what it returns can be printed.

use proptest::prelude::*;
use serde_json::Map;

use super::*;

/// Keys that mean something, so that arbitrary values reach the code behind them.
const KEYS: [&str; 26] = [
    "metadata",
    "spec",
    "status",
    "name",
    "namespace",
    "labels",
    "annotations",
    "creationTimestamp",
    "kubernetes.io/service-name",
    "service.kubernetes.io/headless",
    "addressType",
    "ports",
    "endpoints",
    "port",
    "nodePort",
    "protocol",
    "addresses",
    "nodeName",
    "conditions",
    "ready",
    "clusterIP",
    "clusterIPs",
    "type",
    "podCIDRs",
    "cidrs",
    "endpoints.kubernetes.io/last-change-trigger-time",
];

const TEXTS: [&str; 16] = [
    "a",
    "web",
    "TCP",
    "IPv4",
    "IPv6",
    "FQDN",
    "NodePort",
    "None",
    "10.0.0.1",
    "010.0.0.1",
    "fd00::1",
    "::ffff:1.2.3.4",
    "10.0.0.0/8",
    "InternalIP",
    "2026-07-01T00:30:00Z",
    "\u{1b}[2J\u{202e}é",
];

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1_i64..70_000).prop_map(Value::from),
        prop::sample::select(&TEXTS).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ]
}

fn anything() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(5, 48, 6, |inner| {
        let key = prop_oneof![8 => prop::sample::select(&KEYS).prop_map(str::to_owned), 1 => any::<String>()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..6)
                .prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Lists of strings or numbers of the right type at the right place, with anything in them.
fn plausible() -> impl Strategy<Value = Value> {
    let text = || {
        prop_oneof![
            prop::sample::select(&TEXTS).prop_map(str::to_owned),
            any::<String>()
        ]
    };
    let number = || prop_oneof![any::<i64>(), -1_i64..70_000];
    let port = (text(), text(), number(), number())
        .prop_map(|(name, protocol, port, node)| json!({"name": name, "protocol": protocol, "port": port, "nodePort": node}));
    let endpoint = (prop::collection::vec(text(), 0..3), text(), any::<Option<bool>>())
        .prop_map(|(addresses, node, ready)| json!({"addresses": addresses, "nodeName": node, "conditions": {"ready": ready}}));
    let texts = || prop::collection::vec(text(), 0..4);
    (text(), text(), text(), text(), prop::collection::vec(port, 0..5), prop::collection::vec(endpoint, 0..5), texts())
        .prop_map(|(name, created, kind, service, ports, endpoints, texts)| {
            let addresses: Vec<Value> =
                texts.iter().map(|text| json!({"type": "InternalIP", "address": text})).collect();
            json!({
                "metadata": {"name": name, "namespace": created, "creationTimestamp": created,
                             "labels": {LABEL_SERVICE_NAME: service}},
                "addressType": kind, "ports": ports, "endpoints": endpoints,
                "spec": {"type": kind, "clusterIPs": texts, "ports": ports, "podCIDRs": texts, "cidrs": texts},
                "status": {"addresses": addresses},
            })
        })
}

fn converts<T: Object>(value: &Value) -> Result<(), TestCaseError> {
    let Ok(object) = serde_json::from_value::<T>(value.clone()) else {
        return Ok(());
    };
    let key = object.object_name();
    let said = match object.into_model(&mut ConversionContext::default()) {
        Ok(converted) => converted.warnings,
        Err(invalid) => vec![invalid],
    };
    for invalid in said {
        prop_assert_eq!(&invalid.object, &key);
        prop_assert!(
            !invalid.to_string().contains(char::is_control),
            "{:?}",
            invalid
        );
        prop_assert!(invalid.reason.chars().count() < 200, "{:?}", invalid);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_json_converts_or_is_refused_in_printable_words(value in prop_oneof![anything(), plausible()]) {
        converts::<Service>(&value)?;
        converts::<EndpointSlice>(&value)?;
        converts::<Node>(&value)?;
        converts::<ServiceCidr>(&value)?;
    }

    #[test]
    fn any_text_is_an_address_a_range_or_nothing(text in "[0-9a-fA-F:./TZ%+-]{0,40}") {
        if let Ok(address) = parse_address(&text) {
            prop_assert_eq!(parse_address(&address.to_string()), Ok(address));
        }
        if let Ok(range) = parse_cidr(&text) {
            prop_assert_eq!(parse_cidr(&range.to_string()), Ok(range));
        }
    }
}
