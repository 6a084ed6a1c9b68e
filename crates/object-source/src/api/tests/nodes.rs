//! All Nodes of a cluster, of which most changes are received as metadata only.

use std::time::{Duration, Instant};

use lab::fake_api::{FakeApi, Fault, Injection, Resource, StreamingList, Verb};
use serde_json::{Value, json};
use service_model::ObjectKind;

use super::harness::{Bench, WatchView, quick};
use crate::api::ApiConfig;
use crate::api::outline::READS_AT_ONCE;

const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";

fn all_nodes() -> ApiConfig {
    ApiConfig {
        all_nodes: true,
        ..quick()
    }
}

/// A Node with this annotation whose kubelet has reported `report` times: ten kilobytes, like a real one.
fn node(name: &str, public_ip: &str, report: usize) -> Value {
    let images: Vec<Value> = (0..50)
        .map(|image| json!({ "names": [format!("registry.example/image-{image}@sha256:{report:064x}")] }))
        .collect();
    json!({
        "kind": "Node",
        "metadata": { "name": name, "annotations": { PUBLIC_IP: public_ip } },
        "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.7" }], "images": images },
    })
}

/// A running source that knows `this` and `other`, published at 192.0.2.1.
async fn started(config: ApiConfig, mode: StreamingList) -> Bench {
    let mut bench = Bench::new();
    bench.api.set_node_patches(true);
    bench.api.set_streaming_list(mode);
    for name in ["this", "other"] {
        bench.api.apply(node(name, "192.0.2.1", 0)).unwrap();
    }
    bench.start(config).await;
    bench
        .until("the nodes", |view| view.nodes == ["other", "this"])
        .await;
    let listed = bench.seen(Resource::Nodes, Verb::List).len();
    bench
        .until_seen("the watch", |api| {
            api.seen()
                .iter()
                .any(|seen| seen.resource == Resource::Nodes && seen.metadata_only)
        })
        .await;
    assert_eq!(listed, bench.seen(Resource::Nodes, Verb::List).len());
    bench
}

/// Names of Nodes that were applied, as they came.
fn applied(view: &WatchView) -> Vec<&str> {
    view.applied_nodes
        .iter()
        .map(|node| &*node.name.name)
        .collect()
}

fn published(view: &WatchView, ip: &str) -> bool {
    let last = view.applied_nodes.last();
    last.is_some_and(|node| {
        node.annotations
            .get(PUBLIC_IP)
            .is_some_and(|found| **found == *ip)
            && node.pod_cidrs.len() == 1
            && node.addresses.len() == 1
    })
}

#[tokio::test]
async fn status_reports_of_other_nodes_are_not_transferred() {
    for mode in [StreamingList::Served, StreamingList::Refused] {
        let mut bench = started(all_nodes(), mode).await;
        let before = bench.api.counts().bytes;
        for report in 1..=100 {
            bench.api.apply(node("other", "192.0.2.1", report)).unwrap();
        }
        bench.api.apply(node("other", "192.0.2.2", 100)).unwrap();
        bench
            .until("the new address", |view| published(view, "192.0.2.2"))
            .await;
        assert_eq!(applied(&bench.view), ["other"]);
        let (each, bytes) = (
            node("other", "", 0).to_string().len() as u64,
            bench.api.counts().bytes - before,
        );
        // One whole Node and a hundred pieces of metadata, not a hundred Nodes.
        assert!((each..10 * each).contains(&bytes), "{bytes} of {each} each");
        assert_eq!(bench.seen(Resource::Nodes, Verb::Get).len(), 1);
        assert_eq!(bench.view.resets[&ObjectKind::Node], 1);
        assert!(bench.view.failures(ObjectKind::Node).is_empty());
    }
}

#[tokio::test]
async fn own_node_and_nodes_without_pod_cidr_are_read_whole() {
    let mut bench = started(all_nodes(), StreamingList::Served).await;
    bench.api.apply(node("this", "192.0.2.1", 1)).unwrap();
    bench
        .until("this node", |view| applied(view) == ["this"])
        .await;
    let mut joining = node("new", "192.0.2.3", 0);
    let spec = joining["spec"].take();
    bench.api.apply(joining.clone()).unwrap();
    bench
        .until("a new node", |view| applied(view) == ["this", "new"])
        .await;
    assert!(!published(&bench.view, "192.0.2.3"));
    joining["spec"] = spec;
    bench.api.apply(joining).unwrap();
    bench
        .until("its ranges", |view| published(view, "192.0.2.3"))
        .await;
    // Known by now.
    bench.api.apply(node("new", "192.0.2.3", 1)).unwrap();
    // Gone and back: another one, whatever its metadata say.
    bench.api.delete(Resource::Nodes, "", "other");
    bench
        .until("the end", |view| !view.nodes.contains(&"other".to_owned()))
        .await;
    bench.api.apply(node("other", "192.0.2.1", 0)).unwrap();
    bench
        .until("its return", |view| view.nodes.len() == 3)
        .await;
    assert_eq!(applied(&bench.view), ["this", "new", "new", "other"]);
}

#[tokio::test]
async fn an_unreadable_node_is_retried_and_a_deleted_one_skipped() {
    let mut bench = started(all_nodes(), StreamingList::Served).await;
    let refused = |code| Fault::status(code);
    for fault in [refused(500), Fault::Hang] {
        bench.inject(Injection::once(fault).of(Resource::Nodes, Verb::Get));
    }
    let quickly = |address: &str| node("other", address, 0);
    bench.api.apply(quickly("192.0.2.2")).unwrap();
    bench
        .until("the new address", |view| published(view, "192.0.2.2"))
        .await;
    assert_eq!(applied(&bench.view), ["other"]);
    assert_eq!(bench.seen(Resource::Nodes, Verb::Get).len(), 3);
    assert_eq!(bench.view.resets[&ObjectKind::Node], 1);

    bench.inject(Injection::once(refused(404)).of(Resource::Nodes, Verb::Get));
    bench.api.apply(quickly("192.0.2.3")).unwrap();
    bench.api.apply(node("this", "192.0.2.1", 1)).unwrap();
    bench
        .until("what comes after", |view| {
            applied(view) == ["other", "this"]
        })
        .await;
}

#[tokio::test]
async fn a_node_is_read_again_after_a_while() {
    let config = ApiConfig {
        read_again: Duration::from_millis(50),
        ..all_nodes()
    };
    let mut bench = started(config, StreamingList::Served).await;
    let (began, mut report) = (Instant::now(), 0);
    while !applied(&bench.view).contains(&"other") && began.elapsed() < Duration::from_secs(5) {
        report += 1;
        for name in ["other", "this"] {
            bench.api.apply(node(name, "192.0.2.1", report)).unwrap();
        }
        bench
            .until("this node's change", |view| {
                let of = |name: &&&str| **name == "this";
                applied(view).iter().filter(of).count() == report
            })
            .await;
    }
    assert!(applied(&bench.view).contains(&"other"), "{report} reports");
}

#[tokio::test]
async fn a_peer_that_flaps_costs_few_reads_and_is_followed() {
    let config = ApiConfig {
        read_every: Duration::from_millis(200),
        ..all_nodes()
    };
    let began = Instant::now();
    let mut bench = started(config, StreamingList::Served).await;
    for change in 0..300 {
        let address = format!("192.0.2.{}", 10 + change % 100);
        bench.api.apply(node("other", &address, 0)).unwrap();
    }
    bench.api.apply(node("other", "192.0.2.200", 0)).unwrap();
    // Others are not kept waiting.
    bench.api.apply(node("this", "192.0.2.1", 1)).unwrap();
    bench
        .until("this node's change", |view| applied(view).contains(&"this"))
        .await;
    bench
        .until("the last address", |view| published(view, "192.0.2.200"))
        .await;
    let reads = bench.seen(Resource::Nodes, Verb::Get);
    let of_this = 1;
    let most = READS_AT_ONCE as usize + of_this + began.elapsed().as_millis() as usize / 200 + 1;
    assert!(reads.len() <= most && most < 150, "{} reads", reads.len());
}

#[tokio::test]
async fn contended_nodes_are_read_at_once_and_at_each_change() {
    let (contended, receiver) = tokio::sync::watch::channel(Default::default());
    let config = ApiConfig {
        contended: Some(receiver),
        ..all_nodes()
    };
    let mut bench = started(config, StreamingList::Served).await;
    let reads = |view: &WatchView| {
        applied(view)
            .iter()
            .filter(|name| **name == "other")
            .count()
    };
    contended.send_replace(["other".into()].into());
    bench.until("it is read", |view| reads(view) == 1).await;
    bench.api.apply(node("other", "192.0.2.1", 1)).unwrap();
    bench.until("its report", |view| reads(view) == 2).await;
    contended.send_replace(Default::default());
    bench.api.apply(node("other", "192.0.2.1", 2)).unwrap();
    bench.api.apply(node("this", "192.0.2.1", 1)).unwrap();
    bench
        .until("what comes after", |view| applied(view).contains(&"this"))
        .await;
    assert_eq!(reads(&bench.view), 2);
}

#[tokio::test]
async fn a_hung_watch_is_renewed_while_contended_nodes_are_read() {
    let (contended, receiver) = tokio::sync::watch::channel(Default::default());
    let config = ApiConfig {
        // A contended Node is read again after six times this, which is less than the silence.
        read_every: Duration::from_millis(50),
        watch_silence: Duration::from_secs(1),
        contended: Some(receiver),
        ..all_nodes()
    };
    let mut bench = started(config, StreamingList::Served).await;
    let watches = |api: &FakeApi| {
        let seen = api.seen().into_iter();
        seen.filter(|seen| seen.resource == Resource::Nodes && seen.verb == Verb::Watch)
            .count()
    };
    contended.send_replace(["other".into()].into());
    bench
        .until("it is read", |view| applied(view) == ["other"])
        .await;
    let (before, reads) = (watches(&bench.api), bench.view.applied_nodes.len());
    bench.inject(Injection::once(Fault::HangAfter(0)).of(Resource::Nodes, Verb::Watch));
    bench.api.break_connections();
    bench
        .until_seen("a watch that hangs", |api| watches(api) > before)
        .await;
    bench.api.apply(node("this", "192.0.2.1", 1)).unwrap();
    bench
        .until("the change", |view| applied(view).contains(&"this"))
        .await;
    let of_other = applied(&bench.view)[reads..]
        .iter()
        .filter(|name| **name == "other")
        .count();
    assert!(of_other >= 2, "{of_other} reads interrupted the silence");
}

#[tokio::test]
async fn metadata_that_cannot_be_decoded_are_named() {
    let mut bench = started(all_nodes(), StreamingList::Served).await;
    let mut bad = node("other", "", 0);
    bad["metadata"]["annotations"] = "none".into();
    bench.api.apply(bad).unwrap();
    bench
        .until("the problem", |view| !view.problems.is_empty())
        .await;
    let invalid = bench.view.problems[0].invalid().unwrap();
    assert_eq!(
        (&*invalid.object.name, invalid.field.as_str()),
        ("other", "metadata.annotations")
    );
    assert_eq!(
        bench.view.nodes,
        ["other", "this"],
        "a problem takes nothing away"
    );
    assert!(bench.seen(Resource::Nodes, Verb::Get).is_empty());
}
