//! Nodes that lose their API server together.

use std::time::{Duration, Instant};

use lab::fake_api::{FakeApi, Seen};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::harness::{service, unobserved};
use crate::api::{self, ApiConfig, ServerSource};
use crate::{Events, SourceEvent};

const NODES: usize = 50;
/// Watched by each: Services, EndpointSlices, its own Node, ServiceCIDRs.
const KINDS: usize = 4;
/// No part of the fleet may return in so short a time that the server has to serve most at once.
const MOMENT: Duration = Duration::from_millis(200);

/// Receives of a node until this Service is there and all kinds are connected.
async fn until_there(events: &mut Events, wanted: &str) {
    let (mut connected, mut is_there) = (0, false);
    while connected < KINDS || !is_there {
        match events.recv().await.expect("the source runs") {
            SourceEvent::Service(event) => {
                is_there |= match event {
                    service_model::ObjectEvent::Apply(one) => &*one.name.name == wanted,
                    service_model::ObjectEvent::Reset { objects, .. } => {
                        objects.iter().any(|one| &*one.name.name == wanted)
                    }
                    service_model::ObjectEvent::Delete(_) => false,
                };
            }
            SourceEvent::Connection { state: Ok(()), .. } => connected += 1,
            _ => {}
        }
    }
}

/// Receives of a node until it has failed to connect several times for each kind.
async fn until_away(events: &mut Events) {
    let mut failed = 0;
    while failed < 3 * KINDS {
        if let SourceEvent::Connection { state: Err(_), .. } =
            events.recv().await.expect("the source runs")
        {
            failed += 1;
        }
    }
}

/// The largest number of these requests within [`MOMENT`].
fn at_once(requests: &[Seen]) -> usize {
    let count = |from: Instant| {
        let within = requests
            .iter()
            .filter(|one| one.at >= from && one.at < from + MOMENT);
        within.count()
    };
    requests.iter().map(|one| count(one.at)).max().unwrap_or(0)
}

/// With the default pauses. Returns how many lists the nodes asked for when their server was back.
async fn lists_after_an_outage(server_forgets: bool) -> usize {
    let api = FakeApi::start().unwrap();
    api.apply(serde_json::json!({ "kind": "Node", "metadata": { "name": "this" } }))
        .unwrap();
    api.apply(service("first")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    api.kubeconfig(&path).unwrap();
    let cancel = CancellationToken::new();
    let mut fleet = Vec::new();
    for _ in 0..NODES {
        let source = ServerSource {
            kubeconfig: Some(path.clone()),
            ..ServerSource::default()
        };
        let client = api::connect(&source, unobserved()).await.unwrap().reader;
        let (sender, events) = mpsc::channel(64);
        let (name, config) = ("this".to_owned(), ApiConfig::default());
        tokio::spawn(api::run(client, name, config, sender, cancel.clone()));
        fleet.push(events);
    }
    for events in &mut fleet {
        until_there(events, "first").await;
    }
    api.set_reachable(false);
    api.break_connections();
    for events in &mut fleet {
        until_away(events).await;
    }
    api.apply(service("second")).unwrap();
    if server_forgets {
        api.compact();
        api.advance(5);
        api.compact();
    }
    let before = api.seen().len();
    api.set_reachable(true);
    for events in &mut fleet {
        until_there(events, "second").await;
    }
    cancel.cancel();
    let requests = api.seen().split_off(before);
    let lists = requests.iter().filter(|one| one.is_whole_list());
    let (lists, most) = (lists.count(), at_once(&requests));
    let [first, .., last] = &requests[..] else {
        panic!("no requests");
    };
    println!(
        "{NODES} nodes return in {:?}: {} requests, {lists} lists, at most {most} requests in {MOMENT:?}",
        last.at - first.at,
        requests.len(),
    );
    assert!(most <= requests.len() / 3, "{most} of {}", requests.len());
    lists
}

#[tokio::test]
async fn nodes_return_without_a_list_when_their_server_is_back() {
    assert_eq!(lists_after_an_outage(false).await, 0);
}

#[tokio::test]
async fn nodes_list_each_kind_once_after_their_server_forgot() {
    assert!(lists_after_an_outage(true).await <= NODES * KINDS);
}
