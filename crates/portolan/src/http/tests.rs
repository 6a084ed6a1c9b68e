use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use service_model::ObjectKind;
use socket2::{Domain, Socket, Type};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Addresses, Ports, Sources, start};

use crate::configz::Configz;
use crate::events::Recorder;
use crate::metrics::Metrics;
use crate::parts::{Ends, parts};
use crate::published::Published;
use crate::status::{Adopted, Status};

/// Without an overlay, and without an API server: Events are dropped.
fn sources() -> Sources {
    let flags: &[&str] = &[];
    let line =
        kube_proxy_config::CommandLine::read(kube_proxy_config::Dialect::KubeProxy, flags, |_| {
            None
        });
    let documents = line.resolve(None).unwrap().documents();
    let published = Published::new(Configz::new(documents), Metrics::new());
    let parts = parts(CancellationToken::new()).0;
    Sources {
        published: Published {
            status: Some(Arc::default()),
            ..published
        },
        recorder: Recorder::start(&parts, None, "node-a".into()),
        questions: None,
        debug_flags: true,
    }
}

struct Server {
    sources: Sources,
    cancel: CancellationToken,
    ports: Ports,
    ends: Option<Ends>,
}

impl Server {
    fn start() -> Server {
        Server::of(sources())
    }

    fn without_debug_flags() -> Server {
        Server::of(Sources {
            debug_flags: false,
            ..sources()
        })
    }

    fn of(sources: Sources) -> Server {
        let cancel = CancellationToken::new();
        let any = Some("127.0.0.1:0".parse().unwrap());
        let (parts, ends) = parts(cancel.clone());
        let addresses = Addresses {
            health: any,
            metrics: any,
            hard_fail: false,
        };
        let ports = start(&parts, addresses, sources.clone()).unwrap();
        Server {
            sources,
            cancel,
            ports,
            ends: Some(ends),
        }
    }

    fn health(&self) -> SocketAddr {
        bound(&self.ports.health)
    }

    fn metrics(&self) -> SocketAddr {
        bound(&self.ports.metrics)
    }

    fn publish(&self, status: Status) {
        let published = self.sources.published.status.as_ref().unwrap();
        published.store(Arc::new(status));
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.cancel.cancel();
        let ended = self.ends.take().unwrap().wait();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(ended).unwrap();
    }
}

/// Waits until the port is bound.
fn bound(address: &watch::Receiver<Option<SocketAddr>>) -> SocketAddr {
    let mut address = address.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async {
            tokio::time::timeout(Duration::from_secs(5), address.wait_for(Option::is_some)).await
        })
        .expect("the port is bound in time")
        .unwrap()
        .unwrap()
}

/// Sends raw bytes, reads until the server closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn get(address: SocketAddr, path: &str) -> String {
    exchange(
        address,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

fn code(response: &str) -> u16 {
    response.split(' ').nth(1).unwrap().parse().unwrap()
}

fn synced() -> Status {
    Status {
        synced: true,
        node_eligible: true,
        ..Status::default()
    }
}

#[test]
fn probes_follow_the_published_status() {
    let server = Server::start();
    let address = server.health();
    server.publish(Status {
        waiting_for: vec![ObjectKind::Node, ObjectKind::ServiceCidr],
        ..Status::default()
    });
    assert_eq!(code(&get(address, "/healthz")), 503);
    assert_eq!(code(&get(address, "/livez")), 200);
    let ready = get(address, "/readyz");
    assert_eq!(code(&ready), 503);
    assert!(ready.contains("Node, ServiceCIDR"), "{ready}");

    server.publish(synced());
    for path in ["/healthz", "/healthz?verbose", "/livez", "/readyz"] {
        assert_eq!(code(&get(address, path)), 200, "{path}");
    }

    let long_ago = Instant::now().checked_sub(Duration::from_secs(61)).unwrap();
    server.publish(Status {
        pending_since: Some(long_ago),
        ..synced()
    });
    assert_eq!(code(&get(address, "/healthz")), 503);
    assert_eq!(code(&get(address, "/livez")), 503);
}

#[test]
fn adopted_tables_pass_healthz_with_their_age_but_not_readyz() {
    let server = Server::start();
    let address = server.health();
    for (synced_at, words) in [
        (Some(SystemTime::UNIX_EPOCH), "last in sync"),
        (None, "of unknown age"),
    ] {
        server.publish(Status {
            waiting_for: vec![ObjectKind::Service],
            node_eligible: true,
            adopted: Some(Adopted { synced_at }),
            ..Status::default()
        });
        let response = get(address, "/healthz");
        assert_eq!(code(&response), 200, "{response}");
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["healthy"], true);
        assert_eq!(
            body["adopted"]["ageSeconds"].is_u64(),
            synced_at.is_some(),
            "{body}"
        );
        let ready = get(address, "/readyz");
        assert_eq!(code(&ready), 503, "{ready}");
        assert!(ready.contains("waiting for the first list of Service;"));
        assert!(ready.contains(words), "{ready}");
    }
    server.publish(Status {
        adopted: Some(Adopted { synced_at: None }),
        ..synced()
    });
    let response = get(address, "/healthz");
    assert!(!response.contains("adopted"), "{response}");
}

#[test]
fn the_body_of_healthz_has_kube_proxys_keys() {
    let server = Server::start();
    server.publish(Status {
        synced_at: Some(SystemTime::UNIX_EPOCH),
        ..synced()
    });
    for (path, eligible) in [("/healthz", json!(true)), ("/livez", Value::Null)] {
        let response = get(server.health(), path);
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        let head = head.to_lowercase();
        for header in [
            "content-type: application/json",
            "x-content-type-options: nosniff",
        ] {
            assert!(head.lines().any(|line| line == header), "{head}");
        }
        let body: Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["healthy"], true);
        assert_eq!(body["nodeEligible"], eligible);
        for key in ["lastUpdated", "currentTime"] {
            let time = body[key].as_str().unwrap();
            let time: k8s_openapi::jiff::Timestamp = time.parse().unwrap();
            assert!(time.as_second() > 0, "{key} is as new as the question");
        }
        let family = json!({ "lastUpdated": "1970-01-01T00:00:00Z", "healthy": true });
        assert_eq!(body["status"], json!({ "IPv4": family, "IPv6": family }));
    }
}

#[test]
fn a_node_that_is_to_go_is_alive_but_not_for_load_balancers() {
    let server = Server::start();
    server.publish(Status {
        node_eligible: false,
        ..synced()
    });
    let response = get(server.health(), "/healthz");
    assert_eq!(code(&response), 503);
    let (_, body) = response.split_once("\r\n\r\n").unwrap();
    let body: Value = serde_json::from_str(body).unwrap();
    assert_eq!(body["nodeEligible"], false);
    assert_eq!(body["healthy"], true, "said of the proxy");
    assert_eq!(code(&get(server.health(), "/livez")), 200);
}

#[test]
fn metrics_have_prometheus_format_unless_openmetrics_is_wanted() {
    let server = Server::start();
    let text = get(server.metrics(), "/metrics");
    for part in [
        "text/plain; version=0.0.4",
        "\n# TYPE kubeproxy_sync_proxy_rules_service_changes_total counter\n",
        "\n# TYPE portolan_build_info gauge\n",
        "\nprocess_resident_memory_bytes ",
    ] {
        assert!(text.contains(part), "{part:?} not in {text}");
    }
    assert!(!text.contains("# EOF"), "{text}");
    // A family that appears twice is refused by Prometheus.
    let families: Vec<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .collect();
    let different: std::collections::BTreeSet<_> = families.iter().collect();
    assert_eq!(different.len(), families.len());
}

#[test]
fn metrics_are_openmetrics_text_and_count_the_probes() {
    let server = Server::start();
    assert_eq!(code(&get(server.health(), "/healthz")), 503);
    let accept = "application/openmetrics-text; version=1.0.0";
    let request = format!(
        "GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\nConnection: close\r\n\r\n"
    );
    let response = exchange(server.metrics(), &request);
    assert!(response.contains(accept), "{response}");
    assert!(
        response.contains("kubeproxy_proxy_healthz_total{code=\"503\"} 1"),
        "{response}"
    );
    assert!(response.ends_with("# EOF\n"), "{response}");
    assert!(get(server.metrics(), "/proxyMode").ends_with("\r\n\r\nnftables"));
    assert_eq!(code(&get(server.metrics(), "/healthz")), 200);
    let slis = get(server.metrics(), "/metrics/slis");
    for series in [
        "\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n",
        "\nkubernetes_healthchecks_total{name=\"ping\",status=\"success\",type=\"healthz\"} 1\n",
    ] {
        assert!(slis.contains(series), "{series} not in {slis}");
    }
}

#[test]
fn only_get_and_head_of_known_paths_are_answered() {
    let server = Server::start();
    server.publish(synced());
    let address = server.health();
    assert_eq!(code(&get(address, "/metrics")), 404);
    assert_eq!(code(&get(address, "/healthz/")), 404);
    let post = exchange(
        address,
        "POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(code(&post), 405);
    let head = exchange(
        address,
        "HEAD /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    );
    assert_eq!(code(&head), 200);
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    assert_eq!(code(&exchange(address, "nonsense\r\n\r\n")), 400);
}

#[test]
fn only_a_verbosity_from_this_node_changes_the_log() {
    let mut server = Server::start();
    let send = |to, head: &str, body: &str| {
        let length = body.len();
        let request = format!(
            "{head} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        code(&exchange(
            to,
            &request.replacen(" HTTP/1.1", " HTTP/1.1\r\nHost: 127.0.0.1", 1),
        ))
    };
    let to = server.metrics();
    assert!(get(to, "/statusz").ends_with(" /debug/flags/v\n"));
    assert_eq!(send(to, "GET /debug/flags/", ""), 200);
    assert_eq!(send(to, "GET /debug/flags/v", ""), 406);
    assert_eq!(send(to, "POST /debug/flags/v", "4"), 406);
    assert_eq!(send(to, "OPTIONS /debug/flags/v", ""), 406);
    assert_eq!(send(to, "PUT /debug/flags/vmodule", "4"), 405);
    for body in ["", "debug", "-1", "99999999999"] {
        assert_eq!(send(to, "PUT /debug/flags/v", body), 400, "{body}");
    }
    let long = "4".repeat(100_000);
    assert_eq!(send(to, "PUT /debug/flags/v", &long), 400);
    assert_eq!(send(server.health(), "PUT /debug/flags/v", "4"), 405);
    let foreign = exchange(
        to,
        "PUT /debug/flags/v HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\nContent-Length: 1\r\n\r\n4",
    );
    assert_eq!(code(&foreign), 403);
    server = Server::without_debug_flags();
    let to = server.metrics();
    assert_eq!(send(to, "PUT /debug/flags/v", "4"), 405);
    assert_eq!(send(to, "GET /debug/flags/v", ""), 404);
}

#[test]
fn a_client_that_never_ends_its_headers_is_cut_off() {
    let server = Server::start();
    server.publish(synced());
    let address = server.health();
    let mut slow = TcpStream::connect(address).unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHost").unwrap();
    assert_eq!(code(&get(address, "/healthz")), 200);
    slow.set_read_timeout(Some(Duration::from_secs(8))).unwrap();
    let mut rest = Vec::new();
    // Closed (with or without an answer), not timed out.
    slow.read_to_end(&mut rest).unwrap();
}

/// A connection from this loopback address.
fn connect(from: [u8; 4], to: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    socket.into()
}

/// The answer to a probe, and the time until it was there.
fn probe(from: [u8; 4], to: SocketAddr) -> (u16, Duration) {
    let start = Instant::now();
    let mut stream = connect(from, to);
    // Shorter than any time-out of a silent connection: a place is made, not waited for.
    let limit = Some(Duration::from_secs(1));
    stream.set_read_timeout(limit).unwrap();
    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    stream.write_all(request).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    (code(&response), start.elapsed())
}

#[test]
fn probes_are_answered_at_once_whatever_others_hold() {
    const HELD: usize = 10_000;
    const PROBER: [u8; 4] = [127, 9, 9, 9];
    // The usual soft limit is 1024.
    let own = std::process::id().to_string();
    let mut raise = std::process::Command::new("prlimit");
    raise.args(["--nofile=16384:", "--pid", &own]);
    assert!(raise.status().unwrap().success());
    let server = Server::start();
    server.publish(synced());
    let address = server.health();
    let whole: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
    // Silent, slow, keep-alive and garbage.
    let begun = [b"", &whole[..18], whole, b"\x16\x03\x01\xff\r\n\0"];
    let mut held = Vec::with_capacity(HELD);
    let mut slowest = Duration::ZERO;
    for n in 0..HELD {
        let [.., high, low] = u32::try_from(n).unwrap().to_be_bytes();
        // From one address, from many, and half of all from the prober's own.
        let from = match n % 4 {
            0 => [127, 0, 0, 1],
            1 => [127, 1, high, low.max(1)],
            _ => PROBER,
        };
        let mut stream = connect(from, address);
        // The server may have closed the connection already.
        let _ = stream.write_all(begun[n / 4 % begun.len()]);
        held.push(stream);
        if n % 20 == 0 {
            let (code, elapsed) = probe(PROBER, address);
            assert_eq!(code, 200, "with {n} connections");
            slowest = slowest.max(elapsed);
        }
    }
    eprintln!("slowest of {} probes: {slowest:?}", HELD / 20);
    drop(held);
}

#[test]
fn a_taken_port_is_bound_as_soon_as_it_is_free() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let cancel = CancellationToken::new();
    let (parts, _) = parts(cancel.clone());
    let addresses = Addresses {
        metrics: Some(address),
        ..Addresses::default()
    };
    let ports = start(&parts, addresses, sources()).unwrap();
    drop(taken);
    assert_eq!(bound(&ports.metrics), address);
    assert_eq!(code(&get(address, "/proxyMode")), 200);
    assert_eq!(*ports.health.borrow(), None);
    cancel.cancel();
}
