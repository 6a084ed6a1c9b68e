//! The fake server through a plain HTTP client: the answers are those of a real API server.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use serde_json::json;

use super::*;

fn service(name: &str) -> Value {
    json!({ "kind": "Service", "metadata": { "namespace": "default", "name": name }, "spec": { "clusterIP": "10.0.0.1" } })
}

async fn send(address: SocketAddr, path: &str) -> http::Response<Incoming> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get(path)
        .header("host", "fake")
        .body(Empty::<bytes::Bytes>::new())
        .unwrap();
    sender.send_request(request).await.unwrap()
}

/// Status, and the whole body as JSON.
async fn get(api: &FakeApi, path: &str) -> (u16, Value) {
    let response = send(api.address(), path).await;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// A watch, event by event.
struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    async fn open(api: &FakeApi, query: &str) -> Self {
        let response = send(api.address(), &format!("/api/v1/services?watch=1&{query}")).await;
        assert_eq!(response.status(), 200);
        Events {
            body: response.into_body(),
            buffer: Vec::new(),
        }
    }

    /// Type, name and version of the next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<(String, String, u64)> {
        let event = self.event().await?;
        let text = |pointer| {
            let text = event.pointer(pointer).and_then(Value::as_str);
            text.unwrap_or_default().to_owned()
        };
        let version = text("/object/metadata/resourceVersion")
            .parse()
            .unwrap_or_default();
        Some((text("/type"), text("/object/metadata/name"), version))
    }

    /// The next event as it is; `None` at the end of the stream.
    async fn event(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(Duration::from_secs(5), self.body.frame())
                .await
                .expect("an event");
            self.buffer
                .extend_from_slice(&frame?.ok()?.into_data().ok()?);
        }
    }

    async fn expect(&mut self, kind: &str, name: &str) -> u64 {
        let (found, found_name, version) = self.next().await.expect("an event, not the end");
        assert_eq!((found.as_str(), found_name.as_str()), (kind, name));
        version
    }
}

#[tokio::test]
async fn pages_of_a_list_are_one_snapshot() {
    let api = FakeApi::start().unwrap();
    api.apply_all(["a", "b", "c", "d", "e"].map(service))
        .unwrap();
    let (status, first) = get(&api, "/api/v1/services?limit=2").await;
    assert_eq!(status, 200);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    api.delete(Resource::Services, "default", "c");
    api.apply(service("z")).unwrap();

    let mut names = Vec::new();
    let mut page = first.clone();
    loop {
        names.extend(
            page["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()),
        );
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        page = get(&api, &format!("/api/v1/services?limit=2&continue={token}"))
            .await
            .1;
    }
    assert_eq!(names, ["a", "b", "c", "d", "e"]);

    let token = first["metadata"]["continue"].as_str().unwrap();
    api.compact();
    let (status, refusal) = get(&api, &format!("/api/v1/services?limit=2&continue={token}")).await;
    assert_eq!((status, &refusal["reason"]), (410, &json!("Expired")));
}

#[tokio::test]
async fn a_resumed_watch_sees_selected_changes_only() {
    let api = FakeApi::start().unwrap();
    let from = api.apply(service("a")).unwrap();
    let other = api.apply(service("b")).unwrap();
    let mut events = Events::open(
        &api,
        &format!("resourceVersion={from}&labelSelector=%21hidden"),
    )
    .await;
    assert_eq!(events.expect("ADDED", "b").await, other);
    let mut hidden = service("b");
    hidden["metadata"]["labels"] = json!({ "hidden": "" });
    let version = api.apply(hidden).unwrap();
    assert_eq!(events.expect("DELETED", "b").await, version);
    api.apply(service("b")).unwrap();
    events.expect("ADDED", "b").await;
    api.apply(service("b")).unwrap();
    events.expect("MODIFIED", "b").await;
    api.delete(Resource::Services, "default", "b");
    assert_eq!(events.expect("DELETED", "b").await, api.version());
}

#[tokio::test]
async fn a_watch_deletes_the_version_it_knew_when_selection_ends() {
    let api = FakeApi::start().unwrap();
    let from = api.apply(service("a")).unwrap();
    let query = format!("resourceVersion={}&labelSelector=%21hidden", from - 1);
    let mut events = Events::open(&api, &query).await;
    events.expect("ADDED", "a").await;
    let mut changed = service("a");
    changed["metadata"]["labels"] = json!({ "hidden": "" });
    changed["spec"]["clusterIP"] = "10.0.0.2".into();
    let version = api.apply(changed).unwrap();
    // As a real watch cache does: kube-proxy takes back what the event says, not what it had.
    let event = events.event().await.unwrap();
    assert_eq!(event["type"], "DELETED");
    assert_eq!(event["object"]["spec"]["clusterIP"], "10.0.0.1");
    let stamp = &event["object"]["metadata"]["resourceVersion"];
    assert_eq!(stamp, &json!(version.to_string()));
}

#[tokio::test]
async fn field_selectors_exclude_headless_services() {
    let api = FakeApi::start().unwrap();
    let mut headless = service("headless");
    headless["spec"]["clusterIP"] = "None".into();
    let mut external = service("external");
    external["spec"] = json!({ "type": "ExternalName" });
    api.apply_all([headless, service("plain"), external])
        .unwrap();
    // As kube-proxy asks since 1.36.
    let path = "/api/v1/services?fieldSelector=spec.clusterIP%21%3DNone";
    let (status, list) = get(&api, path).await;
    let items = list["items"].as_array().unwrap();
    let names: Vec<&Value> = items.iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(
        (status, names),
        (200, vec![&json!("external"), &json!("plain")])
    );
    assert_eq!(
        get(&api, "/api/v1/services?fieldSelector=spec.type%3DNone")
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark_and_continues() {
    let api = FakeApi::start().unwrap();
    api.apply_all(["a", "b"].map(service)).unwrap();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1";
    let mut events = Events::open(&api, query).await;
    events.expect("ADDED", "a").await;
    events.expect("ADDED", "b").await;
    assert_eq!(events.expect("BOOKMARK", "").await, api.version());
    api.apply(service("c")).unwrap();
    events.expect("ADDED", "c").await;
    assert_eq!(events.next().await, None, "timeoutSeconds ends the watch");

    api.set_streaming_list(StreamingList::Refused);
    assert_eq!(
        get(&api, &format!("/api/v1/services?watch=1&{query}"))
            .await
            .0,
        422
    );
}

#[tokio::test]
async fn bookmarks_carry_versions_that_passed_without_events() {
    let api = FakeApi::start().unwrap();
    api.set_bookmark_interval(Duration::from_millis(5));
    let from = api.version();
    let mut events = Events::open(
        &api,
        &format!("resourceVersion={from}&allowWatchBookmarks=true"),
    )
    .await;
    events.expect("BOOKMARK", "").await;
    api.advance(7);
    while events.expect("BOOKMARK", "").await < from + 7 {}
}

#[tokio::test]
async fn a_watch_from_a_forgotten_version_is_answered_with_410() {
    let api = FakeApi::start().unwrap();
    let from = api.version();
    api.apply(service("a")).unwrap();
    api.compact();
    let path = format!("/api/v1/services?watch=1&resourceVersion={from}");
    assert_eq!(get(&api, &path).await.0, 410);
    let from = api.version();
    let mut events = Events::open(&api, &format!("resourceVersion={from}")).await;
    api.apply(service("b")).unwrap();
    events.expect("ADDED", "b").await;
}

#[tokio::test]
async fn a_broken_watch_sees_nothing_that_comes_later() {
    let api = FakeApi::start().unwrap();
    for _ in 0..200 {
        let from = api.version();
        let mut events = Events::open(&api, &format!("resourceVersion={from}")).await;
        api.break_connections();
        api.apply(service("late")).unwrap();
        assert_eq!(events.next().await, None);
    }
}

#[tokio::test]
async fn expired_watches_cannot_go_on_from_a_late_bookmark() {
    let api = FakeApi::start().unwrap();
    api.set_bookmark_interval(Duration::from_millis(1));
    for _ in 0..200 {
        let mut last = api.version();
        let query = format!("resourceVersion={last}&allowWatchBookmarks=true");
        let mut events = Events::open(&api, &query).await;
        events.expect("BOOKMARK", "").await;
        api.expire_watches();
        while let Some((_, _, version)) = events.next().await {
            last = version;
        }
        let path = format!("/api/v1/services?watch=1&resourceVersion={last}");
        assert_eq!(send(api.address(), &path).await.status(), 410);
    }
}

#[tokio::test]
async fn a_watch_from_the_future_is_silent_after_a_restore() {
    let api = FakeApi::start().unwrap();
    api.apply(service("a")).unwrap();
    let backup = api.backup();
    let late = (0..5)
        .map(|_| api.apply(service("a")).unwrap())
        .max()
        .unwrap();
    api.restore(&backup);
    assert!(api.version() < late);
    let mut events = Events::open(&api, &format!("resourceVersion={late}")).await;
    api.apply(service("unseen")).unwrap();
    api.advance(10);
    api.apply(service("seen")).unwrap();
    events.expect("ADDED", "seen").await;
}

#[tokio::test]
async fn injected_faults_affect_only_the_requests_they_name() {
    let api = FakeApi::start().unwrap();
    api.apply_all((0..50).map(|i| service(&format!("s{i}"))))
        .unwrap();
    api.inject(
        Injection::once(Fault::Status {
            code: 429,
            retry_after: Some(3),
        })
        .on(Resource::Nodes),
    );
    assert_eq!(get(&api, "/api/v1/services").await.0, 200);
    let refused = send(api.address(), "/api/v1/nodes").await;
    assert_eq!(
        (refused.status().as_u16(), &refused.headers()["retry-after"]),
        (429, &"3".parse().unwrap())
    );
    assert_eq!(get(&api, "/api/v1/nodes").await.0, 200);

    for (fault, broken) in [
        (Fault::CutAfter(1000), true),
        (Fault::EndAfter(1000), false),
    ] {
        api.inject(Injection::once(fault));
        let mut body = send(api.address(), "/api/v1/services").await.into_body();
        let mut bytes = 0;
        let error = loop {
            match body.frame().await {
                Some(Ok(frame)) => bytes += frame.into_data().unwrap().len(),
                Some(Err(_)) => break true,
                None => break false,
            }
        };
        assert_eq!((bytes, error), (1000, broken), "{fault:?}");
    }

    api.inject(Injection::once(Fault::HangAfter(10)));
    let mut body = send(api.address(), "/api/v1/services").await.into_body();
    assert_eq!(
        body.frame()
            .await
            .unwrap()
            .unwrap()
            .into_data()
            .unwrap()
            .len(),
        10
    );
    assert!(
        tokio::time::timeout(Duration::from_millis(50), body.frame())
            .await
            .is_err()
    );
    api.break_connections();
    assert!(body.frame().await.unwrap().is_err());

    assert_eq!(get(&api, "/api/v1/secrets").await.0, 403);
    api.require_token(Some("planted"));
    assert_eq!(get(&api, "/api/v1/nodes").await.0, 401);
    assert_eq!((api.seen().len(), api.counts().forbidden), (7, 1));
}

#[tokio::test]
async fn a_seed_repeats_the_random_faults() {
    let run = async |seed| {
        let api = FakeApi::start().unwrap();
        api.apply(service("a")).unwrap();
        api.inject_randomly(seed, 0.5);
        let mut statuses = Vec::new();
        for _ in 0..40 {
            let request = tokio::time::timeout(
                Duration::from_secs(5),
                send(api.address(), "/api/v1/services"),
            );
            statuses.push(request.await.unwrap().status().as_u16());
        }
        statuses
    };
    let first = run(7).await;
    assert_eq!(first, run(7).await);
    assert_ne!(first, run(8).await);
    assert!(first.contains(&200) && first.iter().any(|&status| status != 200));
}

#[tokio::test]
async fn ten_thousand_slices_of_ten_endpoints_are_listed_in_seconds() {
    let api = FakeApi::start().unwrap();
    let endpoint =
        json!({ "addresses": ["10.1.2.3"], "conditions": { "ready": true }, "nodeName": "node-1" });
    let slice = |i: usize| {
        json!({
            "kind": "EndpointSlice", "addressType": "IPv4", "ports": [{ "port": 80 }],
            "metadata": { "namespace": "default", "name": format!("slice-{i}") },
            "endpoints": vec![endpoint.clone(); 10],
        })
    };
    api.apply_all((0..10_000).map(slice)).unwrap();
    let began = Instant::now();
    let response = send(api.address(), Resource::EndpointSlices.path()).await;
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    assert!(bytes.len() > 5_000_000);
    assert_eq!(api.counts().bytes, bytes.len() as u64);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "took {:?}",
        began.elapsed()
    );
}
