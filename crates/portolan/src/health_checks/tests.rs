use std::net::Ipv4Addr;
use std::time::Duration;

use arc_swap::ArcSwap;
use serde_json::{Value, json};
use service_dataplane::SyncOutcome;
use service_model::{Node, NodeConfig, NodeFacts, NodePortAddress, ServiceIntent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::metrics::Format;
use crate::status::Status;

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Stage {
    announcer: Announcer,
    status: Arc<SharedStatus>,
    metrics: Arc<Metrics>,
    /// Ends the listeners when dropped.
    _cancel: tokio_util::sync::DropGuard,
}

fn stage() -> Stage {
    let status = Arc::new(ArcSwap::from_pointee(Status {
        synced: true,
        ..Status::default()
    }));
    let metrics = Arc::new(Metrics::new());
    let cancel = CancellationToken::new();
    let (parts, _) = crate::parts::parts(cancel.clone());
    let reports = HealthReports {
        status: status.clone(),
        metrics: metrics.clone(),
        recorder: Recorder::start(&parts, None, "node-a".into()),
    };
    let config = NodeConfig {
        nodeport_addresses: vec![NodePortAddress::Primary],
        ..NodeConfig::named("node-a")
    };
    Stage {
        announcer: start(
            &parts,
            &Handle::current(),
            tokio::sync::watch::channel(config).1,
            reports,
        ),
        status,
        metrics,
        _cancel: cancel.drop_guard(),
    }
}

impl Stage {
    /// Does what the control loop does: plans and commits.
    fn commit(&mut self, updates: &[Update]) {
        self.announcer.planned(updates);
        let node = Node::unknown(Arc::from("node-a"));
        let mut facts = NodeFacts::resolve(&NodeConfig::named("node-a"), &node, &[], &[]);
        facts.node_addresses = vec![LOCALHOST];
        self.announcer.committed(&Commit {
            pending: false,
            outcome: &SyncOutcome::default(),
            facts: &facts,
            full: false,
            elapsed: Duration::ZERO,
            triggers: &[],
        });
    }
}

fn name(service: &str) -> ObjectName {
    ObjectName::new("default", service)
}

fn update(service: &str, check: Option<(u16, usize)>) -> Update {
    Update::from(ServiceIntent {
        service: name(service),
        created: None,
        frontends: Vec::new(),
        load_balancer_ips: Vec::new(),
        relays: Default::default(),
        reset_removed: false,
        health_check: check.map(|(port, local)| HealthCheck {
            port,
            local_endpoints: [(Family::Ip, local)].into(),
        }),
    })
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// The response to a load balancer; `None` when no socket listens.
async fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((LOCALHOST, port)).await.ok()?;
    let request = "GET /any/path HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut response = String::new();
    stream.read_to_string(&mut response).await.ok()?;
    // Closed between the connection and the answer.
    Some(response).filter(|response| !response.is_empty())
}

/// Status code, `localEndpoints` and the name of the Service.
fn read(response: &str) -> (u16, u64, String) {
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    let code = head.split(' ').nth(1).unwrap().parse().unwrap();
    let service = body["service"]["name"].as_str().unwrap().to_owned();
    (code, body["localEndpoints"].as_u64().unwrap(), service)
}

/// Waits until the port gives this answer.
async fn wait_for(port: u16, wanted: Option<(u16, u64, &str)>) {
    let wanted = wanted.map(|(code, local, service)| (code, local, service.to_owned()));
    let asked = async {
        while ask(port).await.as_deref().map(read) != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(10), asked).await;
    assert!(in_time.is_ok(), "{port} never came to {wanted:?}");
}

#[tokio::test]
async fn the_answer_is_kube_proxys_to_the_header() {
    let mut stage = stage();
    let port = free_port();
    stage.commit(&[update("web", Some((port, 2)))]);
    wait_for(port, Some((200, 2, "web"))).await;
    let response = ask(port).await.unwrap();
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    for header in [
        "content-type: application/json",
        "x-content-type-options: nosniff",
        "x-load-balancing-endpoint-weight: 2",
    ] {
        assert!(head.lines().any(|line| line == header), "{head}");
    }
    let body: Value = serde_json::from_str(body).unwrap();
    let wanted = json!({
        "service": { "namespace": "default", "name": "web" },
        "localEndpoints": 2,
        "serviceProxyHealthy": true,
    });
    assert_eq!(body, wanted);
}

#[tokio::test]
async fn no_local_endpoints_or_a_stuck_proxy_answer_503() {
    let mut stage = stage();
    let port = free_port();
    stage.commit(&[update("web", Some((port, 1)))]);
    wait_for(port, Some((200, 1, "web"))).await;
    stage.commit(&[update("web", Some((port, 0)))]);
    wait_for(port, Some((503, 0, "web"))).await;
    stage.commit(&[update("web", Some((port, 1)))]);
    wait_for(port, Some((200, 1, "web"))).await;
    let long_ago = std::time::Instant::now().checked_sub(Duration::from_secs(61));
    stage.status.store(Arc::new(Status {
        pending_since: long_ago,
        ..Status::default()
    }));
    wait_for(port, Some((503, 1, "web"))).await;
}

#[tokio::test]
async fn ports_follow_their_services_and_close_with_them() {
    let mut stage = stage();
    let (first, second) = (free_port(), free_port());
    stage.commit(&[update("web", Some((first, 1))), update("other", None)]);
    wait_for(first, Some((200, 1, "web"))).await;
    // A connection that is kept open does not keep the port.
    let mut kept = TcpStream::connect((LOCALHOST, first)).await.unwrap();
    stage.commit(&[
        update("other", Some((first, 3))),
        update("web", Some((second, 1))),
    ]);
    wait_for(first, Some((200, 3, "other"))).await;
    wait_for(second, Some((200, 1, "web"))).await;
    let ended = kept.read(&mut [0; 16]).await;
    assert!(!matches!(ended, Ok(1..)), "{ended:?}");
    let gone = |service| Update {
        service: name(service),
        intent: None,
    };
    stage.commit(&[gone("web"), update("other", None)]);
    wait_for(first, None).await;
    wait_for(second, None).await;
}

#[tokio::test]
async fn a_taken_port_is_served_once_it_is_free() {
    let mut stage = stage();
    let taken = std::net::TcpListener::bind((LOCALHOST, 0)).unwrap();
    let (port, other) = (taken.local_addr().unwrap().port(), free_port());
    stage.commit(&[
        update("web", Some((port, 1))),
        update("other", Some((other, 1))),
    ]);
    wait_for(other, Some((200, 1, "other"))).await;
    let failures = "portolan_health_check_listen_failures_total 1";
    let reported = || {
        stage
            .metrics
            .encode(Format::Text)
            .lines()
            .any(|line| line == failures)
    };
    assert!(reported());
    drop(taken);
    wait_for(port, Some((200, 1, "web"))).await;
    assert!(reported(), "reported anew at each attempt");
}

#[tokio::test]
async fn the_last_plan_before_a_commit_decides_about_the_port() {
    let mut stage = stage();
    let (port, other) = (free_port(), free_port());
    let good = update("web", Some((port, 1)));
    stage.commit(std::slice::from_ref(&good));
    wait_for(port, Some((200, 1, "web"))).await;
    // As the control loop does after the kernel has refused a Service.
    stage.announcer.planned(&[update("web", Some((other, 2)))]);
    stage.commit(&[good]);
    stage.commit(&[update("other", Some((other, 3)))]);
    wait_for(other, Some((200, 3, "other"))).await;
    wait_for(port, Some((200, 1, "web"))).await;
    stage.commit(&[update("web", None)]);
    wait_for(port, None).await;
}

#[tokio::test]
async fn families_and_missing_addresses_do_not_block_a_bind() {
    for address in ["192.0.2.77:0", "[2001:db8::77]:0"] {
        listen(address.parse().unwrap()).unwrap();
    }
    let v4 = listen("0.0.0.0:0".parse().unwrap()).unwrap();
    let port = v4.local_addr().unwrap().port();
    listen(SocketAddr::new(
        std::net::Ipv6Addr::UNSPECIFIED.into(),
        port,
    ))
    .unwrap();
}
